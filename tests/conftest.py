"""A whole FluxPipeline with random weights, built from nothing: 2 double and 2 single blocks, width 32."""

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never ask the network

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it once, when diffusers imports it

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from adatsq import models

# Fixtures of the other families, for Triton kernels, and for pages.
pytest_plugins = ["families", "triton_device", "operator_calls", "chromium"]

SAMPLING = {
    "height": 32,
    "width": 32,
    "max_sequence_length": 16,
    "num_inference_steps": 4,
    "guidance_scale": 3.5,
}


def clip_tokenizer() -> CLIPTokenizer:
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = symbols + [c + "</w>" for c in symbols] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(
        vocab=special + [(chr(c), -3.0) for c in range(33, 127)], extra_ids=0, model_max_length=64
    )


def image_autoencoder() -> AutoencoderKL:
    """4x, with 4 latent channels."""
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        shift_factor=0.06,
        scaling_factor=1.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def build_tiny_pipe(seed: int = 0, guidance_embeds: bool = True) -> FluxPipeline:
    """32x32 pixels, a 4x autoencoder with 4 latent channels packed 2x2: 16 image and 16 text tokens."""
    torch.manual_seed(seed)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    clip_config = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=32,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    t5_config = T5Config(
        vocab_size=len(t5), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    vae = image_autoencoder()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModel(clip_config),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(t5_config),
        tokenizer_2=t5,
        transformer=transformer,
    )
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    return pipe


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The tiny pipeline saved as a model folder with its sampling.json. Tests must not write into it."""
    folder = tmp_path_factory.mktemp("models") / "flux-tiny"
    build_tiny_pipe().save_pretrained(folder)
    (folder / models.SAMPLING_FILE).write_text(json.dumps(SAMPLING))
    return folder


@pytest.fixture
def tiny_pipe(tiny_folder):
    """A fresh tiny pipeline for each test, which may change it as it likes."""
    pipe = models.load_pipeline(str(tiny_folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_images():
    """images(pipe, prompts) -> uint8 (N, 32, 32, 3), with one seed per prompt."""

    def images(pipe, prompts=("a red circle",), **call):
        generators = [torch.Generator("cpu").manual_seed(i) for i in range(len(prompts))]
        settings = {**models.sampling(pipe), **call}
        output = pipe(list(prompts), generator=generators, output_type="np", **settings)
        return (output.images * 255).round().astype("uint8")

    return images
