"""Query and key by their norms, then rotated by position, in Triton: one pass, both in one launch.

Such a pass takes no less time than its bytes. A program has a token of one of the two tensors: all heads of
it, so that it reads the cosines and sines, which the heads share, once; the program beside it has the same
token of the other tensor, and finds them in the cache. All that a program reads it asks for at its start, so
that many bytes are on their way at a time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES, WARPS = 4096, 4  # of a block of heads; what is more than a block is the same program's, one by one
SIZES = (16, 32, 64, 128, 256)  # values of a head
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit
def _token(x, weight, cos, sin, y, eps, stride, H: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr):
    """The heads of x, `stride` apart, to those of y, side by side. cos, sin: the token's rows."""
    dtype: tl.constexpr = x.dtype.element_ty
    column = tl.arange(0, D)[None, :]
    cos, sin = tl.load(cos + column), tl.load(sin + column)
    w = tl.load(weight + column).to(tl.float32)
    for start in range(0, H, HEADS):
        head = start + tl.arange(0, HEADS)[:, None]
        z = tl.load(x + head.to(tl.int64) * stride + column, mask=head < H, other=0.0).to(tl.float32)
        root = tl.rsqrt(tl.sum(z * z, axis=1) / D + eps)[:, None]
        z = (z * root * w).to(dtype).to(tl.float32)
        even, odd = tl.split(tl.reshape(z, (HEADS, D // 2, 2)))
        # Only here: earlier, threads would wait for these before they ask for x.
        cos_even, cos_odd = tl.split(tl.reshape(cos, (1, D // 2, 2)))
        sin_even, sin_odd = tl.split(tl.reshape(sin, (1, D // 2, 2)))
        z = tl.join(even * cos_even - odd * sin_even, odd * cos_odd + even * sin_odd)
        tl.store(y + head * D + column, tl.reshape(z, (HEADS, D)).to(dtype), mask=head < H)


@triton.jit
def _norm_rope(
    query,
    key,
    query_weight,
    key_weight,
    cos,
    sin,
    new_query,
    new_key,
    eps,
    tokens,
    query_batch,
    query_token,
    query_head,
    key_batch,
    key_token,
    key_head,
    H: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,
):
    token, batch = (tl.program_id(0) // 2).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = (batch * tokens + token) * H * D
    cos += token * D
    sin += token * D
    if tl.program_id(0) % 2 == 0:
        query += batch * query_batch + token * query_token
        _token(query, query_weight, cos, sin, new_query + row, eps, query_head, H, D, HEADS)
    else:
        key += batch * key_batch + token * key_token
        _token(key, key_weight, cos, sin, new_key + row, eps, key_head, H, D, HEADS)


def fits(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether the kernel takes these: sizes, dtypes, devices."""
    return (
        query.shape == key.shape
        and query.dtype is key.dtype
        and query.dtype in DTYPES
        and query.shape[3] in SIZES
        and len(query) < 2**16  # programs of a grid's second axis
        and cos.shape == sin.shape == query.shape[1::2]
        and cos.dtype is sin.dtype is torch.float32
        and query.device == key.device == cos.device == sin.device
    )


def norm_and_rotate(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`norm_rope.norm_rope` of what `fits`; query and key with any strides."""
    # Neighbours are read together; other strides are free.
    query, key = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key))
    batch, tokens, heads, size = query.shape
    new_query, new_key = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key))
    _norm_rope[(2 * tokens, batch)](
        query,
        key,
        query_weight.contiguous(),
        key_weight.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        new_query,
        new_key,
        eps,
        tokens,
        *query.stride()[:3],
        *key.stride()[:3],
        H=heads,
        D=size,
        HEADS=min(triton.next_power_of_2(heads), VALUES // size),
        num_warps=WARPS,
    )
    return new_query, new_key
