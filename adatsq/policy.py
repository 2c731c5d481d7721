"""A policy gives every (timestep, layer) its activation bits; applying one makes a pipeline follow it.

Time enters here and nowhere else: a pre-hook on the transformer reads the timestep that the transformer is
called with, finds the policy's row and assigns `a_bits` to each layer. The pipeline and its loop stay as they
are. Activation bits that vary over steps save compute; memory is saved by the weights' bits alone.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torch import nn

from adatsq.arguments import argument_names, bind
from adatsq.files import checksum, write_text
from adatsq.settings import running_guided, usually_guided
from adatsq.trace import Trace, fingerprint

FORMAT_VERSION = 1
NEAR = 0.01  # how far a timestep may be from the policy's, as a part of the largest one
BITS = (2, 3, 4, 5, 6, 7, 8, 16)  # 16: activations left as they are


class LayerShape(NamedTuple):
    """A linear, W (out_features, in_features), and the rows (tokens) of its input per image."""

    name: str
    in_features: int
    out_features: int
    tokens: int


@dataclass(frozen=True, eq=False)
class Policy:
    """bits: int (T, L), the activation bits at timesteps[t] (as the transformer is called) of layers[l].

    model: the `trace.fingerprint` of the transformer it was made for. branches: rows per image in a step of
    the run it was searched on, 2 with guidance; latents: shape of such a row, as the transformer got it; both
    None if not known. ValueError for bits other than 2..8 and 16, timesteps that do not go one way, or shapes
    that do not match.
    """

    timesteps: tuple[float, ...]
    layers: tuple[LayerShape, ...]
    bits: np.ndarray
    model: str
    branches: int | None = None
    latents: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        bits = np.array(self.bits)
        object.__setattr__(self, "timesteps", tuple(float(t) for t in self.timesteps))
        object.__setattr__(self, "layers", tuple(LayerShape(*layer) for layer in self.layers))
        wanted = (len(self.timesteps), len(self.layers))
        if bits.shape != wanted or bits.size == 0:
            raise ValueError(f"bits have shape {bits.shape}, (timesteps, layers) are {wanted}")
        if not np.isin(bits, BITS).all():
            wrong = bits[~np.isin(bits, BITS)][0]
            raise ValueError(f"{wrong} activation bits: a policy can give 2 to 8, or 16 for none")
        if not (np.isfinite(self.timesteps).all() and _one_way(self.timesteps)):
            raise ValueError(f"timesteps must rise or fall throughout, got {self.timesteps}")
        if self.latents is not None:
            object.__setattr__(self, "latents", tuple(int(n) for n in self.latents))
        bits = bits.astype(np.int64)
        bits.setflags(write=False)
        object.__setattr__(self, "bits", bits)

    @classmethod
    def of(cls, trace: Trace, bits: np.ndarray | int) -> "Policy":
        """Bits (T, L), or one number for all, for the activation-quantized layers of the trace's model."""
        layers = act_layers(trace)
        bits = np.broadcast_to(bits, (len(trace.timesteps), len(layers))) if np.ndim(bits) == 0 else bits
        return cls(trace.timesteps, layers, bits, trace.model, trace.branches, trace.form.row)

    @property
    def average(self) -> float:
        """The paper's average: over timesteps and layers, each counting once."""
        return float(self.bits.mean())

    @property
    def parameter_weighted(self) -> float:
        """Average in which a layer counts by its parameters, in_features * out_features."""
        return self._weighted([layer.in_features * layer.out_features for layer in self.layers])

    @property
    def flop_weighted(self) -> float:
        """Average in which a layer counts by its multiplications, tokens * in_features * out_features."""
        return self._weighted(
            [layer.tokens * layer.in_features * layer.out_features for layer in self.layers]
        )

    def _weighted(self, weights: Sequence[int]) -> float:
        return float(np.average(self.bits.mean(0), weights=weights))

    def table(self) -> pd.DataFrame:
        """The bits with index `timestep` and columns `layer`."""
        names = pd.Index([layer.name for layer in self.layers], name="layer")
        return pd.DataFrame(self.bits, index=pd.Index(self.timesteps, name="timestep"), columns=names)

    def check(self, pipe: DiffusionPipeline) -> None:
        """ValueError unless the pipeline's transformer is this policy's model with quantized activations."""
        found = fingerprint(pipe.transformer)
        if found != self.model:
            raise ValueError(
                f"this policy was made for {self.model}, the pipeline holds {found}: search one for it"
            )
        modules = dict(pipe.transformer.named_modules())
        plain = [layer.name for layer in self.layers if not hasattr(modules.get(layer.name), "a_bits")]
        if plain:
            raise ValueError(
                f"{len(plain)} of the policy's {len(self.layers)} layers are not quantized, such as "
                f"{plain[0]}: quantize the pipeline first (adatsq.quantize)"
            )

    def check_steps(self, steps: int) -> None:
        """ValueError for another number of steps than the policy's."""
        if steps != len(self.timesteps):
            raise ValueError(
                f"this policy is for {len(self.timesteps)} steps, the pipeline is set to {steps}: use "
                f"num_inference_steps={len(self.timesteps)}, or search a policy for {steps} steps"
            )

    def check_guidance(self, pipe: DiffusionPipeline) -> None:
        """ValueError if the pipeline's call under way has guidance on where the policy's run had it off, or
        the other way round. A policy that does not know is compared with the model's own settings."""
        now = running_guided(pipe)
        wanted = usually_guided(pipe) if self.branches is None else self.branches > 1
        if None not in (now, wanted) and now != wanted:
            rows = {True: "with guidance (two branches)", False: "without guidance (one branch)"}
            raise ValueError(
                f"this policy is for runs {rows[wanted]}, the pipeline is called {rows[now]}: choose a "
                "guidance_scale as in the search, or search a policy for this run"
            )

    def check_latents(self, shape: Sequence[int]) -> None:
        """ValueError if an image's latents have another shape than in the policy's run, if it knows that."""
        if self.latents is not None and tuple(shape) != self.latents:
            raise ValueError(
                f"this policy is for latents of shape {self.latents}, the pipeline is at "
                f"{tuple(shape)}: call it with the height, width and num_frames of the search (which it may "
                "round), or search a policy for this size"
            )

    def to_dict(self) -> dict:
        """Plain lists and numbers, with a checksum: what the JSON file holds."""
        content = {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "average_bits": self.average,
            "timesteps": list(self.timesteps),
            "layers": [list(layer) for layer in self.layers],
            "bits": self.bits.tolist(),
        }
        if self.branches is not None:
            content["branches"] = self.branches
        if self.latents is not None:
            content["latents"] = list(self.latents)
        return {**content, "sha256": checksum(content)}

    @classmethod
    def from_dict(cls, content: dict, source: str = "this policy") -> "Policy":
        """The inverse of `to_dict`. ValueError for another format, a missing field or anything edited."""
        if not isinstance(content, dict) or not {"format_version", "sha256"} <= content.keys():
            raise ValueError(f"{source} is not a policy: it has no format_version and sha256")
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{source} has format_version {content['format_version']}, this adatsq reads {FORMAT_VERSION}"
            )
        signed = {name: value for name, value in content.items() if name != "sha256"}
        if checksum(signed) != content["sha256"]:
            raise ValueError(
                f"{source} was edited after it was saved (its sha256 does not match): save a new one instead"
            )
        fields = (content[name] for name in ("timesteps", "layers", "bits", "model"))
        return cls(*fields, branches=content.get("branches"), latents=content.get("latents"))

    def save(self, path: str | Path) -> Path:
        """Write JSON, whole or not at all."""
        return write_text(path, json.dumps(self.to_dict()) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """Read what `save` wrote. FileNotFoundError, or ValueError that says what is wrong with the file."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no policy file {path}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # not JSON, or not text
            raise ValueError(f"policy file {path} is damaged: {error}") from error
        return cls.from_dict(content, f"policy file {path}")


def act_layers(trace: Trace) -> list[LayerShape]:
    """The layers whose activations are quantized, which are those that a policy covers."""
    return [
        LayerShape(layer.name, layer.in_features, layer.out_features, trace.tokens[layer.name])
        for layer in trace.layers
        if layer.role == "act"
    ]


def apply(pipe: DiffusionPipeline, policy: Policy) -> "Applied":
    """From now on every run of the pipeline follows the policy; `.remove()` on the result ends that.

    A policy that was applied before is replaced. ValueError if this one is for another model; a run with
    other timesteps raises ValueError when it starts, or at its first timestep that is not due, and a run of
    another size, or with guidance on where the search had it off (or off for on), when it starts. Its bits
    hold for all branches of a step. Flux's second branch, by `true_cfg_scale` and a negative prompt, cannot
    be seen from inside a run: only `settings.call_settings` (`generate`, `record`) notices that one.
    """
    policy.check(pipe)
    if hasattr(pipe.transformer, "_adatsq_applied"):
        pipe.transformer._adatsq_applied.remove()
    return Applied(pipe, policy)


class Applied:
    """The hook that follows a policy, and what it must remember: its row, and the bits there were before."""

    def __init__(self, pipe: DiffusionPipeline, policy: Policy) -> None:
        self.pipe, self.policy = pipe, policy
        self.row, self.last = None, math.nan
        # Where each layer is, not the layer itself: `adatsq.accelerate` may put another in its place.
        names = [layer.name.rpartition(".") for layer in policy.layers]
        self.places = [(pipe.transformer.get_submodule(parent), name) for parent, _, name in names]
        self.before = [getattr(parent, name).a_bits for parent, name in self.places]
        self.hook = pipe.transformer.register_forward_pre_hook(self._follow, with_kwargs=True)
        pipe.transformer._adatsq_policy = policy
        pipe.transformer._adatsq_applied = self

    def remove(self) -> None:
        """Take the policy off and give every layer the bits it had before; a second call does nothing."""
        transformer = self.pipe.transformer
        if getattr(transformer, "_adatsq_applied", None) is self:
            self.hook.remove()
            del transformer._adatsq_policy, transformer._adatsq_applied
            self._assign(self.before)

    def _follow(self, transformer: nn.Module, args: tuple, kwargs: dict) -> None:
        given = bind(transformer, args, kwargs)
        latents, timestep = (given[name] for name in argument_names(transformer))
        eps = torch.finfo(timestep.dtype).eps if timestep.is_floating_point() else 0.0
        row = self._find(float(timestep.flatten()[0]), eps)
        if row == 0:
            self.row = None  # if this run is refused, the next one starts anew
            self.policy.check_guidance(self.pipe)
            self.policy.check_latents(latents[0].shape)
        if row != self.row:
            self._assign(self.policy.bits[row].tolist())
        self.row = row

    def _assign(self, bits: Sequence[int]) -> None:
        for (parent, name), a_bits in zip(self.places, bits):
            module = getattr(parent, name)
            if module.a_bits != a_bits:
                module.a_bits = a_bits

    def _find(self, t: float, eps: float) -> int:
        """Row of timestep t: the last again (guidance calls twice per step), the next, or 0 for a new run.

        Any other timestep is not this policy's. A call in bfloat16 rounds its timestep, so t need only lie
        within NEAR of the run's largest, and within half the gap to its neighbours, or two roundings.
        """
        timesteps = self.policy.timesteps
        steps = getattr(self.pipe.scheduler, "num_inference_steps", None)
        if self.row is not None and t == self.last:
            return self.row
        due = 0 if self.row is None else (self.row + 1) % len(timesteps)
        gap = np.abs(np.diff(timesteps)).tolist() or [0.02 * abs(timesteps[0])]
        for row in (due, 0):
            reach = min(*gap[max(row - 1, 0) : row + 1], 2 * NEAR * max(map(abs, timesteps))) / 2
            reach = max(reach, 2 * eps * abs(t))
            if abs(t - timesteps[row]) <= reach and (row > 0 or steps in (None, len(timesteps))):
                self.last = t
                return row
        self.row = None  # so that the next run starts anew
        if steps is not None:
            self.policy.check_steps(steps)
        raise ValueError(
            f"this policy is for {len(timesteps)} steps at timesteps {_shown(timesteps)}; the pipeline is at "
            f"timestep {t:.6g} where {timesteps[due]:.6g} was due. Use the size and scheduler of the "
            "search, or search a policy for this run"
        )


def _one_way(timesteps: Sequence[float]) -> bool:
    steps = np.diff(timesteps)
    return bool((steps > 0).all() or (steps < 0).all())


def _shown(timesteps: Sequence[float]) -> str:
    shown = [f"{t:.6g}" for t in timesteps]
    return ", ".join(shown if len(shown) <= 4 else [*shown[:3], "...", shown[-1]])
