"""Rotate or smooth, find the largest, round and cast one token per program, in Triton.

A block of p*q neighbouring values as a matrix X (p, q) is rotated as H_p (X * signs) H_q (`adatsq.rotation`).
A Hadamard matrix of +-1 is exact in bfloat16, so tensor cores can multiply by it, and lose nothing, if X is a
sum of bfloat16 numbers: a bfloat16 X is one, a float16 X two, a float32 X three (8 bits each). Their products
are added in float32. The factor 1/sqrt(pq) comes last.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatsq.cuda.packing import UNIT
from adatsq.cuda.prologue import NONE, width
from adatsq.integer import qmax
from adatsq.rotation import _factors, block_size

PARTS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
# The interpreter's dot reads bfloat16 wrongly: there the same parts are multiplied in float32.
INTERPRETED = triton.knobs.runtime.interpret


@triton.jit
def _hadamard_signs(N: tl.constexpr):
    """H_N of +-1: -1 where the binary digits that row and column share are an odd number."""
    v = tl.arange(0, N)[:, None] & tl.arange(0, N)[None, :]
    v ^= v >> 8
    v ^= v >> 4
    v ^= v >> 2
    v ^= v >> 1
    return 1 - 2 * (v & 1)


@triton.jit
def _times_hadamard(x, N: tl.constexpr, PARTS: tl.constexpr, DTYPE: tl.constexpr):
    """x (rows, N) @ H_N, x in float32, as PARTS products of bfloat16 numbers that add up to x."""
    h = _hadamard_signs(N).to(DTYPE)
    part = x.to(tl.bfloat16)
    y = tl.dot(part.to(DTYPE), h)
    for _ in tl.static_range(PARTS - 1):
        x -= part.to(tl.float32)
        part = x.to(tl.bfloat16)
        y = tl.dot(part.to(DTYPE), h, acc=y)
    return y


@triton.jit
def _gelu(x):
    return x * tl.sigmoid(x * (1.5957691216 + 0.0713548163 * x * x))  # `prologue`


@triton.jit
def _quantize_rows(
    x,
    second,
    smoothing,
    signs,
    codes,
    scales,
    finite,
    x_apart,
    second_apart,
    largest_code,
    ratio,
    norm,
    per_unit,
    INPUTS: tl.constexpr,
    FIRST: tl.constexpr,
    PROLOGUE: tl.constexpr,
    SMOOTH: tl.constexpr,
    ROTATE: tl.constexpr,
    LOOK: tl.constexpr,
    B: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    PARTS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    b = tl.arange(0, B)[:, None, None]
    p = tl.arange(0, P)[None, :, None]
    q = tl.arange(0, Q)[None, None, :]
    column = (b * P + p) * Q + q
    inside = column < INPUTS
    z = tl.load(x + row * x_apart + column, mask=column < FIRST, other=0.0).to(tl.float32)
    dtype = x.dtype.element_ty
    if PROLOGUE == "gelu":
        z = _gelu(z).to(dtype).to(tl.float32)
    if PROLOGUE == "cat gelu":
        rest = second + row * second_apart + column - FIRST
        other = tl.load(rest, mask=inside & (column >= FIRST), other=0.0).to(tl.float32)
        z = tl.where(column < FIRST, z, _gelu(other).to(dtype).to(tl.float32))
    if PROLOGUE == "swiglu":
        other = tl.load(second + row * second_apart + column, mask=inside, other=0.0).to(tl.float32)
        z = ((z * tl.sigmoid(z)).to(dtype).to(tl.float32) * other).to(dtype).to(tl.float32)
    if SMOOTH:
        z = tl.div_rn(z, tl.load(smoothing + column, mask=inside, other=1.0).to(tl.float32))
    if ROTATE:
        z *= tl.load(signs + p * Q + q)
        z = tl.reshape(_times_hadamard(tl.reshape(z, (B * P, Q)), Q, PARTS, DTYPE), (B, P, Q))
        z = tl.reshape(tl.permute(z, (0, 2, 1)), (B * Q, P))
        z = tl.permute(tl.reshape(_times_hadamard(z, P, 3, DTYPE), (B, Q, P)), (0, 2, 1))
        z *= norm
    # As bits, sizes of floats are in the order of integers, infinity and then NaN on top: neither is lost.
    bits = z.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    top = tl.max(tl.max(tl.max(bits, axis=2), axis=1), axis=0)
    if LOOK:
        if top >= 0x7F800000:
            tl.store(finite, 0)
    scale = top.to(tl.float32, bitcast=True) * ratio
    scale = tl.where(scale == 0, 1.0, scale)
    tl.store(scales + row, scale * per_unit)
    c = tl.minimum(tl.maximum(tl.div_rn(z, scale), -largest_code), largest_code)
    c = (c + 12582912.0) - 12582912.0  # 1.5 * 2^23, where floats are a whole 1 apart: rounds halves to even
    tl.store(codes + row * INPUTS + column, c.to(codes.dtype.element_ty), mask=inside)


def quantize_rows(
    x: Tensor,
    bits: int,
    clip: float,
    signs: Tensor | None,
    smoothing: Tensor | None,
    dtype: torch.dtype,
    finite: Tensor | None,
    warps: int | None = None,
    second: Tensor | None = None,
    prologue: str = NONE,
) -> tuple[Tensor, Tensor]:
    """`activations.quantize` with the rotation's signs (one block), or None for no rotation.

    Rows of x and of second may lie apart, as columns of a wider tensor do."""
    x, second = (t if t is None or t.stride(1) == 1 else t.contiguous() for t in (x, second))
    tokens, inputs = len(x), width(prologue, x, second)
    codes = torch.empty(tokens, inputs, dtype=dtype, device=x.device)
    scales = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    b, p, q = 1, 1, triton.next_power_of_2(inputs)
    if signs is not None:
        p, q = _factors(block_size(inputs))
        b = triton.next_power_of_2(inputs // (p * q))
    _quantize_rows[(tokens,)](
        x,
        second,
        smoothing,
        signs,
        codes,
        scales,
        finite,
        x.stride(0),
        0 if second is None else second.stride(0),
        float(qmax(bits)),
        clip / qmax(bits),
        (p * q) ** -0.5,
        1 / UNIT if dtype is torch.float8_e4m3fn else 1.0,
        INPUTS=inputs,
        FIRST=x.shape[1],
        PROLOGUE=prologue,
        SMOOTH=smoothing is not None,
        ROTATE=signs is not None,
        LOOK=finite is not None,
        B=b,
        P=p,
        Q=q,
        PARTS=PARTS[x.dtype] if smoothing is None else 3,
        DTYPE=tl.float32 if INTERPRETED else tl.bfloat16,
        num_warps=warps or (8 if b * p * q <= 4096 else 16),
    )
    return codes, scales
