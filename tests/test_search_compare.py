"""Searches and controls side by side on a tiny random model."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from adatsq import search_compare
from adatsq.search_compare import EQUAL, SEARCHES, at_equal_calls, compare
from adatsq.trace import record

PROMPTS = ["a red circle", "two blue stars"]
BUDGET = 3.6
COLUMNS = (  # what readers of the stored files know
    "model search w_bits budget average_bits flop_weighted_bits error calls search_s candidate psnr n gain "
    "gain_se"
).split()


@pytest.fixture
def traces(tiny_pipe):
    trace = record(tiny_pipe, PROMPTS * 2, num_inference_steps=2, progress=False)
    return trace, record(tiny_pipe, PROMPTS * 2, num_inference_steps=2, seed=9, progress=False)


def test_searches_and_controls_at_the_same_bits(tiny_pipe, traces, tmp_path):
    table = compare(tiny_pipe, *traces, 4, [BUDGET], tmp_path / "tiny", random=2, progress=False)
    pictures = pd.read_csv(tmp_path / "tiny-search-compare-pictures.csv")
    assert len(table) == len(SEARCHES) + len(EQUAL) + 4 + 9 + 3 and len(pictures) == 4 * len(table)
    assert list(table)[: len(COLUMNS)] == COLUMNS and set(table.model) == {"tiny"}
    inside = ~table.search.str.contains("uniform|flops|quarter")
    assert (table.average_bits[inside] <= BUDGET + 1e-5).all()
    assert (table.gain[table.search == "paper"] == 0).all()
    values = pictures.pivot(index="picture", columns="search", values="psnr")
    for row in table.itertuples():
        gains = values[row.search] - values["paper"]
        assert row.gain == pytest.approx(gains.mean(), abs=1e-4)
        by_prompt = (gains[:2].to_numpy() + gains[2:].to_numpy()) / 2  # two pictures of each prompt
        assert row.gain_se == pytest.approx(by_prompt.std(ddof=1) / 2**0.5, abs=1e-4)
    found = table.set_index("search")
    assert found.hypervolume[list(SEARCHES)].between(0, 1).all() and found.hypervolume.count() == 9
    for wide, narrow in EQUAL.items():
        assert found.calls[wide] >= found.calls[narrow] and found.beam[wide] >= found.beam[narrow] == 4


def test_only_what_is_missing_is_measured(tiny_pipe, traces, tmp_path, monkeypatch):
    options = {"random": 1, "progress": False}
    compare(tiny_pipe, *traces, 4, [BUDGET], tmp_path / "tiny", **options)
    path = tmp_path / "tiny-search-compare.csv"
    before = path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(search_compare, "temporal_fisher", None)
        compare(tiny_pipe, *traces, 4, [BUDGET], tmp_path / "tiny", **options)
    assert path.read_text() == before
    pictures = (tmp_path / "tiny-search-compare-pictures.csv").read_text()
    with pytest.raises(ValueError, match=r"rows of \[4\] pictures, this run has 2"):
        compare(tiny_pipe, traces[0], traces[1].subset([0, 1]), 4, [3.3], tmp_path / "tiny", **options)
    assert (tmp_path / "tiny-search-compare-pictures.csv").read_text() == pictures


def test_a_larger_run_replaces_a_smaller_one(tiny_folder, traces, tmp_path):
    """Row by row, each with its pictures; what it ends with is what it would have found alone."""
    (trace, held), load = traces, search_compare.load_pipeline
    sizes = {"few": held.subset([0, 1]), "all": held}
    for folder, runs in {"alone": ["all"], "after": ["few", "all"]}.items():
        (tmp_path / folder).mkdir()
        for run in runs:
            name = tmp_path / folder / "tiny"
            table = compare(load(tiny_folder), trace, sizes[run], 4, [BUDGET], name, random=1, progress=False)
            assert set(table.n) == {len(sizes[run])} and set(table.calibration) == {4}
            assert set(table.steps) == {2}
    for file in ("search-compare", "search-compare-pictures"):
        alone, after = (pd.read_csv(tmp_path / f / f"tiny-{file}.csv") for f in ("alone", "after"))
        pd.testing.assert_frame_equal(
            alone.drop(columns="search_s", errors="ignore"), after.drop(columns="search_s", errors="ignore")
        )


def test_a_control_that_is_missing_comes_back_the_same(tiny_folder, traces, tmp_path):
    options = {"random": 1, "progress": False}
    load = search_compare.load_pipeline
    compare(load(tiny_folder), *traces, 4, [BUDGET], tmp_path / "tiny", **options)
    path = tmp_path / "tiny-search-compare.csv"
    before = path.read_text().splitlines()
    path.write_text("\n".join(line for line in before if "random 0" not in line) + "\n")
    compare(load(tiny_folder), *traces, 4, [BUDGET], tmp_path / "tiny", **options)
    assert sorted(path.read_text().splitlines()) == sorted(before)


def test_the_beam_widens_until_its_calls_are_matched_or_stop_growing():
    def search(most):
        return lambda beam: SimpleNamespace(calls=min(10 * beam, most))

    assert at_equal_calls(search(1000), 30)[0] == 4
    assert at_equal_calls(search(1000), 70)[0] == 8
    beam, result = at_equal_calls(search(100), 300)
    assert (beam, result.calls) == (16, 100)
    assert at_equal_calls(search(10**9), 10**9)[0] == search_compare.WIDEST


def test_the_command(tiny_folder, tmp_path, monkeypatch):
    sizes = "--calibration 2 --held-out 2 --seeds 2 --random 1 --steps 2 --budgets 3.6 --device cpu".split()
    command = ["search_compare", "--model", str(tiny_folder), "--out", str(tmp_path), *sizes]
    monkeypatch.setattr("sys.argv", command)
    torch.manual_seed(0)
    search_compare.main()
    table = pd.read_csv(tmp_path / f"{tiny_folder.name}-search-compare.csv")
    assert set(table.n) == {4} and table.search.is_unique
