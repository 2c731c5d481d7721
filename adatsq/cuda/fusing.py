"""Feed-forwards whose activation function is left to the rounding of the second linear's input (`prologue`).

A module becomes one of a class below, which has the forward of its own class but for that: its parts, their
names and the tensors in its state dict stay as they are. A class, and not a forward for each module, because
torch.compile makes one graph for all blocks of a class; `compile_repeated_blocks` knows them by its name,
which stays too. Whatever is no `PackedLinear` (any more) is given what it always was.

Attentions of Flux's single blocks can have a processor too (`norm_rope`), if they have none of the user's.
"""

import torch
from diffusers.models import activations, attention
from diffusers.models.transformers import transformer_flux, transformer_z_image
from torch import Tensor, nn

from adatsq.cuda.linear import PackedLinear
from adatsq.cuda.norm_rope import NormRopeProcessor, processor_for
from adatsq.cuda.prologue import CAT_GELU, GELU, SWIGLU


class FeedForward(attention.FeedForward):
    """Of Flux and Wan: linear, GELU (tanh), dropout of nothing, linear."""

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        first, _, last = self.net
        if not isinstance(last, PackedLinear):
            return super().forward(hidden_states, *args, **kwargs)
        return last(first.proj(hidden_states), prologue=GELU)


class SwiGLU(transformer_z_image.FeedForward):
    """Of Z-Image: w2(silu(w1 x) * w3 x)."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.w2, PackedLinear):
            return super().forward(x)
        return self.w2(self.w1(x), self.w3(x), SWIGLU)


class FluxSingleTransformerBlock(transformer_flux.FluxSingleTransformerBlock):
    """Attention and feed-forward side by side, of the same norm, and one linear out of both."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        joint_attention_kwargs: dict | None = None,
    ) -> tuple[Tensor, Tensor]:
        options = joint_attention_kwargs or {}
        if not isinstance(self.proj_out, PackedLinear):
            given = hidden_states, encoder_hidden_states, temb, image_rotary_emb, options
            return super().forward(*given)
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(tokens, emb=temb)
        up = self.proj_mlp(normed)  # before the attention: the order in which layers share a rounding
        attended = self.attn(hidden_states=normed, image_rotary_emb=image_rotary_emb, **options)
        tokens = tokens + gate[:, None] * self.proj_out(attended, up, CAT_GELU)
        if tokens.dtype is torch.float16:
            limit = torch.finfo(torch.float16).max
            tokens = tokens.clip(-limit, limit)
        texts = encoder_hidden_states.shape[1]
        return tokens[:, :texts], tokens[:, texts:]


def fuse(transformer: nn.Module) -> int:
    """Let the transformer's modules that have such a class become it; returns how many did."""
    found = [(module, kind) for module in transformer.modules() if (kind := _class_for(module)) is not None]
    for module, kind in found:
        module.__class__ = kind
    return len(found)


def norm_and_rotate_together(transformer: nn.Module) -> int:
    """Give attentions of Flux's single blocks the processor of `norm_rope`; returns how many have it."""
    blocks = [m for m in transformer.modules() if isinstance(m, transformer_flux.FluxSingleTransformerBlock)]
    for block in blocks:
        block.attn.set_processor(processor_for(block.attn.processor))
    return sum(isinstance(block.attn.processor, NormRopeProcessor) for block in blocks)


def _class_for(module: nn.Module) -> type[nn.Module] | None:
    """None for a module of another class, or with another activation function than the kernels know."""
    if type(module) is attention.FeedForward and len(module.net) == 3:
        first, dropout, last = module.net
        tanh = type(first) is activations.GELU and first.approximate == "tanh"
        return FeedForward if tanh and dropout.p == 0 and isinstance(last, PackedLinear) else None
    if type(module) is transformer_z_image.FeedForward:
        return SwiGLU if isinstance(module.w2, PackedLinear) else None
    if type(module) is transformer_flux.FluxSingleTransformerBlock:
        act, out = module.act_mlp, module.proj_out
        tanh = isinstance(act, nn.GELU) and act.approximate == "tanh"
        return FluxSingleTransformerBlock if tanh and isinstance(out, PackedLinear) else None
    return None
