"""Attention of Flux's single blocks: what diffusers' processor computes, with less between the linears.

Two parts, each of which may be on. one_pass: query and key are normed and rotated by `norm_rope`. together:
the block may give query, key and value, which it has from one product with its other linear (`together`).
"""

from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor, nn

from adatsq.cuda.norm_rope import norm_rope
from adatsq.cuda.together import is_plain


class SingleProcessor(FluxAttnProcessor):
    """Flux's attention where there is one sequence of tokens; else what it always was."""

    one_pass, together = False, False

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        projected: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """projected: query, key and value of hidden_states (batch, tokens, width of all heads each), which
        are then not computed here; where `takes_projected` alone."""
        one_pass = self.one_pass and encoder_hidden_states is None
        one_pass = one_pass and _normed_in_one_pass(attn, hidden_states, image_rotary_emb)
        if projected is None and not one_pass:
            given = hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            return super().__call__(attn, *given)
        if projected is None:
            projected = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (part.unflatten(-1, (-1, attn.head_dim)) for part in projected)
        if one_pass:
            weights = attn.norm_q.weight, attn.norm_k.weight
            query, key = norm_rope(query, key, *weights, *image_rotary_emb, attn.norm_q.eps)
        else:
            query, key = attn.norm_q(query), attn.norm_k(key)
            if image_rotary_emb is not None:
                query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
                key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attended.flatten(2, 3).to(query.dtype)


def _normed_in_one_pass(attn: FluxAttention, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> bool:
    if rotary is None or attn.added_kv_proj_dim is not None or attn.fused_projections:
        return False
    norms = attn.norm_q, attn.norm_k
    return (
        all(type(norm) is nn.RMSNorm and norm.weight is not None for norm in norms)
        and attn.norm_q.eps is not None
        and attn.norm_q.eps == attn.norm_k.eps
        # An offloaded module's weights are where its own call brings them.
        and all(norm.weight.device == x.device for norm in norms)
    )


def takes_projected(attn: nn.Module) -> bool:
    """Whether this attention may be given query, key and value: hooks might change what they are of."""
    return (
        type(attn) is FluxAttention  # no other is known to hand it on
        and type(attn.processor) is SingleProcessor
        and attn.processor.together
        and attn.added_kv_proj_dim is None
        and not attn.fused_projections
        and is_plain(attn)
    )


def processor_for(processor: object, part: str) -> object:
    """A `SingleProcessor` with this part on, "one_pass" or "together", and the settings of diffusers' plain
    processor, or what a `SingleProcessor` had; any other processor as it is."""
    if type(processor) not in (FluxAttnProcessor, SingleProcessor):
        return processor
    new = SingleProcessor()
    vars(new).update(vars(processor))  # backend, configuration of parallel attention
    setattr(new, part, True)
    return new
