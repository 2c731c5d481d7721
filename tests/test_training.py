"""The training code at toy size, and the shipped mini model, part by part."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import adatsq
from adatsq.evaluate import generate
from adatsq.world import COLORS, SHAPES, Judge, flux, load_prompts, render, sample_scenes, train
from adatsq.world.autoencoder import build_autoencoder, train_autoencoder
from adatsq.world.card import card
from adatsq.world.scenes import KINDS
from adatsq.world.text import parse_targets, tokenize, train_text

DATA = Path(__file__).parents[1] / "data"
MINI = DATA / "models" / "flux-dev-mini"


def test_training_goes_through_all_stages_and_resumes(tmp_path, monkeypatch):
    """Every stage at toy size; a second call continues from the checkpoints; the folder is a FluxPipeline."""
    monkeypatch.setattr(
        train, "train_text", lambda seed, device: train_text(seed, steps=2, batch_size=8, scenes=200)
    )
    monkeypatch.setattr(
        train,
        "train_autoencoder",
        lambda seed, **_: train_autoencoder(seed, steps=1, batch_size=2, scenes=16),
    )
    small = partial(flux.build_transformer, layers=1, single_layers=1)
    monkeypatch.setattr(flux, "build_transformer", small)
    work, out = tmp_path / "work", tmp_path / "mini"
    options = ["--scenes", "16", "--steps", "2", "--batch-size", "4", "--device", "cpu"]
    for stages in (
        ["text", "autoencoder", "base"],
        ["text", "base", "distill"],
        ["distill", "assemble"],
    ):
        argv = ["train", "--work", str(work), "--out", str(out), "--stages", *stages, *options]
        monkeypatch.setattr("sys.argv", argv)
        train.main()
    log = json.loads((work / "log.json").read_text())
    assert log["base_scenes"] == log["distilled_scenes"] == 32  # each trained twice, on new scenes
    pipe = adatsq.load_pipeline(out, torch_dtype=torch.float32)
    images = generate(pipe, ["a red star"], [0], progress=False, num_inference_steps=2)
    assert images.shape == (1, 64, 64, 3)


def test_guidance_one_is_the_conditional_teacher():
    """v_empty + g (v - v_empty) at g = 1 is v: the distilled loss of an untrained student there is zero."""
    generator = torch.Generator().manual_seed(0)
    clip, clip_tokenizer, t5, t5_tokenizer, _ = train_text(0, steps=1, batch_size=4, scenes=100)
    vae = build_autoencoder()
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    data = flux.Data(vae, (clip, clip_tokenizer, t5, t5_tokenizer), 8, generator, chunk=8)
    teacher = flux.build_transformer(layers=1, single_layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flux, "GUIDANCE", (1.0, 1.0))
        losses = []
        patch.setattr(flux, "fit", lambda student, loss, **_: losses.append(loss(student, 4)))
        flux.distill_guidance(teacher, data)
    assert losses[0].item() < 1e-10


@pytest.fixture(scope="module")
def mini():
    return adatsq.load_pipeline(MINI, torch_dtype=torch.float32)


def test_shipped_text_encoders_know_what_a_caption_says(mini):
    """A linear probe, solved in closed form on other captions, reads each fact off both encoders."""
    scenes = sample_scenes(1600, torch.Generator().manual_seed(1))
    clip_ids, t5_ids = tokenize(mini.tokenizer, mini.tokenizer_2, scenes.captions())
    with torch.no_grad():
        features = {
            "clip": mini.text_encoder(clip_ids).pooler_output,
            "t5": mini.text_encoder_2(t5_ids)[0][:, 0],
        }
    for name, x in features.items():
        x = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
        for y in parse_targets(scenes).unbind(1):
            onehot = torch.nn.functional.one_hot(y).double()
            ridge = x[:1200].T @ x[:1200] + 1e-3 * torch.eye(x.shape[1])
            probe = torch.linalg.solve(ridge, x[:1200].T @ onehot[:1200])
            assert (x[1200:] @ probe).argmax(1).eq(y[1200:]).double().mean() > 0.98, name


def test_shipped_autoencoder_keeps_pictures(mini):
    x = render(sample_scenes(16, torch.Generator().manual_seed(2))) * 2 - 1
    with torch.no_grad():
        y = mini.vae.decode(mini.vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    error = (y - x).square().mean(dim=(1, 2, 3)) / 4
    assert (-10 * error.log10()).mean() > 35


def test_shipped_model_draws_what_it_is_told(mini):
    """Its score on all prompts is in data/results; here a few of each category, in few steps."""
    prompts = load_prompts(DATA / "prompts" / "evaluation.json")[::32]
    images = generate(
        mini, [p.text for p in prompts], [p.seed for p in prompts], progress=False, num_inference_steps=12
    )
    assert Judge()(images, prompts).mean() > 0.8


def test_shipped_model_is_small_and_has_the_real_classes():
    index = json.loads((MINI / "model_index.json").read_text())
    assert index["_class_name"] == "FluxPipeline"
    assert json.loads((MINI / "transformer" / "config.json").read_text())["guidance_embeds"] is True
    assert (
        json.loads((MINI / "scheduler" / "scheduler_config.json").read_text())["use_dynamic_shifting"] is True
    )
    sizes = [f.stat().st_size for f in MINI.rglob("*") if f.is_file()]
    assert sum(sizes) <= 25e6 and max(sizes) <= 16e6


def test_card_is_what_log_and_results_say():
    assert (MINI / "README.md").read_text() == card(MINI, DATA / "results")


def test_parse_targets_say_what_captions_say():
    scenes = sample_scenes(300, torch.Generator().manual_seed(3))
    for text, row, kind in zip(scenes.captions(), parse_targets(scenes).tolist(), scenes.kind.tolist()):
        count, shape, color, other, other_color, relation = row
        assert SHAPES[shape] in text
        assert (other < len(SHAPES)) == (
            " and " in text or " of " in text or "above" in text or "below" in text
        )
        assert (color < len(COLORS)) == any(c in text.split() for c in COLORS)
        assert (color < len(COLORS)) == ("color" in KINDS[kind])
        assert (other_color < len(COLORS)) == (sum(c in text.split() for c in COLORS) == 2)
        assert (relation < 4) == ("position" in KINDS[kind])
        assert np.isclose(count + 1, {"two": 2, "three": 3, "four": 4}.get(text.split()[0], 1 + (other < 8)))
