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

BUDGETS = (3.0, 3.7, 4.4)
PROMPTS, SEEDS = ["two blue stars", "a red ring"], [7, 8]
CALIBRATION = ["a red circle", "a star below a heart"]


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
        steps=3,
        progress=False,
    )
    return json.loads(json.dumps(result, allow_nan=False))  # it must survive the file


def pixels(text):
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))


def test_every_setting_has_a_choice_for_every_budget(found):
    assert [(s["w_bits"], s["tau"]) for s in found["settings"]] == [(4, 1.0), (4, None)]
    assert found["taus"] == [1.0, None] and found["effective_timesteps"][1] == pytest.approx(3)
    for setting in found["settings"]:
        assert [choice["budget"] for choice in setting["choices"]] == list(BUDGETS)
        for choice in setting["choices"]:
            bits = np.array([[int(digit) for digit in row] for row in choice["bits"]])
            assert bits.shape == (3, len(found["layers"])) and set(bits.ravel()) <= {3, 4, 8}
            assert bits.mean() == pytest.approx(choice["average_bits"], abs=1e-4)
            assert bits.mean() <= choice["budget"] + 1e-4
            for row, information in zip(bits, np.array(found["fisher"])):  # bits go by Fisher score
                assert (np.diff(row[np.argsort(-information, kind="stable")]) <= 0).all()


def test_the_choice_is_the_best_complete_path_within_the_budget(found):
    for setting in found["settings"]:
        for choice in setting["choices"]:
            least = min(error for bits, error in setting["paths"] if bits <= choice["budget"] + 1e-4)
            assert choice["error"] == least
        bits, errors = np.array(setting["front"]).T
        assert (np.diff(bits) >= 0).all() and (np.diff(errors) <= 0).all()
        assert {tuple(p) for p in setting["front"]} <= {tuple(p) for p in setting["paths"]}
        assert [bits for bits, _ in setting["uniform"]] == [3, 4]


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
    options = "--steps 2 --w-bits 3 --taus inf --budgets 3 --calibration 1 --device cpu".split()
    prompts = sweep.Path(__file__).parents[1] / "data" / "prompts"
    monkeypatch.setattr(
        sys,
        "argv",
        ["sweep", "--model", str(tiny_folder), "--prompts", str(prompts), "--out", str(out), *options],
    )
    sweep.main()
    assert "MB in" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert len(found["prompts"]) == 4 and [p.name for p in tmp_path.iterdir()] == ["explorer.json"]
    assert set("".join(found["settings"][0]["choices"][0]["bits"])) == {"3"}  # 3 bits leave no choice


def test_an_impossible_budget_is_named(tiny_folder):
    with pytest.raises(ValueError, match="budget 2 is below"):
        sweep.sweep(
            str(tiny_folder), ["a star"], [0], ["a ring"], (4,), (1.0,), (2,), steps=1, progress=False
        )
