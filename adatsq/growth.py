"""The beam search as it grew: every extension of every step, which of them went on, and why others did not.

The reasons are the search's own rules, applied again in its order to the points that it kept a record of.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from adatsq import scrub, svg
from adatsq.candidates import Options, reachable_to
from adatsq.colors import METHOD_COLORS
from adatsq.pareto import non_dominated
from adatsq.search import SearchResult

KEPT, DOMINATED, FAR = "kept", "dominated", "too far"
ABOVE, BELOW = (
    "too many bits for the budget",
    "too few bits to use the budget",
)  # it cannot be reached any more
LOOKS = {  # colour and shape of a point; the grey reads on white and on black
    KEPT: (METHOD_COLORS["adatsq"], "dot"),
    ABOVE: ("#3060D8", "triangle"),
    BELOW: ("#56B4E9", "triangle down"),
    DOMINATED: ("#888888", "cross"),
    FAR: ("#AA4499", "square"),
}


def reasons(result: SearchResult, options: Options, budget: float | None = None) -> pd.Series:
    """For each row of result.evaluated, KEPT or the rule it fell to: ABOVE or BELOW, DOMINATED, FAR.

    options, budget: those of the search. ValueError if they cannot be, since other rows were kept.
    """
    tried, reachable = result.evaluated, reachable_to(options, budget)
    if tried.step.max() + 1 != len(options):
        raise ValueError(f"the search has {tried.step.max() + 1} steps, the options are for {len(options)}")
    least = np.array([min(bits.mean() for bits in option.values()) for option in options])
    found = pd.Series(FAR, index=tried.index, name="reason")
    for t, rows in tried.groupby("step"):
        near = reachable(t, rows.average_bits.to_numpy())
        # Both at once cannot be: the cheapest way on from a path spends no more than the richest.
        cheapest = (rows.average_bits[~near] * (t + 1) + least[t + 1 :].sum()) / len(options)
        found[rows.index[~near]] = [ABOVE if bits > budget else BELOW for bits in cheapest]
        inside = rows[near]
        if near.any():
            beaten = ~non_dominated(inside[["average_bits", "error"]].to_numpy())
            found[inside.index[beaten]] = DOMINATED
    wrong = tried.kept & (found != FAR)
    if wrong.any():
        row = tried[wrong].iloc[0]
        raise ValueError(
            f"path {row.path} was kept at step {row.step}, and by these options and budget {budget} it is "
            f"{found[row.name]}: give those of the search"
        )
    found[tried.kept] = KEPT
    return found


def animation(result: SearchResult, options: Options, budget: float | None = None) -> str:
    """HTML: a slider over the search, two frames a step: all extensions, then what is left of them and why.

    Left, the step's points on the search's axes with, once it has chosen, a dashed arc through the farthest
    path kept: those within went on. Right, the tree of all steps so far, with the budget dashed.
    """
    tried = result.evaluated.assign(reason=reasons(result, options, budget))
    steps = len(options)
    ends = svg.limits([*tried.average_bits, *([] if budget is None else [budget])])
    tree = svg.Axes((1, steps), ends, "steps done", "average bits so far", whole=True)
    target = "" if budget is None else svg.line(tree, tree.x, [budget] * 2, "currentColor", 1, "4 3")
    frames = []
    for t in range(steps):
        rows = tried[tried.step == t]
        parents = max(1, int((tried.step[tried.kept] == t - 1).sum()))
        counts = rows.reason.value_counts()
        told = ", ".join(f"{counts[reason]} {reason}" for reason in LOOKS if reason in counts)
        grown = f"Step {t + 1} of {steps}: {_paths(parents)} extended to {len(rows)}"
        for label, chosen in ((grown, False), (f"Step {t + 1} of {steps}: {told}", True)):
            body = scrub.row(_points(rows, label, chosen), _tree(tree, tried, t, label, chosen, target))
            frames.append(scrub.Frame(label, body + _key(LOOKS if chosen else ())))
    return scrub.scrub(
        frames,
        "step",
        f"Beam search over {steps} steps: {len(tried)} extensions tried, {int(tried.kept.sum())} kept; per "
        "step the points of average bits and error, those kept, and the reason why each other one was not.",
        "The search, step by step",
    )


def _points(rows: pd.DataFrame, label: str, chosen: bool) -> str:
    """The extensions of one step on the axes of the search."""
    x, y = rows.average_bits, rows.error
    axes = svg.Axes(svg.limits(x), svg.limits(y), "average bits so far", "error so far")
    marks = [] if chosen else [svg.points(axes, x, y, "currentColor")]
    if chosen:
        for reason in reversed(LOOKS):  # kept ones on top
            some = rows[rows.reason == reason]
            marks.append(svg.points(axes, some.average_bits, some.error, *LOOKS[reason]))
        marks.append(_reach(axes, rows))
    return svg.chart(axes, marks, f"{label}. Points of average bits and error so far.")


def _reach(axes: svg.Axes, rows: pd.DataFrame) -> str:
    """The arc around the scaled axes' origin through the farthest point kept, if a farther one was not."""
    front = rows[rows.reason.isin([KEPT, FAR])][["average_bits", "error", "kept"]]
    if front.kept.all():
        return ""
    values = front[["average_bits", "error"]].to_numpy()
    low, span = values.min(0), np.ptp(values, axis=0)
    radius = np.linalg.norm((values - low) / np.where(span > 0, span, 1), axis=1)[front.kept].max()
    return svg.arc(axes, tuple(low), tuple(radius * span), "currentColor")


def _tree(axes: svg.Axes, tried: pd.DataFrame, t: int, label: str, chosen: bool, target: str) -> str:
    """Every extension up to step t, from the path it continues; the last step's grey until it has chosen."""
    spent, marks = tried.set_index("path").average_bits, [target]
    rows = tried[tried.step <= t]
    kept = rows.kept & (chosen | (rows.step < t))
    for some, color, width in ((rows[~kept], "#888888", 0.7), (rows[kept], LOOKS[KEPT][0], 1.6)):
        for row in some[some.step > 0].itertuples():
            marks.append(
                svg.line(axes, [row.step, row.step + 1], [spent[row.parent], row.average_bits], color, width)
            )
        marks.append(svg.points(axes, some.step + 1, some.average_bits, color, radius=2))
    return svg.chart(axes, marks, f"{label}. Tree of all extensions, average bits over steps; orange: kept.")


def _key(shown: Sequence[str]) -> str:
    """What the marks mean, in a line below the frame; empty, but as high, where nothing was chosen yet."""
    items = []
    for reason in shown:
        color, shape = LOOKS[reason]
        fill = color if shape == "dot" else "none"
        items.append(
            '<span style="white-space: nowrap"><svg viewBox="-1.5 -1.5 3 3" style="width: 14px; '
            'display: inline-block; vertical-align: middle" aria-hidden="true">'
            f'<path d="{svg.SHAPES[shape]}" fill="{fill}" stroke="{color}" stroke-width="0.4"/></svg> '
            f"{reason}</span>"
        )
    return f'<p style="min-height: 1.4em">{"&ensp; ".join(items)}</p>'


def _paths(count: int) -> str:
    return "1 path" if count == 1 else f"{count} paths"
