"""A recorded full-precision run, of which everything else is a function.

`record` runs the pipeline as it is, with hooks on its transformer, and keeps what the transformer was given
and what it answered at every step. With that, `velocity` repeats any single call and `step` any single
scheduler step, for the recorded latents or for others, without the pipeline's loop.

How a model family is called, with one branch or several for guidance, is found out from the run (`call`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm.auto import tqdm

from adatsq.arguments import concatenated, pick, same, to_device
from adatsq.call import (
    CallForm,
    check_combination,
    guided,
    layer_inputs,
    read,
    scheduler_copy,
    stacked,
    watching,
)
from adatsq.models import Layer, fingerprint, prompt_list, quantizable, quiet
from adatsq.settings import call_settings

OURS = set(
    "prompt generator latents num_images_per_prompt num_videos_per_prompt output_type return_dict".split()
)


@dataclass(frozen=True, eq=False)
class Trace:
    """A run of T steps for N images, or clips; tensors are on the CPU.

    timesteps: T floats, as the transformer was called with. latents: (T + 1, N, ...) float32; latents[t]
    enters step t, latents[T] goes to the decoder. velocity: (T, N, ...) float32, what the scheduler got:
    the transformer's answers, combined with `weights` if it has several branches. images: (N, H, W, 3) uint8,
    clips (N, F, H, W, 3). conditioning: the transformer's other arguments; those in form.per_image have
    branches * N rows, branch-major. form: how the transformer is called. dtype: of the scheduler's sample.
    scheduler: as it was before the first step; step a copy of it. tokens: rows that each layer sees per
    image, all branches counted (texts padded to the longest of a batch with their padding). model: the
    transformer's `fingerprint`. settings: what the pipeline was given.
    """

    prompts: list[str]
    seeds: list[int]
    timesteps: list[float]
    latents: Tensor
    velocity: Tensor
    images: np.ndarray
    conditioning: dict
    form: CallForm
    dtype: torch.dtype
    scheduler: object
    layers: list[Layer]
    tokens: dict[str, int]
    model: str
    settings: dict

    @property
    def branches(self) -> int:
        """Rows per image in a step: 1, or 2 with classifier-free guidance."""
        return self.form.branches

    @property
    def weights(self) -> tuple[float, ...]:
        """What the scheduler is given is the sum of the branches' answers, with these weights."""
        return self.form.weights

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

        They have branches * len(index) rows, branch-major. `latents` (len(index), ...) replaces the recorded
        ones. An image may occur in `index` more than once.
        """
        index = list(range(len(self)) if index is None else index)
        latents = self.latents[t][index] if latents is None else latents
        arguments = {**self._conditioning(index), **self.form.inputs(latents, self.timesteps[t])}
        return {name: to_device(value, device) for name, value in arguments.items()}

    def _conditioning(self, index: list[int]) -> dict:
        rows, per_image = self.form.rows(index, len(self)), self.form.per_image
        return {
            name: pick(value, rows) if name in per_image else value
            for name, value in self.conditioning.items()
        }

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
            conditioning=self._conditioning(index),
        )

    def check(self, pipe: DiffusionPipeline) -> None:
        """ValueError unless the pipeline's transformer, quantized or not, is the one that was recorded."""
        found = fingerprint(pipe.transformer)
        if found != self.model:
            raise ValueError(f"this trace was recorded from {self.model}, the pipeline holds {found}")

    def split(self, parts: int) -> list["Trace"]:
        """At most `parts` traces of about equal size, for as many processes; `join` makes them one again."""
        return [
            self.subset(index.tolist()) for index in np.array_split(range(len(self)), parts) if len(index)
        ]


def join(traces: Sequence[Trace]) -> Trace:
    """One trace of all the images of several that were recorded with the same model and settings.

    Theirs are one batch then: ValueError for other timesteps, or texts that were padded to other lengths.
    """
    first = traces[0]
    for trace in traces:
        if (trace.model, trace.timesteps) != (first.model, first.timesteps):
            raise ValueError(f"cannot join runs of {first.model} and {trace.model} or of different timesteps")
        if not np.allclose(trace.weights, first.weights, rtol=0.01, atol=0.01):
            raise ValueError(f"cannot join runs guided with weights {first.weights} and {trace.weights}")
    # in a batch of one, what all images share may look like a row per image
    per_image = frozenset.intersection(*(trace.form.per_image for trace in traces))
    conditioning = dict(first.conditioning)
    for name in per_image:
        conditioning[name] = concatenated(
            name,
            [
                pick(trace.conditioning[name], range(branch * len(trace), (branch + 1) * len(trace)))
                for branch in range(first.branches)
                for trace in traces
            ],
        )
    return replace(
        first,
        prompts=[prompt for trace in traces for prompt in trace.prompts],
        seeds=[seed for trace in traces for seed in trace.seeds],
        latents=torch.cat([trace.latents for trace in traces], dim=1),
        velocity=torch.cat([trace.velocity for trace in traces], dim=1),
        images=np.concatenate([trace.images for trace in traces]),
        conditioning=conditioning,
        form=replace(first.form, per_image=per_image),
        tokens={name: max(trace.tokens[name] for trace in traces) for name in first.tokens},
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
    """Generate one image (or clip) per prompt and keep the run. Image i starts from seed + i, whatever the
    batch size.

    The pipeline is called with the model's own settings (`models.sampling`), overruled by `call`. ValueError
    for no prompt, one that is empty or no string, and settings that the pipeline would change or refuse
    (`settings.call_settings`), before any work; for a pipeline that combines the transformer's answers in
    another way than a sum, at the first step that does; FloatingPointError for an answer of NaN or infinity.
    """
    prompts = prompt_list(prompts)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
    if OURS & call.keys():
        raise ValueError(f"record sets {sorted(OURS & call.keys())} itself")
    if num_inference_steps is not None:
        call["num_inference_steps"] = num_inference_steps
    settings = call_settings(pipe, call)
    steps = settings.get("num_inference_steps")  # None, and unknown, if it is the pipeline's default
    starts = range(0, len(prompts), batch_size)
    total = None if steps is None else steps * len(starts)
    with tqdm(desc="record", unit="step", total=total, disable=not progress) as bar, quiet(pipe):
        return join([_run(pipe, prompts[i : i + batch_size], seed + i, settings, bar.update) for i in starts])


def _run(
    pipe: DiffusionPipeline, prompts: list[str], seed: int, settings: dict, tick: Callable[[], None]
) -> Trace:
    """Record one batch."""
    transformer, layers = pipe.transformer, quantizable(pipe.transformer)
    seeds = [seed + i for i in range(len(prompts))]
    timesteps, latents, velocity_, tokens, start = [], [], [], {}, {}
    form = repeated = following = None

    def before(calls: list, given: dict) -> None:
        nonlocal form, repeated, following
        found, timestep, conditioning, answers = read(transformer, calls, given)
        sample, output, t = given["sample"], given["model_output"], len(timesteps)
        if not torch.isfinite(answers).all():
            raise FloatingPointError(
                f"NaN or infinity in the transformer's output at step {t}, timestep {timestep:.6g}"
            )
        if t == 0:
            repeated = scheduler_copy(pipe.scheduler)
            form = guided(found, answers, output)
            start.update(
                scheduler=scheduler_copy(pipe.scheduler), dtype=sample.dtype, conditioning=conditioning
            )
            latents.append(sample.float().cpu())
        elif replace(found, weights=form.weights, base=form.base) != form:
            raise ValueError(
                f"the pipeline calls its transformer with {found.branches} branches at step {t}, with "
                f"{form.branches} before (or otherwise in another way): a trace needs the same at every step"
            )
        elif not same(conditioning, start["conditioning"]):
            raise ValueError(f"the transformer's other arguments change at step {t}, a trace holds one set")
        elif not torch.equal(sample.float().cpu(), latents[-1]):
            raise ValueError(f"the pipeline changes the latents after step {t - 1} of its scheduler")
        check_combination(form, answers, output, t)
        timesteps.append(timestep)
        velocity_.append(output.float().cpu())
        following = step(repeated, output, t, sample)

    def after(sample: Tensor) -> None:
        if not torch.equal(sample, following):
            raise ValueError(
                f"{type(pipe.scheduler).__name__} cannot be repeated from the transformer's answers alone: "
                "it draws noise at each step, or is given more than them"
            )
        latents.append(sample.float().cpu())
        tick()

    def count_rows(name: str, x: Tensor) -> None:
        if not timesteps:
            tokens[name] = tokens.get(name, 0) + x[..., 0].numel() // len(prompts)

    with (
        watching(pipe, before, after),
        layer_inputs(transformer, [layer.name for layer in layers], count_rows),
    ):
        images = pipe(
            list(prompts),  # a list of its own: Z-Image writes its chat template into it
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
            **settings,
        )[0]
    asleep = [layer.name for layer in layers if layer.name not in tokens]
    if asleep:
        raise ValueError(f"{len(asleep)} layers of the transformer's blocks did not run, such as {asleep[0]}")

    return Trace(
        prompts=prompts,
        seeds=seeds,
        timesteps=timesteps,
        latents=torch.stack(latents),
        velocity=torch.stack(velocity_),
        images=(images * 255).round().astype(np.uint8),
        form=form,
        layers=layers,
        tokens=tokens,
        model=fingerprint(transformer),
        settings=settings,
        **to_device(start, "cpu"),
    )


def velocity(
    transformer: nn.Module,
    trace: Trace,
    t: int,
    latents: Tensor | None = None,
    index: Sequence[int] | None = None,
) -> Tensor:
    """What the scheduler is given at step t, (len(index), ...), for recorded or other latents.

    All branches run in one call. Where the pipeline does the same, this repeats it to the bit; where it makes
    a call per branch, up to what a batch's size changes in rounding.
    """
    output = transformer(**trace.call(t, index, latents, device=transformer.device))
    shape = trace.latents.shape[2:]
    return trace.form.combine(stacked(output, (len(trace) if index is None else len(index), *shape)))


def step(scheduler: object, velocity: Tensor, t: int, latents: Tensor) -> Tensor:
    """One step of the pipeline's scheduler. It keeps a history, so each trajectory needs its own copy."""
    return scheduler.step(velocity, scheduler.timesteps[t], latents, return_dict=False)[0]
