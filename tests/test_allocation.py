import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from adatsq.allocation import allocate, lower_hull

BITS = (3, 4, 8)


def random_errors(seed, steps=2, layers=3):
    """Falling with the bits, as rounding errors do, over several orders of magnitude."""
    rng = np.random.default_rng(seed)
    return (
        np.exp(rng.normal(0, 2, (steps, layers, 1)))
        * np.sort(rng.uniform(size=(steps, layers, 3)))[..., ::-1]
    )


def total(errors, bits):
    return sum(errors[t, l, BITS.index(bits[t, l])] for t, l in np.ndindex(bits.shape))


def every_policy(steps, layers):
    for choice in itertools.product(BITS, repeat=steps * layers):
        yield np.array(choice).reshape(steps, layers)


@pytest.mark.parametrize("seed", range(5))
def test_on_the_hull_no_policy_of_2_steps_and_3_layers_is_better(seed):
    """For every lambda: the average that the argmin over all 729 policies has, and its error."""
    errors = random_errors(seed)
    policies = list(every_policy(2, 3))
    cost = np.array([(bits.mean(), total(errors, bits)) for bits in policies])
    for multiplier in np.geomspace(1e-3, 1e2, 20):
        best = cost[np.argmin(cost[:, 1] + multiplier * cost[:, 0])]
        found = allocate(errors, BITS, budget=best[0])
        assert found.mean() == pytest.approx(best[0])
        assert total(errors, found) == pytest.approx(best[1])


@pytest.mark.parametrize("seed", range(5))
def test_near_the_best_within_any_budget(seed):
    """The linear program's value, which no policy can be below, is at most one hull edge away."""
    errors = random_errors(seed, 4, 6)
    for budget in (3.0, 3.1, 3.6, 4.0, 5.3, 8.0):
        flat = errors.reshape(-1, 3)
        one = np.kron(np.eye(len(flat)), np.ones(3))
        use = np.tile(BITS, len(flat))[None] / len(flat)
        bound = linprog(flat.ravel(), A_ub=use, b_ub=[budget], A_eq=one, b_eq=np.ones(len(flat))).fun
        bits = allocate(errors, BITS, budget)
        assert bits.mean() <= budget + 1e-9
        assert bound - 1e-9 <= total(errors, bits) <= bound + (errors[..., 0] - errors[..., 2]).max() + 1e-9


def test_more_budget_never_costs_error_and_all_of_it_is_used():
    errors = random_errors(1, 6, 20)
    budgets = np.linspace(3, 8, 60)
    found = [allocate(errors, BITS, budget) for budget in budgets]
    for budget, bits in zip(budgets, found):
        assert budget - 4 / bits.size - 1e-9 < bits.mean() <= budget + 1e-9
    exact = [total(errors, bits) for bits in found]
    assert exact[0] == pytest.approx(errors[..., 0].sum()) and exact[-1] == pytest.approx(
        errors[..., 2].sum()
    )
    assert np.corrcoef(budgets, exact)[0, 1] < 0 and max(np.diff(exact)) < errors.max() / 50


def test_weights_are_what_a_bit_costs():
    errors = np.ones((1, 2, 3)) * [4.0, 1.0, 0.5]
    np.testing.assert_array_equal(allocate(errors, BITS, 3.25, weights=[3, 1]), [[3, 4]])
    bits = allocate(random_errors(2, 5, 8), BITS, 3.7, weights=range(1, 9))
    assert np.average(bits.mean(0), weights=range(1, 9)) <= 3.7 + 1e-9


def test_the_order_of_a_bits_does_not_matter():
    errors = random_errors(3, 3, 4)
    np.testing.assert_array_equal(allocate(errors, BITS, 3.9), allocate(errors[..., ::-1], BITS[::-1], 3.9))


def test_bits_that_do_not_help_are_not_spent():
    assert (allocate(np.ones((2, 2, 3)), BITS, 8) == 3).all()
    assert lower_hull([3, 4, 8], [5.0, 6.0, 1.0]) == [0, 2]
    assert lower_hull([3, 4, 8], [5.0, 1.0, 0.0]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("errors", "budget", "weights", "match"),
    [
        (np.ones((2, 3)), 4, None, "shape"),
        (np.ones((2, 3, 2)), 4, None, "bit-widths"),
        (-np.ones((2, 3, 3)), 4, None, "at least 0"),
        (np.full((2, 3, 3), np.nan), 4, None, "finite"),
        (np.ones((2, 3, 3)), 2.9, None, "below"),
        (np.ones((2, 3, 3)), 4, [1, 0, 1], "positive"),
    ],
)
def test_what_cannot_be_allocated_is_named(errors, budget, weights, match):
    with pytest.raises(ValueError, match=match):
        allocate(errors, BITS, budget, weights)
