"""Uniform symmetric integers: x is stored as codes in [-qmax, qmax] and a scale; codes * scale is read back.

A scale belongs to a whole tensor, to a row of the last dimension (a weight's output channel, an activation's
token), or to a group of neighbours within a row. It is a tensor of shape (..., groups) beside x of shape
(..., n); one group per row is the usual case. -2^(b-1) is left unused so that the grid is symmetric.
`minmax_scale` makes the other kind of grid, asymmetric: all 2^b codes, one of which, the zero point, reads 0.
"""

import math
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

# Weight scales are rounded to bfloat16 before the codes are chosen: 16 bits is what each really takes.
SCALE_BITS = 16

# Where to clip a normal variable, in sigmas, so that rounding it to b bits makes the least squared error.
NORMAL_CLIP = {2: 1.224, 3: 1.952, 4: 2.474, 5: 2.899, 6: 3.270, 7: 3.607, 8: 3.921}

# Clip ratios that `mse_scale` tries: a 2-bit row of ten thousand normal weights is best clipped at 0.3.
CLIP_GRID = tuple(i / 40 for i in range(12, 41))


def qmax(bits: int) -> int:
    """Largest code of a b-bit symmetric grid: 2^(b-1) - 1. ValueError unless bits is one of 2..8."""
    if bits not in range(2, 9):
        raise ValueError(f"bits must be a whole number from 2 to 8, got {bits!r}")
    return 2 ** (int(bits) - 1) - 1


def absmax_scale(x: Tensor, bits: int, granularity: str | int = "row", clip: float = 1.0) -> Tensor:
    """float32 scale that puts clip * max|x| on the grid's last point.

    granularity: "tensor", "row" (of the last dimension) or a group size. A part that is all zeros gets scale
    1, so that its codes are 0; NaN and infinity stay visible in the scale.
    """
    if granularity == "tensor":
        largest = x.abs().amax().reshape([1] * x.ndim)
    elif granularity == "row":
        largest = x.abs().amax(dim=-1, keepdim=True)
    else:
        largest = _grouped(x, granularity).abs().amax(dim=-1)
    scale = largest.float() * (clip / qmax(bits))
    return scale.masked_fill(scale == 0, 1.0)


def weight_scale(weight: Tensor, bits: int, group_size: int | None = None, clip: str | float = 1.0) -> Tensor:
    """Scale (out, groups) of a weight (out, in), rounded to 16 bits: per output channel or group of inputs.

    clip is a ratio (1.0: absmax), or "mse" for the ratio in CLIP_GRID that suits each row or group best.
    Raises FloatingPointError if the weight has NaN or infinite values.
    """
    granularity = "row" if group_size is None else group_size
    if clip == "mse":
        scale = mse_scale(weight, bits, granularity)
    else:
        scale = _to_16_bits(absmax_scale(weight, bits, granularity, clip))
    if not torch.isfinite(scale).all():
        raise FloatingPointError(f"NaN or infinity in a weight of shape {tuple(weight.shape)}")
    return scale


def mse_scale(weight: Tensor, bits: int, granularity: str | int = "row") -> Tensor:
    """QuaRot's clip search: for each scale the ratio of CLIP_GRID with the least squared error."""
    parts = weight.float() if granularity == "row" else _grouped(weight.float(), granularity)
    best_scale = best_error = None
    for clip in reversed(CLIP_GRID):
        scale = _to_16_bits(absmax_scale(parts, bits, clip=clip))
        error = (parts - scale * round_to_grid(parts, scale, bits)).square().sum(dim=-1, keepdim=True)
        if best_error is None:
            best_scale, best_error = scale, error
        best_scale = torch.where(error < best_error, scale, best_scale)
        best_error = torch.minimum(error, best_error)
    return best_scale if granularity == "row" else best_scale.squeeze(-1)


def round_to_grid(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The codes as floating-point integers: clamp(round(x / scale), -qmax, qmax), halves to even."""
    q = qmax(bits)
    return (x / expand(scale, x.shape[-1])).round_().clamp_(-q, q)


def quantize(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """int8 codes of x on the grid of its scale."""
    return round_to_grid(x, scale, bits).to(torch.int8)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """codes * scale, in the scale's dtype."""
    return codes * expand(scale, codes.shape[-1])


def fake_quant(x: Tensor, bits: int, granularity: str | int = "row", clip: float = 1.0) -> Tensor:
    """x after a round trip through the integers, in its own dtype."""
    scale = absmax_scale(x, bits, granularity, clip)
    return dequantize(round_to_grid(x.float(), scale, bits), scale).to(x.dtype)


def full_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code of a b-bit asymmetric grid: -2^(b-1) and 2^(b-1) - 1."""
    return -qmax(bits) - 1, qmax(bits)


def minmax_scale(
    x: Tensor, bits: int, group_size: int | None = None, exact: bool = True
) -> tuple[Tensor, Tensor]:
    """Asymmetric grid from min x to max x, widened to hold 0: float32 scale and zero point (..., groups).

    scale = (max - min) / (2^b - 1), zero = -2^(b-1) - round(min / scale): x is read back as
    (code - zero) * scale. exact=False rounds the scale to 16 bits first, as weights need it.
    """
    parts = x.float()[..., None, :] if group_size is None else _grouped(x.float(), group_size)
    low, high = parts.amin(dim=-1).clamp(max=0), parts.amax(dim=-1).clamp(min=0)
    first, last = full_range(bits)
    scale = (high - low) / (last - first)
    scale = (scale if exact else _to_16_bits(scale)).masked_fill(scale == 0, 1.0)
    return scale, (first - (low / scale).round()).clamp(first, last)


def round_asymmetric(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The codes as floating-point integers: clamp(round(x / scale) + zero, -2^(b-1), 2^(b-1) - 1)."""
    n = x.shape[-1]
    return ((x / expand(scale, n)).round_() + expand(zero, n)).clamp_(*full_range(bits))


def fake_quant_asymmetric(x: Tensor, bits: int, group_size: int | None = None) -> Tensor:
    """x after a round trip through the asymmetric integers of its rows or groups, float32."""
    scale, zero = minmax_scale(x, bits, group_size)
    n = x.shape[-1]
    return (round_asymmetric(x.float(), scale, zero, bits) - expand(zero, n)) * expand(scale, n)


def fake_quant_unsigned(x: Tensor, bits: int, group_size: int | None = None) -> Tensor:
    """x after a round trip through [0, 2^b - 1] times a scale per row or group, float32; below 0 is 0."""
    parts = x.float()[..., None, :] if group_size is None else _grouped(x.float(), group_size)
    largest = 2 * qmax(bits) + 1
    scale = parts.amax(dim=-1, keepdim=True).clamp(min=0) / largest
    scale = scale.masked_fill(scale == 0, 1.0)
    return ((parts / scale).round_().clamp_(0, largest) * scale).reshape(x.shape)


def expand(scale: Tensor, n: int) -> Tensor:
    """Scale (..., groups) as one that broadcasts against (..., n)."""
    groups = scale.shape[-1]
    return scale if groups == 1 else scale.repeat_interleave(n // groups, dim=-1)


@cache
def gaussian_clip(bits: int, n: int) -> float:
    """Clip ratio for rows of n normal values, which a Hadamard rotation makes of activations.

    The best clipping point is NORMAL_CLIP sigmas, and the median of the largest of n values stands at
    Phi^-1((1 + 2^(-1/n)) / 2) sigmas: the ratio of the two, at most 1.
    """
    qmax(bits)
    largest = NormalDist().inv_cdf((1 + math.pow(0.5, 1 / n)) / 2)
    return min(1.0, NORMAL_CLIP[bits] / largest)


def effective_bits(
    w_bits: int, in_features: int, group_size: int | None = None, scale_bits: int = SCALE_BITS
) -> float:
    """Bits per weight with its share of the scales: groups of 64 weights take w_bits + 1/4."""
    return w_bits + scale_bits / (group_size or in_features)


def _grouped(x: Tensor, group_size: int) -> Tensor:
    if not isinstance(group_size, int) or group_size < 1 or x.shape[-1] % group_size:
        raise ValueError(f"group size {group_size!r} does not divide rows of {x.shape[-1]} values")
    return x.unflatten(-1, (-1, group_size))


def _to_16_bits(scale: Tensor) -> Tensor:
    return scale.to(torch.bfloat16).float()
