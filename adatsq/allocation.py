"""Bits for every (timestep, layer) at once, under one budget, from an error for each of them at each width.

    min over b[t, l]  sum_{t, l} error[t, l, b[t, l]]    subject to    sum w_l b[t, l] / sum w_l <= budget

For a multiplier lambda, each (t, l) by itself takes b = argmin error[t, l, b] + lambda w_l b. As lambda
falls, each moves down its lower convex hull from the fewest bits on, so taking the hulls' edges in order of
error saved per bit gives the solution for every lambda, one after the other (Shoham and Gersho 1988). Where
the next edge is more than what is left of the budget, it is passed over for the next one that fits.
"""

from collections.abc import Sequence

import numpy as np


def allocate(
    errors: np.ndarray, a_bits: Sequence[int], budget: float, weights: Sequence[float] | None = None
) -> np.ndarray:
    """Bits (T, L) of at most `budget` weighted average bits, from errors (T, L, len(a_bits)).

    weights: what a bit of each layer costs, (L,), such as its multiplications; by default all cost the same.
    The budget is met to within one edge of a hull. ValueError for errors of another shape, negative or not
    finite, weights that are not positive, and a budget below the fewest bits.
    """
    errors, order = np.asarray(errors, dtype=np.float64), np.argsort(a_bits)
    bits = np.asarray(a_bits)[order]
    if errors.ndim != 3 or errors.shape[2] != len(bits):
        raise ValueError(f"errors have shape {errors.shape}, not (timesteps, layers, {len(bits)} bit-widths)")
    if not (np.isfinite(errors).all() and (errors >= 0).all()):
        raise ValueError("errors must be finite and at least 0")
    steps, layers, _ = errors.shape
    weights = np.ones(layers) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != (layers,) or not (weights > 0).all():
        raise ValueError(f"weights must be {layers} positive numbers, one per layer")
    weights = weights / weights.sum() / steps  # so that bits times weights add up to the average
    if budget < bits[0] - 1e-9:
        raise ValueError(f"budget {budget} is below the fewest bits allowed, {bits[0]}")

    edges = []  # (error saved per weighted bit, t, l, from, to), indices into bits
    for t, l in np.ndindex(steps, layers):
        hull = lower_hull(bits, errors[t, l, order])
        for low, high in zip(hull, hull[1:]):
            saved, cost = errors[t, l, order[low]] - errors[t, l, order[high]], bits[high] - bits[low]
            edges.append((saved / (cost * weights[l]), t, l, low, high))
    edges.sort(key=lambda edge: -edge[0])  # stable: of equal edges the earlier step's is first

    chosen, left = np.zeros((steps, layers), dtype=np.int64), budget - bits[0] + 1e-9
    for _, t, l, low, high in edges:
        cost = (bits[high] - bits[low]) * weights[l]
        if chosen[t, l] == low and cost <= left:
            chosen[t, l], left = high, left - cost
    return bits[chosen]


def lower_hull(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Indices of the corners of the falling part of the lower convex hull of points with rising x.

    It starts at the first point; from each corner the next is the one that y falls to most steeply.
    """
    corners = [0]
    while True:
        i = corners[-1]
        slopes = [(y[i] - y[j]) / (x[j] - x[i]) for j in range(i + 1, len(x))]
        if not slopes or max(slopes) <= 0:
            return corners
        corners.append(i + 1 + int(np.argmax(slopes)))
