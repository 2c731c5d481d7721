"""Smoothing: divide each input channel by a factor s_j, and multiply the weight's column by it.

    X W^T = (X / s)(W s)^T,    s_j = max|X_j|^p / max|W_j|^q

moves outliers from the activations, which have one scale per token, into the weight. SmoothQuant
(arXiv:2211.10438) has p = q = 1/2; SVDQuant (arXiv:2411.05007) tries a grid of (p, q) per layer; ViDiT-Q
(arXiv:2406.02540) writes m = 1 / s and calls it channel balancing. Linears that share an input share s. A
DiT's adaLN stands before them, so s is not merged into the layer before: it is a vector of its own.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SMALLEST = 1e-5

# SVDQuant's 39 points: nothing, s from the activations alone, and shared out between both.
_STEPS = [i / 20 for i in range(1, 20)]
GRID = ((0.0, 0.0), *((p, 0.0) for p in _STEPS), *((p, 1 - p) for p in _STEPS))


def smoothing_scale(x_largest: Tensor, w_largest: Tensor, p: float, q: float) -> Tensor:
    """s (in,), float32 values that fit 16 bits, from max|X_j| and max|W_j|; both and s are at least 1e-5."""
    s = x_largest.float().clamp(min=SMALLEST) ** p / w_largest.float().clamp(min=SMALLEST) ** q
    return s.clamp(min=SMALLEST).to(torch.bfloat16).float()


def largest_weight(weights: Sequence[Tensor]) -> Tensor:
    """max|W_j| (in,) over the output channels of all weights (out, in) that share an input."""
    return torch.stack([weight.detach().float().abs().amax(dim=0) for weight in weights]).amax(dim=0)


def best_scale(
    x_largest: Tensor,
    weights: Sequence[Tensor],
    exponents: Sequence[tuple[float, float]],
    error: Callable[[Tensor], float],
) -> Tensor:
    """s for the (p, q) among `exponents` with the least error(s); the first of equals."""
    scales = [smoothing_scale(x_largest, largest_weight(weights), p, q) for p, q in exponents]
    return scales[0] if len(scales) == 1 else min(scales, key=error)
