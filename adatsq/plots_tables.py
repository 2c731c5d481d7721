"""Figures of the paper's tables in miniature: quality against real bits, differences, shares, errors."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adatsq.colors import method_color
from adatsq.plots import BIT_COLORS, INK, label_ends, lines

MARKERS = {4: "o", 3: "v"}  # of the weights' nominal bits
POLICY_COLORS = {  # of activation bits, in figures that show no methods
    "uniform 3": "#666666",
    "uniform 4": "#333333",
    "paper": "#A8A860",  # that of hadamard+gptq+search, which it is
    "lagrangian": "#0072B2",
    "prices": "#69F2C4",
    "random 0": "#56B4E9",
    "first steps at 8": "#CC79A7",
    "last steps at 8": "#7A2964",
    "static over time": "#009E73",
    "same for all layers": "#E69F00",
}


def quality(table: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str, title: str) -> Figure:
    """A panel for each width of the weights, a point per row of `tables_paper.bits`, with its name.

    Full precision is a dotted line if it is known. A name says the activation bits where they are not those
    of the weights.
    """
    known = table[table.method != "fp"].dropna(subset=[x, y])
    widths = [w_bits for w_bits in MARKERS if (known.w_bits == w_bits).any()] or list(MARKERS)[:1]
    # as high as all names, should they stand in one column
    heights = [max(2.9, 0.9 + 0.125 * (known.w_bits == w_bits).sum()) for w_bits in widths]
    size, ratios = (7.0, 0.5 + sum(heights)), {"height_ratios": heights}
    figure, axes = plt.subplots(len(widths), 1, figsize=size, squeeze=False, gridspec_kw=ratios)
    full = table[table.method == "fp"][y].dropna()
    for ax, w_bits in zip(axes[:, 0], widths):
        rows = known[known.w_bits == w_bits]
        colors = [method_color(method) for method in rows.method]
        ax.scatter(rows[x], rows[y], c=colors, marker=MARKERS[w_bits], s=30, edgecolor=INK, linewidth=0.3)
        if len(full):
            place = {"xycoords": ax.get_yaxis_transform(), "ha": "right", "va": "bottom", "fontsize": 7}
            ax.axhline(full.iloc[0], color=INK, linewidth=0.8, linestyle=":")
            ax.annotate("full precision", (1, full.iloc[0]), **place)
        ax.set_title(f"weights at {w_bits} bits", fontsize=9, fontweight="normal")
        ax.margins(0.03, 0.08)
        low, high = ax.get_xlim()
        ax.set_xlim(low, high + 0.3 * (high - low))  # room for names
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    figure.supxlabel(xlabel, fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    for ax, w_bits in zip(axes[:, 0], widths):
        rows = known[known.w_bits == w_bits]
        names = [r.method + (f" A{r.a_bits:g}" if r.a_bits != r.w_bits else "") for r in rows.itertuples()]
        colors = [method_color(method) for method in rows.method]
        _label_points(ax, rows[[x, y]].to_numpy(dtype=float), names, colors)
    return figure


def _label_points(ax: Axes, points: np.ndarray, names: Sequence[str], colors: Sequence[str]) -> None:
    """Names in columns right of points that stand close together, in their order; a line leads to each."""
    size = 6.5
    ax.figure.canvas.draw()
    pixel, places = ax.figure.dpi / 72, ax.transData.transform(points)
    width = [0.56 * size * len(name) * pixel for name in names]
    gap, high = 9 * pixel, 1.25 * size * pixel
    columns: list[list[int]] = []
    for i in np.argsort(places[:, 0], kind="stable"):
        last = columns[-1] if columns else []
        reach = max((places[j, 0] for j in last), default=0) + gap + max((width[j] for j in last), default=0)
        if not last or places[i, 0] > reach + gap:
            columns.append([])
        columns[-1].append(i)
    bottom, top = ax.bbox.y0, ax.bbox.y1
    for column in columns:
        column.sort(key=lambda i: (places[i, 1], -places[i, 0]))
        left = max(places[i, 0] for i in column) + gap
        for i, y in zip(column, _spread(places[column, 1], high, bottom, top)):
            ax.annotate(
                names[i],
                points[i],
                xytext=((left - places[i, 0]) / pixel, (y - places[i, 1]) / pixel),
                textcoords="offset points",
                fontsize=size,
                va="center",
                color=INK,
                arrowprops={
                    "arrowstyle": "-",
                    "color": colors[i],
                    "linewidth": 0.7,
                    "relpos": (0, 0.5),  # from the middle of the name's left side
                    "shrinkA": 0,
                    "shrinkB": 3,
                },
            )


def _spread(values: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Rising values, moved as little as possible to be a gap apart, between low and high if they fit."""
    runs: list[list] = []  # of neighbours that touch: sum of the starts that they would like, count
    for i, value in enumerate(values):
        runs.append([value - i * gap, 1])
        while len(runs) > 1 and runs[-2][0] / runs[-2][1] > runs[-1][0] / runs[-1][1]:
            total, count = runs.pop()
            runs[-1][0] += total
            runs[-1][1] += count
    starts = [total / count for total, count in runs for _ in range(count)]
    return np.clip(starts, low, max(low, high - (len(values) - 1) * gap)) + gap * np.arange(len(values))


def panels(
    tables: dict[str, pd.DataFrame], title: str, xlabel: str, by: str = "method", order: Sequence[str] = ()
) -> Figure:
    """A panel per model, a line per row: dots with intervals, and zero. Rows as in `plots.differences`.

    All panels have the same rows, those of any model in the order in which they come, or in a given order;
    one that a model lacks stays empty in its panel. Several dots of a row stand below each other. by: the
    column that says what has a colour, a method or, with a legend, a policy.
    """
    names = list(dict.fromkeys(name for table in tables.values() for name in table.row))
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    long = max(map(len, names)) > 28
    figure, axes = plt.subplots(
        1, len(tables), figsize=(7.0, 1.1 + (0.3 if long else 0.22) * len(names)), sharey=True, squeeze=False
    )
    for ax, (model, table) in zip(axes[0], tables.items()):
        ax.axvline(0, color=INK, linewidth=0.8)
        repeats = table.groupby("row").cumcount() - (table.groupby("row").row.transform("size") - 1) / 2
        y = np.array([len(names) - 1 - names.index(name) for name in table.row]) - 0.3 * repeats
        ax.hlines(y, table.ci_low, table.ci_high, color=INK, linewidth=1.1)
        colors = [POLICY_COLORS.get(value) or method_color(value) for value in table[by]]
        ax.scatter(table.value, y, color=colors, s=22, zorder=3)
        ax.set_title(model, fontsize=9 if len(tables) < 4 else 8, fontweight="normal")
        ax.set_ylim(-0.6, len(names) - 0.4)
        ax.xaxis.set_major_locator(MaxNLocator(6 if len(tables) < 3 else 3))
    labels = [name.replace(" minus ", "\nminus ") if long else name for name in names]
    axes[0, 0].set_yticks(range(len(names))[::-1], labels, fontsize=7.5 if long or len(tables) > 2 else 9)
    if by != "method":
        kinds = list(dict.fromkeys(value for table in tables.values() for value in table[by]))
        handles = [plt.Line2D([], [], marker="o", linewidth=0, color=POLICY_COLORS[kind]) for kind in kinds]
        close = {"ncols": len(kinds), "columnspacing": 0.8, "handletextpad": 0.1}
        figure.legend(handles, kinds, loc="outside upper right", **close)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    figure.supxlabel(xlabel, fontsize=9)
    return figure


def by_metric(scores: pd.DataFrame, title: str, xlabel: str) -> Figure:
    """A panel per metric, four in a row, a line per method: dots with intervals. Rows as in `plots.bars`.

    The method "fp", if it is there, is the dotted line of each panel. All panels have the same axes.
    """
    known = scores[scores.method != "fp"]
    full = scores[scores.method == "fp"].set_index("metric").value
    metrics, methods = list(dict.fromkeys(scores.metric)), list(dict.fromkeys(known.method))
    rows = -(-len(metrics) // 4)
    figure, axes = plt.subplots(
        rows,
        min(4, len(metrics)),
        figsize=(7.0, 0.7 + rows * (0.5 + 0.19 * len(methods))),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax, metric in zip(axes.flat, metrics):
        part = known[known.metric == metric]
        y = [methods.index(method) for method in part.method]
        ax.hlines(y, part.ci_low, part.ci_high, color=INK, linewidth=1.1)
        ax.scatter(part.value, y, color=[method_color(method) for method in part.method], s=20, zorder=3)
        if metric in full.index:
            ax.axvline(full[metric], color=INK, linewidth=0.8, linestyle=":")
        ax.set_title(str(metric).replace("_", " "), fontsize=9, fontweight="normal")
        ax.set_yticks(range(len(methods)), methods)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", color="#EEEEEE", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.tick_params(labelbottom=True)
    axes[0, 0].set_ylim(len(methods) - 0.4, -0.6)  # the first on top
    for ax in axes.flat[len(metrics) :]:
        ax.set_axis_off()
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
    """The error along the longest run and, if there are shorter ones, that of the last latents of each."""
    parts = [(along, "step", f"along a run of {along.index.max()} steps")]
    if len(last) > 1:
        parts.append((last, "steps of the run", "at the end of runs of several lengths"))
    figure, axes = plt.subplots(1, len(parts), figsize=(7.0, 3.4), sharey=True, squeeze=False)
    for ax, (table, xlabel, what) in zip(axes[0], parts):
        ends = []
        for name in table:
            (line,) = ax.plot(table[name], color=POLICY_COLORS[name], marker="o", markersize=2.5)
            ends.append((line, name))
        ax.set_yscale("log")
        ax.set_xticks([n for n in table.index if n in (1, 2, 3, 4, 10, 25, 50)])
        ax.set_xlabel(xlabel)
        ax.set_title(what, fontsize=9, fontweight="normal")
    axes[0, 0].set_ylabel("relative squared error of the latents")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    figure.canvas.draw()  # labels are placed in pixels
    label_ends(ax, ends)
    return figure


def over_prompts(values: dict[str, pd.Series], title: str, ylabel: str, ax: Axes | None = None) -> Axes:
    """Lines over the number of calibration prompts, on a logarithmic axis. values: {label: Series}."""
    table = pd.DataFrame(values).sort_index()
    ax = ax or plt.subplots(figsize=(7.0, 3.0))[1]
    ax.set_xscale("log", base=2)
    lines(table, title, "calibration prompts", ylabel, ax=ax)
    ax.set_xticks(table.index, [f"{n:g}" for n in table.index])
    return ax
