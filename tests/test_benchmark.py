"""The benchmark on tiny random models: every row, resuming, and tables that agree with the pictures."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

from adatsq import benchmark, evaluate, judging, rows
from adatsq.pareto import hypervolume, non_dominated
from adatsq.results import COLUMNS, KEY, tidy_tables
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
    methods = ["rtn", "hadamard+gptq", "hadamard+gptq+search", "adatsq"]
    return run_all("wan", "--limit", "6", "--pictures", "1", "--methods", *methods)


def scored(out) -> set:
    table = pd.read_csv(out / "tiny.csv")
    assert list(table.columns) == COLUMNS
    found = table[table.metric == "total"][["method", "w_bits", "a_bits"]]
    return set(found.itertuples(index=False, name=None))


def searched(methods) -> set:
    return {(m, w, b) for m in methods for w, budgets in benchmark.BUDGETS.items() for b in budgets}


def test_every_method_is_scored(pictures):
    fixed = {(m, w, float(w)) for m in benchmark.WEIGHTS for w in (3, 4)}
    assert scored(pictures) == {("fp", 16, 16.0)} | fixed | searched(rows.SEARCHED)


def test_only_the_methods_asked_for(clips):
    fixed = {(m, w, float(w)) for m in ("rtn", "hadamard+gptq") for w in (3, 4)}
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


def test_a_row_that_fails_is_named_and_the_others_go_on(run_all, monkeypatch, tmp_path, capsys):
    def broken(*args, **options):
        raise ValueError("broken on purpose")

    monkeypatch.setitem(benchmark.WEIGHTS, "rtn", broken)
    monkeypatch.setattr(rows.adatsq, "beam_search", broken)
    methods = ["rtn", "hadamard+gptq", "hadamard+gptq+search"]
    with pytest.raises(SystemExit, match=r"rtn weights W4, hadamard\+gptq\+search W4A4, rtn weights W3"):
        run_all("zimage", "--limit", "1", "--pictures", "1", "--methods", *methods, out=tmp_path)
    assert "broken on purpose" in capsys.readouterr().err
    assert scored(tmp_path) == {("fp", 16, 16.0), ("hadamard+gptq", 4, 4.0), ("hadamard+gptq", 3, 3.0)}


def test_full_precision_alone_has_no_pairs(run_all, tmp_path):
    run_all("schnell", "--limit", "1", "--pictures", "1", "--methods", "fp", out=tmp_path)
    assert scored(tmp_path) == {("fp", 16, 16.0)}
    assert pd.read_csv(tmp_path / "tiny-paired.csv").empty


def test_results_of_another_training_are_refused(run_all, pictures, tmp_path):
    (tmp_path / "tiny-fisher.json").write_bytes((pictures / "tiny-fisher.json").read_bytes())
    with pytest.raises(ValueError, match="are results of Flux.* delete them"):
        run_all("zimage", "--limit", "1", "--pictures", "1", out=tmp_path)


@pytest.mark.parametrize("results", ["pictures", "clips"])
def test_budgets_are_kept(results, request):
    table = pd.read_csv(request.getfixturevalue(results) / "tiny.csv")
    bits = table[table.metric == "average_bits"].set_index(["method", "a_bits"]).value
    for method, a_bits in bits.index:
        assert bits[method, a_bits].max() <= a_bits + 1e-9


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
