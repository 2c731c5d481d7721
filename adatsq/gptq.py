"""Rounding a weight column by column, so that later columns make up for the errors of earlier ones.

GPTQ, Frantar et al., arXiv:2210.17323. For a layer y = x W^T with Hessian H = X^T X over calibration inputs,
the codes should make tr(dW H dW^T) = ||X dW^T||^2 small, dW = W - codes * scale. `round_to_nearest` is the
same without H.
"""

import torch
from torch import Tensor

from adatsq import integer
from adatsq.cuda.devices import abilities, falls_back

DAMPING_TRIES = 4  # each ten times the last


def round_to_nearest(
    weight: Tensor,
    w_bits: int,
    group_size: int | None = None,
    clip: str | float = 1.0,
    asymmetric: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """weight (out, in) -> int8 codes (out, in), float32 scale (out, groups); zero point if asymmetric."""
    if asymmetric:
        scale, zero = integer.minmax_scale(weight, w_bits, group_size, exact=False)
        if not torch.isfinite(scale).all():
            raise FloatingPointError(f"NaN or infinity in a weight of shape {tuple(weight.shape)}")
        codes = integer.round_asymmetric(weight.float(), scale, zero, w_bits)
        return codes.to(torch.int8), scale, zero.to(torch.int8)
    scale = integer.weight_scale(weight, w_bits, group_size, clip)
    return integer.quantize(weight.float(), scale, w_bits), scale


@falls_back
def gptq(
    weight: Tensor,
    hessian: Tensor,
    w_bits: int,
    group_size: int | None = None,
    clip: str | float = "mse",
    act_order: bool = True,
    damping: float = 0.01,
    block_size: int = 128,
    asymmetric: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """weight (out, in), hessian (in, in) -> int8 codes (out, in), float32 scale (out, groups).

    Algorithm 1 of the paper: U is the upper Cholesky factor of (H + damping * mean(diag H) I)^-1. For each
    column j, err = (W_j - Q(W_j)) / U_jj, and all later columns k take W_k -= err * U_jk; those beyond the
    block of `block_size` columns take it once per block.
    act_order: columns in falling order of H_jj. Scales are set before, on the columns as they stand ("static
    groups"), so that the order needs no storing.
    asymmetric: on the grid of `integer.minmax_scale`, without clip; its zero point (out, groups) comes third.
    A channel that calibration never saw (H_jj = 0) is rounded to nearest: nothing is known of it.

    Works in the Hessian's dtype, in float64 if that fails, then with ten times the damping. On a GPU the
    columns of a block are one Triton kernel, in float32 (`adatsq.cuda.gptq_kernel`). Raises ValueError if the
    Hessian has the wrong shape or is not positive definite at any damping, FloatingPointError if it is not
    finite.
    """
    n = weight.shape[1]
    if hessian.shape != (n, n):
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} needs a Hessian ({n}, {n}), got {tuple(hessian.shape)}"
        )
    if not torch.isfinite(hessian).all():
        raise FloatingPointError(f"NaN or infinity in the Hessian of a weight of shape {tuple(weight.shape)}")
    if asymmetric:
        scale, zero = integer.minmax_scale(weight, w_bits, group_size, exact=False)
        low, high = integer.full_range(w_bits)
    else:
        scale, high = integer.weight_scale(weight, w_bits, group_size, clip), integer.qmax(w_bits)
        zero, low = torch.zeros_like(scale), -high

    order = torch.argsort(hessian.diag(), descending=True, stable=True) if act_order else torch.arange(n)
    order = order.to(weight.device)
    upper = inverse_cholesky(hessian[order][:, order], damping)
    kernel = hessian.dtype is torch.float32 and abilities(weight.device).triton
    upper = upper.to(torch.float32) if kernel else upper
    w = weight[:, order].to(upper.dtype)
    s, z = (integer.expand(part, n).expand(-1, n)[:, order].to(upper.dtype) for part in (scale, zero))
    if kernel:
        from adatsq.cuda.gptq_kernel import round_columns as walk
    else:
        walk = round_columns
    codes = walk(w, s, z, upper, low, high, block_size)
    codes = codes[:, torch.argsort(order)].to(torch.int8).contiguous()
    return (codes, scale, zero.to(torch.int8)) if asymmetric else (codes, scale)


def round_columns(
    w: Tensor, s: Tensor, z: Tensor, upper: Tensor, low: int, high: int, block_size: int
) -> Tensor:
    """The loop of Algorithm 1: columns of w (out, in), with scales s and zero points z of the same shape, and
    U (in, in) -> codes (out, in), in the dtype of w."""
    w, s, z = (part.T.contiguous() for part in (w, s, z))  # columns as rows: twice as fast
    codes = torch.empty_like(w)
    for start in range(0, len(w), block_size):
        stop = min(start + block_size, len(w))
        block, u = w[start:stop], upper[start:stop, start:stop]
        errors = torch.empty_like(block)
        for j in range(stop - start):
            k = start + j
            codes[k] = ((block[j] / s[k]).round() + z[k]).clamp(low, high)
            errors[j] = (block[j] - (codes[k] - z[k]) * s[k]) / u[j, j]
            block[j:] -= torch.outer(u[j, j:], errors[j])
        w[stop:] -= upper[start:stop, stop:].T @ errors
    return codes.T


def inverse_cholesky(hessian: Tensor, damping: float) -> Tensor:
    """Upper U with U^T U = (H + damping * mean(diag H) I)^-1; dtype and damping as `gptq` says."""
    diagonal = hessian.diagonal()
    mean, dead = diagonal.mean(), diagonal == 0
    for attempt in range(DAMPING_TRIES):
        for dtype in dict.fromkeys([hessian.dtype, torch.float64]):
            h = hessian.to(dtype, copy=True)
            h.diagonal().masked_fill_(dead, 1.0)  # damping follows the mean with zeros for them
            h.diagonal().add_(mean * damping * 10**attempt)
            lower, failed = torch.linalg.cholesky_ex(h)
            del h  # a Hessian of 15360 inputs takes 0.9 GB: as few of them at once as can be
            if not failed:
                inverse = torch.cholesky_inverse(lower)
                del lower
                upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
    raise ValueError(
        f"the Hessian {tuple(hessian.shape)} is not positive definite, even with "
        f"{damping * 10**attempt:g} of its mean diagonal ({mean:.3g}) added: "
        "accumulate it in float32 without TF32, or in float64"
    )


def layer_error(weight: Tensor, codes: Tensor, scale: Tensor, hessian: Tensor) -> float:
    """tr(dW H dW^T), dW = W - codes * scale: the squared output error over the calibration inputs."""
    delta = weight.double() - integer.dequantize(codes, scale.double())
    return (delta @ hessian.double() * delta).sum().item()
