"""GPTQ's walk over the columns of a block (`adatsq.gptq`), in Triton.

Rows do not know of each other, so a program takes some rows through all columns of a block, in registers. In
plain torch the same takes a dozen kernels a column, and Flux-dev has 2.6 million columns in its layers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, WARPS = 16, 4


@triton.jit
def _round_columns(
    w,
    s,
    z,
    upper,
    codes,
    errors,
    rows,
    columns,
    start,
    low,
    high,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, WIDTH)
    inside = (r < rows)[:, None] & (c < COLUMNS)[None, :]
    at = r[:, None] * columns + start + c[None, :]
    block = tl.load(w + at, mask=inside, other=0.0)
    found = tl.zeros((ROWS, WIDTH), tl.float32)
    missed = tl.zeros((ROWS, WIDTH), tl.float32)
    for j in range(0, COLUMNS):
        here = (c == j)[None, :]
        u = tl.load(upper + (start + j) * columns + start + c, mask=c < COLUMNS, other=0.0)
        scale = tl.load(s + r * columns + start + j, mask=r < rows, other=1.0)
        zero = tl.load(z + r * columns + start + j, mask=r < rows, other=0.0)
        x = tl.sum(tl.where(here, block, 0.0), axis=1)
        code = tl.minimum(tl.maximum(tl.div_rn(x, scale), low - zero), high - zero)
        code = (code + 12582912.0) - 12582912.0  # rounds halves to even: 1.5 * 2^23
        error = tl.div_rn(x - code * scale, tl.sum(tl.where(c == j, u, 0.0), axis=0))
        block -= error[:, None] * u[None, :]  # 0 before column j: `upper` is triangular
        found = tl.where(here, (code + zero)[:, None], found)
        missed = tl.where(here, error[:, None], missed)
    tl.store(codes + at, found, mask=inside)
    tl.store(errors + r[:, None] * COLUMNS + c[None, :], missed, mask=inside)


def round_columns(
    w: Tensor, s: Tensor, z: Tensor, upper: Tensor, low: int, high: int, block_size: int
) -> Tensor:
    """What `adatsq.gptq.round_columns` does, in float32; a block of columns is one call of the kernel."""
    w, s, z, upper = (part.contiguous() for part in (w, s, z, upper))
    codes = torch.empty_like(w)
    for start in range(0, w.shape[1], block_size):
        stop = min(start + block_size, w.shape[1])
        errors = round_block(w, s, z, upper, codes, start, stop, low, high)
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes


def round_block(
    w: Tensor, s: Tensor, z: Tensor, upper: Tensor, codes: Tensor, start: int, stop: int, low: int, high: int
) -> Tensor:
    """Columns start..stop of w (out, in) to codes, written to `codes` as floats; returns their errors
    (out, stop - start), divided by U_jj. All float32 and contiguous; w itself is left alone."""
    rows, columns = w.shape
    errors = torch.empty(rows, stop - start, device=w.device)
    with torch.cuda.device_of(w):
        _round_columns[(triton.cdiv(rows, ROWS),)](
            w,
            s,
            z,
            upper,
            codes,
            errors,
            rows,
            columns,
            start,
            float(low),
            float(high),
            COLUMNS=stop - start,
            ROWS=ROWS,
            WIDTH=max(16, triton.next_power_of_2(stop - start)),
            num_warps=WARPS,
        )
    return errors
