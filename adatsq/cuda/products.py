"""Integers times integers, then the scales:

    y[m, n] = s_x[m] s_w[n] sum_k codes_x[m, k] codes_w[n, k] + bias[n]

The sum is the exact integer (`exact`), and all after it is float32 arithmetic, rounded once to the dtype of
y. So y is closer to what the integers stand for than the reference in bfloat16 is, which rounds each weight
s_w code to bfloat16 (relative error up to 2^-9), and the product, before it multiplies by s_x.

FP8 by `torch._scaled_mm` with a scale per row of both, in the slow accumulation mode unless `exact` knows the
fast one to be exact for the layer's weights. The slow one takes longer (cuda-shapes.csv); the fast one is
otherwise wrong for one-sided inputs, by about 2^-13 of the largest partial sum; whoever accepts that may
choose it (`accelerate(fast_accumulation=True)`).
"""

import torch
from torch import Tensor

from adatsq.cuda import devices

ALIGNED = 16  # what _scaled_mm needs K and N to be multiples of


def multiply(
    x: Tensor,
    s_x: Tensor,
    w: Tensor,
    s_w: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    fast_accumulation: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """y (tokens, out) in `dtype`. x (tokens, in), w (out, in): codes, both int8 or both float8_e4m3fn.

    s_x (tokens, 1), s_w (out, 1): float32. e4m3 weights are stored times UNIT, activations as they are, and
    s_x makes up for it. out: where y is written and what is returned, columns of a wider tensor, say.
    """
    if x.dtype is torch.float8_e4m3fn:
        return _multiply_e4m3(x, s_x, w, s_w, bias, dtype, fast_accumulation, out)
    if devices.abilities(x.device).triton and len(x):
        from adatsq.cuda.products_kernel import multiply_int8

        return multiply_int8(x, s_x, w, s_w, bias, dtype, out=out)
    if x.device.type == "cuda":
        sums = int_mm(x, w).float()
    else:
        # Exact below 2^24; above, as good as float32 sums are.
        sums = x.float() @ w.float().T
    return _finished(sums * s_x * s_w.view(1, -1), bias, dtype, out)


def _finished(y: Tensor, bias: Tensor | None, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    y = (y if bias is None else y + bias.float()).to(dtype)
    return y if out is None else out.copy_(y)


def _multiply_e4m3(
    x: Tensor,
    s_x: Tensor,
    w: Tensor,
    s_w: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    fast: bool,
    into: Tensor | None,
) -> Tensor:
    out, inputs = w.shape
    if out % ALIGNED or inputs % ALIGNED:
        x, w = _pad(x, 0, -inputs % ALIGNED), _pad(w, -out % ALIGNED, -inputs % ALIGNED)
        s_w = torch.nn.functional.pad(s_w, (0, 0, 0, -out % ALIGNED))
        y = _multiply_e4m3(x, s_x, w, s_w, None, torch.float32, fast, None)[:, :out]
        return _finished(y, bias, dtype, into)
    fused = bias is not None and dtype is torch.bfloat16  # the only pair of dtypes that all versions take
    whole = bias is None or fused
    y = torch._scaled_mm(
        x,
        w.t(),
        scale_a=s_x,
        scale_b=s_w.view(1, -1),
        bias=bias.to(dtype) if fused else None,
        out_dtype=dtype if whole else torch.float32,
        use_fast_accum=fast,
        out=into if whole else None,
    )
    return y if whole else _finished(y, bias, dtype, into)


def int_mm(x: Tensor, w: Tensor) -> Tensor:
    """int32 sums by cuBLAS, which wants more than 16 rows, and K and N in multiples of 8."""
    rows, (out, inputs) = len(x), w.shape
    x = _pad(x, max(0, 17 - rows), -inputs % 8)
    w = _pad(w, -out % 8, -inputs % 8)
    return torch._int_mm(x, w.t())[:rows, :out]


def _pad(codes: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros below and to the right; codes are bytes, and the byte 0 is the code 0 in both dtypes."""
    if not rows and not columns:
        return codes
    padded = torch.nn.functional.pad(codes.view(torch.uint8), (0, columns, 0, rows))
    return padded.view(codes.dtype)
