"""Attention of Flux's blocks: what diffusers' processor computes, with less between the linears.

Two parts, each of which may be on. one_pass: query and key are normed and rotated by `norm_rope`. together:
query, key and value come from one product (`together`); in a double block there is one for the text and one
for the picture, and a single block computes them with its feed-forward's first linear and hands them over.
"""

from collections.abc import Sequence

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor, nn

from adatsq.cuda.norm_rope import norm_rope
from adatsq.cuda.together import is_plain, linears


class FluxProcessor(FluxAttnProcessor):
    """Flux's attention with the parts that are on; diffusers' own where neither applies."""

    one_pass, together = False, False

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        projected: Sequence[Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """projected: query, key and value of hidden_states (batch, tokens, width of all heads each), which
        are then not computed here; where `takes_projected` alone."""
        norms = _norms(attn)
        one_pass = self.one_pass and _normed_in_one_pass(norms, hidden_states, image_rotary_emb)
        two = encoder_hidden_states is not None
        usual = attn.fused_projections or two != (len(norms) == 2) or not (one_pass or self.together)
        if usual and projected is None:
            given = hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            return super().__call__(attn, *given)
        parts = [projected or self._project([attn.to_q, attn.to_k, attn.to_v], hidden_states)]
        if two:  # the text's come first
            added = [attn.add_q_proj, attn.add_k_proj, attn.add_v_proj]
            parts.insert(0, self._project(added, encoder_hidden_states))
        parts = [[x.unflatten(-1, (-1, attn.head_dim)) for x in part] for part in parts]
        queries, keys, values = zip(*parts)
        if one_pass:
            weights = [[norm.weight for norm in each] for each in zip(*norms)]
            query, key = norm_rope(queries, keys, *weights, *image_rotary_emb, attn.norm_q.eps)
        else:
            of_queries, of_keys = zip(*norms)
            query = _joined([norm(x) for norm, x in zip(of_queries, queries)])
            key = _joined([norm(x) for norm, x in zip(of_keys, keys)])
            if image_rotary_emb is not None:
                query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
                key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        attended = dispatch_attention_fn(
            query,
            key,
            _joined(values),
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        attended = attended.flatten(2, 3).to(query.dtype)
        if not two:
            return attended
        text, picture = attended.tensor_split([encoder_hidden_states.shape[1]], dim=1)
        picture, text = attn.to_out[0](picture.contiguous()), attn.to_add_out(text.contiguous())
        return attn.to_out[1](picture), text

    def _project(self, layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        return linears(layers, x) if self.together else [layer(x) for layer in layers]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0]


def _norms(attn: FluxAttention) -> list[tuple[nn.Module, nn.Module]]:
    """Those of query and key: of the text, if it has some of its own, then of the picture."""
    own = [(attn.norm_q, attn.norm_k)]
    return own if attn.added_kv_proj_dim is None else [(attn.norm_added_q, attn.norm_added_k), *own]


def _normed_in_one_pass(
    norms: Sequence[tuple[nn.Module, nn.Module]], x: Tensor, rotary: tuple[Tensor, Tensor] | None
) -> bool:
    found = [norm for pair in norms for norm in pair]
    return (
        rotary is not None
        and all(type(norm) is nn.RMSNorm and norm.weight is not None for norm in found)
        and all(norm.eps is not None and norm.eps == found[0].eps for norm in found)
        # An offloaded module's weights are where its own call brings them.
        and all(norm.weight.device == x.device for norm in found)
    )


def takes_projected(attn: nn.Module) -> bool:
    """Whether this attention may be given query, key and value: hooks might change what they are of."""
    return (
        type(attn) is FluxAttention  # no other is known to hand it on
        and type(attn.processor) is FluxProcessor
        and attn.processor.together
        and attn.added_kv_proj_dim is None
        and not attn.fused_projections
        and is_plain(attn)
    )


def processor_for(processor: object, part: str) -> object:
    """A `FluxProcessor` with this part on, "one_pass" or "together", and the settings of diffusers' plain
    processor, or what a `FluxProcessor` had; any other processor as it is."""
    if type(processor) not in (FluxAttnProcessor, FluxProcessor):
        return processor
    new = FluxProcessor()
    vars(new).update(vars(processor))  # backend, configuration of parallel attention
    setattr(new, part, True)
    return new
