"""Charts as SVG text for frames of a slider: small, sharp, and in the colours of the page around them."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 20, 38
SHAPES = {  # of radius 1; a shape and not only a colour says what a point is
    "dot": "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0 -2 0",
    "cross": "M-1 -1L1 1M-1 1L1 -1",
    "triangle": "M0 -1.1L1 0.8L-1 0.8Z",
    "square": "M-0.9 -0.9h1.8v1.8h-1.8Z",
    "triangle down": "M0 1.1L1 -0.8L-1 -0.8Z",
}


@dataclass(frozen=True)
class Axes:
    """x, y: the values at both ends, (1, 0) runs backwards. log: y is drawn by its logarithm. whole: x counts
    something, so its ticks are whole numbers.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    xlabel: str
    ylabel: str
    log: bool = False
    whole: bool = False

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point; one beyond the axes is drawn on their edge."""
        scale = math.log if self.log else float
        low, high = (scale(end) for end in self.y)
        value = scale(max(y, min(self.y))) if self.log else y
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (value - low) / (high - low)
        across, up = (min(max(share, 0.0), 1.0) for share in (across, up))
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def limits(values: Sequence[float], log: bool = False, margin: float = 0.06) -> tuple[float, float]:
    """Both ends of an axis that holds the values, with some room. With log, only those above 0 count."""
    values = np.asarray(values, dtype=float)
    if log:
        low, high = limits(np.log(values[values > 0]), margin=margin) if (values > 0).any() else (-1.0, 1.0)
        return math.exp(low), math.exp(high)
    low, high = float(values.min()), float(values.max())
    room = margin * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def chart(axes: Axes, marks: Sequence[str], alt: str) -> str:
    """The marks (`line`, `points`, `bars`, `arc`, `text`) on axes with ticks. alt: what is seen."""
    x0, y0, x1, y1 = LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, TOP
    middle = (y0 + y1) / 2
    drawn = [f'<path d="M{x0} {y1}V{y0}H{x1}" fill="none" stroke="currentColor"/>']
    for value in ticks(axes.x, whole=axes.whole):
        drawn.append(_label(axes.at(value, axes.y[0])[0], y0 + 14, f"{value:.3g}", "middle"))
    for value in ticks(axes.y, axes.log):
        drawn.append(_label(x0 - 5, axes.at(axes.x[0], value)[1] + 4, f"{value:.3g}", "end"))
    drawn.append(_label((x0 + x1) / 2, HEIGHT - 8, axes.xlabel, "middle"))
    drawn.append(
        f'<text transform="translate(12 {middle:g}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(axes.ylabel)}</text>"
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(alt)}">'
        f"{''.join(drawn)}{''.join(marks)}</svg>"
    )


def ticks(ends: tuple[float, float], log: bool = False, whole: bool = False) -> list[float]:
    """A few values between the ends: round ones, or with log powers of ten if two fit. whole: whole ones."""
    low, high = min(ends), max(ends)
    if log:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        powers = [10.0**i for i in range(first, last + 1, max(1, (last - first) // 4))]
        if len(powers) > 1:
            return powers
    values = MaxNLocator(5, integer=whole).tick_values(low, high).tolist()
    return [value for value in values if low <= value <= high and not (whole and value % 1)]


def line(
    axes: Axes, x: Sequence[float], y: Sequence[float], color: str, width: float = 1.6, dash: str = ""
) -> str:
    """A line through the points. dash: as SVG has it, such as "4 3"."""
    path = "L".join(_place(*axes.at(*point)) for point in zip(x, y))
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="{width:g}"{dashed}/>'


def points(
    axes: Axes, x: Sequence[float], y: Sequence[float], color: str, shape: str = "dot", radius: float = 4
) -> str:
    """A mark at each point: the dot is full, the other SHAPES are outlines."""
    fill = color if shape == "dot" else "none"
    return "".join(
        f'<path d="{SHAPES[shape]}" transform="translate({_place(*axes.at(*point))}) scale({radius:g})" '
        f'fill="{fill}" stroke="{color}" stroke-width="{1.6 / radius:.2g}"/>'
        for point in zip(x, y)
    )


def bars(axes: Axes, x: Sequence[float], y: Sequence[float], color: str) -> str:
    """A bar at each x from the foot of the axes up to y, as wide as all leave room for."""
    x = list(x)
    width = 0.7 * (WIDTH - LEFT - RIGHT) / max(2, len(x))
    foot = HEIGHT - BOTTOM
    return "".join(
        f'<path d="M{left - width / 2:.1f} {foot}V{top:.1f}h{width:.1f}V{foot}z" fill="{color}"/>'
        for left, top in (axes.at(*point) for point in zip(x, y))
    )


def arc(axes: Axes, corner: tuple[float, float], radii: tuple[float, float], color: str) -> str:
    """A quarter of the ellipse around a corner, towards larger x and y."""
    turns = np.linspace(0, np.pi / 2, 25)
    xs, ys = corner[0] + radii[0] * np.cos(turns), corner[1] + radii[1] * np.sin(turns)
    inside = (xs <= max(axes.x)) & (ys <= max(axes.y))
    return line(axes, xs[inside], ys[inside], color, 1, "4 3") if inside.sum() > 1 else ""


def text(axes: Axes, x: float, y: float, words: str, anchor: str = "start") -> str:
    """Words a little above a point."""
    across, up = axes.at(x, y)
    return _label(across, up - 6, words, anchor)


def _label(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _place(x: float, y: float) -> str:
    return f"{x:.1f} {y:.1f}"
