"""Figures of exact frontiers (`search.brute_force`), and of the beams that were held against them."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from adatsq.plots import BIT_COLORS, INK, PALE, front, policy_heatmap
from adatsq.policy import Policy
from adatsq.search import SearchResult, hypervolume_share

EDGE = "#999999"
BEAMS = (("#E69F00", "v"), ("#009E73", "s"), ("#D55E00", "^"), ("#0072B2", "D"))  # colour and marker


def policies(
    truth: SearchResult, beams: dict[int, SearchResult], columns: Sequence[str], levels: Sequence[str]
) -> Axes:
    """The policies of the exact front as rows of candidates, the cheapest at the top.

    beams: {M: what a beam of that width found}. columns: a label per step. levels: the candidates' names from
    few bits to many.
    """
    shades = dict(zip(levels, plt.get_cmap("YlGnBu")(np.linspace(0.15, 0.9, len(levels)))))
    if len(levels) == 3:
        shades = dict(zip(levels, [BIT_COLORS[bits] for bits in (3, 4, 8)]))
    rows, steps = truth.front, len(columns)
    _, ax = plt.subplots(figsize=(7.0, 1.3 + 0.26 * len(rows)))
    for i, path in enumerate(rows):
        for t, choice in enumerate(path.candidates):
            ax.add_patch(Rectangle((t - 0.48, i - 0.45), 0.96, 0.9, facecolor=shades[choice], edgecolor=EDGE))
        by = [str(m) for m, b in beams.items() if path.candidates in {p.candidates for p in b.front}]
        text = f"error {path.error:.3g}, found by " + (f"M = {', '.join(by)}" if by else "no beam")
        ax.text(steps - 0.3, i, text, va="center", fontsize=8)
    ax.set(
        title="The policies of the exact front, step by step, from noise to image",
        ylabel="average bits",
        xlim=(-0.6, 1.6 * steps),
        ylim=(len(rows) - 0.4, -0.6),
    )
    ax.set_xticks(range(steps), columns)
    ax.set_yticks(range(len(rows)), [f"{path.average_bits:.2f}" for path in rows])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    handles = [Patch(facecolor=shades[c], edgecolor=EDGE, label=c.capitalize()) for c in levels]
    ax.figure.legend(handles=handles, ncols=len(levels), loc="outside lower left")
    return ax


def beams_on_front(truth: SearchResult, beams: dict[int, SearchResult], title: str = "") -> Axes:
    """All complete paths, the exact front, and what each beam found with its share of the front's area."""
    ax = front(truth, "true front", color=INK, title=title)
    for i, (m, result) in enumerate(beams.items()):
        points = np.array([(path.average_bits, path.error) for path in result.front])
        share = hypervolume_share(result, truth)
        ax.scatter(*points.T, label=f"beam, M = {m}: {share:.1%} of the area", **_ring(i))
    ax.legend()
    return ax


def stored(frontier: pd.DataFrame) -> Figure:
    """A panel per weight width of NAME-frontier.csv (`benchmark`): all paths, the front, the beams' paths."""
    widths = sorted(frontier.w_bits.unique(), reverse=True)
    found_by = [column for column in frontier if column.startswith("beam=")]
    figure, axes = plt.subplots(1, len(widths), figsize=(3.6 * len(widths), 3.6), squeeze=False)
    for ax, w_bits in zip(axes.flat, widths):
        rows = frontier[frontier.w_bits == w_bits].sort_values("average_bits")
        ax.scatter(rows.average_bits, rows.error, s=9, color=PALE, linewidth=0, label="all policies")
        best = rows[rows.on_front]
        ax.step(
            best.average_bits, best.error, "o-", where="post", color=INK, markersize=4, label="true front"
        )
        for i, column in enumerate(found_by):
            mine = rows[rows[column]]
            label = column.replace("beam=", "beam, M = ")
            ax.scatter(mine.average_bits, mine.error, label=label, **_ring(i))
        ax.set(title=f"W{w_bits}: {len(rows)} policies", xlabel="average activation bits")
    axes[0, 0].set_ylabel("accumulated squared error of the latents")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _ring(i: int) -> dict:
    color, marker = BEAMS[i % len(BEAMS)]
    size = max(20, 70 - 14 * i)
    return {
        "marker": marker,
        "s": size,
        "facecolor": "none",
        "edgecolor": color,
        "linewidth": 1.4,
        "zorder": 4 + i,
    }


def policy_maps(table: dict[str, dict[str, Policy]], title: str) -> Figure:
    """Small heat maps of policies of one model: table[row][column], with the average bits of each."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    size = {"figsize": (7.4, 0.9 + 1.75 * len(table)), "sharex": True, "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(len(table), len(columns), **size)
    for (name, row), places in zip(table.items(), axes):
        for column, ax in zip(columns, places):
            if column not in row:
                ax.set_axis_off()
                continue
            policy_heatmap(row[column], ax=ax)
            ax.get_legend().remove()  # one for all
            said = f"{name}, {column}: {row[column].average:.2f} bits"
            ax.set_title(said, fontsize=8, fontweight="normal")
            ax.tick_params(labelsize=7)
            ax.set_xlabel("timestep, from noise to image" * (ax in axes[-1]), fontsize=8)
    used = sorted(
        {int(b) for row in table.values() for policy in row.values() for b in np.unique(policy.bits)}
    )
    handles = [Patch(facecolor=BIT_COLORS[b], edgecolor=INK, linewidth=0.4, label=f"{b} bits") for b in used]
    figure.legend(handles=handles, ncols=len(used), loc="outside lower left")  # the title needs the top
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure
