"""Figures of speed on tables such as the GPU commands write, made up or measured in small."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from adatsq import measurements, plots, plots_speed, roofline
from adatsq.cuda import benchmark

CARD = roofline.Card(1e15, 2e15, 4e12)


@pytest.fixture(autouse=True)
def own_style():
    with plt.rc_context():
        plots.style()  # the book's, whatever an earlier test has set
        yield
    plt.close("all")


def shapes():
    rows = [("block linears", 4608, 3072, 9216, 10), ("modulation linears", 1, 3072, 18432, 2)]
    table = pd.DataFrame(rows, columns=["kind", "tokens", "inputs", "outputs", "calls"])
    weights = table["inputs"] * table["outputs"]
    moved = 2 * (weights + table["tokens"] * (table["inputs"] + table["outputs"]))
    return table.assign(operations=2 * table["tokens"] * weights, bytes=moved)


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_where_rows_are_from_is_said_once(tmp_path):
    (tmp_path / "some.csv").write_text("ms,device,torch,commit\n1,H200,2.11,0123456\n2,H200,2.11,0123456\n")
    table = measurements.stored(tmp_path / "some.csv")
    assert len(table) == 2 and plots_speed.origin(table) == "H200, torch 2.11, commit 0123456"


def test_points_are_on_the_roofs_and_none_above():
    floors = roofline.floors(shapes(), CARD, 3)
    ax = plots_speed.roofline(floors, CARD, "title")
    bf16, fp8 = (points.get_offsets().data for points in ax.collections)
    assert bf16[0, 1] == pytest.approx(1000) and fp8[0, 1] == pytest.approx(2000)  # many rows: the peak
    few = 2 * 3072 * 18432 / (2 * (3072 * 18432 + 3072 + 18432))  # one row: an operation per byte
    assert bf16[1] == pytest.approx([few, 4 * few])
    assert {"4,608 rows", "1 row", "bf16 peak", "fp8 peak"} == set(texts(ax))


def test_measured_points_come_with_the_file(tmp_path):
    file = tmp_path / "shapes.csv"
    benchmark.main(["--shapes", "--cpu", "--only", "tiny", "--output", str(file)])
    measured = measurements.stored(file)
    fp8 = measured["codes"].notna() & (measured["a_bits"] < 8) & ~measured["part"].str.contains("int8")
    measured.loc[fp8, "codes"] = "float8_e4m3fn"  # as on Hopper
    fast = measured[fp8 & (measured["part"] == "product")].assign(part="product, fast sums")
    measured = pd.concat([measured, fast], ignore_index=True)
    floors = roofline.floors(shapes(), CARD, 3)
    ax = plots_speed.roofline(floors, CARD, "title", measured)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    here = ("bf16 linear", "product", "product, fast sums", "linear, whole", "sums in int8, cuBLAS")
    assert labels == [
        "measured: bf16 linear",
        "measured: product in FP8",
        "measured: product, fast sums in FP8",
        "measured: linear, whole in FP8",
        "measured: product in int8",
        "measured: linear, whole in int8",
        "measured: sums in int8, cuBLAS",
        "measured: linear, whole, weights alone quantized",
    ]
    drawn = sum(len(points.get_offsets()) for points in ax.collections) - 2 * len(floors)
    assert drawn == measured["part"].isin(here).sum()
    figure = plots_speed.parts(measured, "title")
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert titles == ["tiny", "tiny modulation"]
    first = figure.axes[0]
    assert len(first.patches) == (measured["name"] == "tiny").sum()
    assert "linear, whole W3A3" in [label.get_text() for label in first.get_yticklabels()]


def test_bars_add_up():
    table = pd.DataFrame(
        {"products": [60.0, 30.0], "attention": 15.0, "unpacking weights": [0.0, 5.0]}, ["a", "b"]
    )
    ax = plots_speed.work(table, "title")
    assert [patch.get_width() for patch in ax.patches] == [60, 30, 15, 15, 0, 5]
    assert texts(ax)[-2:] == ["75 ms", "50 ms"]


def test_methods_and_failures_are_rows():
    columns = ["method", "w_bits", "a_bits", "mode", "ms", "failed"]
    rows = [
        ("bf16", 16, 16, "eager", 170.0, None),
        ("bf16", 16, 16, "compiled", 128.0, None),
        ("adatsq", 3, 4, "eager", 120.0, None),
        ("adatsq", 3, 4, "compiled", 100.0, None),
        ("gemlite A8W8", 8, 8, "eager", None, "ImportError: no kernel"),
        ("slow", 4, 16, "eager", 2000.0, None),
        ("slow", 4, 16, "compiled", None, "RuntimeError: " + "a long reason " * 9),
    ]
    ax = plots_speed.steps(pd.DataFrame(rows, columns=columns), "title")
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["bf16", "adatsq W3A4", "gemlite A8W8", "slow"]
    assert {"170 ms", "128 ms", "100 ms", "ImportError: no kernel", "2000 ms, bar cut"} <= set(texts(ax))
    assert np.nanmax([bar.get_width() for bar in ax.patches]) == plots_speed.LONGEST * 170
    assert ax.get_lines()[0].get_xdata()[0] == 128  # the line to beat
    (reason,) = [text for text in texts(ax) if text.startswith("RuntimeError")]
    assert "\n" not in reason and len(reason) <= 80  # beside the bar of another mode there is one line


def test_phases_of_full_size_runs():
    rows = [
        ("flux, random weights", "fp", 16, "load_s", 20.0),
        ("flux, random weights", "adatsq", 4, "search_s", 60.0),
        ("wan, random weights", "fp", 16, "load_s", 3.0),
        ("flux, random weights", "fp", 16, "step_s", 0.1),
        ("flux, random weights", "fp", 16, "disk_bytes", 2e10),
    ]
    table = pd.DataFrame(rows, columns=["model", "method", "w_bits", "metric", "value"])
    table = table.assign(a_bits=table["w_bits"])
    ax = plots_speed.full_size(table, "title")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["fp: load", "adatsq: search"]
    assert [len(points.get_offsets()) for points in ax.collections] == [2, 1]
    more = table[table["method"] == "adatsq"].assign(w_bits=3, value=50.0)
    ax = plots_speed.full_size(pd.concat([table, more]), "title")
    assert [points.get_offsets().data.tolist() for points in ax.collections] == [
        [[20.0, 1.0], [60.0, 0.0]],
        [[50.0, 0.0]],  # full precision is the model's, and not drawn again
        [[3.0, 1.0]],
    ]


def test_kernels_that_move_bytes_stand_at_their_rate():
    rows = [("unpack", 1.0, 2e9), ("scale, round", 2.0, 2e9), ("product", 1.0, 1e9)]
    measured = pd.DataFrame(rows, columns=["part", "ms", "bytes"]).assign(copy_bandwidth=4e12)
    ax = plots_speed.moving(measured, "title")
    assert [points.get_offsets().data.tolist() for points in ax.collections] == [[[2e3, 2.0]], [[2e3, 1.0]]]
    assert ax.get_lines()[0].get_ydata()[0] == 4
