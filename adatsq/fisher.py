"""Temporal Fisher information: how much the loss at each timestep hangs on each layer's weights.

    I[t, l] = E[(dL/dW_l)^2]                                              mean over the weights of layer l
    alpha[t, l] = exp(J[t, l] / tau) / sum_t' exp(J[t', l] / tau),        J[t, l] = I[t, l] / mean_t' I[t', l]

The paper leaves open which loss, and the scale of I against tau. At the full-precision weights the distance
to the full-precision output v has no gradient, so we take its Gauss-Newton curvature: with y ~ N(v, 1), the
loss 0.5 * ||v - y||^2 has dL/dv = z, z ~ N(0, 1), and one backpropagated normal probe z is one sample of
dL/dW. v is what the scheduler is given: with guidance the gradient runs through both branches. Dividing by
the mean over time makes tau a plain number; tau = inf is uniform calibration.
J can be as large as T (one timestep has it all), so the same tau is sharper on longer runs.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from adatsq.call import input_of
from adatsq.files import write_text
from adatsq.trace import Trace, velocity


@dataclass(frozen=True, eq=False)
class Fisher:
    """per_image: float64 (T, N, L), mean squared gradient per weight for each image (`seeds`) of a trace."""

    per_image: np.ndarray
    timesteps: list[float]
    layers: list[str]
    seeds: list[int]
    loss: str
    probes: int
    model: str

    @property
    def values(self) -> pd.DataFrame:
        """I[t, l], mean over images; index `timestep`, columns `layer`."""
        return self._table(self.per_image.mean(1))

    def alpha(self, tau: float = 1.0) -> pd.DataFrame:
        """Weights alpha[t, l] that sum to 1 over time; tau -> 0 keeps the most sensitive timestep alone."""
        if not tau > 0:
            raise ValueError(f"tau is {tau}: the temperature must be positive (math.inf for uniform weights)")
        information = self.per_image.mean(1)
        mean = information.mean(0)
        relative = np.divide(information, mean, out=np.ones_like(information), where=mean > 0)
        weights = np.exp((relative - relative.max(0)) / tau)
        return self._table(weights / weights.sum(0))

    def effective_timesteps(self, tau: float = 1.0) -> pd.Series:
        """1 / sum_t alpha^2 per layer: T for uniform weights, 1 if one timestep has it all."""
        return (1 / (self.alpha(tau) ** 2).sum()).rename("effective_timesteps")

    def save(self, path: str | Path) -> Path:
        """Write JSON, whole or not at all."""
        return write_text(path, json.dumps({**vars(self), "per_image": self.per_image.tolist()}) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Fisher":
        """Read what `save` wrote. FileNotFoundError, or ValueError if the file is damaged."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no Fisher file {path}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            fisher = cls(**{**content, "per_image": np.array(content["per_image"], dtype=np.float64)})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Fisher file {path} is damaged: {error}") from error
        shape = (len(fisher.timesteps), len(fisher.seeds), len(fisher.layers))
        if fisher.per_image.shape != shape:
            raise ValueError(f"Fisher file {path} is damaged: {fisher.per_image.shape} values, not {shape}")
        return fisher

    def _table(self, values: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(
            values,
            index=pd.Index(self.timesteps, name="timestep"),
            columns=pd.Index(self.layers, name="layer"),
        )


def join(fishers: Sequence[Fisher]) -> Fisher:
    """One Fisher of all the images of several, made by `temporal_fisher` from the parts of one trace."""
    first = fishers[0]
    rest = {name: value for name, value in vars(first).items() if name not in ("per_image", "seeds")}
    for fisher in fishers:
        different = [name for name, value in rest.items() if getattr(fisher, name) != value]
        if different:
            raise ValueError(f"cannot join Fisher information of different {', '.join(different)}")
    per_image = np.concatenate([fisher.per_image for fisher in fishers], axis=1)
    return Fisher(per_image=per_image, seeds=[seed for fisher in fishers for seed in fisher.seeds], **rest)


def temporal_fisher(
    pipe: DiffusionPipeline,
    trace: Trace,
    probes: int = 1,
    seed: int = 0,
    loss: str = "gauss-newton",
    batch_size: int = 4,
    progress: bool = True,
) -> Fisher:
    """I[t, l] of every quantizable layer at every timestep of a trace.

    loss: a key of LOSSES. probes: samples of z (or of the noise) per image and timestep; each image has its
    own, drawn from (seed, timestep, image), so neither batches nor splitting the trace change the result.
    Raises ValueError for a quantized pipeline, whose rounding has no gradient, for another model's trace, and
    for the flow-matching loss of a model that answers something else than the flow.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}: choose one of {', '.join(map(repr, LOSSES))}")
    if probes < 1 or batch_size < 1:
        raise ValueError(f"probes and batch_size must be at least 1, got {probes} and {batch_size}")
    config = trace.scheduler.config
    flow = config.get("use_flow_sigmas", "FlowMatch" in type(trace.scheduler).__name__)
    if loss == "flow-matching" and not flow:
        raise ValueError(
            f"{type(trace.scheduler).__name__} is no flow-matching scheduler: use 'gauss-newton'"
        )
    trace.check(pipe)
    transformer, names = pipe.transformer, [layer.name for layer in trace.layers]
    for name in names:
        if not isinstance(transformer.get_submodule(name), nn.Linear):
            raise ValueError(
                f"layer {name} is quantized: Fisher information is that of the full-precision model"
            )

    batches = [range(len(trace))[i : i + batch_size] for i in range(0, len(trace), batch_size)]
    per_image = np.zeros((len(trace.timesteps), len(trace), len(names)))
    for t in tqdm(range(len(trace.timesteps)), desc="fisher", unit="step", disable=not progress):
        for index in batches:
            total = torch.zeros(len(index), len(names), device=transformer.device)
            for probe in range(probes):
                noise = torch.stack([_noise(trace, i, t, seed, probe) for i in index])
                latents, gradient = LOSSES[loss](trace, t, index, noise)
                with _squared_gradients(transformer, names, total, trace.branches):
                    v = velocity(transformer, trace, t, latents, index)
                    v.backward(gradient(v.detach()).to(v.dtype))
            per_image[t, index] = total.double().cpu() / probes
        if not np.isfinite(per_image[t]).all():
            layer = names[int((~np.isfinite(per_image[t])).any(0).argmax())]
            raise FloatingPointError(f"NaN in the gradient of layer {layer} at timestep {trace.timesteps[t]}")
    return Fisher(per_image, trace.timesteps, names, trace.seeds, loss, probes, trace.model)


# (trace, t, images, noise) -> the latents to evaluate the model at, and dL/dv as a function of its answer v
Loss = Callable[[Trace, int, Sequence[int], Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]


def _gauss_newton(trace: Trace, t: int, index: Sequence[int], noise: Tensor):
    """0.5 * ||v - y||^2 with y = v - z, z ~ N(0, 1), along the recorded trajectory."""
    return trace.latents[t][index], lambda v: noise.to(v.device)


def _flow_matching(trace: Trace, t: int, index: Sequence[int], noise: Tensor):
    """0.5 * ||v(x_t) - (z - x_0)||^2 at x_t = (1 - sigma) x_0 + sigma z, with x_0 the generated latents."""
    sigma, x_0 = float(trace.scheduler.sigmas[t]), trace.latents[-1][index]
    return (1 - sigma) * x_0 + sigma * noise, lambda v: v.float() - (noise - x_0).to(v.device)


LOSSES: dict[str, Loss] = {"gauss-newton": _gauss_newton, "flow-matching": _flow_matching}


def _noise(trace: Trace, i: int, t: int, seed: int, probe: int) -> Tensor:
    """Standard normal, in the shape of an image's latents, that belongs to this image, timestep and probe."""
    state = np.random.SeedSequence([seed, t, trace.seeds[i], probe]).generate_state(1)
    return torch.randn(trace.latents.shape[2:], generator=torch.Generator().manual_seed(int(state[0])))


@contextmanager
def _squared_gradients(
    transformer: nn.Module, names: Sequence[str], total: Tensor, branches: int
) -> Iterator[None]:
    """While open, each backward pass adds mean((dL/dW_l)^2) of image n and layer l to total[n, l].

    dL/dW = dY^T X, over all tokens of all branches of an image, is formed in the hook of one layer, for one
    image, and dropped: no two gradients ever exist at once. Weights need no gradient for it; the outputs of
    the first layers start the graph.
    """

    def by_image(rows: Tensor) -> Tensor:
        """(branches * N, ..., features), branch-major, to (branches, N, tokens, features)."""
        return rows.reshape(branches, len(total), -1, rows.shape[-1])

    def after(module: nn.Module, x: Tensor, y: Tensor, l: int) -> None:
        x = x.detach()

        def add(dy: Tensor) -> None:
            dy_n, x_n = by_image(dy), by_image(x)
            for n in range(len(total)):
                g = dy_n[:, n].reshape(-1, dy.shape[-1]).T @ x_n[:, n].reshape(-1, x.shape[-1])
                total[n, l] += g.float().square().mean()

        y.requires_grad_()
        y.register_hook(add)

    with output_hooks(transformer, [transformer.get_submodule(name) for name in names], after):
        yield


@contextmanager
def output_hooks(
    transformer: nn.Module, modules: Sequence[nn.Module], after: Callable[..., None]
) -> Iterator[None]:
    """While open, after(module, x, y, l) follows each call of modules[l], x what it multiplies (`input_of`);
    gradients are on, and no weight asks for one."""

    def hook(module: nn.Module, args: tuple, kwargs: dict, y: Tensor, l: int) -> None:
        after(module, input_of(module, args, kwargs), y, l)

    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    # cuDNN's attention backward has been seen to write out of bounds at some head sizes: leave it out
    attention = sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    handles = []
    try:
        for l, module in enumerate(modules):
            handles.append(module.register_forward_hook(partial(hook, l=l), with_kwargs=True))
        for parameter in parameters:
            parameter.requires_grad_(False)
        with torch.enable_grad(), attention:
            yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters:
            parameter.requires_grad_()
