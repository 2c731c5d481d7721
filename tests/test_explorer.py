"""The explorer with a kernel: traits, files, scores, predictions. Its page: test_explorer_page."""

import base64
import gzip
import itertools
import json
import pathlib
import re

import numpy as np
import pandas as pd
import pytest
from explorer_data import made_up

from adatsq.explorer import BitBudgetExplorer, add_scores, agreement, load_data, policy_of, predictions
from adatsq.live import LiveModels
from adatsq.sweep import coded, sweep
from adatsq.world import load_prompts

PROMPTS, RESULTS = (pathlib.Path(__file__).parents[1] / "data" / name for name in ("prompts", "results"))
STORED = sorted(RESULTS.glob("*-explorer.json"))


def state_in(page):
    packed = re.search(r'<script type="text/plain" id="[^"]*-state">(.*?)</script>', page, re.S).group(1)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_it_is_a_widget_and_a_page():
    data = made_up()
    bundle, _ = BitBudgetExplorer(data, budget=1)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    state = state_in(bundle["text/html"])
    assert state["data"] == [data] and state["budget"] == 1 and not state["can_run"]
    assert set(re.findall(r"https?://[\w./]+", bundle["text/html"])) == {"http://www.w3.org/2000/svg"}


def test_choice_and_policy_follow_the_positions():
    data = [made_up(), made_up("another", 1)]
    explorer = BitBudgetExplorer(data)
    assert explorer.get_state()["live"] is None  # a new one shows what is stored
    for model, setting, budget in itertools.product(range(2), (0, 5, 11), range(2)):
        explorer.set_trait("model", model)
        explorer.set_trait("setting", setting)
        explorer.set_trait("budget", budget)
        assert explorer.choice == data[model]["settings"][setting]["choices"][budget]
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
    explorer.request = {"number": 1, "text": "two hearts"}
    assert asked == [("another", 3, "two hearts")]
    assert explorer.live == answer and explorer.status == "done"
    explorer.request = {"number": 2, "text": "fail"}
    assert explorer.status == "ValueError: no such model"
    assert explorer.can_run and not BitBudgetExplorer(made_up()).can_run


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no explorer data .*nothing.json: write it with python -m"):
        load_data(tmp_path / "nothing.json")
    for text, message in (
        ("{", "is damaged"),
        ('{"format_version": 1}', "version 1.* write it again with python -m adatsq.sweep"),
        ('{"format_version": 3}', "version 3"),
        ("[]", "version None"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_data(tmp_path / "bad.json")


def test_a_score_is_that_of_the_same_method_bits_and_budget():
    data = made_up()
    for setting in data["settings"]:
        setting["tau"] = {0.25: 1.0}.get(setting["tau"])
    rows = [("adatsq+ladder", 3, 4.0, 0.9), ("adatsq+ladder", 3, 4.4, 0.1), ("hadamard+gptq", 4, 3.0, 0.8)]
    lagrangian = [s for s in data["settings"] if (s["method"], s["beam"], s["tau"]) == ("ladder", 1, 1.0)]
    for setting in lagrangian:
        setting.update(method="lagrangian", beam=None)
    rows.append(("adatsq+lagrangian", 4, 4.0, 0.7))
    table = pd.DataFrame(rows, columns=["method", "w_bits", "a_bits", "value"])
    add_scores(data, table.assign(metric="total", ci_low=table.value - 0.1, ci_high=table.value + 0.1))
    found = {
        (s["method"], s["w_bits"], s["tau"], s["beam"], c["budget"]): c["score"]["value"]
        for s in data["settings"]
        for c in s["choices"]
        if "score" in c
    }
    assert found == {
        ("ladder", 3, 1.0, 4, 4.0): 0.9,
        ("uniform", 4, None, None, 3.0): 0.8,
        ("lagrangian", 4, 1.0, None, 4.0): 0.7,
    }


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
    predict = predictions(data, data["weights"][0])
    for sign in (1, -1):
        for setting in data["settings"]:
            for choice in setting["choices"]:
                choice["error"] = predict(choice["bits"]) ** sign
            setting["uniform"] = [[b, predict([f"{b}" * 3] * 4) ** sign] for b in (3, 4)]
        found = agreement(data, data["weights"][0])
        assert found["rank_correlation"] == pytest.approx(sign) and found["policies"] >= 5
    assert agreement(data, {**data["weights"][0], "errors": None}) is None


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_a_stored_sweep_is_whole(file):
    data = load_data(file)
    pairs = [(w["w_bits"], w["tau"]) for w in data["weights"]]
    assert pairs == list(itertools.product(data["w_bits"], data["taus"]))
    assert 1 <= data["search"] <= data["calibration"]
    for setting in data["settings"]:
        assert (setting["w_bits"], setting["tau"]) in pairs
        assert {c["budget"] for c in setting["choices"]} <= set(data["budgets"])
        errors = [c["error"] for c in setting["choices"]]
        assert errors == sorted(
            errors, reverse=True
        )  # more bits never do worse: the cheaper path stays allowed
        for choice in setting["choices"]:
            policy = policy_of(data, choice["bits"])
            assert policy.average == pytest.approx(choice["average_bits"], abs=1e-4)
            assert policy.flop_weighted == pytest.approx(choice["flop_weighted_bits"], abs=1e-4)
            assert policy.average <= choice["budget"] + 1e-4


@pytest.mark.skipif(not STORED, reason="no stored sweep")
def test_the_page_of_all_models_is_light():
    assert len(BitBudgetExplorer([load_data(file) for file in STORED]).to_html()) < 3e6


def test_a_live_model_runs_the_policy_it_is_asked_for(tiny_folder):
    given = [load_prompts(PROMPTS / "calibration.json")[0].text]
    data = sweep(str(tiny_folder), ["a star"], [3], given, (4,), (1.0,), (3.0,), steps=2, progress=False)
    live = LiveModels(tiny_folder.parent, PROMPTS, 1, "cpu")
    setting = data["settings"][0]
    request = {"text": "a star", "seed": 3, "bits": setting["choices"][0]["bits"]}
    stored = live(data, setting, request)  # the sweep's own calibration, so its own numbers
    assert stored["psnr"] == pytest.approx(setting["choices"][0]["psnr"][0], abs=0.05)
    assert stored["error"] == pytest.approx(setting["choices"][0]["error"], rel=0.01)
    better = live(data, setting, {**request, "bits": ["8" * len(data["layers"])] * 2})
    assert better["error"] < stored["error"]
    assert better["full"] == stored["full"] == data["prompts"][0]["image"]
