"""The shipped mini models: small, complete, of the real classes, and able to do what they are told."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch

import adatsq
from adatsq.evaluate import generate
from adatsq.world import Judge, load_prompts, zimage
from adatsq.world.card import card
from adatsq.world.motion import render_clips, sample_clips
from adatsq.world.motion_judge import judge_clips
from adatsq.world.motion_prompts import load_video_prompts

DATA = Path(__file__).parents[1] / "data"
MODELS = DATA / "models"
PIPELINES = {
    "flux-dev-mini": ("FluxPipeline", "FluxTransformer2DModel", "T5EncoderModel", "AutoencoderKL"),
    "flux-schnell-mini": ("FluxPipeline", "FluxTransformer2DModel", "T5EncoderModel", "AutoencoderKL"),
    "z-image-mini": ("ZImagePipeline", "ZImageTransformer2DModel", "Qwen3Model", "AutoencoderKL"),
    "wan2.1-mini": ("WanPipeline", "WanTransformer3DModel", "UMT5EncoderModel", "AutoencoderKLWan"),
}
each = pytest.mark.parametrize("name", PIPELINES)


@each
def test_it_is_small_and_has_the_real_classes(name):
    index = json.loads((MODELS / name / "model_index.json").read_text())
    classes = [index["_class_name"], *(part[1] for part in index.values() if isinstance(part, list))]
    assert set(PIPELINES[name]) <= set(classes)
    configs = (MODELS / name).glob("*/config.json")
    assert not [f for f in configs if "_name_or_path" in f.read_text()], "says where it was trained"
    sizes = [f.stat().st_size for f in (MODELS / name).rglob("*") if f.is_file()]
    assert sum(sizes) <= 25e6 and max(sizes) <= 16e6


@each
def test_diffusers_alone_loads_and_calls_it(name):
    """With nothing said of dtypes: all of it comes in float32, as diffusers' own models do, and fits."""
    pipe = getattr(diffusers, PIPELINES[name][0]).from_pretrained(MODELS / name)
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.float32}
    call = {**json.loads((MODELS / name / "sampling.json").read_text()), "num_inference_steps": 1}
    found = pipe("a red circle left of a blue square", output_type="np", **call)[0]
    assert found.shape[-3:] == (call["height"], call["width"], 3) and np.isfinite(found).all()


def test_each_samples_as_the_model_that_it_stands_for():
    config = {n: json.loads((MODELS / n / "transformer" / "config.json").read_text()) for n in PIPELINES}
    assert config["flux-dev-mini"]["guidance_embeds"] and not config["flux-schnell-mini"]["guidance_embeds"]
    sampling = {n: json.loads((MODELS / n / "sampling.json").read_text()) for n in PIPELINES}
    assert [s["num_inference_steps"] for s in sampling.values()] == [50, 4, 10, 25]
    assert sampling["flux-schnell-mini"]["guidance_scale"] == sampling["z-image-mini"]["guidance_scale"] == 0
    assert sampling["wan2.1-mini"]["guidance_scale"] > 1 and sampling["wan2.1-mini"]["num_frames"] >= 17


@each
def test_card_is_what_log_and_results_say(name):
    assert (MODELS / name / "README.md").read_text() == card(MODELS / name, DATA / "results")


@pytest.mark.parametrize(
    "name, steps", [("flux-dev-mini", 12), ("flux-schnell-mini", 4), ("z-image-mini", 10)]
)
def test_it_draws_what_it_is_told(name, steps):
    """Its score on all prompts is in data/results; here a few of each category."""
    pipe = adatsq.load_pipeline(MODELS / name, torch_dtype=torch.float32)
    prompts = load_prompts(DATA / "prompts" / "evaluation.json")[::32]
    texts, seeds = [p.text for p in prompts], [p.seed for p in prompts]
    images = generate(pipe, texts, seeds, progress=False, num_inference_steps=steps)
    assert Judge()(images, prompts).mean() > 0.75


def test_wan_films_what_it_is_told():
    pipe = adatsq.load_pipeline(MODELS / "wan2.1-mini", torch_dtype=torch.float32)
    prompts = load_video_prompts(DATA / "prompts" / "video-evaluation.json")[::34]
    texts, seeds = [p.text for p in prompts], [p.seed for p in prompts]
    clips = generate(pipe, texts, seeds, progress=False, num_inference_steps=15)
    assert judge_clips(clips, prompts).to_numpy().mean() > 0.7


def test_z_image_mini_scores_as_high_as_it_should():
    """The stored score of all prompts: at least .85."""
    table = pd.read_csv(DATA / "results" / "z-image-mini.csv").query("method == 'fp' and metric == 'total'")
    assert table.value.item() >= 0.85


def test_wan_autoencoder_keeps_clips():
    pipe = adatsq.load_pipeline(MODELS / "wan2.1-mini", torch_dtype=torch.float32)
    x = render_clips(sample_clips(4, torch.Generator().manual_seed(2))).transpose(1, 2) * 2 - 1
    with torch.no_grad():
        z = pipe.vae.encode(x).latent_dist.mode()
        y = pipe.vae.decode(z).sample.clamp(-1, 1)
    assert z.shape == (4, 16, 5, 8, 8)
    error = (y - x).square().flatten(1).mean(1) / 4
    assert (-10 * error.log10()).mean() > 28


def test_z_image_is_trained_as_the_pipeline_calls_it():
    """The dense forward pass of the training is the model's own, with captions of different lengths."""
    pipe = adatsq.load_pipeline(MODELS / "z-image-mini", torch_dtype=torch.float32)
    trace = adatsq.record(pipe, ["a red star", "a red star above a blue ring"], 2, progress=False)
    parts = {"vae": pipe.vae, "text_encoder": pipe.text_encoder, "tokenizer": pipe.tokenizer}
    data = zimage.make_data(parts, 2, torch.Generator().manual_seed(0))
    texts = zimage.embed(parts, trace.prompts)
    data.text = texts
    for t in range(2):
        sigma = torch.full((2,), float(trace.scheduler.sigmas[t]))
        with torch.no_grad():
            v = zimage.velocity(pipe.transformer, data, trace.latents[t], sigma, torch.arange(2))
        assert np.allclose(v, trace.velocity[t], atol=1e-4)
