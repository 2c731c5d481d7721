"""A recorded full-precision run, of which everything else is a function.

`record` runs the pipeline as it is, with hooks on its transformer, and keeps what the transformer was given
and what it answered at every step. With that, `velocity` repeats any single call and `step` any single
scheduler step, for the recorded latents or for others, without the pipeline's loop.

What is particular to a model family is in `Trace.call`, `_run` and `_per_image`: Flux takes one call per
step, and tensors whose first axis is the image except for position ids, which all images share.
"""

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm.auto import tqdm

from adatsq.models import Layer, block_names, prompt_list, quantizable, sampling

OURS = {"prompt", "generator", "latents", "num_images_per_prompt", "output_type", "callback_on_step_end"}


@dataclass(frozen=True, eq=False)
class Trace:
    """A run of T steps for N images; tensors are on the CPU.

    timesteps: T floats, as the transformer was called with. latents: (T + 1, N, ...) float32; latents[t]
    enters step t, latents[T] goes to the decoder. velocity: (T, N, ...) float32, the transformer's answers.
    images: (N, H, W, 3) uint8. conditioning: the transformer's other arguments. dtype: of latents and
    timestep in the pipeline. scheduler: as it was before the first step; step a copy of it. tokens: rows that
    each layer sees per image. model: the transformer's `fingerprint`. settings: what the pipeline was given.
    """

    prompts: list[str]
    seeds: list[int]
    timesteps: list[float]
    latents: Tensor
    velocity: Tensor
    images: np.ndarray
    conditioning: dict
    dtype: torch.dtype
    scheduler: object
    layers: list[Layer]
    tokens: dict[str, int]
    model: str
    settings: dict

    def __len__(self) -> int:
        return len(self.prompts)

    def call(
        self,
        t: int,
        index: Sequence[int] | None = None,
        latents: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> dict:
        """Keyword arguments of the transformer at step t for the images in `index` (all by default).

        `latents` (len(index), ...) replaces the recorded ones. An image may occur in `index` more than once.
        """
        index = list(range(len(self)) if index is None else index)
        arguments = {name: _rows(name, value, index) for name, value in self.conditioning.items()}
        arguments["hidden_states"] = (self.latents[t][index] if latents is None else latents).to(self.dtype)
        arguments["timestep"] = torch.full((len(index),), self.timesteps[t], dtype=self.dtype)
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}

    def subset(self, index: Sequence[int]) -> "Trace":
        """The same run of some of the images."""
        index = list(index)
        if not index:
            raise ValueError("a trace needs at least one image, the subset has none")
        return replace(
            self,
            prompts=[self.prompts[i] for i in index],
            seeds=[self.seeds[i] for i in index],
            latents=self.latents[:, index],
            velocity=self.velocity[:, index],
            images=self.images[index],
            conditioning={name: _rows(name, value, index) for name, value in self.conditioning.items()},
        )

    def check(self, pipe: DiffusionPipeline) -> None:
        """ValueError unless the pipeline's transformer, quantised or not, is the one that was recorded."""
        found = fingerprint(pipe.transformer)
        if found != self.model:
            raise ValueError(f"this trace was recorded from {self.model}, the pipeline holds {found}")

    def split(self, parts: int) -> list["Trace"]:
        """At most `parts` traces of about equal size, for as many processes; `join` makes them one again."""
        return [
            self.subset(index.tolist()) for index in np.array_split(range(len(self)), parts) if len(index)
        ]


def join(traces: Sequence[Trace]) -> Trace:
    """One trace of all the images of several that were recorded with the same model and settings."""
    first = traces[0]
    for trace in traces:
        if (trace.model, trace.timesteps) != (first.model, first.timesteps):
            raise ValueError(f"cannot join runs of {first.model} and {trace.model} or of different timesteps")
    return replace(
        first,
        prompts=[prompt for trace in traces for prompt in trace.prompts],
        seeds=[seed for trace in traces for seed in trace.seeds],
        latents=torch.cat([trace.latents for trace in traces], dim=1),
        velocity=torch.cat([trace.velocity for trace in traces], dim=1),
        images=np.concatenate([trace.images for trace in traces]),
        conditioning={
            name: torch.cat([trace.conditioning[name] for trace in traces])
            if _per_image(name, value)
            else value
            for name, value in first.conditioning.items()
        },
    )


def record(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    num_inference_steps: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = True,
    **call,
) -> Trace:
    """Generate one image per prompt and keep the run. Image i starts from seed + i, whatever the batch size.

    The pipeline is called with the model's own settings (`models.sampling`), overruled by `call`. ValueError
    for no prompt, one that is empty or no string, fewer than one step, or a pipeline that calls its
    transformer twice per step; FloatingPointError if the transformer answers NaN or infinity.
    """
    prompts = prompt_list(prompts)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
    if OURS & call.keys():
        raise ValueError(f"record sets {sorted(OURS & call.keys())} itself")
    settings = {**sampling(pipe), **call}
    if num_inference_steps is not None:
        settings["num_inference_steps"] = num_inference_steps
    steps = settings.get("num_inference_steps")  # None, and unknown, if it is the pipeline's default
    if steps is not None and (not isinstance(steps, Integral) or steps < 1):
        raise ValueError(f"num_inference_steps is {steps!r}, it must be a whole number of at least 1")

    starts = range(0, len(prompts), batch_size)
    total = None if steps is None else steps * len(starts)
    with tqdm(desc="record", unit="step", total=total, disable=not progress) as bar, _quiet(pipe):
        return join([_run(pipe, prompts[i : i + batch_size], seed + i, settings, bar.update) for i in starts])


def _run(
    pipe: DiffusionPipeline, prompts: list[str], seed: int, settings: dict, tick: Callable[[], None]
) -> Trace:
    """Record one batch."""
    transformer, layers = pipe.transformer, quantizable(pipe.transformer)
    seeds = [seed + i for i in range(len(prompts))]
    timesteps, latents, velocity, tokens, start = [], [], [], {}, {}

    def keep(module: nn.Module, args: tuple, kwargs: dict, output: tuple) -> None:
        conditioning = bind(module, args, kwargs)
        entering, timestep = conditioning.pop("hidden_states"), conditioning.pop("timestep")
        if not start:
            latents.append(entering.float().cpu())
            conditioning = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in conditioning.items()}
            start.update(
                scheduler=copy.deepcopy(pipe.scheduler), dtype=entering.dtype, conditioning=conditioning
            )
        timesteps.append(float(timestep.flatten()[0]))
        velocity.append(output[0].float().cpu())
        if not torch.isfinite(velocity[-1]).all():
            raise FloatingPointError(
                f"NaN or infinity in the transformer's output at step {len(timesteps) - 1}, timestep "
                f"{timesteps[-1]:.6g}"
            )

    def after_step(pipe: DiffusionPipeline, i: int, t: Tensor, state: dict) -> dict:
        if len(timesteps) != i + 1:
            raise ValueError(
                f"the pipeline called its transformer {len(timesteps)} times in {i + 1} steps; a trace holds "
                "one call per step: switch off guidance in two calls (for Flux: true_cfg_scale=1)"
            )
        latents.append(state["latents"].float().cpu())
        tick()
        return {}

    def count_rows(name: str, x: Tensor) -> None:
        tokens[name] = x[..., 0].numel() // len(prompts)

    hook = transformer.register_forward_hook(keep, with_kwargs=True)
    try:
        with layer_inputs(transformer, [layer.name for layer in layers], count_rows):
            images = pipe(
                prompts,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="np",
                callback_on_step_end=after_step,
                **settings,
            ).images
    finally:
        hook.remove()

    return Trace(
        prompts=prompts,
        seeds=seeds,
        timesteps=timesteps,
        latents=torch.stack(latents),
        velocity=torch.stack(velocity),
        images=(images * 255).round().astype(np.uint8),
        layers=layers,
        tokens=tokens,
        model=fingerprint(transformer),
        settings=settings,
        **start,
    )


def velocity(
    transformer: nn.Module,
    trace: Trace,
    t: int,
    latents: Tensor | None = None,
    index: Sequence[int] | None = None,
) -> Tensor:
    """The transformer's answer at step t, (len(index), ...) in its dtype, to recorded or other latents."""
    return transformer(**trace.call(t, index, latents, device=transformer.device))[0]


def step(scheduler: object, velocity: Tensor, t: int, latents: Tensor) -> Tensor:
    """One step of the pipeline's scheduler. It keeps a history, so each trajectory needs its own copy."""
    return scheduler.step(velocity, scheduler.timesteps[t], latents, return_dict=False)[0]


@contextmanager
def layer_inputs(
    transformer: nn.Module, names: Sequence[str], callback: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """While open, callback(name, x) gets each named layer's input before it runs. No hook outlives it."""
    handles = []
    try:
        for name in names:
            hook = lambda module, args, name=name: callback(name, args[0])  # noqa: E731
            handles.append(transformer.get_submodule(name).register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def bind(transformer: nn.Module, args: tuple, kwargs: dict) -> dict:
    """The arguments of a call of the transformer by name, however the pipeline passed them."""
    return dict(inspect.signature(transformer.forward).bind(*args, **kwargs).arguments)


def fingerprint(transformer: nn.Module) -> str:
    """A name for exactly this model, the same before and after quantization and in float32 or bfloat16.

    Made of its class, its configuration, its layers, and the vectors (biases, scales) outside its blocks,
    which are never quantised and which no two trainings share.
    """
    config = {k: v for k, v in transformer.config.items() if k[0] != "_" and k != "quantization_config"}
    layers = [[layer.name, layer.in_features, layer.out_features] for layer in quantizable(transformer)]
    digest = hashlib.sha256(json.dumps([config, layers], sort_keys=True, default=str).encode())
    blocks = tuple(f"{block}." for block in block_names(transformer))
    for name, parameter in sorted(transformer.named_parameters()):
        if parameter.ndim == 1 and not name.startswith(blocks):
            digest.update(parameter.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return f"{type(transformer).__name__}-{digest.hexdigest()[:16]}"


def _per_image(name: str, value: object) -> bool:
    """Whether the argument has one row per image. Flux's `img_ids` and `txt_ids` have one row per token."""
    return isinstance(value, Tensor) and not name.endswith("_ids")


def _rows(name: str, value: object, index: list[int]) -> object:
    return value[index] if _per_image(name, value) else value


@contextmanager
def _quiet(pipe: DiffusionPipeline) -> Iterator[None]:
    """Without the pipeline's own progress bar, of which there would be one per batch."""
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
