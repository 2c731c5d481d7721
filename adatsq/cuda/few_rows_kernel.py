"""A few rows times packed weights with scales, in Triton: the modulation linears, which see a row per image.

    y[m, n] = sum_k x[m, k] scale[n, k // group] codes[n, k] + bias[n]

Such a product reads each weight once and does next to nothing with it, so that its time is that of the bytes.
Unpacked first, as for a product of many rows (`packing`), a weight of half a byte would be written as a byte
and read again: Flux-dev has 3.2 billion weights in these layers. `few_rows_table` has
another way for rows in bfloat16; this one takes all dtypes and widths.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatsq.cuda.unpack_kernel import ONES, SPREAD
from adatsq.integer import qmax

OUTPUTS, WORDS, WARPS = 16, 16, 4
MAGIC = tl.constexpr(0x4B000000)  # 2^23: a float32 that ends in the bits of an integer that is added to it


@triton.jit
def _multiply_few(
    x,
    planes,
    scale,
    bias,
    y,
    finite,
    outputs,
    words,
    INPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    QMAX: tl.constexpr,
    BIAS: tl.constexpr,
    LOOK: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """A program makes OUTPUTS values of one row. A tile is (outputs, 32-bit words of a plane, nibbles)."""
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row, nibble = n.to(tl.int64), tl.arange(0, 8)
    sums = tl.zeros((OUTPUTS, WORDS), tl.float32)
    top = tl.zeros((WORDS, 8), tl.int32)
    for start in range(0, INPUTS // 32, WORDS):
        j = start + tl.arange(0, WORDS)
        inside = (n < outputs)[:, None] & (j < INPUTS // 32)[None, :]
        four = tl.zeros((OUTPUTS, WORDS, 8), tl.int32)  # codes in a word, shifted by qmax (`unpack_kernel`)
        for k in tl.static_range(BITS):
            at = planes + k * words + row[:, None] * (INPUTS // 32) + j[None, :]
            plane = tl.load(at, mask=inside, other=0)
            four |= ((((plane[:, :, None] >> (4 * nibble)[None, None, :]) & 15) * SPREAD) & ONES) << k
        products = tl.zeros((OUTPUTS, WORDS, 8), tl.float32)
        for byte in tl.static_range(4):
            k = j[:, None] * 32 + nibble[None, :] * 4 + byte
            values = tl.load(x + m * INPUTS + k, mask=k < INPUTS, other=0.0).to(tl.float32)
            top = tl.maximum(top, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
            code = (((four >> (8 * byte)) & 255) | MAGIC).to(tl.float32, bitcast=True) - (8388608 + QMAX)
            products += code * values[None, :, :]
        at = scale + row[:, None] * (INPUTS // GROUP) + (j * 32 // GROUP)[None, :]
        sums += tl.sum(products, axis=2) * tl.load(at, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(sums, axis=1)
    if BIAS:
        total += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)
    tl.store(y + m * outputs + n, total.to(y.dtype.element_ty), mask=n < outputs)
    if LOOK:
        if tl.max(tl.max(top, axis=1), axis=0) >= 0x7F800000:  # infinity, and NaN above it
            tl.store(finite, 0)


def fits(inputs: int, groups: int) -> bool:
    """Whether rows of weights and groups of them are whole 32-bit words of a plane."""
    return inputs % 32 == 0 and (inputs // groups) % 32 == 0


def multiply_few(
    x: Tensor, planes: Tensor, scale: Tensor, bias: Tensor | None, finite: Tensor | None = None
) -> Tensor:
    """x (rows, in), planes of symmetric codes (`packing`), scale (out, groups) -> (rows, out) in x's dtype.

    Sums are float32, and the weight is not rounded to x's dtype on the way. finite: as in
    `activations.quantize`. Only where `fits`.
    """
    (rows, inputs), (outputs, groups), bits = x.shape, scale.shape, len(planes)
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    _multiply_few[(triton.cdiv(outputs, OUTPUTS), rows)](
        x.contiguous(),
        planes.view(torch.int32),
        scale.contiguous(),
        bias,
        y,
        finite,
        outputs,
        planes.shape[1] // 4,
        INPUTS=inputs,
        GROUP=inputs // groups,
        BITS=bits,
        QMAX=qmax(bits),
        BIAS=bias is not None,
        LOOK=finite is not None,
        OUTPUTS=OUTPUTS,
        WORDS=WORDS,
        num_warps=WARPS,
    )
    return y
