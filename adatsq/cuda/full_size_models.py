"""Pipelines of the real models' size with random weights: what memory and time are measured on, not pictures.

The transformer has the published configuration (`adatsq.sizes`), and so has the image autoencoder. Text
encoders are of the right classes and widths but one or two layers deep, and Wan's autoencoder is narrow: none
of them is quantized, and the transformer is given the very shapes that the real ones give it. Weights are as
each class initialises them, drawn on the device in bfloat16, so that activations stay finite.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from adatsq.sizes import IMAGE_VAE, REAL
from adatsq.world.encoders import clip_tokenizer, qwen_tokenizer, t5_tokenizer

PROMPTS = ["a red circle left of a blue square", "three green stars on a white plate"]


@dataclass(frozen=True)
class FullSize:
    """parts(transformer, tiny): the pipeline around a transformer. settings, tiny_settings: its call's."""

    hub: str
    parts: Callable[[nn.Module, bool], DiffusionPipeline]
    tiny_transformer: Callable[[], nn.Module]
    settings: dict
    tiny_settings: dict


def build(name: str, device: str | torch.device, tiny: bool = False, seed: int = 0) -> DiffusionPipeline:
    """The pipeline of MODELS[name], all in bfloat16 on the device. tiny: a toy of the same classes."""
    model = MODELS[name]
    with torch.random.fork_rng(), _made_on(torch.device(device)):
        torch.manual_seed(seed)
        pipe = model.parts(model.tiny_transformer() if tiny else transformer(name), tiny)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(device).eval().requires_grad_(False)
    return pipe


def transformer(name: str) -> nn.Module:
    """At its published configuration, in the default dtype and on the default device."""
    return next(iter(REAL[MODELS[name].hub].values()))()


@contextmanager
def _made_on(device: torch.device) -> Iterator[None]:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(usual)


def _flux(transformer: nn.Module, tiny: bool) -> FluxPipeline:
    clip, t5 = clip_tokenizer(PROMPTS), t5_tokenizer(PROMPTS, 512)
    config = transformer.config
    clip_config = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=config.pooled_projection_dim,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=config.pooled_projection_dim,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.5, max_shift=1.15, shift=3.0, use_dynamic_shifting=True
        ),
        vae=_image_vae(tiny),
        text_encoder=CLIPTextModel(clip_config),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(T5Config(**_t5(config.joint_attention_dim, len(t5)))),
        tokenizer_2=t5,
        transformer=transformer,
    )


def _z_image(transformer: nn.Module, tiny: bool) -> ZImagePipeline:
    tokenizer = qwen_tokenizer(PROMPTS, 512)
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=transformer.config.cap_feat_dim,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_image_vae(tiny),
        text_encoder=Qwen3Model(text),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def _wan(transformer: nn.Module, tiny: bool) -> WanPipeline:
    tokenizer = t5_tokenizer(PROMPTS, 512)
    width = 4 if tiny else 16
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(UMT5Config(**_t5(transformer.config.text_dim, len(tokenizer)))),
        vae=AutoencoderKLWan(
            base_dim=width, **({"dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} if tiny else {})
        ),
        transformer=transformer,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def _t5(width: int, vocabulary: int) -> dict:
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 2,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    }


def _image_vae(tiny: bool) -> AutoencoderKL:
    scale = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    if not tiny:
        return AutoencoderKL(**IMAGE_VAE, **scale)
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        **scale,
    )


def _tiny_flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


def _tiny_z_image() -> ZImageTransformer2DModel:
    return ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[1536, 512, 512],
    )


def _tiny_wan() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
    )


SQUARE = {"height": 1024, "width": 1024, "max_sequence_length": 512}
SMALL = {"height": 32, "width": 32, "max_sequence_length": 32}
# Z-Image-Turbo needs no guidance. Wan's guidance would call the transformer twice a step: here it is off, so
# that a step is one call for every model.
MODELS = {
    "flux-dev": FullSize(
        "black-forest-labs/FLUX.1-dev",
        _flux,
        _tiny_flux,
        {**SQUARE, "guidance_scale": 3.5},
        {**SMALL, "guidance_scale": 3.5},
    ),
    "z-image": FullSize(
        "Tongyi-MAI/Z-Image-Turbo",
        _z_image,
        _tiny_z_image,
        {**SQUARE, "guidance_scale": 0.0},
        {**SMALL, "guidance_scale": 0.0},
    ),
    "wan2.1-1.3b": FullSize(
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        _wan,
        _tiny_wan,
        {"height": 480, "width": 832, "num_frames": 81, "max_sequence_length": 512, "guidance_scale": 1.0},
        {**SMALL, "num_frames": 5, "guidance_scale": 1.0},
    ),
}
