"""Pipelines that the method was not made for: they work the same way, or a sentence says what is missing."""

import warnings

import diffusers
import numpy as np
import pytest
import torch
from conftest import build_tiny_pipe, clip_tokenizer, image_autoencoder, t5_tokenizer
from families import frozen, wan, zimage
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from adatsq import models, recipes
from adatsq import trace as tr
from adatsq.evaluate import generate

PROMPTS = ["a red circle", "two blue stars"]
SIZE = {"height": 32, "width": 32, "num_inference_steps": 2, "progress": False}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4}

OTHERS = {
    "SD3Transformer2DModel": (
        {**HEADS, "num_layers": 2, "joint_attention_dim": 16, "caption_projection_dim": 16}
        | {"pooled_projection_dim": 16, "out_channels": 4, "pos_embed_max_size": 8},
        ["transformer_blocks.0", "transformer_blocks.1"],
    ),
    "PixArtTransformer2DModel": (
        {**HEADS, "num_layers": 1, "cross_attention_dim": 16, "sample_size": 8, "caption_channels": 16}
        | {"norm_num_groups": 4},
        ["transformer_blocks.0"],
    ),
    "Lumina2Transformer2DModel": (
        {"in_channels": 4, "hidden_size": 24, "num_layers": 1, "num_refiner_layers": 1, "cap_feat_dim": 16}
        | {"num_attention_heads": 3, "num_kv_heads": 1, "axes_dim_rope": (4, 2, 2), "axes_lens": (64, 16, 16)}
        | {"multiple_of": 2},
        ["noise_refiner.0", "context_refiner.0", "layers.0"],
    ),
    "QwenImageTransformer2DModel": (
        {"in_channels": 16, "out_channels": 4, "num_layers": 1, "attention_head_dim": 16}
        | {"num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (8, 4, 4)},
        ["transformer_blocks.0"],
    ),
    "HunyuanVideoTransformer3DModel": (
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12}
        | {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1}
        | {"text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (4, 4, 4)},
        ["transformer_blocks.0", "single_transformer_blocks.0"],
    ),
    "CogVideoXTransformer3DModel": (
        {**HEADS, "out_channels": 4, "time_embed_dim": 2, "text_embed_dim": 8, "num_layers": 1}
        | {"sample_width": 8, "sample_height": 8, "sample_frames": 5},
        ["transformer_blocks.0"],
    ),
    "AuraFlowTransformer2DModel": (
        {**HEADS, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "joint_attention_dim": 16}
        | {"caption_projection_dim": 16, "pos_embed_max_size": 16},
        ["joint_transformer_blocks.0", "single_transformer_blocks.0"],
    ),
    "SanaTransformer2DModel": (
        {**HEADS, "out_channels": 4, "num_layers": 1, "num_cross_attention_heads": 2, "caption_channels": 16}
        | {"cross_attention_head_dim": 8, "cross_attention_dim": 16, "sample_size": 8},
        ["transformer_blocks.0"],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_blocks_of_other_transformers_are_found(name):
    options, blocks = OTHERS[name]
    transformer = getattr(diffusers, name)(**options)
    assert models.block_names(transformer) == blocks
    layers = models.quantizable(transformer)
    linears = {n for n, m in transformer.named_modules() if isinstance(m, nn.Linear)}
    assert {layer.name for layer in layers} == {n for n in linears if n.startswith(tuple(blocks))}
    kept = models.kept(transformer)
    inside = sum(layer.in_features * layer.out_features for layer in layers)
    assert kept.parameters.sum() + inside == sum(t.numel() for t in transformer.state_dict().values())
    reasons = {(row.module, row.reason.split(":")[0]) for row in kept.itertuples()}
    for module, reason in {
        "proj_out": "last norm or projection",
        "norm_out": "last norm or projection",
        "time_text_embed": "time projection",
        "time_embed": "time projection",
        "context_embedder": "embedder",
        "img_in": "embedder",
        "x_embedder": "embedder",
    }.items():
        assert module not in set(kept.module) or (module, reason) in reasons
    convolutions = any(isinstance(m, nn.Conv2d) for n, m in transformer.named_modules() if ".ff." in n)
    assert (("transformer_blocks.*", "no linear") in reasons) == convolutions  # Sana's
    assert not kept.reason.eq("outside the blocks").any()


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_method_does_not_reach_is_warned_of(name):
    """Sana's feed-forward layers are convolutions."""
    transformer = getattr(diffusers, name)(**OTHERS[name][0])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        models.warn_of_missed(transformer)
    assert len(said) == (name == "SanaTransformer2DModel")
    if said:
        table = models.kept(transformer)
        share = table.parameters[table.reason == models.NO_LINEAR].sum() / sum(
            tensor.numel() for tensor in transformer.state_dict().values()
        )
        assert f"{share:.0%} of the parameters of Sana" in str(said[0].message)
        assert f"transformer_blocks.* (no linear: {share:.1%})" in str(said[0].message)


def test_a_large_part_outside_the_blocks_is_warned_of_before_any_work(monkeypatch):
    pipe = build_tiny_pipe()
    pipe.transformer.adapter = nn.Linear(512, 256)
    with pytest.warns(UserWarning, match=r"% of the parameters of Flux.*: adapter \(outside the blocks: \d"):
        tr.record(pipe, PROMPTS, **SIZE)
    with pytest.warns(UserWarning, match="adapter"):
        recipes.rtn(pipe, None, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(pipe, PROMPTS, [0, 1], **SIZE)


def test_modulation_keeps_its_activations():
    options, _ = OTHERS["QwenImageTransformer2DModel"]
    layers = models.quantizable(diffusers.QwenImageTransformer2DModel(**options))
    weights_only = [layer.name for layer in layers if layer.role == "weight"]
    assert weights_only == ["transformer_blocks.0.img_mod.1", "transformer_blocks.0.txt_mod.1"]


def clip(model):
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, model(config)


def sd3():
    torch.manual_seed(0)
    (tokenizer, encoder), (tokenizer_2, encoder_2) = (clip(CLIPTextModelWithProjection) for _ in range(2))
    options = {**OTHERS["SD3Transformer2DModel"][0], "joint_attention_dim": 32, "pooled_projection_dim": 32}
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(sample_size=8, **options),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=image_autoencoder(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return frozen(pipe)


def test_sd3_works_without_a_line_of_its_own():
    """Guidance in one call, the negative branch first: v- + 7 (v+ - v-)."""
    pipe = sd3()
    trace = tr.record(pipe, PROMPTS, **SIZE)
    assert trace.weights == (-6.0, 7.0)
    with torch.no_grad():
        for t in range(2):
            assert torch.equal(tr.velocity(pipe.transformer, trace, t), trace.velocity[t])
    recipes.hadamard_gptq(pipe, trace, 8, 8, progress=False)
    close = generate(pipe, PROMPTS, trace.seeds, **SIZE)
    assert 0 < np.abs(close.astype(int) - trace.images).max() < 30


def pixart():
    tokenizer = t5_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pipe = diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(config),
        vae=image_autoencoder(),
        transformer=diffusers.PixArtTransformer2DModel(
            **OTHERS["PixArtTransformer2DModel"][0], out_channels=8
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    return frozen(pipe)


def unet():
    tokenizer, encoder = clip(CLIPTextModel)
    return diffusers.StableDiffusionPipeline(
        vae=image_autoencoder(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(8,),
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=16,
        ),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def with_two_transformers():
    pipe = wan()
    pipe.register_modules(transformer_2=pipe.transformer)
    return pipe


def with_unknown_blocks():
    pipe = build_tiny_pipe()
    for name in ("transformer_blocks", "single_transformer_blocks"):
        setattr(pipe.transformer, name, nn.ModuleList([nn.Linear(4, 4)]))
    return pipe


def with_half_its_blocks_unknown(container=nn.Sequential):
    pipe = build_tiny_pipe()
    pipe.transformer.transformer_blocks = container(*pipe.transformer.transformer_blocks)
    return pipe


def with_blocks_by_name():
    return with_half_its_blocks_unknown(lambda *blocks: nn.ModuleDict(zip("ab", blocks)))


def with_blocks_of_convolutions():
    pipe = build_tiny_pipe()
    for name in ("transformer_blocks", "single_transformer_blocks"):
        block = nn.ModuleDict({"attention": nn.Conv1d(4, 4, 1)})
        setattr(pipe.transformer, name, nn.ModuleList([block]))
    return pipe


def with_noise_in_its_scheduler():
    pipe = build_tiny_pipe()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    return pipe


@pytest.mark.parametrize(
    "build, message",
    [
        (unet, "StableDiffusionPipeline has no transformer, only vae, text_encoder, unet"),
        (with_two_transformers, "WanPipeline changes to a second transformer .*transformer_2"),
        (with_unknown_blocks, "no nn.ModuleList of blocks with attention"),
        (
            with_half_its_blocks_unknown,
            r"FluxTransformer2DModel holds blocks with attention in transformer_blocks \(nn.Sequential\), "
            "and blocks are found in an nn.ModuleList alone",
        ),
        (with_blocks_by_name, r"transformer_blocks \(nn.ModuleDict\)"),
        (with_blocks_of_convolutions, "the blocks of FluxTransformer2DModel hold no linear layer"),
    ],
)
def test_what_is_missing_is_said_before_any_work(build, message, monkeypatch):
    pipe = build()
    monkeypatch.setattr(type(pipe), "encode_prompt", None)
    with pytest.raises(ValueError, match=message):
        tr.record(pipe, PROMPTS, **SIZE)
    with pytest.raises(ValueError, match=message):
        generate(pipe, PROMPTS, [0, 1], **SIZE)


@pytest.mark.parametrize(
    "build, options, message",
    [
        (
            pixart,
            {"use_resolution_binning": False},
            "answers 4 times as much as .* for 2 branches: a learned variance",
        ),
        (with_noise_in_its_scheduler, {}, "cannot be repeated .* draws noise"),
        (zimage, {"guidance_scale": 4.0, "cfg_normalization": 0.5}, "at step 0 .* not linear"),
        (zimage, {"guidance_scale": 4.0, "cfg_truncation": 0.05}, "1 branches at step 1, with 2 before"),
    ],
)
def test_what_is_no_sum_is_refused_when_it_is_seen(build, options, message):
    pipe = build()
    step = type(pipe.scheduler).step
    with pytest.raises(ValueError, match=message):
        tr.record(pipe, PROMPTS, **{**SIZE, **options})
    assert pipe.scheduler.step.__func__ is step and not pipe.transformer._forward_hooks
