import base64
import io
import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import SAMPLING
from PIL import Image

from adatsq import Policy, apply, bench, load_pipeline, quantize, record, sampling, sweep, temporal_fisher
from adatsq.beams import beam_fronts
from adatsq.benchmark import spread
from adatsq.candidates import LADDER
from adatsq.evaluate import generate, psnr
from adatsq.explorer import choices_of, load_data
from adatsq.facts import size
from adatsq.marginals import marginal_errors
from adatsq.models import SAMPLING_FILE
from adatsq.search import beam_search
from adatsq.world import Judge, load_prompts
from adatsq.world.motion_prompts import load_video_prompts

BUDGETS = (3.0, 3.7, 4.4)
PROMPTS = spread(load_prompts(sweep.Path(__file__).parents[1] / "data" / "prompts" / "evaluation.json"), 12)
CALIBRATION = ["a red circle", "a star below a heart"]
KINDS = [("ladder", 1), ("ladder", 2), ("paper", 1), ("paper", 2), ("lagrangian", None), ("uniform", None)]
ASKED = {"w_bits": (4,), "taus": (1.0, math.inf), "budgets": BUDGETS, "beams": (1, 2)}
ASKED |= {"methods": sweep.METHODS, "steps": 3, "shown": 2, "progress": False}


@pytest.fixture(scope="module")
def tiny_folder(tiny_folder, tmp_path_factory):
    """The same, but its pictures are of the judge's size."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("large") / "tiny")
    (folder / SAMPLING_FILE).write_text(json.dumps({**SAMPLING, "height": 64, "width": 64}))
    return folder


@pytest.fixture(scope="module")
def found(tiny_folder):
    result = sweep.sweep(str(tiny_folder), PROMPTS, CALIBRATION, **ASKED)
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
        choices = choices_of(found, setting)
        budgets = [choice["budget"] for choice in choices]
        # with the paper's shares for 4 bits, no candidate is as cheap as 3 bits
        assert budgets == [b for b in BUDGETS if b > 3 or setting["method"] != "paper"][-len(budgets) :]
        for choice in choices:
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
        for choice in choices_of(found, setting):
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
    prompts = [prompt.text for prompt in PROMPTS], [prompt.seed for prompt in PROMPTS]
    reference = generate(pipe, *prompts, progress=False, **settings)
    trace = record(pipe, CALIBRATION, 3, seed=1_000_000, progress=False)
    fisher = temporal_fisher(pipe, trace, progress=False)
    quantize(pipe, trace, w_bits=4, alpha=fisher.alpha(1.0), progress=False)
    choice = choices_of(found, found["settings"][0])[1]
    policy = Policy.of(trace, np.array([[int(digit) for digit in row] for row in choice["bits"]]))
    apply(pipe, policy)
    images = generate(pipe, *prompts, progress=False, **settings)
    for prompt, stored, expected, exact, value in zip(
        found["prompts"], choice["images"], images, reference, choice["psnr"]
    ):
        assert (pixels(prompt["image"]) == exact).all()
        # sums in another order (batches) may round a pixel otherwise
        assert np.abs(pixels(stored).astype(int) - expected).max() <= 2
        assert value == pytest.approx(psnr(pixels(stored)[None], exact[None])[0], abs=0.01)
    assert len(found["prompts"]) == len(choice["images"]) == 2
    assert choice["mean_psnr"] == pytest.approx(psnr(images, reference).mean(), abs=0.05)
    for told, drawn in (
        (found["score"], reference),
        (choice["score"], images),
    ):  # two of each of six categories
        assert told["n"] == 12 and told["ci_low"] <= told["value"] <= told["ci_high"]
        assert told["value"] == pytest.approx(Judge()(drawn, PROMPTS).mean(), abs=1e-4)


def test_no_picture_is_stored_twice(found):
    for weights in found["weights"]:
        bits = [tuple(policy["bits"]) for policy in weights["policies"]]
        assert len(set(bits)) == len(bits)
    for setting in found["settings"]:
        assert all(choice.keys() == {"budget", "policy"} for choice in setting["choices"])


def test_one_run_finds_what_single_searches_find(tiny_folder):
    pipe = load_pipeline(str(tiny_folder), torch_dtype=torch.float32)
    trace = record(pipe, CALIBRATION, 3, seed=0, progress=False)
    fisher = temporal_fisher(pipe, trace, progress=False)
    quantize(pipe, trace, w_bits=4, progress=False)
    fronts = beam_fronts(pipe, trace, fisher, (1, 3), (3.3, 4.0), LADDER)
    assert list(fronts) == [(1, 3.3), (1, 4.0), (3, 3.3), (3, 4.0)]
    for (beam, budget), paths in fronts.items():
        alone = beam_search(pipe, trace, fisher, beam, LADDER, budget=budget, progress=False).front
        assert [path.candidates for path in paths] == [path.candidates for path in alone]
        assert [path.error for path in paths] == pytest.approx([path.error for path in alone], rel=1e-3)
        assert all((a.policy.bits == b.policy.bits).all() for a, b in zip(paths, alone))


def test_an_ended_sweep_goes_on_where_it_was(tiny_folder, tmp_path, monkeypatch):
    drawn, count, parts = bench.drawn, [], tmp_path / "tiny-explorer"
    asked = {"taus": (1.0,), "budgets": (3.0, 4.4), "beams": (1,), "methods": ("ladder",), "steps": 1}

    def swept(**other):
        found = sweep.sweep(str(tiny_folder), PROMPTS[:1], CALIBRATION[:1], **{**ASKED, **asked, **other})
        return json.loads(json.dumps(found))

    def until(ended):
        def one(*args):
            count.append(args)
            if len(count) == ended:
                raise KeyboardInterrupt
            return drawn(*args)

        return one

    whole = swept()
    monkeypatch.setattr("adatsq.sweep_part.drawn", until(2))
    with pytest.raises(KeyboardInterrupt):
        swept(parts=parts)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny-explorer-part-w4-tau1.json"]
    monkeypatch.setattr("adatsq.sweep_part.drawn", until(None))
    assert swept(parts=parts) == whole
    assert len(count) == len(whole["weights"][0]["policies"]) + 1 == 3  # the one that was ended twice

    monkeypatch.setattr("adatsq.sweep_part._searched", None)  # nothing is left to search
    assert swept(parts=parts) == whole
    for other in ({"budgets": (3.0, 4.0)}, {"origin": {"commit": "b"}}, {"methods": ("ladder", "paper")}):
        with pytest.raises(TypeError):  # what is of other budgets, or of another commit, is no start
            swept(parts=parts, **other)


def test_the_command_writes_one_file(tiny_folder, tmp_path, monkeypatch, capsys):
    options = (
        "--steps 2 --w-bits 3 --taus inf --budgets 3 --methods ladder uniform --calibration 1 --shown 3 "
    )
    options += "--judged 6 --device cpu --commit abc"
    prompts = sweep.Path(__file__).parents[1] / "data" / "prompts"
    given = ["--model", str(tiny_folder), "--prompts", str(prompts), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sweep", *given, *options.split()])
    sweep.main()
    assert "MB in" in capsys.readouterr().out
    (file,) = tmp_path.iterdir()
    found = load_data(file)
    assert file.name == f"{tiny_folder.name}-explorer.json"
    assert found["device"].startswith("cpu (") and found["commit"] == "abc"
    assert len(found["prompts"]) == 3 and found["score"] is None  # one prompt of each category
    assert set("".join(choices_of(found, found["settings"][0])[0]["bits"])) == {"3"}  # 3 bits leave no choice

    asked = {
        "w_bits": [3],
        "taus": [math.inf],
        "budgets": [3],
        "beams": [1, 4],
        "methods": ["ladder", "uniform"],
    }
    assert sweep.missing(file, **asked, shown=3, judged=6) == []
    more = {**asked, "taus": [1.0, math.inf], "budgets": [3, 4], "beams": [1, 8]}
    assert sweep.missing(file, **more, shown=4, judged=7) == [
        "ladder W3, tau 1, beam 1",
        "ladder W3, tau 1, beam 8",
        "uniform W3, tau 1",
        "ladder W3, tau inf, beam 8",
        "budget 4",
        "pictures",
        "scores",
    ]
    assert sweep.missing(tmp_path / "nothing.json", **asked, shown=1, judged=6) == ["all of it"]


def test_the_prompts_shown_are_wordy_and_those_judged_are_balanced():
    prompts = load_prompts(sweep.Path(__file__).parents[1] / "data" / "prompts" / "evaluation.json")
    chosen = sweep.chosen(prompts, shown=2, judged=18)
    counts = [sum(p.category == category for p in chosen) for category in {p.category for p in prompts}]
    assert counts == [3] * 6 and len({p.seed for p in chosen}) == 18
    assert chosen[0].category != chosen[1].category
    assert min(len(p.text) for p in chosen[:2]) > np.median([len(p.text) for p in prompts])


def test_an_impossible_budget_is_named(tiny_folder):
    with pytest.raises(ValueError, match="budget 2 is below"):
        sweep.sweep(str(tiny_folder), PROMPTS[:1], ["a ring"], (4,), (1.0,), (2,), steps=1, progress=False)


def test_an_unknown_method_is_named(tiny_folder):
    with pytest.raises(ValueError, match="choose of ladder, paper"):
        sweep.sweep(str(tiny_folder), PROMPTS[:1], ["a ring"], methods=("best",))


def test_a_clip_is_shown_as_frames_without_loss():
    clip = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    assert (pixels(bench.picture(clip)) == np.concatenate(clip[[0, 2, 4]], axis=1)).all()


def test_a_video_model_is_swept_too(family_folders):
    prompts = load_video_prompts(
        sweep.Path(__file__).parents[1] / "data" / "prompts" / "video-evaluation.json"
    )
    kinds = {"methods": ("ladder", "uniform"), "beams": (1,), "steps": 2, "shown": 1, "progress": False}
    found = sweep.sweep(
        str(family_folders("wan")), spread(prompts, 2), ["a ring"], (4,), (1.0,), (3.0,), **kinds
    )
    first = choices_of(found, found["settings"][0])[0]
    height, width, _ = pixels(first["images"][0]).shape
    assert width > height and found["frames"] == 3
    assert pixels(found["prompts"][0]["image"]).shape == (height, width, 3)
