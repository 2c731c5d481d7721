"""Figures of speed: rooflines, milliseconds by kind of work, and the tables that the GPU commands write."""

from textwrap import fill, shorten

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adatsq import tables_full_size
from adatsq.colors import GREY, METHOD_COLORS, PALE, SERIES
from adatsq.plots import INK
from adatsq.roofline import Card
from adatsq.tables_speed import label

# Kinds of work, so that they differ in lightness too.
WORK_COLORS = {
    "products": SERIES[0],
    "attention": SERIES[3],
    "rest": PALE,
    "unpacking weights": SERIES[4],
    "rounding activations": SERIES[2],
}
ROOFS = {"bf16": GREY, "fp8": METHOD_COLORS["adatsq"]}
CODES = {"float8_e4m3fn": " in FP8", "int8": " in int8", "": ", weights alone quantized"}
POINTS = (  # on the roofline: part and codes of cuda-shapes.csv, how it is drawn
    ("bf16 linear", "", "o", ROOFS["bf16"]),
    ("product", "float8_e4m3fn", "^", ROOFS["fp8"]),
    ("product, fast sums", "float8_e4m3fn", "v", ROOFS["fp8"]),
    ("linear, whole", "float8_e4m3fn", "s", ROOFS["fp8"]),
    ("product", "int8", "^", SERIES[2]),
    ("linear, whole", "int8", "s", SERIES[2]),
    ("sums in int8, cuBLAS", "int8", "v", SERIES[2]),
    ("linear, whole", "", "D", SERIES[4]),
)
MODES = {"eager": PALE, "compiled": SERIES[0], "graph": SERIES[2]}


def origin(table: pd.DataFrame) -> str:
    """Where rows were measured, in words."""
    of = table.drop_duplicates(["device", "torch", "commit"])
    return "; ".join(f"{r.device}, torch {r.torch}, commit {r.commit}" for r in of.itertuples())


def roofline(floors: pd.DataFrame, card: Card, title: str, measured: pd.DataFrame | None = None) -> Axes:
    """The two roofs over operations per byte, a hollow point on each roof per shape (`roofline.floors`).

    measured: rows of cuda-shapes.csv; their products and whole linears, with FP8, with int8 and
    with quantized weights alone, are full points at what they reached.
    """
    _, ax = plt.subplots(figsize=(7.0, 4.2))
    x = np.geomspace(0.5, 2e4, 200)
    for name, peak in (("bf16", card.bf16), ("fp8", card.fp8)):
        ax.plot(x, np.minimum(x * card.bandwidth, peak) / 1e12, color=ROOFS[name], linewidth=1.4)
        ax.annotate(f"{name} peak", (2e4, peak / 1e12), ha="right", va="bottom", color=ROOFS[name])
        size = floors["bytes"] if name == "bf16" else _one_byte(floors)
        reached = floors["operations"] / floors[name] / 1e9
        ax.scatter(floors["operations"] / size, reached, s=22, facecolor="none", edgecolor=ROOFS[name])
    if measured is not None and len(measured):
        measured = measured.reindex(columns=measured.columns.union(["codes"])).dropna(subset=["tops"])
        for part, codes, marker, color in POINTS:
            rows = measured[(measured["part"] == part) & (measured["codes"].fillna("") == codes)]
            if len(rows):
                named = "bf16" in part or "int8" in part
                said = f"measured: {part}{'' if named else CODES[codes]}"
                at = rows["operations"] / rows["bytes"]
                ax.scatter(at, rows["tops"], s=26, marker=marker, color=color, label=said)
        ax.legend(loc="lower right")
    for several in (False, True):
        rows = floors[(floors["tokens"] > 1) == several]
        if len(rows):
            low, high = rows["tokens"].min(), rows["tokens"].max()
            said = "1 row" if high == 1 else f"{low:,} to {high:,} rows" if low < high else f"{low:,} rows"
            here = (rows["operations"] / rows["bytes"]).min(), (rows["operations"] / rows["bf16"]).min() / 1e9
            below = -14 if measured is None or not several else -92  # of what was measured
            ax.annotate(said, here, xytext=(4, below), textcoords="offset points", color=INK, fontsize=8)
    ax.set(xscale="log", yscale="log", title=title)
    ax.set(xlabel="operations per byte that is moved", ylabel="10¹² operations per second")
    return ax


def _one_byte(floors: pd.DataFrame) -> pd.Series:
    """Bytes of a product of one-byte codes with an answer in bfloat16."""
    rows, inputs, outputs = floors["tokens"], floors["inputs"], floors["outputs"]
    return inputs * outputs + rows * inputs + 2 * rows * outputs


MOVING = {  # kernels that compute next to nothing: part of cuda-shapes.csv, kind of work
    "unpack": "unpacking weights",
    "scale, round": "rounding activations",
    "rotate, scale, round": "rounding activations",
    "gelu, rotate, scale, round": "rounding activations",
    "gelu alone": "rest",
}


def moving(measured: pd.DataFrame, title: str) -> Axes:
    """Bytes per second of the kernels that only move bytes, over those of a call; dotted: a plain copy."""
    _, ax = plt.subplots(figsize=(7.0, 3.0))
    for (part, kind), marker in zip(MOVING.items(), "osDv^"):
        rows = measured[measured["part"] == part]
        if len(rows):
            rate = rows["bytes"] / rows["ms"] / 1e9
            ax.scatter(rows["bytes"] / 1e6, rate, s=18, marker=marker, color=WORK_COLORS[kind], label=part)
    copy = measured["copy_bandwidth"].iloc[-1] / 1e12
    ax.axhline(copy, color=INK, linewidth=0.8, linestyle=":", label="a copy")
    ax.set(xscale="log", title=title, xlabel="10⁶ bytes that a call moves", ylabel="10¹² bytes per second")
    ax.set_ylim(0, 1.1 * copy)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return ax


def work(table: pd.DataFrame, title: str, xlabel: str = "milliseconds per step, at least") -> Axes:
    """Stacked bars: a row per case, a part per column; the sum stands at the end."""
    _, ax = plt.subplots(figsize=(7.0, 1.3 + 0.42 * len(table)))
    left, places = np.zeros(len(table)), np.arange(len(table))[::-1]
    for kind in table:
        values = table[kind].to_numpy(dtype=float)
        ax.barh(places, values, 0.7, left, color=WORK_COLORS[kind], edgecolor="white", label=kind)
        for place, start, value in zip(places, left, values):
            if value > 0.05 * table.sum(axis=1).max():
                color = "white" if kind == "products" else INK
                ax.text(
                    start + value / 2,
                    place,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=color,
                )
        left = left + values
    for place, total in zip(places, left):
        ax.annotate(f"{total:.0f} ms", (total, place), (4, 0), textcoords="offset points", va="center")
    ax.set_yticks(places, table.index)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1.25 * left.max())  # room for the longest bar's sum
    ax.set(title=title, xlabel=xlabel)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return ax


def parts(measured: pd.DataFrame, title: str) -> Figure:
    """A panel per shape of cuda-shapes.csv: measured ms of each part, and its floor as an upright stroke."""
    names = list(dict.fromkeys(measured["name"]))
    rows = -(-len(names) // 2)
    most = measured.groupby("name").size().max()
    size = (7.0, 0.8 + rows * (0.5 + 0.15 * most))
    figure, axes = plt.subplots(rows, min(2, len(names)), figsize=size, squeeze=False)
    for ax, name in zip(axes.flat, names):
        table = measured[measured["name"] == name]
        places = np.arange(len(table))[::-1]
        colors = [MODES["compiled"] if part == "linear, whole" else MODES["eager"] for part in table["part"]]
        ax.barh(places, table["ms"], 0.7, color=colors)
        ax.vlines(table["floor_ms"], places - 0.4, places + 0.4, color=INK, linewidth=1.4)
        ax.set_yticks(places, [_part(row) for row in table.itertuples()], fontsize=7)
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(table) - 0.3 - most, len(table) - 0.3)
        ax.set_title(name, fontsize=9, fontweight="normal")
        ax.set_xlabel("ms; stroke: floor", fontsize=8)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def _part(row) -> str:
    bits = [
        f"{letter}{value:g}" for letter, value in (("W", row.w_bits), ("A", row.a_bits)) if value == value
    ]
    return f"{row.part} {''.join(bits)}".strip()


LONGEST = 3  # bars of `steps`, in bars of bfloat16


def steps(measured: pd.DataFrame, title: str) -> Axes:
    """Of cuda-steps.csv, one model: ms of each method in each mode; what failed is written instead.

    A dotted line stands at compiled bfloat16, or eager where that is all there is. Bars of more than LONGEST
    times bfloat16's longest are cut, and say so: they would leave no room for the differences of the others.
    """
    measured = measured.assign(row=[label(row) for row in measured.itertuples()])
    most = LONGEST * measured["ms"][measured["method"] == "bf16"].max()  # NaN without bfloat16
    names = list(dict.fromkeys(measured["row"]))
    modes = [mode for mode in MODES if mode in set(measured["mode"])]
    _, ax = plt.subplots(figsize=(7.0, 1.2 + (0.12 + 0.14 * len(modes)) * len(names)))
    width = 0.8 / len(modes)
    for i, mode in enumerate(modes):
        table = measured[measured["mode"] == mode].drop_duplicates("row", keep="last").set_index("row")
        places = np.arange(len(names))[::-1] + ((len(modes) - 1) / 2 - i) * width
        values = table["ms"].reindex(names)
        ends = values.mask(values > most, most)
        ax.barh(places, ends, 0.92 * width, color=MODES[mode], label=mode)
        for place, name, value, end in zip(places, names, values, ends):
            failed = table["failed"].get(name)
            if value == value:
                said = f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"
                said += ", bar cut" * (value > end)
            else:
                # a line may stand where another mode's bar would be, if there is none
                alone = measured.loc[measured["row"] == name, "ms"].isna().all()
                said = failed if isinstance(failed, str) else ""
                said = shorten(said, 120 if alone else 80, placeholder=" …")
                said = fill(said, 60) if alone else said
            ax.annotate(
                said,
                (end if end == end else 0, place),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
    line = "compiled" if "compiled" in modes else "eager"
    plain = measured[(measured["method"] == "bf16") & (measured["mode"] == line)]["ms"].dropna()
    if len(plain):
        ax.axvline(plain.iloc[-1], color=INK, linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(names))[::-1], names)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.margins(x=0.2)
    ax.set(title=title, xlabel="milliseconds per step")
    if len(modes) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return ax


def full_size(measured: pd.DataFrame, title: str) -> Axes:
    """Seconds of each phase of full-size.csv, on a logarithmic axis, a colour per run."""
    found = {}
    for run in tables_full_size.runs(measured):
        values = {"fp": run.full if run.first else {}, "adatsq": run.ours}
        found[run.name] = {
            f"{method}: {metric.removesuffix('_s').replace('_', ' ')}": value
            for method, of in values.items()
            for metric, value in of.items()
            if metric.endswith("_s") and not metric.startswith("step")
        }
    phases = list(dict.fromkeys(phase for seconds in found.values() for phase in seconds))
    _, ax = plt.subplots(figsize=(7.0, 1.2 + 0.26 * len(phases)))
    for (name, seconds), color in zip(
        found.items(), plt.get_cmap("cividis")(np.linspace(0.1, 0.9, len(found)))
    ):
        places = [len(phases) - 1 - phases.index(phase) for phase in seconds]
        ax.scatter(list(seconds.values()), places, color=color, s=26, label=name, zorder=3)
    ax.set_yticks(range(len(phases))[::-1], phases)
    ax.grid(axis="y", color="#EEEEEE", linewidth=0.6)
    ax.set(xscale="log", title=title, xlabel="seconds")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return ax
