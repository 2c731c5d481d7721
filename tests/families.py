"""Tiny random pipelines of the other model families: no guidance (Flux-schnell), list input (Z-Image, also
with guidance, in one call), video with guidance in two calls (Wan)."""

import json

import pytest
import torch
from conftest import SAMPLING, build_tiny_pipe, image_autoencoder, t5_tokenizer
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model, UMT5Config, UMT5EncoderModel

from adatsq import models

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer() -> Qwen2Tokenizer:
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab={**vocab, "<|endoftext|>": len(vocab)}, merges=[], model_max_length=128)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


def zimage() -> ZImagePipeline:
    """16 image tokens, padded to 32; captions are padded to 32 or 64."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 16, 16],
    )
    return frozen(
        ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=image_autoencoder(),
            text_encoder=Qwen3Model(text),
            tokenizer=tokenizer,
            transformer=transformer,
        )
    )


def wan() -> WanPipeline:
    """5 frames of 32x32 pixels: 2 x 4 x 4 latents, 8 tokens."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    text = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return frozen(
        WanPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(text),
            vae=AutoencoderKLWan(
                base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
            ),
            transformer=transformer,
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        )
    )


def frozen(pipe):
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    return pipe


SQUARE = {"height": 32, "width": 32, "num_inference_steps": 4}
FAMILIES = {
    "flux": (build_tiny_pipe, SAMPLING),
    "schnell": (lambda: build_tiny_pipe(guidance_embeds=False), {**SAMPLING, "guidance_scale": 0.0}),
    "zimage": (zimage, {**SQUARE, "max_sequence_length": 64, "guidance_scale": 0.0}),
    "zimage-guided": (zimage, {**SQUARE, "max_sequence_length": 64, "guidance_scale": 4.0}),
    "wan": (wan, {**SQUARE, "max_sequence_length": 16, "guidance_scale": 4.5, "num_frames": 5}),
}


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory):
    """folder(name) of a tiny model of the family, with its sampling.json. Tests must not write into it."""
    base = tmp_path_factory.mktemp("families")

    def folder(name):
        if not (base / name).exists():
            build, sampling = FAMILIES[name]
            build().save_pretrained(base / name)
            (base / name / models.SAMPLING_FILE).write_text(json.dumps(sampling))
        return base / name

    return folder


@pytest.fixture(params=FAMILIES)
def family(request):
    """Each of the families in turn."""
    return request.param


@pytest.fixture
def family_pipe(family, family_folders):
    """A fresh tiny pipeline of the family."""
    pipe = models.load_pipeline(family_folders(family))
    pipe.set_progress_bar_config(disable=True)
    return pipe
