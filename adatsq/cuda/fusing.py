"""What modules of a transformer leave to fewer kernels: FUSIONS, each of which may be on.

    activations  the activation function of a feed-forward, to the rounding of the second linear's input
                 (`prologue`)
    norm_rope    norm and rotation of query and key, to one pass (`norm_rope`); in Flux's blocks
    products     linears of Flux's blocks that read the same tokens, to one product (`together`)

For the first, a module becomes one of a class below, which has the forward of its own class but for that:
its parts, their names and the tensors in its state dict stay as they are. A class, and not a forward for each
module, because torch.compile makes one graph for all blocks of a class; `compile_repeated_blocks` knows them
by its name, which stays too. Whatever is no `PackedLinear` (any more) is given what it always was.

For the others, Flux's attentions have a processor (`flux_attention`), if none is of the user's, nor the
attention itself.
"""

from collections.abc import Collection

import torch
from diffusers.models import activations, attention
from diffusers.models.transformers import transformer_flux, transformer_z_image
from torch import Tensor, nn

from adatsq.cuda.flux_attention import FluxProcessor, processor_for, takes_projected
from adatsq.cuda.linear import PackedLinear
from adatsq.cuda.prologue import CAT_GELU, GELU, SWIGLU
from adatsq.cuda.together import linears


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
        options = dict(joint_attention_kwargs or {})
        if not isinstance(self.proj_out, PackedLinear):
            given = hidden_states, encoder_hidden_states, temb, image_rotary_emb, options
            return super().forward(*given)
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(tokens, emb=temb)
        attn = self.attn
        if takes_projected(attn):
            up, *projected = linears([self.proj_mlp, attn.to_q, attn.to_k, attn.to_v], normed)
            options["projected"] = tuple(projected)
        else:
            up = self.proj_mlp(normed)  # before the attention: the order in which layers share a rounding
        attended = attn(hidden_states=normed, image_rotary_emb=image_rotary_emb, **options)
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
    """Let Flux's attentions norm and rotate in one pass; returns how many may now do so."""
    return _processors(transformer, "one_pass")


def multiply_together(transformer: nn.Module) -> int:
    """Let Flux's blocks compute all that they read from the same tokens as one product; returns how many may
    now do so. In single blocks it is their fused class that does it, so that this includes `fuse`."""
    fuse(transformer)
    return _processors(transformer, "together")


FLUX_BLOCKS = transformer_flux.FluxTransformerBlock, transformer_flux.FluxSingleTransformerBlock


def _processors(transformer: nn.Module, part: str) -> int:
    blocks = [m for m in transformer.modules() if isinstance(m, FLUX_BLOCKS)]
    attentions = [block.attn for block in blocks if type(block.attn) is transformer_flux.FluxAttention]
    for attn in attentions:
        attn.set_processor(processor_for(attn.processor, part))
    return sum(isinstance(attn.processor, FluxProcessor) for attn in attentions)


FUSIONS = {"activations": fuse, "norm_rope": norm_and_rotate_together, "products": multiply_together}


def fusions(chosen: bool | str | Collection[str]) -> list[str]:
    """Names of FUSIONS: all for True, none for False. Raises ValueError for a name that is not there."""
    names = [chosen] if isinstance(chosen, str) else chosen
    names = list(FUSIONS if names is True else names or ())
    for name in names:
        if name not in FUSIONS:
            raise ValueError(f"fuse has {name!r}: choose of {', '.join(FUSIONS)}")
    return names


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
