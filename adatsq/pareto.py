"""Pareto fronts of points such as (average bits, error), where less is better on every axis."""

import numpy as np


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Mask (N,) of the points (N, D) that no other point beats: none is <= on every axis and < on one.

    Of equal points all are kept. Raises ValueError for NaN, which compares with nothing.
    """
    points = _checked(points)
    beats = (points[:, None] <= points[None]).all(-1) & (points[:, None] < points[None]).any(-1)
    return ~beats.any(0)


def nearest_origin(points: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` points nearest the origin, nearest first, after scaling each axis to [0, 1].

    Bits and errors have no common unit, so "near" is measured between the least and greatest present
    (our reading: the paper says only "nearest the origin").
    """
    points = _checked(points)
    low, span = points.min(0), np.ptp(points, axis=0)
    scaled = (points - low) / np.where(span > 0, span, 1.0)
    return np.argsort(np.linalg.norm(scaled, axis=1), kind="stable")[:count]


def hypervolume(points: np.ndarray, reference: tuple[float, float]) -> float:
    """Area that the points (N, 2) dominate below and left of `reference`; points beyond it add nothing."""
    points = _checked(points)
    reference = np.asarray(reference, dtype=np.float64)
    if points.shape[1] != 2 or reference.shape != (2,):
        raise ValueError(
            f"hypervolume is for points on two axes, not {points.shape[1]} and {reference.shape}"
        )
    inside = points[(points < reference).all(1)].tolist()
    area, ceiling = 0.0, reference[1]
    for x, y in sorted(inside):  # from left to right, a falling staircase
        if y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return float(area)


def share_of_box(points: np.ndarray, low: tuple[float, float], high: tuple[float, float]) -> float:
    """Hypervolume with reference `high`, as a share of the box from `low`, which no point is beyond."""
    return hypervolume(points, high) / ((high[0] - low[0]) * (high[1] - low[1]))


def _checked(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or len(points) == 0:
        raise ValueError(f"expected points of shape (N, axes) with N >= 1, got {points.shape}")
    if np.isnan(points).any():
        raise ValueError(
            f"point {int(np.isnan(points).any(1).argmax())} is NaN: it can be neither kept nor dominated"
        )
    return points
