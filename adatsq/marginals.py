"""What rounding one layer's input at one timestep does to the result, for all of them in one backward pass.

A pipeline's scheduler is linear in what it is given: with the velocities v_s, latents x_t are

    x_t = a_t x_0 + sum_{s < t} c[t, s] v_s,            v_s = velocity(x_s)

(c[t, s] = sigma_{s+1} - sigma_s for Euler; multistep schedulers have others). With d = the change of layer
l's output at step s if its input is rounded to b bits, the change of the last latents is, to first order,
J[s, l] d, and for z ~ N(0, 1)

    E_z <g, d>^2 = |J d|^2,    g = J^T z,    mu_s = c[T, s] z + sum_{t > s} c[t, s] (dv_t / dx_t)^T mu_t

where g is found by backpropagating mu_s through the transformer at step s, from the last step to the first:
so the error is carried through all later steps, which I[t, l] of one call alone is not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm.auto import tqdm

from adatsq.call import scheduler_copy
from adatsq.fisher import output_hooks
from adatsq.policy import Policy, act_layers
from adatsq.trace import Trace, step, velocity


def step_coefficients(trace: Trace) -> Tensor:
    """c[t, s] (T + 1, T), float64, and a_t: what x_t owes to the velocity of step s < t.

    The trace's scheduler is run on unit vectors, one per input: this gives c if it is linear in each element.
    ValueError if it is not, that is, if c and the recorded velocities do not give the recorded latents.
    """
    steps = len(trace.timesteps)
    scheduler = scheduler_copy(trace.scheduler)  # on the device of the recorded run, which the trace has left
    unit = torch.eye(steps + 1, dtype=torch.float64, device=scheduler.timesteps.device)
    rows = [unit[:1]]
    for t in range(steps):
        rows.append(step(scheduler, unit[t + 1 : t + 2], t, rows[-1]))
    rows = torch.cat(rows).double().cpu()
    given = torch.cat([trace.latents[:1], trace.velocity]).double().flatten(1)
    found, latents = rows @ given, trace.latents.double().flatten(1)
    if (found - latents).norm() > 1e-2 * latents.norm():
        raise ValueError(
            f"{type(trace.scheduler).__name__} is not linear in the velocities: errors cannot be carried "
            "through its steps this way, use beam_search"
        )
    return rows[:, 1:]


def marginal_errors(
    pipe: DiffusionPipeline,
    trace: Trace,
    a_bits: Sequence[int] = (3, 4, 8),
    images: Sequence[int] | None = None,
    probes: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> np.ndarray:
    """Expected squared error per element of the last latents, (T, L, len(a_bits)), to first order.

    Of each layer and timestep alone, its input at a_bits, all else unrounded, on a pipeline with quantized
    weights along the recorded latents; the mean over `images` (all by default) and probes. Rounding errors of
    different rows (tokens) are taken as independent, so rows add up squared, which needs far fewer probes.
    One image costs T transformer calls forward and backward, and a product per layer and entry of a_bits.
    """
    images = list(range(len(trace)) if images is None else images)
    trace.check(pipe)
    Policy.of(trace, 16).check(pipe)
    transformer, coefficients = pipe.transformer, step_coefficients(trace).float()
    modules = [transformer.get_submodule(layer.name) for layer in act_layers(trace)]
    steps = len(trace.timesteps)
    total = torch.zeros(steps, len(modules), len(a_bits), dtype=torch.float64)
    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    with tqdm(desc="marginals", total=steps * probes * len(batches), disable=not progress) as bar:
        for probe in range(probes):
            for batch in batches:
                z = torch.stack([_normal(trace, i, seed, probe) for i in batch]).to(transformer.device)
                mu = [c * z for c in coefficients[-1].tolist()]
                for t in reversed(range(steps)):
                    x = trace.latents[t][batch].to(transformer.device).requires_grad_()
                    sums = torch.zeros(len(modules), len(a_bits), device=transformer.device)
                    with _squared_products(transformer, modules, a_bits, sums):
                        v = velocity(transformer, trace, t, x, batch)
                        v.backward(mu[t].to(v.dtype))
                    total[t] += sums.double().cpu()
                    mu = [m + float(coefficients[t, s]) * x.grad for s, m in enumerate(mu[:t])]
                    bar.update()
    return (total / (probes * len(images) * trace.latents[0, 0].numel())).numpy()


def _normal(trace: Trace, i: int, seed: int, probe: int) -> Tensor:
    """Standard normal in the shape of an image's latents, its own for each image and probe."""
    state = np.random.SeedSequence([seed, trace.seeds[i], probe]).generate_state(1)
    return torch.randn(trace.latents.shape[2:], generator=torch.Generator().manual_seed(int(state[0])))


@contextmanager
def _squared_products(
    transformer: nn.Module, modules: list[nn.Module], a_bits: Sequence[int], sums: Tensor
) -> Iterator[None]:
    """While open, a backward pass adds to sums[l, b] the sum over rows of <dL/dy, y_b - y>^2, where y is what
    layer l answers to its input as it is, and y_b to its input at a_bits[b]."""

    def after(module: nn.Module, x: Tensor, y: Tensor, l: int) -> None:
        x, plain = x.detach(), y.detach()

        def add(dy: Tensor) -> None:
            with torch.no_grad():
                for b, bits in enumerate(a_bits):
                    module.a_bits = bits
                    change = module.forward(x) - plain  # `forward`: the hooks are not for this call
                    sums[l, b] += (dy * change).float().sum(-1).square().sum()
                module.a_bits = 16

        y.requires_grad_()  # a layer of the text alone, which the latents do not reach
        y.register_hook(add)

    before = [module.a_bits for module in modules]
    try:
        for module in modules:
            module.a_bits = 16
        with output_hooks(transformer, modules, after):
            yield
    finally:
        for module, bits in zip(modules, before):
            module.a_bits = bits
