"""How a pipeline calls its transformer, found out from its own run.

Between two steps of the scheduler the transformer is called for k rows per image, its branches: one (Flux),
or several for classifier-free guidance, in one call (Z-Image) or in a call each (Wan). The scheduler gets

    model_output = sum_c w_c v_c        v_c: the answer of branch c, in the shape of the scheduler's sample

with w = (1) for Flux, (-1) for Z-Image, which negates, and (g, 1 - g) for Wan with guidance scale g. The
names of the arguments come from the transformer's signature; k, w, shapes and dtypes from what goes in and
out. The one rule that knows a family is in `arguments.has_rows`.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from adatsq.arguments import argument_names, bind, has_rows, merged


@dataclass(frozen=True)
class CallForm:
    """One transformer call for n images: k * n rows, branch-major (all images of a branch, then the next).

    latents, timestep: names of these arguments. listed: latents go in as a list of rows. row, timestep_row:
    shape of one row of each. dtype, timestep_dtype: as the transformer gets them; output_dtype: of what the
    scheduler gets. per_image: the other arguments that have a row per image and branch; the rest are shared.
    weights, base: see `combine`.
    """

    latents: str
    timestep: str
    listed: bool
    row: tuple[int, ...]
    timestep_row: tuple[int, ...]
    dtype: torch.dtype
    timestep_dtype: torch.dtype
    output_dtype: torch.dtype
    per_image: frozenset[str]
    branches: int
    weights: tuple[float, ...] = ()
    base: int = 0

    def rows(self, index: Sequence[int], images: int) -> list[int]:
        """Where the images in `index` are among the k * images rows of a per-image argument."""
        return [branch * images + i for branch in range(self.branches) for i in index]

    def inputs(self, latents: Tensor, timestep: float) -> dict:
        """The latents (n, ...) in all branches, and the timestep of each row."""
        x = latents.to(self.dtype).reshape(len(latents), *self.row)
        x = torch.cat([x] * self.branches)
        t = torch.full((len(x), *self.timestep_row), timestep, dtype=self.timestep_dtype)
        return {self.latents: list(x) if self.listed else x, self.timestep: t}

    def combine(self, answers: Tensor) -> Tensor:
        """What the scheduler gets, (n, ...), of the branches' answers (k, n, ...).

        Summed as s (v_b + sum_c (w_c / s) (v_c - v_b)), b the base and s the sum of weights, which is how
        pipelines write guidance (s is 1, or -1 where they negate), so that the same numbers are rounded.
        """
        v, s = answers.to(self.output_dtype), round(sum(self.weights), 4)
        if s == 0:
            return sum(w * v_c for w, v_c in zip(self.weights, v))
        base = combined = v[self.base]
        for branch, w in enumerate(self.weights):
            if branch != self.base:
                combined = combined + (w / s) * (v[branch] - base)
        return combined if s == 1 else s * combined


def stacked(output: tuple, shape: Sequence[int]) -> Tensor:
    """A transformer's answer, a tensor or a list of rows, as (k, n, ...) for a sample of shape (n, ...)."""
    rows = output[0] if isinstance(output[0], Tensor) else torch.stack(list(output[0]))
    return rows.reshape(-1, *shape)


@contextmanager
def watching(
    pipe: DiffusionPipeline, before: Callable[[list, dict], None], after: Callable[[Tensor], None]
) -> Iterator[None]:
    """While open, each step of the scheduler is announced: before(calls, given), then after(prev_sample).

    calls: (arguments, output) of the transformer's calls since the last step. given: the step's arguments.
    No hook outlives it, and the scheduler gets its own method back.
    """
    calls: list[tuple[dict, tuple]] = []
    scheduler, step = pipe.scheduler, pipe.scheduler.step

    @wraps(step)  # pipelines look at its signature
    def announced(*args, **kwargs):
        before(calls, dict(inspect.signature(step).bind(*args, **kwargs).arguments))
        calls.clear()
        result = step(*args, **kwargs)
        after(result[0])
        return result

    hook = pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((bind(module, args, kwargs), output)),
        with_kwargs=True,
    )
    scheduler.step = announced
    try:
        yield
    finally:
        del scheduler.step
        hook.remove()


def scheduler_copy(scheduler: object) -> object:
    """A scheduler of its own, without the `step` that `watching` wraps."""
    copied = copy.deepcopy(scheduler)
    vars(copied).pop("step", None)
    return copied


def read(transformer: nn.Module, calls: list, given: dict) -> tuple[CallForm, float, dict, Tensor]:
    """(form without weights, timestep, conditioning, answers (k, N, ...)) of the calls before one step.

    ValueError for a pipeline whose transformer is not called with the scheduler's sample, or does not answer
    in its shape, or whose calls cannot be made one.
    """
    name, (latents, timestep) = type(transformer).__name__, argument_names(transformer)
    sample, n = given["sample"], len(given["sample"])
    if not calls:
        raise ValueError(f"the pipeline took a step without calling {name}: a trace needs its answer")
    calls = [(dict(arguments), output) for arguments, output in calls]
    x = [arguments.pop(latents) for arguments, _ in calls]
    t = torch.cat([torch.atleast_1d(arguments.pop(timestep)) for arguments, _ in calls])
    listed = not isinstance(x[0], Tensor)
    rows = [len(part) for part in x]
    if any(count % n for count in rows):
        raise ValueError(f"{name} was called with {rows} rows for {n} images: a trace needs k per image")
    x = torch.stack([row for part in x for row in part])
    if x.numel() != sum(rows) // n * sample.numel():
        raise ValueError(
            f"{name} is called with latents {tuple(x.shape[1:])} per image, its scheduler steps "
            f"{tuple(sample.shape[1:])}: something is joined to them (an image to start from, say), which a "
            "trace does not hold"
        )
    if not all(torch.equal(part, sample.to(x.dtype)) for part in x.reshape(-1, *sample.shape)):
        raise ValueError(f"{name} is not called with its scheduler's sample: the pipeline changes it between")
    if not (t == t.flatten()[0]).all():
        raise ValueError(f"{name} is called with several timesteps at a time, a trace has one per step")
    try:
        answers = torch.cat([stacked(output, sample.shape) for _, output in calls])
    except RuntimeError as error:
        raise ValueError(
            f"{name} does not answer in the shape of its scheduler's sample {tuple(sample.shape)}, which it "
            f"must without a learned variance or the like: {error}"
        ) from error
    if len(answers) != sum(rows) // n:
        raise ValueError(
            f"{name} answers {len(answers)} times as much as its scheduler's sample for {sum(rows) // n} "
            "branches: a learned variance, say, which the pipeline drops"
        )
    per_image = frozenset(
        key
        for key in calls[0][0]
        if all(has_rows(key, arguments.get(key), r) for (arguments, _), r in zip(calls, rows))
    )
    form = CallForm(
        latents=latents,
        timestep=timestep,
        listed=listed,
        row=tuple(x.shape[1:]),
        timestep_row=tuple(t.shape[1:]),
        dtype=x.dtype,
        timestep_dtype=t.dtype,
        output_dtype=given["model_output"].dtype,
        per_image=per_image,
        branches=len(answers),
    )
    conditioning = {key: merged(key, calls, key in per_image) for key in calls[0][0]}
    return form, float(t.flatten()[0]), conditioning, answers


def guided(form: CallForm, answers: Tensor, model_output: Tensor) -> CallForm:
    """The form with weights w, by least squares in float64, to as many decimals as a guidance scale has.

    Of roundings to 1, 2, 3 decimals and of bases, the first is taken that gives what the scheduler got to the
    bit; else 4 decimals and any base.
    """
    a = answers.flatten(1).double().cpu().numpy().T
    w, _, _, singular = np.linalg.lstsq(a, model_output.flatten().double().cpu().numpy(), rcond=None)
    if singular[-1] < 1e-7 * singular[0]:
        raise ValueError(
            "the transformer answers the same in every branch, so there is no telling how the pipeline "
            "combines them: give prompts that differ from the negative prompt"
        )
    for decimals in (1, 2, 3):
        for base in range(form.branches):
            found = replace(form, weights=tuple(round(float(x), decimals) for x in w), base=base)
            if torch.equal(found.combine(answers), model_output):
                return found
    return replace(form, weights=tuple(round(float(x), 4) for x in w))


def check_combination(form: CallForm, answers: Tensor, model_output: Tensor, t: int) -> None:
    """ValueError unless what the scheduler gets is the sum that `form` says, up to rounding."""
    combined = form.combine(answers).float()
    size = sum(abs(w) * float(v.float().norm()) for w, v in zip(form.weights, answers))
    missed = float((model_output.float() - combined).norm()) / max(size, 1e-30)
    rounding = max(torch.finfo(dtype).eps for dtype in (answers.dtype, model_output.dtype))
    if missed > max(rounding, 1e-4):
        raise ValueError(
            f"at step {t} the scheduler does not get the sum of the transformer's answers with weights "
            f"{form.weights} ({missed:.2g} of it is missed): the pipeline combines them in a way that is not "
            "linear, or changes from step to step (rescaled, normalised or truncated guidance?)"
        )


def input_of(layer: nn.Module, args: tuple, kwargs: dict) -> Tensor:
    """What a layer that is called with these multiplies: their first, or what it makes of them itself."""
    made = getattr(layer, "activations_of", None)
    return args[0] if made is None else made(*args, **kwargs)


@contextmanager
def layer_inputs(
    transformer: nn.Module, names: Sequence[str], callback: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """While open, callback(name, x) gets each named layer's input before it runs. No hook outlives it."""

    def hook(module: nn.Module, args: tuple, kwargs: dict, name: str) -> None:
        callback(name, input_of(module, args, kwargs))

    handles = []
    try:
        for name in names:
            module = transformer.get_submodule(name)
            handles.append(module.register_forward_pre_hook(partial(hook, name=name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
