"""The benchmark on tiny random models: every row, resuming, and tables that agree with the pictures."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

from adatsq import baselines, benchmark, evaluate, judging, rows
from adatsq.baselines import METHODS
from adatsq.pareto import hypervolume, non_dominated
from adatsq.results import COLUMNS, KEY, ORDER, tidy_tables
from adatsq.world.motion import render_clips, sample_clips
from adatsq.world.motion_judge import DIMENSIONS
from adatsq.world.motion_prompts import make_video_prompts

SMALL = {"height": 64, "width": 64, "num_inference_steps": 2}  # the judge's size


@pytest.fixture(scope="module")
def run_all(family_folders, tmp_path_factory):
    """run(family, *options) -> folder with the results of the model "tiny", by the command."""
    models, patch = tmp_path_factory.mktemp("model"), pytest.MonkeyPatch()
    patch.setattr(benchmark, "CALIBRATION", slice(0, 4))
    patch.setattr(benchmark, "CHECK", slice(32, 34))
    patch.setattr(evaluate, "RESAMPLES", 200)
    patch.setattr(baselines, "GRID", baselines.GRID[::13])  # of SVDQuant: for time

    def run(family, *options, out=None):
        model = models / family / "tiny"
        if not model.exists():
            shutil.copytree(family_folders(family), model)
            sampling = json.loads((model / "sampling.json").read_text())
            (model / "sampling.json").write_text(json.dumps({**sampling, **SMALL}))
        out = out or tmp_path_factory.mktemp(f"results-{family}")
        fixed = ["--out", str(out), "--device", "cpu", "--batch-size", "8", "--commit", "test"]
        benchmark.main(["--model", str(model), *fixed, *options])
        return out

    yield run
    patch.undo()


@pytest.fixture(scope="module")
def pictures(run_all):
    return run_all("flux", "--limit", "4", "--pictures", "2")


@pytest.fixture(scope="module")
def clips(run_all):
    methods = ["rtn", "svdquant+gptq", "hadamard+gptq", "hadamard+gptq+search", "adatsq"]
    return run_all("wan", "--limit", "6", "--pictures", "1", "--methods", *methods)


def scored(out) -> set:
    table = pd.read_csv(out / "tiny.csv")
    assert list(table.columns) == COLUMNS
    found = table[table.metric == "total"][["method", "w_bits", "a_bits"]]
    return set(found.itertuples(index=False, name=None))


def searched(methods) -> set:
    return {(m, w, b) for m in methods for w, budgets in rows.SEARCHED[m].budgets.items() for b in budgets}


def test_every_method_is_scored(pictures):
    names = {"rtn", "hadamard", "hadamard+gptq", "adatsq-weights", *METHODS}
    assert set(ORDER) == {"fp"} | names | set(rows.SEARCHED) and len(ORDER) == len(set(ORDER))
    fixed = {(m, w, float(w)) for m in names for w in (3, 4)}
    assert scored(pictures) == {("fp", 16, 16.0)} | fixed | searched(rows.SEARCHED)


def test_only_the_methods_asked_for(clips):
    fixed = {(m, w, float(w)) for m in ("rtn", "svdquant+gptq", "hadamard+gptq") for w in (3, 4)}
    assert scored(clips) == {("fp", 16, 16.0)} | fixed | searched(["hadamard+gptq+search", "adatsq"])


def test_only_what_is_missing_runs_again(run_all, pictures, monkeypatch):
    before = {file.name: file.read_bytes() for file in pictures.iterdir()}
    facts = before["tiny-facts.csv"].decode().splitlines(keepends=True)
    kept = [line for line in facts if "hadamard+gptq+search" not in line]
    (pictures / "tiny-facts.csv").write_text("".join(kept))
    again, score = [], rows.score
    monkeypatch.setattr(rows, "score", lambda *args: again.append(args[3:6]) or score(*args))
    run_all("flux", "--limit", "4", "--pictures", "2", out=pictures)
    assert set(again) == searched(["hadamard+gptq+search"])
    for name in ("tiny-fisher.json", "tiny-frontier.csv", *(n for n in before if "policy" in n)):
        assert (pictures / name).read_bytes() == before[name]
    image_rows = [
        set(table.decode().splitlines())
        for table in (before["tiny-images.csv"], (pictures / "tiny-images.csv").read_bytes())
    ]
    assert image_rows[0] == image_rows[1]


def test_beside_other_work_what_is_found_once_gives_the_same_pictures(run_all, pictures, tmp_path):
    """With --shared smoothing and branches serve all methods on them: no seconds, and not a pixel else."""
    methods = ["svdquant", "svdquant+gptq"]
    run_all("flux", "--limit", "4", "--pictures", "2", "--shared", "--methods", "fp", *methods, out=tmp_path)
    shared, alone = (pd.read_csv(folder / "tiny-images.csv") for folder in (tmp_path, pictures))
    alone = alone[alone.method.isin(["fp", *methods])]
    order = [*KEY, "prompt", "picture"]
    shared, alone = (table.sort_values(order).reset_index(drop=True) for table in (shared, alone))
    pd.testing.assert_frame_equal(shared, alone)
    facts = pd.read_csv(tmp_path / "tiny-facts.csv")
    assert facts.filter(regex="_s$").isna().all(axis=None) and facts.transformer_bytes.count() == 4


def test_a_row_that_fails_is_named_and_the_others_go_on(run_all, monkeypatch, tmp_path, capsys):
    def broken(*args, **options):
        raise ValueError("broken on purpose")

    monkeypatch.setitem(benchmark.WEIGHTS, "rtn", broken)
    monkeypatch.setattr(rows, "search_policies", broken)
    methods = ["rtn", "vidit-q+mixed", "hadamard+gptq", "hadamard+gptq+search"]
    with pytest.raises(SystemExit, match=r"rtn weights W4, hadamard\+gptq\+search W4A4, rtn weights W3"):
        run_all("zimage", "--limit", "1", "--pictures", "1", "--methods", *methods, out=tmp_path)
    assert "broken on purpose" in capsys.readouterr().err
    fixed = {(m, w, float(w)) for m in ("vidit-q+mixed", "hadamard+gptq") for w in (3, 4)}
    assert scored(tmp_path) == {("fp", 16, 16.0)} | fixed


def test_full_precision_alone_has_no_pairs(run_all, tmp_path):
    run_all("schnell", "--limit", "1", "--pictures", "1", "--methods", "fp", out=tmp_path)
    assert scored(tmp_path) == {("fp", 16, 16.0)}
    assert pd.read_csv(tmp_path / "tiny-paired.csv").empty


def test_results_at_another_number_of_steps_are_refused_before_any_work(run_all, tmp_path, monkeypatch):
    options = ["schnell", "--limit", "1", "--pictures", "1", "--methods", "fp"]
    run_all(*options, out=tmp_path)
    run_all(*options, "--steps", "2", out=tmp_path)  # as they are
    monkeypatch.setattr(benchmark.adatsq, "record", None)
    with pytest.raises(ValueError, match="at 2 steps, not of Flux.* at 3: delete them"):
        run_all(*options, "--steps", "3", out=tmp_path)


def test_results_of_another_training_are_refused(run_all, pictures, tmp_path):
    (tmp_path / "tiny-fisher.json").write_bytes((pictures / "tiny-fisher.json").read_bytes())
    with pytest.raises(ValueError, match="are results of Flux.* delete them"):
        run_all("zimage", "--limit", "1", "--pictures", "1", out=tmp_path)


@pytest.mark.parametrize("results", ["pictures", "clips"])
def test_budgets_are_kept(results, request):
    table = pd.read_csv(request.getfixturevalue(results) / "tiny.csv")
    bits = table[table.metric == "average_bits"].set_index(["method", "a_bits"]).value
    for method, a_bits in bits.index:
        if method in rows.SEARCHED:
            assert bits[method, a_bits].max() <= a_bits + 1e-9
        else:  # a third of ViDiT-Q's layers have 8 bits in its mixed precision
            assert (bits[method, a_bits] == a_bits).all() != (method == "vidit-q+mixed")


def test_only_adatsqs_weights_get_alpha(run_all, pictures, monkeypatch, tmp_path):
    """Nothing is quantized here, so no row is written."""
    given = {}

    def stop(method):
        def recipe(pipe, trace, w_bits, a_bits, alpha, **options):
            given[method, w_bits, a_bits] = alpha
            raise ValueError("far enough")

        return recipe

    monkeypatch.setattr(benchmark, "WEIGHTS", {method: stop(method) for method in benchmark.WEIGHTS})
    shutil.copy(pictures / "tiny-fisher.json", tmp_path)
    with pytest.raises(SystemExit, match="svdquant weights W4"):
        run_all("flux", "--limit", "1", "--pictures", "1", out=tmp_path)
    assert set(given) == {(method, w, w) for method in benchmark.WEIGHTS for w in (3, 4)}
    weighted = {m for m, *_ in given if given[m, 4, 4] is not None}
    assert weighted == {m for m in METHODS if "adatsq" in m} | {"adatsq-weights"}
    assert all(np.allclose(given[m, 3, 3].sum(), 1) for m in weighted)


def test_calls_that_calibration_makes(pictures, clips):
    """4 images x 2 steps, of Wan x 2 branches: once for GPTQ, once more for smoothing and branches."""
    facts = pd.read_csv(pictures / "tiny-facts.csv").set_index(["method", "w_bits"])
    calls = facts[facts.index.get_level_values("w_bits") == 4].calibration_calls.droplevel("w_bits").dropna()
    assert calls[["rtn", "hadamard"]].eq(0).all()
    assert calls[["smoothquant", "vidit-q", "svdquant"]].eq(8).all()
    assert calls[["gptq", "quarot", "hadamard+gptq", "adatsq+plain", "adatsq-weights"]].eq(8).all()
    twice = ["svdquant+gptq", "smoothquant+gptq", "adatsq+smoothquant", "adatsq+svdquant"]
    assert calls[twice].eq(16).all()
    layers = 2 * 12 + 2 * 5  # of two blocks of each kind
    assert calls["vidit-q+mixed"] == 8 + layers * 2 + 8
    assert calls["q-dit"] > 8
    weighted = facts.fisher_calls.dropna().index.get_level_values("method")
    assert facts.fisher_calls.dropna().eq(8).all()
    assert set(weighted) == {m for m in ORDER if "adatsq" in m} | set(rows.SEARCHED)
    # 4 images through the 3 candidates of the first step, and those of at most 4 paths in the second
    beams = facts.loc[[m for m, how in rows.SEARCHED.items() if how.search == "paper" and "ladder" not in m]]
    assert beams.search_calls.between(4 * (3 + 3), 4 * (3 + 12)).all()
    # forwards of the check alone, and 3 + 3 passes of each step for the marginal errors
    lagrangian = facts.loc[["adatsq+lagrangian", "hadamard+gptq+lagrangian"]].search_calls
    assert lagrangian.between(4 * 2 * 7, 4 * 2 * (6 + 4)).all()
    # the same passes, and at most 3 candidates of each of 2 paths
    assert facts.loc["hadamard+gptq+prices"].search_calls.between(4 * 2 * 7, 4 * (2 * 6 + 3 + 6)).all()
    # six widths
    wider = facts.loc[["hadamard+gptq+widths", "hadamard+gptq+widths-average"]].search_calls
    assert wider.between(4 * 2 * 10, 4 * 2 * (9 + 4)).all()
    facts = pd.read_csv(clips / "tiny-facts.csv").set_index("method").calibration_calls
    assert facts["svdquant+gptq"].eq(32).all() and facts["hadamard+gptq"].eq(16).all()


def test_what_q_dits_search_cost_is_a_fact(pictures):
    """Its calls are among those of the weights: 8 more for GPTQ. No row of another method has them."""
    facts = pd.read_csv(pictures / "tiny-facts.csv").set_index("method")
    q_dit = facts.loc["q-dit"]
    assert (q_dit.group_calls + 8 == q_dit.calibration_calls).all()
    assert (q_dit.group_calls == 2 * q_dit.group_tried).all() and q_dit.group_s.lt(q_dit.quantize_s).all()
    assert (q_dit.group_32_layers == 34).all() and (q_dit[["group_192_layers", "group_288_layers"]] == 0).all(
        axis=None
    )
    assert facts.drop("q-dit").filter(like="group_").isna().all(axis=None)


def test_shared_rows_have_all_but_seconds(run_all, pictures, tmp_path):
    run_all(
        "flux", "--limit", "4", "--pictures", "2", "--methods", "q-dit", "adatsq", "--shared", out=tmp_path
    )
    alone, shared = (pd.read_csv(f / "tiny-facts.csv").set_index(KEY) for f in (pictures, tmp_path))
    seconds = [column for column in shared if column.endswith("_s")]
    assert {"quantize_s", "search_s", "judge_s", "record_s", "fisher_s", "group_s"} <= set(seconds)
    assert shared[seconds].isna().all(axis=None)
    memory = ["quantize_process_bytes", "search_process_bytes"]  # of the process, with all that it did before
    method = shared.index.get_level_values("method")
    assert shared.quantize_process_bytes[method == "q-dit"].gt(0).all()
    assert shared.search_process_bytes[method == "adatsq"].gt(0).all()
    rest = shared.drop(columns=[*seconds, *memory])
    pd.testing.assert_frame_equal(rest, alone.loc[rest.index, rest.columns], check_dtype=False)
    table = pd.read_csv(tmp_path / "tiny.csv")
    assert not table.metric.str.endswith("_s").any() and "search_calls" in set(table.metric)
    for name in ("tiny-policy-adatsq-w3a3.1.json", "tiny-policy-adatsq-w4a4.json"):
        assert (tmp_path / name).read_text() == (pictures / name).read_text()


def test_tables_repeat_from_the_pictures(pictures):
    """The tidy values are the plain means of the picture rows, and a second summary is the same."""
    images, table = pd.read_csv(pictures / "tiny-images.csv"), pd.read_csv(pictures / "tiny.csv")
    means = images.groupby([*KEY, "category"]).passed.mean()
    for row in table[table.metric.isin(images.category.unique())].itertuples():
        assert row.value == pytest.approx(means[row.model, row.method, row.w_bits, row.a_bits, row.metric])
        assert row.ci_low <= row.value <= row.ci_high
    pd.testing.assert_frame_equal(tidy_tables(pictures / "tiny")[0].reset_index(drop=True), table, rtol=1e-5)


def test_clips_have_a_row_per_dimension(clips):
    """One clip in each category: a dimension's value is the plain mean, the total that of the dimensions."""
    images, table = pd.read_csv(clips / "tiny-images.csv"), pd.read_csv(clips / "tiny.csv")
    assert images.groupby("category").prompt.nunique().eq(1).all()
    assert "passed" not in images and not table.metric.isin(images.category).any()
    by_method = table.set_index([*KEY, "metric"]).value.sort_index()
    for key, group in images.groupby(KEY):
        values = by_method.loc[key]
        for dimension in DIMENSIONS:
            assert values[dimension] == pytest.approx(group[dimension].mean(), abs=1e-5)
        assert values["total"] == pytest.approx(values[list(DIMENSIONS)].mean(), abs=1e-5)
        assert ("psnr" in values) == ("ssim" in values) == (key[1] != "fp")


def test_clips_are_compared_by_metric_at_the_same_budget(clips):
    images, paired = pd.read_csv(clips / "tiny-images.csv"), pd.read_csv(clips / "tiny-paired.csv")
    ours = paired[(paired.method == "adatsq") & (paired.a_bits == 3.1)]
    assert set(ours.baseline) == {"fp", "rtn", "hadamard+gptq", "hadamard+gptq+search"}
    searched_twin = ours[ours.baseline == "hadamard+gptq+search"]
    assert set(searched_twin.baseline_a_bits) == {3.1}
    assert set(searched_twin.metric) == {*DIMENSIONS, "total", "psnr", "ssim"}
    at = images.set_index(["method", "a_bits"])
    mean = at.loc[[("adatsq", 3.1)]].ssim.mean() - at.loc[[("hadamard+gptq+search", 3.1)]].ssim.mean()
    assert searched_twin.set_index("metric").value["ssim"] == pytest.approx(mean, abs=1e-5)


def test_chunks_are_judged_as_the_whole(monkeypatch):
    """On threads here, as fresh processes take long to start."""
    monkeypatch.setattr(judging, "_workers", lambda: ThreadPoolExecutor(2))
    clips = render_clips(sample_clips(9, torch.Generator().manual_seed(0)))[:, ::4]
    clips = (255 * clips.permute(0, 1, 3, 4, 2)).round().byte().numpy()
    prompts = make_video_prompts()[0][:180:20]
    whole = judging.CLIPS.score(clips, prompts)
    monkeypatch.setattr(judging, "FEW", 1)
    pd.testing.assert_frame_equal(judging.CLIPS.score(clips, prompts), whole)
    assert whole.nunique().max() > 2


def test_beams_are_held_against_the_exact_front(pictures):
    """The stored paths alone give the stored front and the shares of it that the beams find."""
    paths, table = pd.read_csv(pictures / "tiny-frontier.csv"), pd.read_csv(pictures / "tiny.csv")
    shares = table[table.metric == "hypervolume_share"].set_index(["method", "w_bits"]).value
    assert set(paths.w_bits) == {3, 4} and len(shares) == 2 * (len(rows.BEAMS) + 1)
    for w_bits, group in paths.groupby("w_bits"):
        points = group[["average_bits", "error"]].to_numpy()
        assert len(group) == 9 and group.candidates.is_unique
        assert (group.on_front == non_dominated(points)).all()
        corner = points.max(0) + 0.1 * np.ptp(points, axis=0)
        whole = hypervolume(points, corner)
        for beam in rows.BEAMS:
            found = hypervolume(points[group[f"beam={beam}"]], corner) / whole
            assert shares[f"adatsq beam={beam}", w_bits] == pytest.approx(found, rel=1e-4)
        assert shares[rows.EXACT, w_bits] == 1
