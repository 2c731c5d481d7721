"""Figures of the paper's tables in miniature: quality against real bits, differences, shares, errors."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adatsq.colors import method_color
from adatsq.plots import BIT_COLORS, INK, lines

MARKERS = {4: "o", 3: "v"}  # of the weights' nominal bits
POLICY_COLORS = {  # of policies without a method's name
    "uniform 3": "#999999",
    "uniform 4": "#333333",
    "paper": "#D55E00",
    "lagrangian": "#0072B2",
    "random 0": "#56B4E9",
    "first steps at 8": "#CC79A7",
    "last steps at 8": "#7A2964",
    "static over time": "#009E73",
    "same for all layers": "#E69F00",
}


def quality(table: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str, title: str) -> Axes:
    """A point per row of `tables_paper.bits`, labelled: full precision as a line if it is known.

    Circles for 4-bit weights, triangles for 3-bit ones; the label names the activation bits where they are
    not those of the weights.
    """
    known = table[table.method != "fp"].dropna(subset=[x, y])
    _, ax = plt.subplots(figsize=(7.0, 4.8))
    for w_bits, marker in MARKERS.items():
        rows = known[known.w_bits == w_bits]
        colors = [method_color(method) for method in rows.method]
        ax.scatter(
            rows[x], rows[y], c=colors, marker=marker, s=30, edgecolor=INK, linewidth=0.3, label=f"W{w_bits}"
        )
    full = table[table.method == "fp"][y].dropna()
    if len(full):
        ax.axhline(full.iloc[0], color=INK, linewidth=0.8, linestyle=":")
        ax.annotate(
            "full precision", (1, full.iloc[0]), xycoords=ax.get_yaxis_transform(), ha="right", va="bottom"
        )
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.margins(0.03, 0.06)
    low, high = ax.get_xlim()
    ax.set_xlim(low, high + 0.22 * (high - low))  # room for labels
    legend = ax.legend(loc="lower right", title="weights")
    for handle in legend.legend_handles:
        handle.set_facecolor("white")
    names = [r.method + (f" A{r.a_bits:g}" if r.a_bits != r.w_bits else "") for r in known.itertuples()]
    _label_points(ax, known[[x, y]].to_numpy(dtype=float), names)
    return ax


def _label_points(ax: Axes, points: np.ndarray, names: Sequence[str], size: float = 6.5) -> None:
    """A name right of each point, moved up or down until it covers no earlier name; a line leads back."""
    figure = ax.figure
    figure.canvas.draw()
    pixel, taken = figure.dpi / 72, []
    places = ax.transData.transform(points)
    for i in sorted(range(len(names)), key=lambda i: (-places[i][1], places[i][0])):
        (px, py), width, height = places[i], 0.56 * size * len(names[i]) * pixel, 1.12 * size * pixel
        left = px + 7 * pixel
        for shift in sorted(np.arange(-60, 61) * 2.0 * pixel, key=abs):
            box = (left, py + shift - height / 2, left + width, py + shift + height / 2)
            if not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        ax.annotate(
            names[i],
            points[i],
            xytext=(7, shift / pixel),
            textcoords="offset points",
            fontsize=size,
            va="center",
            color=INK,
            arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
        )


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def panels(tables: dict[str, pd.DataFrame], title: str, xlabel: str) -> Figure:
    """A panel per model, a line per row: dots with intervals, and zero. Rows as in `plots.differences`.

    All panels have the same rows, those of any model in the order in which they come; one that a model lacks
    stays empty in its panel. Several dots of a row stand below each other.
    """
    names = list(dict.fromkeys(name for table in tables.values() for name in table.row))
    figure, axes = plt.subplots(
        1, len(tables), figsize=(7.0, 1.1 + 0.22 * len(names)), sharey=True, squeeze=False
    )
    for ax, (model, table) in zip(axes[0], tables.items()):
        ax.axvline(0, color=INK, linewidth=0.8)
        repeats = table.groupby("row").cumcount() - (table.groupby("row").row.transform("size") - 1) / 2
        y = np.array([len(names) - 1 - names.index(name) for name in table.row]) - 0.28 * repeats
        ax.hlines(y, table.ci_low, table.ci_high, color=INK, linewidth=1.1)
        ax.scatter(table.value, y, color=[method_color(m) for m in table.method], s=22, zorder=3)
        ax.set_title(model, fontsize=9, fontweight="normal")
        ax.set_ylim(-0.6, len(names) - 0.4)
    axes[0, 0].set_yticks(range(len(names))[::-1], names)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    figure.supxlabel(xlabel, fontsize=9)
    return figure


def shares(tables: dict[str, pd.DataFrame], title: str) -> Figure:
    """Stacked bars per model: shares of 3, 4 and 8 bits (columns) in each policy (index)."""
    rows = max(len(table) for table in tables.values())
    figure, axes = plt.subplots(
        1, len(tables), figsize=(7.0, 1.2 + 0.24 * rows), sharey=True, sharex=True, squeeze=False
    )
    for ax, (model, table) in zip(axes[0], tables.items()):
        y, left = np.arange(len(table))[::-1], np.zeros(len(table))
        for bits in table:
            ax.barh(y, table[bits], 0.75, left, color=BIT_COLORS[bits], edgecolor=INK, linewidth=0.3)
            for place, start, width in zip(y, left, table[bits]):
                if width >= 0.16 / (1 if len(tables) < 3 else 0.6):
                    color = "white" if bits == 8 else INK
                    ax.text(
                        start + width / 2,
                        place,
                        f"{width:.0%}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color=color,
                    )
            left = left + table[bits].to_numpy()
        ax.set_yticks(y, table.index)
        ax.set_title(model, fontsize=9, fontweight="normal")
        ax.tick_params(length=0)
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter("{x:.0%}")
    handles = [
        plt.Rectangle((0, 0), 1, 1, facecolor=BIT_COLORS[b], edgecolor=INK, linewidth=0.3) for b in (3, 4, 8)
    ]
    figure.legend(handles, ["3 bits", "4 bits", "8 bits"], loc="outside lower right", ncols=3)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def errors(along: pd.DataFrame, last: pd.DataFrame, title: str) -> Figure:
    """Left: the error along the longest run. Right: that of the last latents, over the length of the run."""
    figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.4), sharey=True, width_ratios=(1, 1.25))
    for ax, table, xlabel in ((axes[0], along, "step"), (axes[1], last, "steps of the run")):
        lines(table, "", xlabel, "", POLICY_COLORS, log=True, ax=ax)
        ax.set_xticks([n for n in table.index if n in (1, 2, 3, 4, 10, 20, 25, 30, 40, 50)])
    for text in axes[0].texts:
        text.set_visible(False)  # the right panel's labels name the lines of both
        text.set_in_layout(False)
    axes[0].set_title(f"along a run of {along.index.max()} steps", fontsize=9, fontweight="normal")
    axes[1].set_title("at the end of runs of other lengths", fontsize=9, fontweight="normal")
    axes[0].set_ylabel("relative squared error of the latents")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def over_prompts(values: dict[str, pd.Series], title: str, ylabel: str, ax: Axes | None = None) -> Axes:
    """Lines over the number of calibration prompts, on a logarithmic axis. values: {label: Series}."""
    table = pd.DataFrame(values).sort_index()
    ax = ax or plt.subplots(figsize=(7.0, 3.0))[1]
    ax.set_xscale("log", base=2)
    lines(table, title, "calibration prompts", ylabel, ax=ax)
    ax.set_xticks(table.index, [f"{n:g}" for n in table.index])
    return ax
