import numpy as np
import pytest

from adatsq import pareto


def brute_front(points):
    """The definition, word for word."""
    return [
        not any(all(q <= p) and any(q < p) for j, q in enumerate(points) if j != i)
        for i, p in enumerate(points)
    ]


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_non_dominated_is_the_definition(seed, axes):
    points = np.random.default_rng(seed).integers(
        0, 6, (40, axes)
    )  # a coarse grid, so ties and doubles occur
    assert pareto.non_dominated(points).tolist() == brute_front(points)


def test_equal_points_are_all_kept():
    assert pareto.non_dominated([[3, 1], [3, 1], [3, 2]]).tolist() == [True, True, False]


@pytest.mark.parametrize("seed", range(3))
def test_hypervolume_counts_the_dominated_cells(seed):
    points = np.random.default_rng(seed).integers(0, 24, (12, 2))
    x, y = np.meshgrid(np.arange(20), np.arange(20))  # unit cells below the reference (20, 20)
    dominated = ((points[:, 0, None, None] <= x) & (points[:, 1, None, None] <= y)).any(0)
    assert pareto.hypervolume(points, (20, 20)) == dominated.sum()


def test_hypervolume_of_points_beyond_the_reference_is_zero():
    assert pareto.hypervolume([[1, 5], [5, 1]], (1, 1)) == 0


def test_hypervolume_needs_only_the_front():
    points = np.random.default_rng(0).random((50, 2))
    front = points[pareto.non_dominated(points)]
    assert pareto.hypervolume(points, (1, 1)) == pytest.approx(pareto.hypervolume(front, (1, 1)))
    assert len(front) < len(points)


def test_nearest_origin_does_not_depend_on_units():
    points = np.random.default_rng(1).random((20, 2))
    near = pareto.nearest_origin(points, 4)
    assert len(near) == 4
    assert pareto.nearest_origin(points * [1e6, 1e-9] + [5, -3], 4).tolist() == near.tolist()


def test_nearest_origin_prefers_the_knee():
    points = [[3, 10], [8, 0], [4, 1], [6, 9]]
    assert pareto.nearest_origin(points, 2).tolist()[0] == 2
    assert pareto.nearest_origin([[3, 1], [3, 1]], 9).tolist() == [0, 1]  # no spread on either axis


def test_nan_and_empty_are_refused():
    with pytest.raises(ValueError, match="point 1 is NaN"):
        pareto.non_dominated([[1, 2], [np.nan, 1]])
    with pytest.raises(ValueError, match="shape"):
        pareto.nearest_origin(np.empty((0, 2)), 1)
    with pytest.raises(ValueError, match="two axes"):
        pareto.hypervolume([[1, 2, 3]], (1, 1))
