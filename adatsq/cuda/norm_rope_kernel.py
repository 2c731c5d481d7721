"""Query and key by their norms, then rotated by position, in Triton: one pass, both in one launch for each
part.

Such a pass takes no less time than its bytes. A program has a token of one of the two tensors: all heads of
it, so that it reads the cosines and sines, which the heads share, once; the program beside it has the same
token of the other tensor, and finds them in the cache. All that a program reads it asks for at its start, so
that many bytes are on their way at a time.
"""

from collections.abc import Sequence

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
    first,
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
    # first: the place of the part's first token among all `tokens`
    token, batch = (tl.program_id(0) // 2).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = (batch * tokens + first + token) * H * D
    cos += (first + token) * D
    sin += (first + token) * D
    if tl.program_id(0) % 2 == 0:
        query += batch * query_batch + token * query_token
        _token(query, query_weight, cos, sin, new_query + row, eps, query_head, H, D, HEADS)
    else:
        key += batch * key_batch + token * key_token
        _token(key, key_weight, cos, sin, new_key + row, eps, key_head, H, D, HEADS)


def fits(queries: Sequence[Tensor], keys: Sequence[Tensor], cos: Tensor, sin: Tensor) -> bool:
    """Whether the kernel takes these: sizes, dtypes, devices."""
    first, tokens = queries[0], sum(x.shape[1] for x in queries)
    return (
        all(query.shape == key.shape for query, key in zip(queries, keys))
        and all(x.shape[::2] == first.shape[::2] and x.shape[3] == first.shape[3] for x in queries)
        and all(x.dtype is first.dtype and x.device == cos.device for x in (*queries, *keys))
        and first.dtype in DTYPES
        and first.shape[3] in SIZES
        and len(first) < 2**16  # programs of a grid's second axis
        and cos.shape == sin.shape == (tokens, first.shape[3])
        and cos.dtype is sin.dtype is torch.float32
        and cos.device == sin.device
    )


def norm_and_rotate(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    query_weights: Sequence[Tensor],
    key_weights: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`norm_rope.norm_rope` of what `fits`; queries and keys with any strides. A launch for each part."""
    batch, _, heads, size = queries[0].shape
    first, tokens = 0, sum(x.shape[1] for x in queries)
    cos, sin = cos.contiguous(), sin.contiguous()
    new_query, new_key = (queries[0].new_empty(batch, tokens, heads, size) for _ in range(2))
    for query, key, query_weight, key_weight in zip(queries, keys, query_weights, key_weights):
        # Neighbours are read together; other strides are free.
        query, key = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key))
        _norm_rope[(2 * query.shape[1], batch)](
            query,
            key,
            query_weight.contiguous(),
            key_weight.contiguous(),
            cos,
            sin,
            new_query,
            new_key,
            eps,
            first,
            tokens,
            *query.stride()[:3],
            *key.stride()[:3],
            H=heads,
            D=size,
            HEADS=min(triton.next_power_of_2(heads), VALUES // size),
            num_warps=WARPS,
        )
        first += query.shape[1]
    return new_query, new_key
