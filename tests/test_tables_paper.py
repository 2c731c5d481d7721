"""The paper's tables beside ours: differences, order, real bits, what is missing."""

import itertools
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from adatsq import plots_tables, sizes, tables, tables_paper
from adatsq.results import BASES, EVERY, ORDER
from adatsq.rows import SEARCHED

TOTALS = {"fp": 0.9, "q-dit": 0.1, "quarot": 0.3, "svdquant": 0.7, "adatsq": 0.8}
BITS = {"fp": None, "q-dit": 4.1, "quarot": 4.0, "svdquant": 7.0, "adatsq": 4.0}
PAPER = {"fp": 0.67, "q-dit": 0.01, "smoothquant": 0.02, "quarot": 0.24, "svdquant": 0.57, "adatsq": 0.62}


@pytest.fixture
def scores(tmp_path) -> tables.Scores:
    """Four methods at W4A4, PSNR 50 times the total; differences to full precision and to SVDQuant."""
    rows, pairs = [], []
    for method, total in TOTALS.items():
        bits = 16 if method == "fp" else 4
        place = {"model": "m", "method": method, "w_bits": bits, "a_bits": float(bits)}
        for metric, value in (
            ("total", total),
            ("psnr", 50 * total),
            ("effective_w_bits", BITS[method]),
            ("effective_bits", BITS[method]),
            ("flop_weighted_bits", BITS[method]),
            ("transformer_bytes", 1000),
            ("search_s", 2.5 if method == "adatsq" else None),
            ("fisher_s", 9.5),
        ):
            if value is not None and (method, metric) != ("fp", "psnr"):
                rows.append({**place, "metric": metric, "value": value})
        for other in {"fp", "svdquant"} - {method}:
            difference = total - TOTALS[other]
            pairs += [
                {**place, "baseline": other, "baseline_a_bits": 16.0, "metric": m, "value": difference}
                for m in ("total", "psnr")
                if method != "fp"
            ]
    table, paired = pd.DataFrame(rows), pd.DataFrame(pairs)
    for frame in (table, paired):
        frame["ci_low"], frame["ci_high"] = frame.value - 0.15, frame.value + 0.15
        frame["n"], frame["seed"], frame["commit"], frame["device"] = 10, 0, "abc", "cpu"
    table.to_csv(tmp_path / "m.csv", index=False)
    paired.to_csv(tmp_path / "m-paired.csv", index=False)
    return tables.read(tmp_path, "m")


def of_paper(values=PAPER) -> pd.DataFrame:
    rows = [(m, 16 if m == "fp" else 4, v) for m, v in values.items()]
    return pd.DataFrame(rows, columns=["method", "w_bits", "value"]).assign(metric="total")


def test_differences_and_the_papers_numbers_in_one_line(scores):
    table = tables_paper.against(scores, of_paper())
    assert table.index.tolist() == ["fp", "quarot W4A4", "q-dit W4A4", "svdquant W4A4", "adatsq W4A4"]
    row = table.loc["adatsq W4A4"]
    assert row["ours minus SVDQuant"] == "+0.100<br><small>-0.050 to +0.250</small>"  # touches zero: not bold
    assert table.at["q-dit W4A4", "ours minus FP"] == "<b>-0.800</b><br><small>-0.950 to -0.650</small>"
    assert row["paper minus SVDQuant"] == "+0.0500" and row["paper"] == "0.6200"
    assert table.at["fp", "paper minus FP"] == "" and table.at["svdquant W4A4", "paper minus SVDQuant"] == ""
    assert row["total"] == "0.800<br><small>0.650–0.950</small>"


def test_a_difference_that_rounds_to_zero_has_no_sign():
    row = pd.Series({"value": -0.0001, "ci_low": -0.05, "ci_high": 0.0002})
    assert tables_paper.signed(row) == "0.000<br><small>-0.050 to 0.000</small>"


def test_a_column_without_rows_is_left_out(scores):
    without = tables.Scores(scores.table, scores.paired[scores.paired.baseline == "fp"])
    assert "ours minus SVDQuant" not in tables_paper.against(without, of_paper())


def test_order_is_kendalls_tau(scores):
    said = tables_paper.order(scores, of_paper())
    assert "4 of the paper's 5 methods" in said and said.count("τ = 1.00") == 2
    reverse = dict(zip(PAPER, [0.67, *sorted(PAPER.values(), reverse=True)[1:]]))
    # pairs counted by hand: all six of the four measured methods are turned round
    assert tables_paper.order(scores, of_paper(reverse)).count("τ = -1.00") == 2
    few = {m: PAPER[m] for m in ("fp", "svdquant", "adatsq", "smoothquant")}
    assert "too few" in tables_paper.order(scores, of_paper(few))


def test_real_bits_and_their_front(scores):
    table = tables_paper.bits(scores)
    assert table.at["fp", "effective_w_bits"] == 16 and table.at["svdquant W4A4", "effective_w_bits"] == 7
    # adatsq has as few bits as any and the highest PSNR: it beats all
    assert tables_paper.front(table, "effective_w_bits", "psnr") == ["adatsq W4A4"]
    figure = plots_tables.quality(table, "effective_w_bits", "total", "bits", "total", "title")
    assert len(figure.axes) == 1  # there are no rows of 3-bit weights
    assert {text.get_text() for text in figure.axes[0].texts} >= {"adatsq", "svdquant", "full precision"}
    plt.close("all")


def test_labels_cover_neither_each_other_nor_points():
    _, ax = plt.subplots()
    points = np.array([[0.1, 0.5]] * 6 + [[0.12, 0.52]])
    ax.scatter(*points.T)
    plots_tables._label_points(ax, points, [f"name {i}" for i in range(7)], ["k"] * 7)
    ax.figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the line that leads back
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(box.contains(*point) for box in boxes for point in ax.transData.transform(points))
    plt.close("all")


def test_names_move_only_as_far_as_they_must():
    assert plots_tables._spread(np.array([1.0, 1.0, 9.0]), 2, 0, 20).tolist() == [0, 2, 9]
    assert plots_tables._spread(np.array([19.0, 19.5]), 2, 0, 20).tolist() == [18, 20]  # within the axes
    assert plots_tables._spread(np.array([]), 2, 0, 20).tolist() == []


def test_missing_rows_and_their_command(scores):
    said = tables_paper.missing(scores, "m")
    assert "--model data/models/m`" in said and "smoothquant" in said
    assert "; quarot, q-dit, svdquant (W3A3); " in said and "; adatsq (W3A3.1 and W3A3.6)" in said
    assert "no rows are stored" in tables_paper.missing(None, "m")
    names = [f"{m} W{w}A{a}" for m in ORDER for w, a in ((4, "4"), (3, "3"), (3, "3.1"), (3, "3.6"))]
    assert tables_paper.missing(tables.Scores(pd.DataFrame({"name": names}), names), "m").endswith(
        "measured."
    )


def test_a_table_says_which_of_its_rows_are_not_measured(scores):
    table = scores.show(["total", "psnr"])
    full = tables_paper.complete(table)
    assert full.loc[table.index].equals(table.astype(object))
    absent = full[~full.index.isin(table.index)]
    assert {"smoothquant W4A4", "svdquant W3A3", "adatsq W3A3.1", "adatsq W3A3.6"} <= set(absent.index)
    assert set(absent.iloc[:, 0]) == {"not measured"} and set(absent.iloc[:, 1]) == {""}
    twice = sum(len(how.budgets[3]) == 2 for how in SEARCHED.values())  # budgets at three bits
    assert len(full) == 1 + 2 * len(ORDER[1:]) + twice
    assert list(full.index[:3]) == ["fp", "rtn W4A4", "rtn+search W4A4"]
    four = tables_paper.complete(table, (4,))
    assert set(four.index) == {name for name in full.index if "W3" not in name}


def test_a_dimension_counts_if_it_can_be_told_from_zero(scores):
    theirs = pd.DataFrame(
        [(m, w, d, v) for m, w, d, v in (
            ("fp", 16, "psnr", 0.9), ("adatsq", 4, "psnr", 0.5), ("svdquant", 4, "psnr", 0.1),
            ("fp", 16, "total", 0.9), ("adatsq", 4, "total", 0.5), ("svdquant", 4, "total", 0.1),
        )],
        columns=["method", "w_bits", "metric", "value"],
    )  # fmt: skip
    assert "of 2 differences AdaTSQ minus svdquant, 0 can be told" in tables_paper.signs(
        scores, theirs, "svdquant"
    )
    scores.paired["ci_low"] = scores.paired.value - 0.01
    assert "2 can be told from zero; of these 2 have" in tables_paper.signs(scores, theirs, "svdquant")
    table = tables_paper.dimensions(scores, theirs)
    assert table.at["total", "paper: AdaTSQ minus fp"] == "-0.4000"
    assert table.at["total", "ours: AdaTSQ minus svdquant"].startswith("<b>+0.100</b>")
    assert list(tables_paper.dimensions(None, theirs)) == [c for c in table if c.startswith("paper")]


def test_other_libraries_are_no_methods_of_the_paper(scores):
    assert tables_paper.others(scores).empty
    row = scores.table[scores.table.name == "q-dit W4A4"].assign(method="quanto", name="quanto W4A16")
    more = tables.Scores(pd.concat([scores.table, row]), scores.paired)
    assert tables_paper.others(more).at["quanto W4A16", "total"] == TOTALS["q-dit"]
    assert tables_paper.others(more).at["quanto W4A16", "pictures"] == f"{row.n.iloc[0]:.0f}"
    assert "quanto W4A16" not in tables_paper.bits(more).index


def test_a_branch_weighs_less_on_a_wide_layer():
    # a single square layer of width d: 16 r 2 d / d^2; the real ones have layers of 3072 and 4 times that
    real = sizes.branch_bits("black-forest-labs/FLUX.1-dev", 32)
    assert 16 * 32 * (1 + 1 / 5) / 3072 < real < 16 * 32 * 2 / 3072
    assert sizes.branch_bits("black-forest-labs/FLUX.1-dev", 64) == pytest.approx(2 * real)
    with pytest.raises(FileNotFoundError):
        sizes.branch_bits("no/such/model", 32)


def test_each_part_is_held_against_the_row_without_it(scores):
    """On one base at four bits, and the search alone at three, at the lower of its budgets."""
    rows = [
        ("adatsq+plain", "gptq", 4, 4.0, -1.0, -2.0, -0.5),
        ("adatsq+plain", "smoothquant", 4, 4.0, 9.0, 8.0, 10.0),
        ("adatsq+plain+search", "adatsq+plain", 4, 4.0, 0.5, -0.5, 1.5),
        ("adatsq", "adatsq-weights", 3, 3.6, 3.0, 2.0, 4.0),
        ("adatsq", "adatsq-weights", 3, 3.1, 1.0, 0.5, 1.5),
    ]
    columns = ["method", "baseline", "w_bits", "a_bits", "value", "ci_low", "ci_high"]
    paired = pd.DataFrame(rows, columns=columns).assign(metric="psnr")
    found = tables_paper.gains(replace(scores, paired=pd.concat([paired, paired.assign(metric="total")])))
    assert list(zip(found.base, found.bits, found.part, found.value)) == [
        ("rotation", "W3A3.1", "searched bits", 1.0),
        ("plain", "W4A4", "weighted by time", -1.0),
        ("plain", "W4A4", "searched bits", 0.5),
    ]
    table = tables_paper.gains_table(found)
    assert table.index.tolist() == ["rotation, W3", "plain, W4"]
    assert table.loc["rotation, W3"].tolist()[::-1][-1].startswith("<b>") and "" in table.values
    assert tables_paper.gains_said(found) == [
        "searched bits, 2 differences: above zero on rotation W3A3.1; below zero on none",
        "weighted by time, 1 differences: above zero on none; below zero on plain W4A4",
    ]
    assert tables_paper.gains(scores).empty


def test_parts_stand_on_rows_that_are_compared():
    pairs = [pair for row in tables_paper.ON_BASES.values() for pair in zip(row, row[1:])]
    assert all(baseline in (*EVERY, *BASES[method]) for baseline, method in pairs)
