"""The ablation on tiny random models: every row, resuming, and values that agree with the pictures."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from adatsq import ablation, ablation_plan, ablation_steps, evaluate
from adatsq.ablation_plan import BUDGETS, plan
from adatsq.evaluate import generate, psnr
from adatsq.fisher import temporal_fisher
from adatsq.models import load_pipeline
from adatsq.policy import Policy, act_layers, apply
from adatsq.recipes import adatsq_weights, hadamard_gptq
from adatsq.results import COLUMNS
from adatsq.trace import record

PLACE = ["part", "setting", "a_bits"]
HELD = 3


@pytest.fixture(scope="module")
def run_all(family_folders, tmp_path_factory):
    """run(family, *options) -> folder with the results of the command."""
    patch = pytest.MonkeyPatch()
    patch.setattr(ablation_plan, "TAUS", (math.inf, 1.0))
    patch.setattr(ablation_plan, "BEAMS", (4, 1))
    patch.setattr(ablation_plan, "PROMPTS", (1,))
    patch.setattr(evaluate, "RESAMPLES", 200)

    def run(family, *options, out=None):
        out = out or tmp_path_factory.mktemp(family)
        sizes = ["--calibration", "2", "--held-out", str(HELD), "--steps", "2", "--run-lengths", "1", "2"]
        folder = str(family_folders(family))
        fixed = ["--out", str(out), "--device", "cpu", "--commit", "test"]
        ablation.main(["--model", folder, *fixed, *sizes, *options])
        return out

    yield run
    patch.undo()


@pytest.fixture(scope="module")
def flux(run_all):
    return run_all("flux")


def tables(out, name="flux"):
    return pd.read_csv(out / f"{name}-ablation.csv"), pd.read_csv(out / f"{name}-ablation-pictures.csv")


def test_every_row_of_the_plan_is_there_once(flux, run_all):
    table, pictures = tables(flux)
    assert set(COLUMNS) < set(table)
    rows = plan(3, 2)
    scores = table[(table.metric == "psnr") & table.baseline.isna()]
    expected = [(row.part, row.setting, row.a_bits) for row in rows if row.draw]
    assert sorted(scores[PLACE].itertuples(index=False, name=None)) == sorted(expected)
    assert (pictures.groupby(PLACE).picture.apply(list).map(lambda p: p == list(range(HELD)))).all()
    facts = table[table.metric == "average_bits"].set_index(PLACE).value
    for row in rows:
        average = facts[row.part, row.setting, row.a_bits]
        assert average <= row.a_bits + 1e-5 or row.search.cost == "flops"
    assert {"hypervolume", "front_hypervolume", "calls", "search_s"} <= set(
        table[table.part == "beam"].metric
    )
    assert table[table.metric.str.contains("hypervolume")].value.between(0, 1).all()
    picked = table[table.part == "picked"].pivot(
        index=["setting", "a_bits"], columns="metric", values="value"
    )
    assert np.allclose(picked[["share_3", "share_4", "share_8"]].sum(axis=1), 1)
    assert np.allclose(picked.share_3 * 3 + picked.share_4 * 4 + picked.share_8 * 8, picked.average_bits)


def test_values_and_differences_are_those_of_the_pictures(flux):
    table, pictures = tables(flux)
    values = {key: group.sort_values("picture").psnr.to_numpy() for key, group in pictures.groupby(PLACE)}
    scores = table[table.metric == "psnr"]
    assert scores.baseline.notna().sum() == sum(len(row.baselines) for row in plan(3, 2))
    for row in scores.itertuples():
        mine = values[row.part, row.setting, row.a_bits]
        if isinstance(row.baseline, str):
            mine = mine - values[row.part, row.baseline, row.baseline_a_bits]
        assert row.value == pytest.approx(mine.mean(), abs=1e-4) and row.n == HELD
        assert mine.min() - 1e-4 <= row.ci_low <= row.value <= row.ci_high <= mine.max() + 1e-4


def test_the_two_by_two_is_the_recipes_at_the_same_pictures(flux, family_folders):
    """uniform: hadamard_gptq, fisher: adatsq_weights; painted anew by the front door, without the command."""
    _, pictures = tables(flux)
    values = pictures[(pictures.part == "2x2") & (pictures.a_bits == 3)].set_index("setting").psnr
    texts = [
        p.text
        for p in ablation.task_of(load_pipeline(family_folders("flux"))).load(
            ablation.Path(__file__).parents[1] / "data/prompts/calibration.json"
        )
    ]
    for setting in ("uniform", "fisher"):
        pipe = load_pipeline(family_folders("flux"))
        trace = record(pipe, texts[:2], 2, seed=1_000_000, progress=False)
        held = record(pipe, texts[-HELD:], 2, seed=2_000_000, progress=False)
        if setting == "uniform":
            hadamard_gptq(pipe, trace, 3, 3, progress=False)
        else:
            alpha = temporal_fisher(pipe, trace, progress=False).alpha(1.0)
            adatsq_weights(pipe, trace, 3, 3, alpha, progress=False)
        images = generate(pipe, held.prompts, held.seeds, progress=False, **held.settings)
        assert values[f"{setting}, fixed"].to_numpy() == pytest.approx(psnr(images, held.images), abs=0.05)


def test_a_second_run_measures_nothing_and_a_missing_row_alone_is_measured(flux, run_all, monkeypatch):
    before = {file.name: file.read_bytes() for file in flux.iterdir()}
    monkeypatch.setattr(ablation, "Quantized", None)
    run_all("flux", out=flux)
    assert {file.name: file.read_bytes() for file in flux.iterdir()} == before
    monkeypatch.undo()
    file = flux / "flux-ablation.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("shares,half,")))
    again, measure = [], ablation.measure
    monkeypatch.setattr(ablation, "measure", lambda q, row: again.append(row.setting) or measure(q, row))
    run_all("flux", "--parts", "shares", "loss", out=flux)
    assert again == ["half"] and sorted(len(x) for x in lines)[0] > 0
    assert len(file.read_text().splitlines()) == len(lines)


def test_results_of_other_sizes_are_refused(flux, run_all):
    with pytest.raises(ValueError, match="3 held out, this run is .* delete the file"):
        run_all("flux", "--parts", "tau", "--held-out", "4", out=flux)


def test_other_weights_and_models(run_all):
    """4 bits beside 3, a video model with guidance, a list of latents."""
    for family in ("wan", "zimage"):
        out = run_all(family, "--parts", "2x2", "beam", "steps", "--w-bits", "4")
        assert tables(out, family)[0].query("metric == 'psnr' and baseline.isna()").shape[0] == 6
        assert set(pd.read_csv(out / f"{family}-ablation-steps.csv").steps) == {1, 2}


def test_errors_along_the_run_are_those_of_the_pipeline(flux, family_folders):
    table = pd.read_csv(flux / "flux-ablation-steps.csv")
    names = {*ablation_steps.FIXED, *ablation_steps.SEARCHES, *ablation_steps.CONTROLS}
    assert table.groupby("steps").step.apply(lambda s: sorted(set(s))).to_dict() == {1: [1], 2: [1, 2]}
    assert set(table.method) == names and len(table) == 3 * len(names)
    inside = ~table.method.isin(ablation_steps.FIXED)
    assert (table.average_bits[inside] <= BUDGETS[3][-1] + 1e-6).all()
    ends = pd.read_csv(flux / "flux-ablation-steps-pictures.csv").groupby(["steps", "method"]).error
    last = table[table.step == table.steps].set_index(["steps", "method"]).value
    assert (ends.size() == 3).all() and len(ends) == len(last)
    pd.testing.assert_series_equal(ends.mean().sort_index(), last.sort_index(), check_names=False, rtol=1e-4)
    pipe = load_pipeline(family_folders("flux"))
    trace = record(pipe, ["a red ring", "two stars", "a heart"], 2, progress=False)
    hadamard_gptq(pipe, trace, 3, progress=False)
    bits = np.random.default_rng(0).choice([3, 4, 8], (2, len(act_layers(trace))))
    errors, after = ablation_steps.trajectory_errors(pipe, trace, bits, batch_size=2), []
    applied = apply(pipe, Policy.of(trace, bits))
    pipe(
        trace.prompts,
        generator=[torch.Generator().manual_seed(seed) for seed in trace.seeds],
        callback_on_step_end=lambda pipe, i, t, state: after.append(state["latents"]) or {},
        **trace.settings,
    )
    applied.remove()
    exact = trace.latents[1:]
    expected = ((torch.stack(after) - exact) ** 2).sum((2, 3)) / (exact**2).sum((2, 3))
    np.testing.assert_allclose(errors, expected, rtol=1e-3)
