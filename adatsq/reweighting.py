"""What the temperature does to one layer's Hessian: H'(tau) = sum_t alpha_t(tau) H_t, before and after."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adatsq import scrub, svg
from adatsq.colors import METHOD_COLORS
from adatsq.fisher import Fisher

# From uniform to sharp; 1 is among them.
TAUS = (math.inf, *(2.0 ** (k / 3) for k in range(15, -7, -1)))
MOST_CHANNELS = 96  # drawn; of more, every so many-th
UNIFORM, WEIGHTED = METHOD_COLORS["hadamard+gptq"], METHOD_COLORS["adatsq-weights"]


def spread(hessian: Tensor) -> float:
    """tr(H)^2 / ||H||^2: how many directions the inputs fill, n if all alike, 1 if they lie on a line.

    It depends on the eigenvalues alone, so a rotation leaves it as it is.
    """
    return float(hessian.trace().square() / hessian.square().sum())


def cosine(a: Tensor, b: Tensor) -> float:
    """Likeness of two Hessians whatever their scale: 1 is the same to a solver."""
    return float((a * b).sum() / (a.norm() * b.norm()))


def weighted(fisher: Fisher, layer: str, per_step: Sequence[Tensor], tau: float) -> tuple[np.ndarray, Tensor]:
    """alpha (T,) at this temperature, and H' (n, n) float64 from H_t, of trace n on average over the steps.

    ValueError if the steps are not the Fisher information's.
    """
    if len(per_step) != len(fisher.timesteps):
        raise ValueError(f"{len(per_step)} Hessians for {len(fisher.timesteps)} timesteps: give one each")
    alpha = fisher.alpha(tau)[layer].to_numpy()
    scale = len(per_step[0]) / np.mean([hessian.trace().item() for hessian in per_step])
    found = torch.zeros_like(per_step[0], dtype=torch.float64, device="cpu")
    for share, hessian in zip(alpha, per_step):
        found.add_(hessian.cpu(), alpha=share * scale)
    return alpha, found


def turning(
    fisher: Fisher,
    layer: str,
    per_step: Sequence[Tensor],
    label: str,
    taus: Sequence[float] = TAUS,
) -> str:
    """HTML: a slider over tau; left alpha over the steps, right the diagonal of H' over the uniform
    one's; dashed is uniform.

    per_step: H_t, one per timestep, scaled alike. label: the layer's name on the page.
    """
    _, uniform = weighted(fisher, layer, per_step, math.inf)
    order = uniform.diagonal().argsort(descending=True).numpy()
    order = order[:: math.ceil(len(order) / MOST_CHANNELS)]
    found = {tau: weighted(fisher, layer, per_step, tau) for tau in taus}
    before = uniform.diagonal().clamp_min(1e-12)
    diagonals = {tau: (hessian.diagonal() / before).numpy()[order] for tau, (_, hessian) in found.items()}
    steps, tallest = len(per_step), max(alpha.max() for alpha, _ in found.values())
    left = svg.Axes(
        (0.5, steps + 0.5),
        (0, 1.05 * tallest),
        "step, from noise to image",
        "α, share of the step",
        whole=True,
    )
    ends = svg.limits(np.concatenate(list(diagonals.values())), log=True)
    right = svg.Axes(
        (0, len(order)), ends, "input channels, largest first", "diagonal, H′ / uniform H", log=True
    )
    frames = []
    for tau, (alpha, hessian) in found.items():
        name = "τ = ∞, uniform" if math.isinf(tau) else f"τ = {tau:.3g}"
        told = (
            f"{name}: {1 / np.square(alpha).sum():.1f} effective steps of {steps}, cosine to uniform H "
            f"{cosine(hessian, uniform):.3f}, {spread(hessian):.1f} directions "
            f"({spread(uniform):.1f} uniform)"
        )
        bars = svg.chart(
            left,
            [
                svg.bars(left, range(1, steps + 1), alpha, WEIGHTED),
                svg.line(left, left.x, [1 / steps] * 2, UNIFORM, 1.6, "4 3"),
                svg.text(left, 1, 1 / steps, "uniform"),
            ],
            f"α of each step at {name}; largest {alpha.max():.2f}, at step {alpha.argmax() + 1}",
        )
        lines = svg.chart(
            right,
            [
                svg.line(right, range(len(order)), [1] * len(order), UNIFORM, 1.6, "4 3"),
                svg.line(right, range(len(order)), diagonals[tau], WEIGHTED),
            ],
            f"Diagonal of the Hessian at {name} over the uniform one, by input channel: from "
            f"{diagonals[tau].min():.2f} to {diagonals[tau].max():.2f} of those drawn",
        )
        frames.append(scrub.Frame(told, scrub.row(bars, lines)))
    return scrub.scrub(
        frames,
        "τ, falling",
        f"Reweighting of the Hessian of {label}: shares of the steps and the Hessian's diagonal, from "
        f"uniform to a temperature of {taus[-1]:g}.",
        f"{label}: weight of each step, and mean square of each input against all steps alike",
        first=list(taus).index(1.0) if 1.0 in taus else -1,
        fps=4,
    )
