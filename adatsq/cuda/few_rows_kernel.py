"""A few rows times 8-bit codes with scales, in Triton: the modulation linears, which see a row per image.

    y[m, n] = sum_k x[m, k] scale[n, k // group] codes[n, k] + bias[n]

Such a product reads each weight once and does next to nothing with it, so that its time is that of the bytes.
In plain torch the weight is written as float32 first, four bytes for what is stored as half a byte, and read
again: Flux-dev has 3.2 billion weights in these layers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

OUTPUTS, INPUTS_AT_ONCE, WARPS = 16, 512, 4


@triton.jit
def _multiply_few(
    x,
    codes,
    scale,
    bias,
    y,
    outputs,
    INPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    BIAS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A program makes OUTPUTS values of one row. A tile is (outputs, parts, width); a part has one scale."""
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    part = tl.arange(0, PARTS)
    row = n.to(tl.int64)
    sums = tl.zeros((OUTPUTS, PARTS), tl.float32)
    for start in range(0, INPUTS, PARTS * WIDTH):
        k = start + part[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        values = tl.load(x + m * INPUTS + k, mask=k < INPUTS, other=0.0).to(tl.float32)
        inside = (n < outputs)[:, None, None] & (k < INPUTS)[None, :, :]
        tile = tl.load(codes + row[:, None, None] * INPUTS + k[None, :, :], mask=inside, other=0)
        products = tl.sum(tile.to(tl.float32) * values[None, :, :], axis=2)
        first = start + part * WIDTH
        inside = (n < outputs)[:, None] & (first < INPUTS)[None, :]
        at = scale + row[:, None] * (INPUTS // GROUP) + (first // GROUP)[None, :]
        sums += products * tl.load(at, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(sums, axis=1)
    if BIAS:
        total += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)
    tl.store(y + m * outputs + n, total.to(y.dtype.element_ty), mask=n < outputs)


def multiply_few(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x (rows, in), codes int8 (out, in), scale (out, groups) -> (rows, out) in x's dtype, sums in float32.

    The weight is not rounded to x's dtype on the way, which a product in that dtype would do.
    """
    (rows, inputs), outputs = x.shape, len(codes)
    group = inputs // scale.shape[1]
    # the largest power of two that divides a group; with one scale for the row anything is in it
    width = 64 if group == inputs else min(group & -group, 128)
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    _multiply_few[(triton.cdiv(outputs, OUTPUTS), rows)](
        x.contiguous(),
        codes,
        scale.contiguous(),
        bias,
        y,
        outputs,
        INPUTS=inputs,
        GROUP=group,
        BIAS=bias is not None,
        OUTPUTS=OUTPUTS,
        PARTS=max(1, INPUTS_AT_ONCE // width),
        WIDTH=width,
        num_warps=WARPS,
    )
    return y
