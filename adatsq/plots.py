"""Figures: each function draws what it is given. One colour means one method, one shade one bit-width."""

import base64
import html
import io
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from adatsq.colors import GREY, METHOD_COLORS, PALE, SERIES, method_color  # noqa: F401, for notebooks
from adatsq.policy import BITS, Policy
from adatsq.search import SearchResult

# Activation bits from light (few) to dark (many), so that the order survives in grey.
BIT_COLORS = dict(zip(BITS, plt.get_cmap("YlGnBu")(np.linspace(0.04, 1, len(BITS)))))
BLOCKS = {"transformer_blocks": "double", "single_transformer_blocks": "single"}  # Flux's own words
INK = "#333333"
INCHES_PER_ROW = 0.135  # of a heat map with one readable label per layer


def style() -> None:
    """Set matplotlib's defaults: white ground, no box, small print that stays readable on a page."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "figure.figsize": (7.0, 3.6),
            "figure.constrained_layout.use": True,
            "savefig.bbox": "tight",
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
            "image.interpolation": "nearest",
        }
    )


def layer_label(name: str) -> str:
    """transformer_blocks.0.attn.to_q -> "double 0 attn.to_q"; lists of other models keep their own name."""
    block, number, *rest = name.split(".")
    return " ".join([BLOCKS.get(block, block.rstrip("s")), number, ".".join(rest)]).rstrip()


def heatmap(
    values: pd.DataFrame,
    title: str = "",
    label: str = "",
    log: bool = False,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "cividis",
    each_layer: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """values, index `timestep` and columns `layer`: time from left to right, layers from top to bottom.

    label: of the colour bar, with the unit. each_layer: write every layer's name, else the blocks' names.
    """
    ax = ax or _map_axes(values, each_layer)
    norm = LogNorm(vmin, vmax) if log else plt.Normalize(vmin, vmax)
    image = ax.imshow(values.to_numpy().T, aspect="auto", cmap=cmap, norm=norm, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label=label, pad=0.02, fraction=0.04)
    _label_map(ax, values, title, each_layer)
    return ax


def policy_heatmap(policy: Policy, title: str = "", each_layer: bool = False, ax: Axes | None = None) -> Axes:
    """The activation bits of a policy, timestep x layer, with the share of each width in the legend."""
    table = policy.table()
    ax = ax or _map_axes(table, each_layer)
    index = table.map(BITS.index).to_numpy()
    colors = ListedColormap([BIT_COLORS[bits] for bits in BITS])
    norm = BoundaryNorm(np.arange(len(BITS) + 1) - 0.5, len(BITS))
    ax.imshow(index.T, aspect="auto", cmap=colors, norm=norm, interpolation="nearest")
    shares = pd.Series(policy.bits.ravel()).value_counts(normalize=True).sort_index()
    handles = [
        Patch(facecolor=BIT_COLORS[bits], edgecolor=INK, linewidth=0.4, label=f"{bits} bit, {share:.0%}")
        for bits, share in shares.items()
    ]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    _label_map(ax, table, title or f"Activation bits: {policy.average:.2f} on average", each_layer)
    return ax


def _map_axes(table: pd.DataFrame, each_layer: bool) -> Axes:
    height = 1.0 + INCHES_PER_ROW * table.shape[1] if each_layer else 3.6
    return plt.subplots(figsize=(7.0, height))[1]


def _label_map(ax: Axes, table: pd.DataFrame, title: str, each_layer: bool) -> None:
    names = [str(name) for name in table.columns]
    blocks = [".".join(name.split(".")[:2]) for name in names]
    starts = [i for i, block in enumerate(blocks) if i == 0 or block != blocks[i - 1]]
    if each_layer:
        ax.set_yticks(range(len(names)), [layer_label(name) for name in names], fontsize=6)
    else:
        ends = [*starts[1:], len(names)]
        middles = [(start + end - 1) / 2 for start, end in zip(starts, ends)]
        ax.set_yticks(middles, [layer_label(blocks[start]) for start in starts])
    for start in starts[1:]:
        ax.axhline(start - 0.5, color="white", linewidth=0.8)
    steps = np.unique(
        np.linspace(0, len(table) - 1, len(table) if len(table) <= 12 else 8).round().astype(int)
    )
    digits = 2 if max(table.index) <= 1 else 3  # noise levels, or a thousand times as much
    ax.set_xticks(steps, [f"{table.index[i]:.{digits}g}" for i in steps])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(title=title, xlabel="timestep, from noise to image")


def lines(
    table: pd.DataFrame,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    colors: dict[str, str] | None = None,
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """A line per column over the index (a timestep axis runs from noise to image), its name at its end.

    A column that is a method, or starts with one ("rtn W4A4"), has its colour; `colors` names others.
    """
    ax = ax or plt.subplots()[1]
    colors, shades, labels = colors or {}, plt.get_cmap("cividis"), []
    for i, name in enumerate(table.columns):
        other = shades(i / max(1, table.shape[1] - 1))
        color = colors.get(name) or METHOD_COLORS.get(str(name).split()[0], other)
        (line,) = ax.plot(table.index, table[name], color=color, marker="o", markersize=2.5, linewidth=1.6)
        labels.append((line, str(name)))
    if log:
        ax.set_yscale("log")
    if table.index[0] > table.index[-1]:
        ax.invert_xaxis()
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    label_ends(ax, labels)
    return ax


def label_ends(ax: Axes, labels: list[tuple[plt.Line2D, str]]) -> None:
    """Each line's name right of its last point, moved apart where two would overlap."""
    pixel = ax.figure.dpi / 72
    ax.get_xlim(), ax.get_ylim()  # the limits are found only when asked for
    ends = [ax.transData.transform(line.get_xydata()[-1]) for line, _ in labels]
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    heights, free, room = {}, -np.inf, 10 * pixel
    for i in order:  # up, as far as those below need
        heights[i] = max(ends[i][1], free)
        free = heights[i] + room
    free = ax.bbox.y1
    for i in reversed(order):  # and down again where they left the axes
        heights[i] = min(heights[i], free)
        free = heights[i] - room
    for i, (line, name) in enumerate(labels):
        height = heights[i]
        ax.annotate(
            name,
            line.get_xydata()[-1],
            xytext=(6, (height - ends[i][1]) / pixel),
            textcoords="offset points",
            color=line.get_color(),
            va="center",
            annotation_clip=False,
        )


def front(
    result: SearchResult,
    label: str = "front",
    color: str = METHOD_COLORS["adatsq"],
    evaluated: bool = True,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """The front of a search as a staircase (less is better on both axes), and all complete paths it tried."""
    ax = ax or plt.subplots()[1]
    if evaluated:
        rows = result.evaluated[result.evaluated.step == result.evaluated.step.max()]
        ax.scatter(rows.average_bits, rows.error, s=9, color=PALE, linewidth=0, label="complete paths")
    bits, error = np.array([(path.average_bits, path.error) for path in result.front]).T
    ax.step(bits, error, where="post", color=color, linewidth=1.2)
    ax.scatter(bits, error, s=22, color=color, label=label, zorder=3)
    ax.set(title=title, xlabel="average activation bits", ylabel="accumulated squared error of the latents")
    ax.legend()
    return ax


def bars(
    scores: pd.DataFrame,
    title: str = "",
    ylabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Bars with intervals. scores: rows with method, metric, value, ci_low, ci_high; a group per metric.

    A method's colour is that of its first word: "adatsq 3.1 bits" has adatsq's.
    """
    ax = ax or plt.subplots()[1]
    metrics, methods = list(dict.fromkeys(scores.metric)), list(dict.fromkeys(scores.method))
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        rows = scores[scores.method == method].set_index("metric").reindex(metrics)
        x = np.arange(len(metrics)) + (i - (len(methods) - 1) / 2) * width
        ax.bar(x, rows.value, width * 0.92, color=method_color(method), label=method)
        spread = np.abs(
            rows[["ci_low", "ci_high"]].to_numpy(dtype=float).T - rows.value.to_numpy(dtype=float)
        )
        ax.errorbar(x, rows.value, spread, fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.5)
    ax.set_xticks(range(len(metrics)), [str(metric).replace("_", "\n") for metric in metrics])
    ax.tick_params(axis="x", length=0)
    ax.set(title=title, ylabel=ylabel)
    if len(methods) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return ax


def differences(paired: pd.DataFrame, title: str = "", xlabel: str = "", ax: Axes | None = None) -> Axes:
    """A dot and its interval per row (columns: row, its label; method, value, ci_low, ci_high), and zero."""
    ax = ax or plt.subplots(figsize=(7.0, 0.9 + 0.22 * len(paired)))[1]
    y = np.arange(len(paired))[::-1]
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.hlines(y, paired.ci_low, paired.ci_high, color=INK, linewidth=1.2)
    ax.scatter(paired.value, y, color=[method_color(method) for method in paired.method], zorder=3)
    ax.set_yticks(y, paired.row)
    ax.xaxis.set_major_locator(MaxNLocator(5))  # names leave little width
    ax.set(title=title, xlabel=xlabel)
    return ax


def image_grid(
    images: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
    title: str = "",
    size: float = 1.1,
) -> Figure:
    """images[row][column], each (H, W, 3) uint8 or float in [0, 1]; pixels stay pixels.

    captions[row][column] is written below an image, such as its score. size: inches per image.
    """
    rows, columns = len(images), max(len(row) for row in images)
    below = 0.2 if captions is not None else 0.05
    shape = (size * columns + 1.2, (size + below) * rows + 0.7)
    figure, axes = plt.subplots(rows, columns, figsize=shape, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.01, wspace=0.02, hspace=0.0)
    for i, j in np.ndindex(rows, columns):
        ax = axes[i, j]
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if j < len(images[i]):
            ax.imshow(images[i][j], interpolation="nearest")
            if captions is not None:
                ax.set_xlabel(captions[i][j], fontsize=7, labelpad=2)
        if column_labels is not None and i == 0:
            text = textwrap.fill(column_labels[j], int(15 * size))
            ax.set_title(text, fontsize=8, loc="center", fontweight="normal", pad=4)
        if row_labels is not None and j == 0:
            ax.set_ylabel(row_labels[i], rotation=0, ha="right", va="center", fontsize=8)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def image_tag(figure: Figure, alt: str) -> str:
    """An HTML <img> that holds the figure itself, for a page other than the one that drew it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=2 * figure.dpi)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" style="width: 100%" src="data:image/png;base64,{data}">'
