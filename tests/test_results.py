"""Which rows are compared with which, and that stored numbers stay."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adatsq import evaluate
from adatsq.pareto import hypervolume
from adatsq.results import BASES, EVERY, KEY, ORDER, POLICIES, tidy_tables
from adatsq.rows import SEARCHED

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results"


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """All methods, the searched ones at two budgets, with made-up passes."""
    tmp_path = tmp_path_factory.mktemp("results")
    random, images = np.random.default_rng(0), []
    for w_bits in (4, 3):
        for method in ORDER:
            for a_bits in (w_bits, w_bits + 0.5) if method in SEARCHED else (w_bits,):
                key = ("m", method, w_bits, float(a_bits)) if method != "fp" else ("m", "fp", 16, 16.0)
                row = pd.DataFrame([key] * 3, columns=KEY).assign(prompt=range(3), picture=0, category="c")
                images.append(row.assign(passed=random.integers(0, 2, 3), psnr=20.0, ssim=0.5))
    images = pd.concat(images).drop_duplicates([*KEY, "prompt"])
    images.to_csv(tmp_path / "m-images.csv", index=False)
    images[KEY].drop_duplicates().assign(commit="c", device="d").to_csv(tmp_path / "m-facts.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "RESAMPLES", 50)
        found = tidy_tables(tmp_path / "m")[1]
    return images, found[found.metric == "total"]


def test_a_commit_of_digits_is_no_number(tmp_path):
    images = pd.DataFrame({"model": "m", "method": "rtn", "w_bits": 4, "a_bits": 4.0, "prompt": [0, 1]})
    images.assign(picture=0, category="c", passed=1, psnr=20.0, ssim=0.5).to_csv(
        tmp_path / "m-images.csv", index=False
    )
    facts = images[KEY].head(1).assign(search_s=2.0, commit="1234567", costs_commit="12e4567", device="d")
    facts.assign(costs_device="e").to_csv(tmp_path / "m-facts.csv", index=False)
    tidy_tables(tmp_path / "m")
    table = pd.read_csv(tmp_path / "m.csv", dtype=str).set_index("metric").commit
    assert table["total"] == "1234567" and table["search_s"] == "12e4567"


def test_every_row_is_held_against_the_same_four(paired):
    images, rows = paired
    for key, _ in images.groupby(KEY):
        if key[1] != "fp":
            mine = rows[(rows[KEY] == list(key)).all(axis=1)]
            assert {"fp", "rtn", "svdquant", "hadamard+gptq"} - {key[1]} <= set(mine.baseline)
            assert not mine.baseline.duplicated().any()
    assert "fp" not in set(rows.method)


@pytest.mark.parametrize(
    ("method", "base"),
    [
        ("adatsq+plain", "rtn"),
        ("adatsq+plain", "gptq"),
        ("adatsq+plain+search", "adatsq+plain"),
        ("adatsq+smoothquant", "smoothquant+gptq"),
        ("adatsq+smoothquant+search", "adatsq+smoothquant"),
        ("adatsq+svdquant+search", "adatsq+svdquant"),
        ("adatsq+lagrangian", "hadamard+gptq+lagrangian"),
        ("hadamard+gptq+prices", "hadamard+gptq+lagrangian"),
        ("adatsq", "quarot"),
        ("adatsq+smoothquant", "smoothquant"),
        ("adatsq+svdquant", "svdquant+gptq"),
        ("adatsq-weights", "hadamard+gptq"),
        ("adatsq", "adatsq-weights"),
        ("adatsq", "hadamard+gptq+search"),
        ("adatsq", "rtn+search"),
        ("adatsq+ladder", "rtn+search"),
        ("adatsq+lagrangian", "rtn+search"),
        ("hadamard+gptq+search", "rtn+search"),
        ("rtn+search", "rtn"),
        ("adatsq+ladder", "adatsq"),
        ("adatsq+lagrangian", "adatsq"),
        ("adatsq", "svdquant+small-rank"),
        ("svdquant+small-rank", "svdquant"),
        ("svdquant+gptq", "svdquant"),
        ("vidit-q+mixed", "vidit-q"),
        ("hadamard+gptq+search", "hadamard+gptq"),
    ],
)
def test_what_is_built_on_another_is_held_against_it(paired, method, base):
    images, rows = paired
    mine = rows[(rows.method == method) & (rows.baseline == base)]
    wanted = images[images.method == method][["w_bits", "a_bits"]].drop_duplicates()
    assert len(mine) == len(wanted) and set(mine.w_bits) == {3, 4}
    if base in POLICIES:
        assert (mine.a_bits == mine.baseline_a_bits).all()
    for row in mine.itertuples():
        passed = [
            images[(images.method == m) & (images.w_bits == row.w_bits) & (images.a_bits == a)].passed.mean()
            for m, a in ((method, row.a_bits), (base, row.baseline_a_bits))
        ]
        assert row.value == pytest.approx(passed[0] - passed[1])


def test_a_row_that_was_ended_between_its_files_is_left_out(paired, tmp_path):
    images, _ = paired
    images.to_csv(tmp_path / "m-images.csv", index=False)
    facts = images[KEY].drop_duplicates().assign(commit="c", device="d")
    facts[facts.method != "adatsq"].to_csv(tmp_path / "m-facts.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "RESAMPLES", 50)
        table, pairs = tidy_tables(tmp_path / "m")
    assert set(table.method) == set(ORDER) - {"adatsq"}
    assert "adatsq" not in {*pairs.method, *pairs.baseline}


def test_a_row_of_fewer_pictures_is_held_against_the_first_ones(tmp_path):
    """Four prompts, four pictures each; another library drew the first picture alone."""
    random, parts = np.random.default_rng(0), {}
    for key, pictures in ((("m", "fp", 16, 16.0), 4), (("m", "quanto", 4, 16.0), 1)):
        row = pd.DataFrame([key] * 4 * pictures, columns=KEY)
        row = row.assign(prompt=np.repeat(range(4), pictures), picture=np.tile(range(pictures), 4))
        row = row.assign(category="c", passed=random.integers(0, 2, len(row)), psnr=20.0, ssim=0.5)
        parts[key[1]] = row
    images = pd.concat(parts.values())
    images.to_csv(tmp_path / "m-images.csv", index=False)
    images[KEY].drop_duplicates().assign(commit="c", device="d").to_csv(tmp_path / "m-facts.csv", index=False)
    found = tidy_tables(tmp_path / "m")[1].set_index("metric").loc["total"]
    first = parts["fp"].passed[parts["fp"].picture == 0]
    assert found.value == pytest.approx(parts["quanto"].passed.mean() - first.mean()) and found.n == 4


def test_rules_name_methods():
    assert {*EVERY, *BASES, *(base for bases in BASES.values() for base in bases)} <= set(ORDER)


def test_stored_tables_come_from_the_stored_pictures(tmp_path):
    """The same numbers, and the same pairs: a changed rule needs `python -m adatsq.results` on all files."""
    name = "flux-schnell-mini"
    for suffix in ("-images.csv", "-facts.csv"):
        (tmp_path / f"{name}{suffix}").write_bytes((RESULTS / f"{name}{suffix}").read_bytes())
    tidy_tables(tmp_path / name)
    for suffix in (".csv", "-paired.csv"):
        assert (tmp_path / f"{name}{suffix}").read_text() == (RESULTS / f"{name}{suffix}").read_text()


def test_stored_shares_of_a_front_come_from_its_stored_paths():
    frontier = pd.read_csv(RESULTS / "flux-schnell-mini-frontier.csv")
    facts = pd.read_csv(RESULTS / "flux-schnell-mini-facts.csv")
    stored = facts.dropna(subset="hypervolume_share").set_index(["method", "w_bits"]).hypervolume_share
    for w_bits, rows in frontier.groupby("w_bits"):
        points = rows[["average_bits", "error"]].to_numpy()
        corner = points.max(0) + 0.1 * np.ptp(points, axis=0)
        whole = hypervolume(points, corner)
        for beam in ("beam=1", "beam=2", "beam=4"):
            share = hypervolume(points[rows[beam].to_numpy()], corner) / whole
            assert stored[f"adatsq {beam}", w_bits] == pytest.approx(share)
