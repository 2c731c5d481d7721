"""Bit planes to bytes, in Triton: 32 bits of each plane become 32 codes, four to a 32-bit word.

A nibble n of a plane holds one bit of four neighbouring codes. n * (1 + 2^7 + 2^14 + 2^21) has copies of n at
0, 7, 14 and 21, so that bit i of n stands at position i + 7i = 8i of the i-th copy: & 0x01010101 leaves one
bit per byte. Shifted by the number of its plane and joined with the others it makes four codes in one word,
and what follows (subtracting qmax, turning two's complement into sign and magnitude) is done on all four.

Layers whose outputs are computed side by side are unpacked one after the other into the same bytes, by one
launch, which puts their scales and biases side by side too.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatsq.integer import qmax

BLOCK, WARPS = 256, 4  # words of each plane, per program

SPREAD = tl.constexpr(0x00204081)
ONES = tl.constexpr(0x01010101)
LOW_BITS = tl.constexpr(0x7F7F7F7F)
SIGN_BITS = tl.constexpr(0x80808080 - 2**32)  # as an int32


@triton.jit
def _unpack_block(
    planes,
    out,
    words,
    block,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    E4M3: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = block * BLOCK + tl.arange(0, BLOCK)
    j = tl.arange(0, 8)[None, :]
    inside = i < words
    codes = tl.zeros((BLOCK, 8), tl.int32)
    for k in tl.static_range(BITS):
        plane = tl.load(planes + k * words + i, mask=inside, other=0)
        nibbles = (plane[:, None] >> (4 * j)) & 15
        codes |= ((nibbles * SPREAD) & ONES) << k
    # codes - qmax in each byte: add its complement to the low seven bits, and the eighth without a carry
    offsets: tl.constexpr = OFFSET * ONES - (2**32 if OFFSET > 127 else 0)
    codes = ((codes & LOW_BITS) + (offsets & LOW_BITS)) ^ ((codes ^ offsets) & SIGN_BITS)
    if E4M3:
        negative = (codes >> 7) & ONES
        codes = ((codes ^ ((negative << 8) - negative)) + negative) | (codes & SIGN_BITS)
    tl.store(out + i[:, None] * 8 + j, codes, mask=inside[:, None])


@triton.jit
def _unpack(
    planes, out, words, BITS: tl.constexpr, OFFSET: tl.constexpr, E4M3: tl.constexpr, BLOCK: tl.constexpr
):
    _unpack_block(planes, out, words, tl.program_id(0), BITS, OFFSET, E4M3, BLOCK)


@triton.jit
def _unpack_layers(
    planes,
    scales,
    biases,
    out,
    scale,
    bias,
    words,
    outputs,
    LAYERS: tl.constexpr,
    BIAS: tl.constexpr,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    E4M3: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """planes, scales, biases, words, outputs: tuples, one of each for a layer."""
    program = tl.program_id(0)
    block, word, output = 0, 0, 0  # where the layer's begin
    for n in tl.static_range(LAYERS):
        own = program - block
        block += tl.cdiv(words[n], BLOCK)
        if (own >= 0) & (program < block):
            _unpack_block(planes[n], out + word * 8, words[n], own, BITS, OFFSET, E4M3, BLOCK)
            i = own * BLOCK + tl.arange(0, BLOCK)
            inside = i < outputs[n]
            tl.store(scale + output + i, tl.load(scales[n] + i, mask=inside).to(tl.float32), mask=inside)
            if BIAS:
                tl.store(bias + output + i, tl.load(biases[n] + i, mask=inside), mask=inside)
        word += words[n]
        output += outputs[n]


def unpack_words(planes: Tensor, out: Tensor, e4m3: bool) -> None:
    """planes (bits, bytes) in whole words -> the first 8 * bytes of `out`, both uint8 and contiguous."""
    bits, words = len(planes), planes.shape[1] // 4
    grid = (triton.cdiv(words, BLOCK),)
    _unpack[grid](
        planes.view(torch.int32),
        out[: 32 * words].view(torch.int32),
        words,
        BITS=bits,
        OFFSET=256 - qmax(bits),
        E4M3=e4m3,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


def unpack_layers(
    planes: Sequence[Tensor],
    scales: Sequence[Tensor],
    biases: Sequence[Tensor],
    out: Tensor,
    e4m3: bool,
) -> tuple[Tensor, Tensor | None]:
    """planes -> `out`; returns scales (outputs of all, 1) in float32 and biases (outputs of all), or None.

    Layers have equal bits and inputs, these a multiple of 32, and biases of one dtype."""
    bits, words = len(planes[0]), tuple(each.shape[1] // 4 for each in planes)
    outputs = tuple(len(scale) for scale in scales)  # at most as many as words: programs enough for these too
    scale = torch.empty(sum(outputs), 1, dtype=torch.float32, device=out.device)
    bias = torch.empty(sum(outputs), dtype=biases[0].dtype, device=out.device) if biases else None
    _unpack_layers[(sum(triton.cdiv(count, BLOCK) for count in words),)](
        tuple(each.view(torch.int32) for each in planes),
        tuple(each.contiguous() for each in scales),
        tuple(each.contiguous() for each in biases),
        out[: 32 * sum(words)].view(torch.int32),
        scale,
        bias,
        words,
        outputs,
        LAYERS=len(planes),
        BIAS=bool(biases),
        BITS=bits,
        OFFSET=256 - qmax(bits),
        E4M3=e4m3,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return scale, bias
