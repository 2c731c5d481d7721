"""The explorer with a kernel: traits, files, scores, predictions. Its page: test_explorer_page."""

import base64
import gzip
import itertools
import json
import pathlib
import re

import numpy as np
import pytest
from explorer_data import made_up

from adatsq.bench import coded
from adatsq.explorer import (
    BitBudgetExplorer,
    agreement,
    choices_of,
    load_data,
    place_of,
    policy_of,
    predictions,
)
from adatsq.live import LiveModels
from adatsq.sweep import AXES, CALIBRATION, SEARCH, SIZES, missing, sweep
from adatsq.world import load_prompts

PROMPTS, RESULTS = (pathlib.Path(__file__).parents[1] / "data" / name for name in ("prompts", "results"))
STORED = sorted(RESULTS.glob("*-explorer.json"))


def packed_in(page, what):
    packed = re.search(rf'<script type="text/plain" id="[^"]*-{what}">(.*?)</script>', page, re.S).group(1)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_it_is_a_widget_and_a_page():
    data = made_up()
    bundle, _ = BitBudgetExplorer(data, budget=1)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    state = packed_in(bundle["text/html"], "state")
    assert state["data"] == ["made-up"] and state["budget"] == 1 and not state["can_run"]
    assert packed_in(bundle["text/html"], "data-0") == data
    assert set(re.findall(r"https?://[\w./]+", bundle["text/html"])) == {"http://www.w3.org/2000/svg"}


def test_choice_and_policy_follow_the_positions():
    data = [made_up(), made_up("another", 1)]
    explorer = BitBudgetExplorer(data)
    assert explorer.get_state()["live"] is None  # a new one shows what is stored
    for model, setting, budget in itertools.product(range(2), (0, 5, 11), range(2)):
        explorer.set_trait("model", model)
        explorer.set_trait("setting", setting)
        explorer.set_trait("budget", budget)
        stored = data[model]["settings"][setting]
        (weights,) = (
            w for w in data[model]["weights"] if (w["w_bits"], w["tau"]) == (stored["w_bits"], stored["tau"])
        )
        place = stored["choices"][budget]
        assert explorer.choice == {"budget": place["budget"], **weights["policies"][place["policy"]]}
        assert explorer.policy.average == pytest.approx(explorer.choice["average_bits"], abs=1e-4)
        assert explorer.policy.flop_weighted == pytest.approx(explorer.choice["flop_weighted_bits"], abs=1e-4)
    explorer.painted = ["888"] * 4
    assert explorer.policy.average == 8
    with pytest.raises(ValueError, match="no such point"):
        BitBudgetExplorer(made_up(), budget=3)


def test_a_live_run_is_asked_for_and_failures_are_told():
    asked, answer = [], {"text": "two hearts", "psnr": 30.0}

    def live(data, setting, request):
        asked.append((data["name"], setting["w_bits"], request["text"]))
        if request["text"] == "fail":
            raise ValueError("no such model")
        return answer

    explorer = BitBudgetExplorer([made_up(), made_up("another")], live, model=1, setting=2)
    explorer.request = {"number": 1, "text": "two hearts", "bits": explorer.choice["bits"]}
    assert asked == [("another", 3, "two hearts")]
    assert explorer.live == answer and explorer.status == "done"
    explorer.request = {"number": 2, "text": "fail"}
    assert explorer.status == "ValueError: no such model"
    assert explorer.painted == []
    answer["bits"] = ["384"] * 4
    explorer.request = {"number": 3, "text": "two hearts", "budget": 5.0, "beam": 4}
    assert explorer.painted == ["384"] * 4 and explorer.policy.average == 5
    assert explorer.can_run and not BitBudgetExplorer(made_up()).can_run


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no explorer data .*nothing.json: write it with python -m"):
        load_data(tmp_path / "nothing.json")
    for text, message in (
        ("{", "is damaged"),
        ('{"format_version": 2}', "version 2.* write it with python -m adatsq.sweep"),
        ('{"format_version": 4}', "version 4"),
        ("[]", "version None"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_data(tmp_path / "bad.json")


def test_a_place_is_found_by_name():
    data = made_up()
    for setting, budget in itertools.product(data["settings"], (3.0, 4.0)):
        kind = {name: setting[name] for name in ("method", "w_bits", "tau", "beam")}
        place = place_of(data, budget=budget, **kind)
        assert data["settings"][place["setting"]] is setting
        assert setting["choices"][place["budget"]]["budget"] == budget
    place = place_of(data, budget=4.4, method="ladder", w_bits=3, tau=1.0, beam=8)  # what is nearest to it
    found = data["settings"][place["setting"]]
    assert (found["method"], found["w_bits"], place["budget"]) == ("ladder", 3, 1)


def test_predictions_are_sums_of_the_stored_errors():
    data = made_up()
    errors = np.random.default_rng(3).uniform(0.01, 1, (4, 3, 3))
    weights = {**data["weights"][0], "errors": coded(errors)}
    bits = ["348", "833", "444", "338"]
    expected = sum(
        errors[t, l, [3, 4, 8].index(int(b))] for t, row in enumerate(bits) for l, b in enumerate(row)
    )
    assert predictions(data, weights)(bits) == pytest.approx(expected, rel=0.02)


def test_agreement_is_one_for_errors_that_add_up_and_minus_one_for_their_inverse():
    data = made_up()
    weights, predict = data["weights"][0], predictions(data, data["weights"][0])
    for sign in (1, -1):
        for policy in weights["policies"]:
            policy["error"] = predict(policy["bits"]) ** sign
        for setting in data["settings"]:
            setting["uniform"] = [[b, predict([f"{b}" * 3] * 4) ** sign] for b in (3, 4)]
        found = agreement(data, weights)
        assert found["rank_correlation"] == pytest.approx(sign) and found["policies"] >= 5
    assert agreement(data, {**weights, "errors": None}) is None


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_a_stored_sweep_is_whole(file):
    """The same choices for all models: methods, weights, temperatures, budgets, beams; scores; where from."""
    data = load_data(file)
    assert missing(file, **AXES, **SIZES["clips" if data["frames"] > 1 else "pictures"]) == []
    assert data["device"] != "unknown" and data["commit"] != "unknown"
    assert data["calibration"] == CALIBRATION and data["search"] == SEARCH and len(data["beams"]) >= 2
    pairs = [(w["w_bits"], w["tau"]) for w in data["weights"]]
    assert pairs == list(itertools.product(data["w_bits"], data["taus"]))
    for weights in data["weights"]:
        assert -1 <= weights["agreement"]["rank_correlation"] <= 1  # so that what is painted is predicted
        for policy in weights["policies"]:
            of_model = policy_of(data, policy["bits"])
            assert of_model.average == pytest.approx(policy["average_bits"], abs=1e-4)
            assert of_model.flop_weighted == pytest.approx(policy["flop_weighted_bits"], abs=1e-4)
            assert len(policy["images"]) == len(policy["psnr"]) == len(data["prompts"])
            score = policy["score"]
            assert 0 <= score["ci_low"] <= score["value"] <= score["ci_high"] <= 1
            assert score["n"] == data["score"]["n"]
    for setting in data["settings"]:
        assert (setting["w_bits"], setting["tau"]) in pairs
        choices = choices_of(data, setting)
        errors = [choice["error"] for choice in choices]
        assert errors == sorted(errors, reverse=True)  # more bits never do worse: the cheaper path is allowed
        assert [c["budget"] for c in choices] == data["budgets"][-len(choices) :]
        assert all(choice["average_bits"] <= choice["budget"] + 1e-4 for choice in choices)


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_the_page_is_light_whatever_model_it_opens_with(file):
    """The rest of a page, styles and fonts and equations, is 1.1 MB, and it may have 3 (test_site)."""
    assert len(BitBudgetExplorer(load_data(file)).to_html()) < 1.8e6


def test_a_live_model_runs_the_policy_it_is_asked_for(tiny_folder):
    given = [load_prompts(PROMPTS / "calibration.json")[0].text]
    prompts, kinds = load_prompts(PROMPTS / "evaluation.json")[:1], {"methods": ("ladder",), "beams": (1,)}
    data = sweep(str(tiny_folder), prompts, given, (4,), (1.0,), (3.0,), **kinds, steps=2, progress=False)
    live = LiveModels(tiny_folder.parent, PROMPTS, 1, "cpu")
    setting = data["settings"][0]
    choice = choices_of(data, setting)[0]
    request = {"text": prompts[0].text, "seed": prompts[0].seed, "bits": choice["bits"]}
    stored = live(data, setting, request)  # the sweep's own calibration, so its own numbers
    assert stored["psnr"] == pytest.approx(choice["psnr"][0], abs=0.05)
    assert stored["error"] == pytest.approx(choice["error"], rel=0.01)
    better = live(data, setting, {**request, "bits": ["8" * len(data["layers"])] * 2})
    assert better["error"] < stored["error"]
    assert better["full"] == stored["full"] == data["prompts"][0]["image"]

    search = {"text": prompts[0].text, "seed": prompts[0].seed, "budget": 3.6, "beam": 2}
    for method in ("ladder", "lagrangian"):
        found = live(data, {**setting, "method": method}, search)
        assert 3.0 < policy_of(data, found["bits"]).average <= 3.6
        assert better["error"] < found["error"] < stored["error"]
        assert found["error"] == live(data, setting, {**request, "bits": found["bits"]})["error"]
    with pytest.raises(ValueError, match="fixed bits are not searched"):
        live(data, {**setting, "method": "uniform"}, search)
