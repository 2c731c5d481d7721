"""Query and key of Flux's attention: divided by their norm, then rotated by position, in one pass.

The norm of a head needs all of its values, the rotation pairs of neighbours: little to compute, so that both
together should take the time of their bytes. `norm_rope_kernel` reads and writes each value once. In a double
block text and picture have norms of their own, and are put one behind the other on the way. The definition,
`by_definition`, is plain torch, as the modules of diffusers have it, and rounds where they do.
"""

import functools
from collections.abc import Sequence

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from torch.nn import functional as F

from adatsq.cuda import devices

OPERATOR = "adatsq::norm_rope"


def by_definition(
    parts: Sequence[Tensor], weights: Sequence[Tensor], cos: Tensor, sin: Tensor, eps: float
) -> Tensor:
    """parts (batch, tokens, heads, D) each, weights (D) each, cos and sin (tokens of all, D) -> in the parts'
    dtype (batch, tokens of all, heads, D), contiguous."""
    normed = [F.rms_norm(x, weight.shape, weight, eps) for x, weight in zip(parts, weights)]
    return apply_rotary_emb(torch.cat(normed, dim=1), (cos, sin), sequence_dim=1).contiguous()


def norm_rope(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    query_weights: Sequence[Tensor],
    key_weights: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`by_definition` of the queries and of the keys, (batch, tokens, heads, D) each, of any strides.

    On a device with Triton by its kernel, in bfloat16, float16 and float32 and for D a power of two from 16
    to 256; without a gradient, for which plain torch is taken.
    """
    given = [list(each) for each in (queries, keys, query_weights, key_weights)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*sum(given, []), cos, sin)):
        return _in_torch(*given, cos, sin, eps)
    return torch.ops.adatsq.norm_rope.default(*given, cos, sin, eps)


def _in_torch(
    queries: list[Tensor], keys: list[Tensor], query_weights: list[Tensor], key_weights: list[Tensor], *rest
) -> tuple[Tensor, Tensor]:
    return by_definition(queries, query_weights, *rest), by_definition(keys, key_weights, *rest)


# Defined by its schema, and in any layout, as the operator of `linear` is, and for its reasons.
torch.library.define(
    OPERATOR,
    "(Tensor[] queries, Tensor[] keys, Tensor[] query_weights, Tensor[] key_weights, Tensor cos, Tensor sin, "
    "float eps) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
)


@torch.library.impl(OPERATOR, "default")
@devices.falls_back
def _norm_rope(*given) -> tuple[Tensor, Tensor]:
    queries, keys, _, _, cos, sin, _ = given
    if devices.abilities(cos.device).triton:
        from adatsq.cuda import norm_rope_kernel

        if norm_rope_kernel.fits(queries, keys, cos, sin):
            with torch.cuda.device_of(cos):  # where Triton launches its kernels
                return norm_rope_kernel.norm_and_rotate(*given)
    return _in_torch(*given)


@torch.library.register_fake(OPERATOR)
def _(queries: list[Tensor], keys: list[Tensor], *others) -> tuple[Tensor, Tensor]:
    def joined(parts: list[Tensor]) -> Tensor:
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in parts))
        batch, _, *rest = parts[0].shape
        return parts[0].new_empty((batch, sum(x.shape[1] for x in parts), *rest), dtype=dtype)

    return joined(queries), joined(keys)
