"""How one linear layer becomes a `QuantLinear`: smoothing, low rank, rotation, rounding, in turn.

z = x / s,    M = W s,    L = up @ down ~ M,    y = Q_x(z R) Q_w((M - L) R)^T + z L^T + bias
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adatsq import integer
from adatsq.gptq import gptq, round_to_nearest
from adatsq.linear import QuantLinear
from adatsq.lowrank import decompose, low_rank
from adatsq.rotation import rotate, rotate_hessian, unrotate
from adatsq.smoothing import best_scale


@dataclass(frozen=True)
class Scheme:
    """w_bits, a_bits: 2..8, or 16 for none. rotation, seed: Hadamard, and of its signs. clip: of weights,
    "mse" or a ratio; a_clip: of activations, as in `QuantLinear`. group_size, a_group_size: inputs that share
    a scale. asymmetric: both grids from min to max. rank: of the low-rank branch, 0 for none. shift: added to
    inputs to make them unsigned, 0 for none.
    """

    w_bits: int
    a_bits: int = 16
    rotation: bool = False
    clip: str | float = 1.0
    a_clip: bool | float = False
    group_size: int | None = None
    a_group_size: int | None = None
    asymmetric: bool = False
    rank: int = 0
    shift: float = 0.0
    seed: int | None = None


def quantized(
    linear: nn.Linear,
    scheme: Scheme,
    hessian: Tensor | None = None,
    smoothing: Tensor | None = None,
    rows: Tensor | None = None,
    name: str = "",
    iterate: bool = True,
    pair: tuple[Tensor, Tensor] | None = None,
) -> QuantLinear:
    """The layer with integer weights: by GPTQ if there is a hessian (of x, (in, in)), else to the nearest.

    smoothing: s (in,). pair: down and up of the low-rank branch, if `branch` has found them already; else
    rows and iterate are as there.
    """
    matrix = linear.weight.detach()
    if smoothing is not None:
        matrix = matrix.float() * smoothing
        hessian = None if hessian is None else hessian / smoothing / smoothing[:, None]
    down = up = None
    if scheme.rank:
        down, up = pair or branch(linear, scheme, smoothing, rows if iterate else None)
        matrix = matrix.float() - up @ down
    parts = _integers(matrix, scheme, hessian, linear.weight.dtype)
    return _module(linear, parts, scheme, smoothing, down, up, name)


def branch(
    linear: nn.Linear, scheme: Scheme, smoothing: Tensor | None = None, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """down (rank, in), up (out, rank) of a layer's low-rank branch, improved for inputs rows (n, in) if there
    are any. The weights that it is improved with are rounded to the nearest, whatever the solver is later."""
    matrix = linear.weight.detach()
    matrix = matrix if smoothing is None else matrix.float() * smoothing
    if rows is None:
        return low_rank(matrix, scheme.rank)
    nearest = replace(scheme, rank=0)

    def rounded(rest: Tensor) -> Tensor:
        return _back(_integers(rest, nearest, None), nearest)

    def error(down: Tensor, up: Tensor) -> float:
        parts = _integers(matrix.float() - up @ down, nearest, None)
        return output_error([linear], [_module(linear, parts, scheme, smoothing, down, up)], rows)

    return decompose(matrix.float(), scheme.rank, rounded, error)


def smoothed_scale(
    linears: Sequence[nn.Linear],
    schemes: Sequence[Scheme],
    x_largest: Tensor,
    exponents: Sequence[tuple[float, float]],
    rows: Tensor,
) -> Tensor:
    """s of linears that share an input: by the least output error on `rows` of all, rounded to nearest."""

    def error(s: Tensor) -> float:
        modules = [quantized(l, c, smoothing=s, iterate=False) for l, c in zip(linears, schemes)]
        return output_error(linears, modules, rows)

    return best_scale(x_largest, [linear.weight for linear in linears], exponents, error)


def output_error(linears: Sequence[nn.Linear], modules: Sequence[Callable], rows: Tensor) -> float:
    """Squared difference of the layers' answers to rows (n, in), over all layers."""
    return sum(
        (module(rows) - F.linear(rows, linear.weight, linear.bias)).double().square().sum().item()
        for linear, module in zip(linears, modules)
    )


def _integers(
    matrix: Tensor, scheme: Scheme, hessian: Tensor | None, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Codes and scale of a weight, or the weight itself and scale 1 if it stays in 16 bits."""
    if scheme.rotation:
        matrix = rotate(matrix.float(), scheme.seed)
        hessian = None if hessian is None else rotate_hessian(hessian, scheme.seed)
    if scheme.w_bits == 16:
        return {"codes": matrix.to(dtype), "scale": torch.ones(len(matrix), 1, device=matrix.device)}
    options = {"asymmetric": scheme.asymmetric, "clip": scheme.clip}
    if hessian is None:
        parts = round_to_nearest(matrix, scheme.w_bits, scheme.group_size, **options)
    else:
        parts = gptq(matrix, hessian, scheme.w_bits, scheme.group_size, **options)
    return dict(zip(("codes", "scale", "zero"), parts))


def _back(parts: dict[str, Tensor], scheme: Scheme) -> Tensor:
    """The weight that integers stand for, before rotation."""
    codes, scale, zero = parts["codes"].float(), parts["scale"], parts.get("zero")
    if zero is not None:
        codes = codes - integer.expand(zero, codes.shape[-1])
    matrix = integer.dequantize(codes, scale)
    return unrotate(matrix, scheme.seed) if scheme.rotation else matrix


def _module(
    linear: nn.Linear,
    parts: dict[str, Tensor],
    scheme: Scheme,
    smoothing: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    name: str = "",
) -> QuantLinear:
    return QuantLinear(
        **parts,
        bias=None if linear.bias is None else linear.bias.detach(),
        w_bits=scheme.w_bits,
        a_bits=scheme.a_bits,
        rotation=scheme.rotation,
        a_clip=scheme.a_clip,
        name=name,
        smoothing=smoothing,
        down=down,
        up=up,
        a_group_size=scheme.a_group_size,
        a_asymmetric=scheme.asymmetric,
        shift=scheme.shift,
        seed=scheme.seed,
    )
