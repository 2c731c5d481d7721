import base64
import io
import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from adatsq import Policy, apply, load_pipeline, quantize, record, sampling, sweep, temporal_fisher
from adatsq.evaluate import generate, psnr
from adatsq.facts import size
from adatsq.marginals import marginal_errors

BUDGETS = (3.0, 3.7, 4.4)
PROMPTS, SEEDS = ["two blue stars", "a red ring"], [7, 8]
CALIBRATION = ["a red circle", "a star below a heart"]
KINDS = [("ladder", 1), ("ladder", 2), ("paper", 1), ("paper", 2), ("lagrangian", None), ("uniform", None)]


@pytest.fixture(scope="module")
def found(tiny_folder):
    result = sweep.sweep(
        str(tiny_folder),
        PROMPTS,
        SEEDS,
        CALIBRATION,
        w_bits=(4,),
        taus=(1.0, math.inf),
        budgets=BUDGETS,
        beams=(1, 2),
        methods=sweep.METHODS,
        steps=3,
        progress=False,
    )
    return json.loads(json.dumps(result, allow_nan=False))  # it must survive the file


def pixels(text):
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))


def test_every_setting_has_a_choice_for_every_budget_it_reaches(found):
    keys = [(s["w_bits"], s["tau"], s["method"], s["beam"]) for s in found["settings"]]
    assert keys == [(4, tau, *kind) for tau in (1.0, None) for kind in KINDS]
    assert [(w["w_bits"], w["tau"]) for w in found["weights"]] == [(4, 1.0), (4, None)]
    assert found["search"] == found["calibration"] == 2 and found["frames"] == 1
    assert found["taus"] == [1.0, None] and found["effective_timesteps"][1] == pytest.approx(3)
    for setting in found["settings"]:
        budgets = [choice["budget"] for choice in setting["choices"]]
        # with the paper's shares for 4 bits, no candidate is as cheap as 3 bits
        assert budgets == [b for b in BUDGETS if b > 3 or setting["method"] != "paper"][-len(budgets) :]
        for choice in setting["choices"]:
            bits = np.array([[int(digit) for digit in row] for row in choice["bits"]])
            assert bits.shape == (3, len(found["layers"])) and set(bits.ravel()) <= {3, 4, 8}
            assert bits.mean() == pytest.approx(choice["average_bits"], abs=1e-4)
            assert bits.mean() <= choice["budget"] + 1e-4
            if setting["method"] in ("ladder", "paper"):  # bits go by Fisher score
                for row, information in zip(bits, np.array(found["fisher"])):
                    assert (np.diff(row[np.argsort(-information, kind="stable")]) <= 0).all()
            if setting["method"] == "uniform":
                assert len(set(bits.ravel())) == 1


def test_the_choice_is_the_best_complete_path_within_the_budget(found):
    for setting in found["settings"]:
        for choice in setting["choices"]:
            least = min(error for bits, error in setting["paths"] if bits <= choice["budget"] + 1e-4)
            assert choice["error"] == least
        bits, errors = np.array(setting["front"]).T
        assert (np.diff(bits) >= 0).all() and (np.diff(errors) <= 0).all()
        assert {tuple(p) for p in setting["front"]} <= {tuple(p) for p in setting["paths"]}
        assert [bits for bits, _ in setting["uniform"]] == [3, 4]


def test_layers_and_weights_are_those_of_the_model(found, tiny_folder):
    pipe = load_pipeline(str(tiny_folder), torch_dtype=torch.float32)
    for name, inside, outside, _ in found["layers"]:
        assert pipe.transformer.get_submodule(name).weight.shape == (outside, inside)
    trace = record(pipe, CALIBRATION, 3, seed=1_000_000, progress=False)
    fisher = temporal_fisher(pipe, trace, progress=False)
    quantize(pipe, trace, w_bits=4, alpha=fisher.alpha(1.0), progress=False)
    weights = found["weights"][0]
    errors, codes = weights["errors"], base64.b64decode(weights["errors"]["codes"])
    decoded = np.exp(errors["low"] + np.frombuffer(codes, np.uint8) / 255 * (errors["high"] - errors["low"]))
    exact = marginal_errors(pipe, trace, (3, 4, 8), progress=False).ravel()
    large = exact > 1e-3 * exact.max()
    assert decoded[large] == pytest.approx(exact[large], rel=0.1)
    assert weights["transformer_bytes"] == size(pipe)["transformer_bytes"]


def test_a_stored_policy_paints_the_stored_picture(found, tiny_folder):
    """From the file back to the picture, by the front door instead of the sweep."""
    pipe = load_pipeline(str(tiny_folder), torch_dtype=torch.float32)
    settings = {**sampling(pipe), "num_inference_steps": 3}
    reference = generate(pipe, PROMPTS, SEEDS, progress=False, **settings)
    trace = record(pipe, CALIBRATION, 3, seed=1_000_000, progress=False)
    fisher = temporal_fisher(pipe, trace, progress=False)
    quantize(pipe, trace, w_bits=4, alpha=fisher.alpha(1.0), progress=False)
    choice = found["settings"][0]["choices"][1]
    policy = Policy.of(trace, np.array([[int(digit) for digit in row] for row in choice["bits"]]))
    apply(pipe, policy)
    images = generate(pipe, PROMPTS, SEEDS, progress=False, **settings)
    for prompt, stored, expected, exact, value in zip(
        found["prompts"], choice["images"], images, reference, choice["psnr"]
    ):
        assert (pixels(prompt["image"]) == exact).all()
        # sums in another order (batches) may round a pixel otherwise
        assert np.abs(pixels(stored).astype(int) - expected).max() <= 2
        assert value == pytest.approx(psnr(pixels(stored)[None], exact[None])[0], abs=0.01)


def test_the_command_writes_one_file(tiny_folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "explorer.json"
    options = "--steps 2 --w-bits 3 --taus inf --budgets 3 --calibration 1 --shown 3 --device cpu".split()
    prompts = sweep.Path(__file__).parents[1] / "data" / "prompts"
    monkeypatch.setattr(
        sys,
        "argv",
        ["sweep", "--model", str(tiny_folder), "--prompts", str(prompts), "--out", str(out), *options],
    )
    sweep.main()
    assert "MB in" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["device"].startswith("cpu (") and found["commit"]
    assert len(found["prompts"]) == 3 and [p.name for p in tmp_path.iterdir()] == ["explorer.json"]
    assert set("".join(found["settings"][0]["choices"][0]["bits"])) == {"3"}  # 3 bits leave no choice


def test_an_impossible_budget_is_named(tiny_folder):
    with pytest.raises(ValueError, match="budget 2 is below"):
        sweep.sweep(
            str(tiny_folder), ["a star"], [0], ["a ring"], (4,), (1.0,), (2,), steps=1, progress=False
        )


def test_an_unknown_method_is_named(tiny_folder):
    with pytest.raises(ValueError, match="choose of ladder, paper"):
        sweep.sweep(str(tiny_folder), ["a star"], [0], ["a ring"], methods=("best",))


def test_a_clip_is_shown_as_frames_without_loss():
    clip = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    assert (pixels(sweep.picture(clip)) == np.concatenate(clip[[0, 2, 4]], axis=1)).all()


def test_a_video_model_is_swept_too(family_folders):
    found = sweep.sweep(
        str(family_folders("wan")), ["a star"], [0], ["a ring"], (4,), (1.0,), (3.0,), steps=2, progress=False
    )
    first = found["settings"][0]["choices"][0]
    height, width, _ = pixels(first["images"][0]).shape
    assert width > height and found["frames"] == 3
    assert pixels(found["prompts"][0]["image"]).shape == (height, width, 3)
