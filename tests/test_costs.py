"""Costs measured anew go into the rows that lack them, and change nothing else."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from adatsq import baselines, benchmark, costs, evaluate
from adatsq.facts import on_disk
from adatsq.io import load, save
from adatsq.recipes import hadamard
from adatsq.results import KEY

SMALL = {"height": 64, "width": 64, "num_inference_steps": 2}  # the judge's size
METHODS = ["rtn", "svdquant", "hadamard+gptq", "hadamard+gptq+search", "hadamard+gptq+prices"]


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    """run(module, *options) -> folder with the results of the model "tiny", by the module's command."""
    folder, patch = tmp_path_factory.mktemp("costs"), pytest.MonkeyPatch()
    shutil.copytree(tiny_folder, folder / "tiny")
    sampling = json.loads((folder / "tiny" / "sampling.json").read_text())
    (folder / "tiny" / "sampling.json").write_text(json.dumps({**sampling, **SMALL}))
    patch.setattr(benchmark, "CALIBRATION", slice(0, 4))
    patch.setattr(benchmark, "CHECK", slice(32, 34))
    patch.setattr(evaluate, "RESAMPLES", 100)
    patch.setattr(baselines, "GRID", baselines.GRID[::13])

    def run(module, *options):
        fixed = ["--out", str(folder / "out"), "--device", "cpu", "--batch-size", "8", "--limit", "2"]
        fixed += ["--pictures", "1", "--model", str(folder / "tiny"), "--methods", *METHODS]
        module.main([*fixed, *options])
        return folder / "out"

    yield run
    patch.undo()


@pytest.fixture(scope="module")
def measured(run):
    """(files before, folder after): rows of --shared, and what the costs put into them."""
    out = run(benchmark, "--shared", "--commit", "old")
    before = {file.name: file.read_text() for file in out.iterdir()}
    run(costs, "--commit", "new")
    return before, out


def test_rows_get_the_seconds_that_they_lacked(measured):
    before, out = measured
    facts = pd.read_csv(out / "tiny-facts.csv").set_index(KEY)
    mine = facts[facts.index.get_level_values("method") != "fp"]
    searched = mine.index.get_level_values("method").str.contains("search|prices")
    assert mine[["record_s", "fisher_s", "quantize_s", "quantize_process_bytes"]].gt(0).all(axis=None)
    assert mine[searched][["search_s", "judge_s", "search_calls"]].gt(0).all(axis=None)
    assert mine[~searched][["search_s", "judge_s", "search_calls"]].isna().all(axis=None)
    assert set(mine.costs_commit) == {"new"} and set(facts.commit) == {"old"}


def test_all_else_stays(measured):
    before, out = measured
    for name, text in before.items():
        if name not in ("tiny-facts.csv", "tiny.csv"):
            assert (out / name).read_text() == text
    (out / "before.csv").write_text(before["tiny-facts.csv"])
    old, new = (pd.read_csv(out / name, dtype=str) for name in ("before.csv", "tiny-facts.csv"))
    (out / "before.csv").unlink()
    same = [c for c in old if not c.endswith(("_s", "_process_bytes"))]
    pd.testing.assert_frame_equal(old[same], new[same])


def test_tables_name_the_commit_that_measured_each(measured):
    table = pd.read_csv(measured[1] / "tiny.csv")
    anew = table.metric.str.endswith(("_s", "_calls", "_process_bytes", "disk_bytes"))
    assert set(table[anew & (table.method != "fp")].commit) == {"new"}
    assert set(table[~anew].commit) == {"old"} and np.isfinite(table.value).all()
    assert {"seconds", "costs_commit", "costs_device"}.isdisjoint(table.metric)


def test_what_lacks_nothing_is_not_measured_again(measured, run, monkeypatch):
    monkeypatch.setattr(costs, "quantized", None)
    text = (measured[1] / "tiny-facts.csv").read_text()
    run(costs, "--commit", "newer")
    assert (measured[1] / "tiny-facts.csv").read_text() == text


def test_beside_other_work_nothing_is_measured(run):
    with pytest.raises(ValueError, match="alone"):
        run(costs, "--shared")


def test_bytes_on_disk_are_those_of_what_is_loaded_again(tiny_pipe, tmp_path):
    found = on_disk(hadamard(tiny_pipe, None, 3, 4, progress=False))["disk_bytes"]
    save(tiny_pipe, tmp_path / "saved")
    files = [file for file in (tmp_path / "saved" / "transformer").iterdir() if file.is_file()]
    assert found == sum(len(file.read_bytes()) for file in files) and len(files) == 2
    load(tmp_path / "saved")
