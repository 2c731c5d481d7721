"""Controls against what they claim, and the collapse over time against every static policy."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from adatsq.controls import A_BITS, COLLAPSED, MORE_BITS, PERMUTED, controls, over_time


@pytest.fixture
def searched():
    draw = np.random.default_rng(0).choice
    found = {
        name: draw(A_BITS, (8, 6), p=shares)
        for name, shares in {"lagrangian": (0.7, 0.2, 0.1), "paper": (0.8, 0.1, 0.1)}.items()
    }
    return {**found, "lagrangian, 2 to 8": draw(MORE_BITS, (8, 6))}


@pytest.fixture
def carried():
    """Falling with the bits, as rounding errors do, over several orders of magnitude."""
    rng = np.random.default_rng(1)
    return np.exp(rng.normal(0, 2, (8, 6, 1))) * np.sort(rng.uniform(size=(8, 6, 3)))[..., ::-1]


def named(carried, searched, budget, random=3) -> dict:
    return dict(controls(carried, searched, budget, random))


@pytest.mark.parametrize("budget", [3.1, 3.6, 4.0])
def test_each_has_the_freedom_that_its_name_says(carried, searched, budget):
    found = named(carried, searched, budget)
    assert all(bits.shape == (8, 6) and np.isin(bits, MORE_BITS).all() for bits in found.values())
    assert all(np.isin(bits, A_BITS).all() for name, bits in found.items() if "2 to 8" not in name)
    for name in ("static over time", *COLLAPSED):
        assert (found[name] == found[name][0]).all()
    assert (found["same for all layers"] == found["same for all layers"][:, :1]).all()
    for name in ("static over time", "same for all layers", "first steps at 8", "last steps at 8"):
        assert found[name].mean() <= budget + 1e-9
    for name, source in PERMUTED.items():
        for seed in range(3):
            assert sorted(found[f"{name} {seed}"].ravel()) == sorted(searched[source].ravel())
    assert len({found[name].tobytes() for name in found if "random" in name}) == 6


def test_a_quarter_of_the_run_at_8_is_four_and_a_quarter_bits(carried, searched):
    found = named(carried, searched, 3.1)
    assert found["first quarter at 8"].mean() == found["last quarter at 8"].mean() == 3 + 5 / 4
    assert (found["first quarter at 8"][:2] == 8).all() and (found["first quarter at 8"][2:] == 3).all()
    assert (found["last quarter at 8"][-2:] == 8).all() and (found["last quarter at 8"][:-2] == 3).all()


@pytest.mark.parametrize("budget", [3.1, 3.6, 4.4])
def test_static_bits_are_those_of_the_linear_program(carried, searched, budget):
    """Per layer, of errors summed over time. Only one layer of the program's solution lies between two
    bit-widths; all others have the bits that are found here, up to where what is left over still fits."""
    errors = carried.sum(0)
    layers = len(errors)
    one, use = np.kron(np.eye(layers), np.ones(3)), np.tile(A_BITS, layers)[None] / layers
    solved = linprog(errors.ravel(), A_ub=use, b_ub=[budget], A_eq=one, b_eq=np.ones(layers))
    shares = solved.x.reshape(layers, 3)
    whole = shares.max(1) > 1 - 1e-6
    found = named(carried, searched, budget)["static over time"][0]
    assert whole.sum() >= layers - 1
    agree = found == np.array(A_BITS)[shares.argmax(1)]
    assert (agree | (found > np.array(A_BITS)[shares.argmax(1)]))[whole].all()
    exact = sum(errors[l, A_BITS.index(bits)] for l, bits in enumerate(found))
    step = (errors[:, 0] - errors[:, 2]).max()
    assert solved.fun - 1e-9 <= exact <= solved.fun + step


@pytest.mark.parametrize("seed", range(6))
def test_collapsed_is_the_nearest_static_policy_of_its_average(seed):
    """Of all 3^5 static policies with the same average as the one found, none is nearer to the means."""
    bits = np.random.default_rng(seed).choice(A_BITS, (7, 5), p=(0.6, 0.25, 0.15))
    found = over_time(bits)
    assert (found == found[0]).all() and found.mean() <= bits.mean() + 1e-9
    assert bits.mean() - found.mean() < 4 / 5  # less than the widest step of one layer is left over
    means = bits.mean(0)
    for choice in itertools.product(A_BITS, repeat=5):
        if sum(choice) == found[0].sum():
            assert np.square(found[0] - means).sum() <= np.square(choice - means).sum() + 1e-9


def test_what_is_static_already_is_its_own_collapse():
    bits = np.repeat([[8, 3, 4, 3, 8, 4]], 5, axis=0)
    np.testing.assert_array_equal(over_time(bits), bits)
