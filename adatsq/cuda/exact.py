"""When a product of integers on the FP8 tensor cores is the integer product, to the last bit.

    y[m, n] = sum_k x[m, k] w[n, k],    |x| <= X,  |w| <= W,  k = 1 .. K

Four things must hold.

1. Each operand is a number of float8 e4m3. It has four significant bits, so that the integers up to 16 are
   there without a gap, and 17 is the first that is not: X, W <= 16.
2. A product of two such numbers is not rounded: at most 16 * 16 = 2^8, eight significant bits.
3. Sums inside the tensor core. Hopper adds products in an accumulator with 13 bits after the leading one
   (e8m13, found by experiment and described by PyTorch's and DeepSeek's engineers, not in NVIDIA's papers):
   all addends are aligned to the largest, 2^e say, and what lies below 2^(e-13) is cut off. While every
   partial sum is below 2^14 in size, e is at most 13, and what is cut off lies below 1: nothing, of integers.
   This is no documented promise. `check` tries it on the device at hand, with sums of up to 2^14 - 1 in many
   orders. Where promotion follows (4.) we ask for 2^13 all the same: 4 and 4 bits need no more; 4 and 5
   bits (13,440) go to the int8 tensor cores.
4. Sums outside. With `use_fast_accum=False` the accumulator is added to a float32 register at least every 128
   values of k, and starts anew. The float32 sums are exact up to 2^24.

So the product is exact if X, W <= 16 and

    promoted:   128 X W <= 2^13  and  K X W <= 2^24
    fast:         K X W < 2^14

4 and 4 bits (X = W = 7): 128 * 49 = 6272, exact for K up to 342,392 when promoted. Fast mode is exact up to
K = 334, which no layer has: random inputs pass there, because their sums stay small, but one-sided ones, all
7, do not.

A layer knows more than the largest of its weights: the largest sum of their sizes, N = max_n sum_k |w[n, k]|,
over the inputs of an output. Whatever is added up, in whatever order and however it is grouped (inside the
tensor core, over a split of k), is a sum over some of the k, and no larger than

    sum_k |x[k]| |w[n, k]| <= X N,    so that    fast:  X N < 2^14

too. Then in 3. every addend that is aligned, a product or what the accumulator has so far, is an integer
below 2^14, and nothing is cut off. N is K W at most, and less for weights of which few reach the grid's ends.

8-bit activations (X = 127) are outside, and go to the int8 tensor cores, whose int32 sums are
exact for K < 2^31 / (127 * 127) = 133,144.
"""

import torch
from torch import Tensor

from adatsq.integer import qmax

E4M3_INTEGERS = 16
ACCUMULATOR = 2**13
FAST = 2**14 - 1
PROMOTION = 128
FLOAT32 = 2**24
INT32 = 2**31
TOGETHER = 32  # products that a tensor core adds at once, in FP8
KEPT_BITS = 13  # of the accumulator, after its leading one


def e4m3_is_exact(
    largest_x: int, largest_w: int, inputs: int, promoted: bool = True, row_sum: int | None = None
) -> bool:
    """Whether sums of `inputs` products of integers up to largest_x and largest_w come out exactly in e4m3.

    promoted: `use_fast_accum=False`. row_sum: the largest sum of sizes in a row of weights (`row_sum`), if it
    is known. False means that it is not guaranteed, not that it is wrong.
    """
    if max(largest_x, largest_w) > E4M3_INTEGERS:
        return False
    largest = largest_x * largest_w
    if promoted:
        return min(PROMOTION, inputs) * largest <= ACCUMULATOR and inputs * largest <= FLOAT32
    return largest_x * (row_sum or inputs * largest_w) <= FAST


def row_sum(codes: Tensor) -> int:
    """max_n sum_k |codes[n, k]| of integers (out, in). Waits for the device."""
    return int(codes.abs().sum(dim=1, dtype=torch.int32).max()) if codes.numel() else 0


def int8_is_exact(largest_x: int, largest_w: int, inputs: int) -> bool:
    """Whether the sums of the products fit int32."""
    return max(largest_x, largest_w) <= 127 and inputs * largest_x * largest_w < INT32


def product_of(w_bits: int, a_bits: int, inputs: int) -> str:
    """ "e4m3", "int8" or "float": the fastest product that is exact for symmetric integers of these bits.

    "float": none is, or there are no integers to multiply (16 bits).
    """
    if 16 in (w_bits, a_bits):
        return "float"
    largest_x, largest_w = qmax(a_bits), qmax(w_bits)
    if e4m3_is_exact(largest_x, largest_w, inputs):
        return "e4m3"
    return "int8" if int8_is_exact(largest_x, largest_w, inputs) else "float"


def accumulated(x: Tensor, w: Tensor, interval: int | None = PROMOTION) -> float:
    """sum_k x[k] w[k] of float vectors by a model of the tensor core, to see the bound at work.

    TOGETHER products and the accumulator are aligned to the largest of them, and what lies below KEPT_BITS
    after its leading one is cut off. interval: k between two promotions to float32, None for never.
    """
    total, accumulator = torch.zeros((), dtype=torch.float32), torch.zeros((), dtype=torch.float64)
    products = x.double() * w.double()
    for start in range(0, len(products), TOGETHER):
        if interval and start and start % interval == 0:
            total, accumulator = total + accumulator.float(), torch.zeros_like(accumulator)
        addends = torch.cat([products[start : start + TOGETHER], accumulator[None]])
        accumulator = _cut(_cut(addends).sum())
    return float(total + accumulator.float())


def _cut(addends: Tensor) -> Tensor:
    """Without the bits that lie too far below the leading one of the largest."""
    largest = addends.abs().max()
    if largest == 0:
        return addends
    unit = 2.0 ** (largest.log2().floor() - KEPT_BITS)
    return (addends / unit).trunc() * unit
