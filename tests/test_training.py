"""The training code at toy size, and the shipped mini model, part by part."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import adatsq
from adatsq.evaluate import generate
from adatsq.world import (
    COLORS,
    SHAPES,
    flow,
    flux,
    render,
    sample_scenes,
    schnell,
    train,
)
from adatsq.world.data import Data
from adatsq.world.scenes import KINDS
from adatsq.world.text import parse_targets

DATA = Path(__file__).parents[1] / "data"
MODELS = DATA / "models"
MINI = MODELS / "flux-dev-mini"


SMALL_TEXT = {"scenes": 200, "steps": 2, "batch_size": 8}
# A second call continues from the checkpoints and sees new scenes; those of the last one are counted.
CALLS = {
    "flux-dev-mini": ["text autoencoder base", "text base distill", "distill assemble"],
    "flux-schnell-mini": ["steps", "steps assemble"],
    "z-image-mini": ["text base", "base steps assemble"],
    "wan2.1-mini": ["text autoencoder base", "base assemble"],
}


@pytest.mark.parametrize("name", CALLS)
def test_training_goes_through_all_stages_and_resumes(name, tmp_path, monkeypatch):
    """Every stage at toy size; the folder is a complete pipeline of the family's class."""
    recipe = train.RECIPES[name]
    if "text" in recipe.STAGES:
        monkeypatch.setattr(recipe, "train_encoders", partial(recipe.train_encoders, **SMALL_TEXT))
    if "autoencoder" in recipe.STAGES:
        small = partial(recipe.train_autoencoder, steps=1, batch_size=2, scenes=4)
        monkeypatch.setattr(recipe, "train_autoencoder", small)
    if name != "flux-schnell-mini":  # which starts from the real dev model
        monkeypatch.setattr(recipe, "build_transformer", partial(recipe.build_transformer, layers=1))
    work, out = tmp_path / "work", tmp_path / "mini"
    options = ["--scenes", "8", "--steps", "2", "--batch-size", "4", "--device", "cpu"]
    options += ["--start", str(MODELS / "flux-dev-mini")]
    for stages in CALLS[name]:
        argv = ["train", name, "--work", str(work), "--out", str(out), "--stages", *stages.split(), *options]
        monkeypatch.setattr("sys.argv", argv)
        train.main()
    log = json.loads((work / "log.json").read_text())
    twice = "steps" if name == "flux-schnell-mini" else "base"
    assert log[f"{twice}_scenes"] == 16  # trained twice, on new scenes
    configs = [json.loads(file.read_text()) for file in out.glob("text_encoder*/config.json")]
    assert configs and {config["dtype"] for config in configs} == {"float32"}
    pipe = adatsq.load_pipeline(out, torch_dtype=torch.float32)
    pictures = generate(pipe, ["a red star"], [0], progress=False, num_inference_steps=2)
    assert pictures.shape == ((1, 17, 64, 64, 3) if name == "wan2.1-mini" else (1, 64, 64, 3))


def test_a_stage_that_the_model_has_not_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "wan2.1-mini", "--work", str(tmp_path), "--stages", "steps"])
    with pytest.raises(SystemExit):
        train.main()
    assert "wan2.1-mini has no stage steps" in capsys.readouterr().err


def toy_data(latents: torch.Tensor, text: tuple) -> Data:
    """Data without scenes: fixed latents, each with its own caption."""
    data = Data.__new__(Data)
    data.latents, data.text, data.generator = latents, text, torch.Generator().manual_seed(0)
    data.caption = torch.arange(len(latents)) % len(text[0])
    return data


def test_guidance_one_is_the_conditional_teacher():
    """v_empty + g (v - v_empty) at g = 1 is v: the distilled loss of an untrained student there is zero."""
    torch.manual_seed(0)
    data = toy_data(torch.randn(8, 64, 32), (torch.randn(4, 128), torch.randn(4, 16, 128)))
    teacher = flux.build_transformer(layers=1, single_layers=1)
    losses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "fit", lambda student, loss, **_: losses.append(loss(student, 4)))
        flow.distill_guidance(teacher, data, flux.velocity, shift=0.47, scales=(1.0, 1.0))
    assert losses[0].item() < 1e-10


def test_few_step_student_is_taught_where_the_teachers_small_steps_lead():
    """The teacher's field is v(x, sigma) = 2 sigma x + caption: the target is its Euler solution by hand."""
    sigmas, substeps = [1.0, 0.6, 0.0], 3

    def field(x, sigma, caption):
        return 2 * flow.like(sigma, x) * x + flow.like(caption, x)

    data = toy_data(torch.randn(6, 2, 3), (torch.zeros(2, 1),))
    seen = []

    def velocity(model, data, x, sigma, caption, guidance):
        seen.append((x, sigma, caption))
        return torch.zeros_like(x)  # so that the loss is the mean square of the target

    def fit(student, loss, **_):
        for _ in range(4):
            value = loss(student, 5)
            x, sigma, caption = (part.double() for part in seen[-1])
            end = torch.tensor([sigmas[sigmas.index(round(s, 4)) + 1] for s in sigma.tolist()]).double()
            y = x
            for k in range(substeps):
                at = sigma + (end - sigma) * k / substeps
                y = y + flow.like((end - sigma) / substeps, x) * field(y, at, caption)
            target = (y - x) / flow.like(end - sigma, x)
            assert value.item() == pytest.approx(target.square().mean().item(), rel=1e-4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "fit", fit)
        flow.distill_steps(
            torch.nn.Linear(1, 1),
            data,
            velocity,
            lambda teacher, data, x, sigma, caption: field(x, sigma, caption),
            sigmas,
            substeps,
        )
    # With an idle student a trajectory stays where it is and meets the next sigma; then a new one begins.
    for (x, sigma, _), (x2, sigma2, _) in zip(seen, seen[1:]):
        first = sigma == 1.0
        assert torch.equal(x2[first], x[first]) and (sigma2[first] == sigmas[1]).all()
        assert (sigma2[~first] == 1.0).all() and (x2[~first] != x[~first]).all()


def test_schnell_starts_as_the_dev_model_at_its_guidance():
    torch.manual_seed(0)
    teacher = flux.build_transformer(layers=1, single_layers=1)
    data = toy_data(torch.zeros(2, 64, 32), (torch.randn(2, 128), torch.randn(2, 16, 128)))
    x, sigma, caption = torch.randn(2, 64, 32), torch.tensor([0.3, 0.9]), torch.tensor([0, 1])
    with torch.no_grad():
        wanted = schnell.target_velocity(teacher, data, x, sigma, caption)
        found = flux.velocity(schnell.student(teacher), data, x, sigma, caption, None)
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.fixture(scope="module")
def mini():
    return adatsq.load_pipeline(MINI, torch_dtype=torch.float32)


def test_shipped_text_encoders_know_what_a_caption_says(mini):
    """A linear probe, solved in closed form on other captions, reads each fact off both encoders."""
    scenes = sample_scenes(1600, torch.Generator().manual_seed(1))
    clip_ids, t5_ids = flux.tokenize(mini.tokenizer, mini.tokenizer_2, scenes.captions())
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
