"""Tables of steps hold each time against bfloat16 in two modes, and say what is not there."""

import pandas as pd
import pytest

from adatsq import sentences_speed, tables_speed
from adatsq.plots_speed import WORK_COLORS

COLUMNS = [
    "method",
    "w_bits",
    "a_bits",
    "mode",
    "ms",
    "weight_bytes",
    "error",
    "kernel_ms",
    *tables_speed.KINDS,
]


@pytest.fixture
def steps():
    rows = [
        ("bf16", 16, 16, "eager", 200.0, 800, 0.0, 190.0, 100, 50, 40, 0, 0),
        ("bf16", 16, 16, "compiled", 150.0, 800, 0.0, 150.0, 100, 40, 10, 0, 0),
        ("adatsq", 4, 4, "compiled", 200.0, 200, 0.1, 100.0, 50, 30, 10, 4, 6),
        ("adatsq", 4, 4, "graph", 100.0, 200, 0.1, 100.0, 50, 30, 10, 4, 6),
        ("adatsq fast sums", 3, 3, "graph", 100.5, 160, 0.2, None, *[None] * 5),
        ("torchao fp8", 8, 8, "eager", None, None, None, None, *[None] * 5),
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_rows_are_in_order_however_they_were_measured(steps):
    more = pd.DataFrame(
        [("adatsq", 3, 3, "graph", *[1.0] * 9), ("adatsq unfused", 4, 4, "graph", *[1.0] * 9)]
    )
    more.columns = COLUMNS
    table = tables_speed.ordered(pd.concat([more, steps.iloc[::-1]]))
    assert [tuple(row) for row in table[["method", "w_bits", "mode"]].itertuples(index=False)] == [
        ("bf16", 16, "compiled"),
        ("bf16", 16, "eager"),
        ("adatsq", 4, "graph"),
        ("adatsq", 4, "compiled"),
        ("adatsq", 3, "graph"),
        ("adatsq fast sums", 3, "graph"),
        ("adatsq unfused", 4, "graph"),
        ("torchao fp8", 8, "eager"),
    ]
    assert list(table) == COLUMNS


def test_gains_have_both_denominators(steps):
    found = tables_speed.gains(steps)
    assert list(found.index.get_level_values(0)) == [
        "bf16",
        "bf16",
        "adatsq W4A4",
        "adatsq W4A4",
        "adatsq fast sums W3A3",
    ]
    row = found.loc["adatsq W4A4", "graph"]
    assert row.tolist() == [100, 1.5, 2.0, 4.0, 0.1]
    which, fastest = tables_speed.best(found)
    assert which == "adatsq W4A4 graph" and fastest.equals(row)
    assert tables_speed.best(found.loc[["bf16"]]) is None
    assert tables_speed.best_other(found) is None  # what failed is no row
    other = steps.iloc[[-1]].assign(ms=90.0, weight_bytes=400, error=0.05)
    which, fastest = tables_speed.best_other(tables_speed.gains(pd.concat([steps, other])))
    assert which == "torchao fp8 eager" and fastest["times smaller"] == 2
    no_plain = tables_speed.gains(steps[steps["method"] != "bf16"])
    assert no_plain["bf16 eager / this"].isna().all() and no_plain["ms"].notna().all()


def test_all_that_is_slower_is_said_too(steps):
    more = pd.DataFrame([("adatsq", 3, 3, "graph", 80.0, *[1.0] * 8)], columns=COLUMNS)
    found = tables_speed.gains(pd.concat([steps, more], ignore_index=True))
    assert tables_speed.best(found)[0] == "adatsq W3A3 graph"
    assert sentences_speed.others(found) == [
        "adatsq W4A4 graph is 1.50 times as fast as compiled bfloat16 and 2.00 times as fast as "
        "eager bfloat16"
    ]
    assert sentences_speed.others(found.head(2)) == []  # bfloat16 alone


def test_rows_that_are_held_against_each_other_say_their_commits(steps):
    table = steps.assign(commit=["a", "b", "c", "d", "e", "f"])
    assert tables_speed.commits(table) == {"bf16 eager": "a", "bf16 compiled": "b", "adatsq W4A4 graph": "d"}
    assert tables_speed.commits(table.head(1)) == {"bf16 eager": "a"}


def test_kernels_by_kind_have_the_colours_of_the_figure(steps):
    found = tables_speed.kernels(steps, "compiled")
    assert list(found.index) == ["bf16", "adatsq W4A4"] and set(found) == set(WORK_COLORS)
    assert found.sum(axis=1).tolist() == steps["kernel_ms"].iloc[1:3].tolist()
    assert tables_speed.kernels(steps.drop(columns="kernel_ms"), "graph").empty


def test_kernels_are_shown_where_bfloat16_was_profiled_too(steps):
    mode, found = tables_speed.profiled(steps)  # the graph has no bfloat16
    assert mode == "compiled" and list(found.index) == ["bf16", "adatsq W4A4"]
    graph = steps.iloc[[1]].assign(mode="graph")
    mode, found = tables_speed.profiled(pd.concat([steps, graph]))
    assert mode == "graph" and set(found.index) == {"bf16", "adatsq W4A4"}
    assert tables_speed.profiled(steps[steps["method"] != "bf16"]) is None
    assert tables_speed.profiled(steps[steps["method"] == "bf16"]) is None


def test_waiting_for_the_cpu_is_a_ratio_above_one(steps):
    found = tables_speed.launching(steps)
    assert found.at["adatsq W4A4", "compiled"] == 2 and found.at["adatsq W4A4", "graph"] == 1
    assert pd.isna(found.at["adatsq W4A4", "eager"])


def test_variants_are_compared_where_the_same_code_measured_both(steps):
    steps = steps.assign(model="m, random weights", device="card", commit="new")
    row = ("adatsq unfused", 4, 4, "graph", 125.0, 200, 0.1, None, *[None] * 5)
    more = pd.DataFrame([row, row, row], columns=COLUMNS)
    more["model"], more["device"] = "m, random weights", "card"
    more["commit"], more["a_bits"] = ["new", "old", "new"], [4, 4, 8]  # the last has no default beside it
    by_default, fast, unfused = sentences_speed.variants(pd.concat([steps, more]))
    assert by_default == f"*adatsq*: {sentences_speed.VARIANTS['adatsq']}"
    assert fast == f"*adatsq fast sums*: {sentences_speed.VARIANTS['adatsq fast sums']}"  # no W3A3 by default
    assert unfused.endswith("; m W4A4 125.0 ms, 100.0 ms by default") and unfused.count(";") == 1


def test_an_aim_is_reached_from_it_on():
    assert "is reached" in sentences_speed.verdict(1.4, 1.4)
    assert "not reached" in sentences_speed.verdict(1.39, 1.4)


def test_a_model_is_shown_on_the_device_that_it_was_measured_on_last():
    rows = [("flux", "old", 9.0), ("wan", "old", 5.0), ("flux", "new", 3.0), ("flux", "new", 4.0)]
    table = pd.DataFrame(rows, columns=["model", "device", "ms"])
    assert tables_speed.of_one_device(table)["ms"].tolist() == [5.0, 3.0, 4.0]
    assert tables_speed.of_one_device(table.drop(columns="device"))["ms"].tolist() == [9.0, 5.0, 3.0, 4.0]
