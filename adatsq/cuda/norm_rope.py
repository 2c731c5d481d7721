"""Query and key of Flux's single blocks: divided by their norm, then rotated by position, in one pass.

The norm of a head needs all of its values, the rotation pairs of neighbours: little to compute, so that both
together should take the time of their bytes. `norm_rope_kernel` reads and writes each value once. The
definition, `by_definition`, is plain torch, as the modules of diffusers have it, and rounds where they do.
"""

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from torch.nn import functional as F

from adatsq.cuda import devices

OPERATOR = "adatsq::norm_rope"


def by_definition(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """x (batch, tokens, heads, D), weight (D), cos and sin (tokens, D) -> x's shape and dtype, contiguous."""
    normed = F.rms_norm(x, weight.shape, weight, eps)
    return apply_rotary_emb(normed, (cos, sin), sequence_dim=1).contiguous()


def norm_rope(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`by_definition` of query and of key, (batch, tokens, heads, D) each, of any strides.

    On a device with Triton by its kernel, in bfloat16, float16 and float32 and for D a power of two from 16
    to 256; without a gradient, for which plain torch is taken.
    """
    given = query, key, query_weight, key_weight, cos, sin
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return _in_torch(*given, eps)
    return torch.ops.adatsq.norm_rope.default(*given, eps)


def _in_torch(query: Tensor, key: Tensor, query_weight: Tensor, key_weight: Tensor, *rest):
    return by_definition(query, query_weight, *rest), by_definition(key, key_weight, *rest)


# Defined by its schema, and in any layout, as the operator of `linear` is, and for its reasons.
torch.library.define(
    OPERATOR,
    "(Tensor query, Tensor key, Tensor query_weight, Tensor key_weight, Tensor cos, Tensor sin, float eps) "
    "-> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
)


@torch.library.impl(OPERATOR, "default")
def _norm_rope(*given) -> tuple[Tensor, Tensor]:
    query, key, _, _, cos, sin, _ = given
    if devices.abilities(query.device).triton:
        from adatsq.cuda import norm_rope_kernel

        if norm_rope_kernel.fits(query, key, cos, sin):
            with torch.cuda.device_of(query):  # where Triton launches its kernels
                return norm_rope_kernel.norm_and_rotate(*given)
    return _in_torch(*given)


@torch.library.register_fake(OPERATOR)
def _(query: Tensor, key: Tensor, *others) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)
