"""How a transformer of any family learns to generate; `velocity` says how that family is called.

1. `train_base`: flow matching (arXiv:2210.02747) on latents of fresh scenes, a tenth of the captions dropped.
2. `distill_guidance`: the network learns to give in one call what classifier-free guidance gives in two, for
   any guidance scale at its guidance input (arXiv:2210.03142, as the real Flux-dev).
3. `distill_steps`: one step of the student goes as far as several of the teacher's (arXiv:2202.00512), on
   the states that the student itself arrives at. The real Flux-schnell and Z-Image-Turbo are few-step
   students too, made by other means.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from adatsq.world.data import Data
from adatsq.world.fit import fit

CAPTION_DROPOUT = 0.1

# (network, data, x (B, ...), sigma (B,) in [0, 1], caption row (B,), guidance (B,)) -> velocity, as x
Velocity = Callable[[nn.Module, Data, Tensor, Tensor, Tensor, Tensor], Tensor]


def noised(data: Data, batch_size: int, shift: float):
    """x_sigma = (1 - sigma) x_0 + sigma noise, its velocity noise - x_0, sigma and the captions' rows.

    sigma is logit-normal around the schedule's shift (a logarithm).
    """
    x0, caption = data.batch(batch_size)
    noise = torch.randn(x0.shape, generator=data.generator, device=x0.device)
    sigma = torch.sigmoid(torch.randn(batch_size, generator=data.generator, device=x0.device) + shift)
    s = like(sigma, x0)
    return (1 - s) * x0 + s * noise, noise - x0, sigma, caption


def like(row: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to be broadcast over x."""
    return row.reshape(-1, *[1] * (x.ndim - 1))


def train_base(model: nn.Module, data: Data, velocity: Velocity, shift: float, **options) -> nn.Module:
    """Flow matching with caption dropout; returns the running average of the weights."""

    def loss(network, batch_size):
        x, target, sigma, caption = noised(data, batch_size, shift)
        dropped = torch.rand(batch_size, generator=data.generator, device=x.device) < CAPTION_DROPOUT
        v = velocity(network, data, x, sigma, caption.masked_fill(dropped, 0), torch.ones_like(sigma))
        return (v.float() - target).square().mean()

    return fit(model, loss, desc="base", **options)


def guided(
    velocity: Velocity, model: nn.Module, data: Data, x: Tensor, sigma: Tensor, caption: Tensor, guidance
) -> Tensor:
    """Classifier-free guidance: v_empty + g (v_caption - v_empty), g: (B,)."""
    rows = [torch.cat([a, b]) for a, b in ((x, x), (sigma, sigma), (caption, caption * 0))]
    with_caption, without = velocity(model, data, *rows, torch.ones_like(rows[1])).float().chunk(2)
    return without + like(guidance, x) * (with_caption - without)


def distill_guidance(
    teacher: nn.Module,
    data: Data,
    velocity: Velocity,
    shift: float,
    scales: tuple[float, float],
    student: nn.Module | None = None,
    **options,
) -> nn.Module:
    """The student at guidance g (uniform in `scales`) matches v_empty + g (v_caption - v_empty).

    It starts as a copy of the frozen teacher, or from an earlier run's student.
    """
    student, teacher = pupil(teacher, student, data, options)

    def loss(network, batch_size):
        x, _, sigma, caption = noised(data, batch_size, shift)
        low, high = scales
        g = torch.rand(batch_size, generator=data.generator, device=x.device) * (high - low) + low
        with torch.no_grad():
            target = guided(velocity, teacher, data, x, sigma, caption, g)
        v = velocity(network, data, x, sigma, caption, g)
        return (v.float() - target).square().mean()

    return fit(student, loss, desc="guidance", **options)


def distill_steps(
    teacher: nn.Module,
    data: Data,
    velocity: Velocity,
    target_velocity: Callable[[nn.Module, Data, Tensor, Tensor, Tensor], Tensor],
    sigmas: Sequence[float],
    substeps: int,
    student: nn.Module | None = None,
    **options,
) -> nn.Module:
    """One step of the student over [sigmas[i + 1], sigmas[i]] goes where `substeps` of the teacher's go.

    sigmas: from 1 down to 0, the schedule to sample with. target_velocity(teacher, data, x, sigma, caption):
    the teacher's, with its guidance. A pool of trajectories is under way at all times, each at its own step:
    the student trains on where they are and then takes them one step on, so it meets its own errors. The
    first ones start from noised data.
    """
    student, teacher = pupil(teacher, student, data, options)
    device, generator = data.latents.device, data.generator
    knots, last = torch.tensor(sigmas, device=device), len(sigmas) - 1
    pool = {}

    def start(size: int) -> None:
        x0, pool["caption"] = data.batch(size)
        pool["i"] = torch.randint(last, (size,), generator=generator, device=device)
        s, noise = like(knots[pool["i"]], x0), torch.randn(x0.shape, generator=generator, device=device)
        pool["x"] = (1 - s) * x0 + s * noise

    def advance(v: Tensor) -> None:
        i, x = pool["i"], pool["x"]
        x, i = x + like(knots[i + 1] - knots[i], x) * v, i + 1
        done = i == last
        noise = torch.randn(x.shape, generator=generator, device=device)
        pool["x"] = torch.where(like(done, x), noise, x)
        pool["i"] = i.masked_fill(done, 0)
        pool["caption"] = torch.where(done, data.batch(len(i))[1], pool["caption"])

    def loss(network, batch_size):
        if not pool:
            start(batch_size)
        x, i, caption = pool["x"], pool["i"], pool["caption"]
        begin, end = knots[i], knots[i + 1]
        with torch.no_grad():
            y = x
            for k in range(substeps):
                sigma = begin + (end - begin) * k / substeps
                v = target_velocity(teacher, data, y, sigma, caption).float()
                y = y + like((end - begin) / substeps, y) * v
            target = (y - x) / like(end - begin, x)
        v = velocity(network, data, x, begin, caption, torch.ones_like(begin)).float()
        advance(v.detach())
        return (v - target).square().mean()

    return fit(student, loss, desc="steps", **options)


def pupil(teacher: nn.Module, student: nn.Module | None, data: Data, options: dict):
    """(student to train, frozen teacher), both on the data's device."""
    student = copy.deepcopy(teacher) if student is None else student
    student = student.to(data.latents.device).requires_grad_(True)
    teacher = teacher.eval().requires_grad_(False)
    if options.get("compile"):
        teacher.compile_repeated_blocks()
    return student, teacher
