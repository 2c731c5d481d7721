import numpy as np
import pandas as pd
import pytest

from adatsq import candidates as ca


def test_candidates_by_hand():
    information = pd.Series([5.0, 1.0, 9.0, 2.0, 4.0, 3.0, 0.5, 0.1, 0.2, 0.3])
    found = ca.candidates(information, ca.SHARES[3])
    assert found["high"].tolist() == [8, 3, 8, 3, 4, 4, 3, 3, 3, 3]
    assert found["mid"].tolist() == [4, 3, 8, 3, 3, 3, 3, 3, 3, 3]
    assert found["low"].tolist() == [3] * 10


@pytest.mark.parametrize("base, averages", [(3, [4.2, 3.6, 3.0]), (4, [4.2, 4.0, 3.8])])
def test_presets_average_what_they_say(base, averages):
    found = ca.candidates(pd.Series(np.arange(100.0)), ca.SHARES[base])
    assert [bits.mean() for bits in found.values()] == pytest.approx(averages)


@pytest.mark.parametrize("layers", [1, 2, 7, 34, 101])
def test_more_information_never_gets_fewer_bits(layers):
    information = pd.Series(np.random.default_rng(layers).random(layers))
    shares = {**ca.SHARES[3], **{f"{name}4": share for name, share in ca.SHARES[4].items()}}
    found = ca.candidates(information, shares)
    for bits in found.values():
        assert (np.diff(bits[np.argsort(information)]) >= 0).all() and set(bits) <= {3, 4, 8}
    assert len({tuple(bits) for bits in found.values()}) == len(found)  # none is evaluated twice


def test_other_bits_and_more_candidates_are_only_other_lists():
    shares = {"a": (0.5, 0.5), "b": (0.25, 0.75), "c": (1.0, 0.0), "d": (0.0, 1.0)}
    found = ca.candidates(pd.Series([1.0, 2.0, 3.0, 4.0]), shares, a_bits=(6, 2))
    assert [bits.tolist() for bits in found.values()] == [
        [2, 2, 6, 6],
        [2, 2, 2, 6],
        [6, 6, 6, 6],
        [2, 2, 2, 2],
    ]


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.5, 0.6, -0.1), (0.5, 0.2, 0.2)])
def test_shares_that_do_not_fit_are_refused(share):
    with pytest.raises(ValueError, match="candidate 'odd' are"):
        ca.candidates(pd.Series([1.0, 2.0]), {"odd": share})
    with pytest.raises(ValueError, match="empty"):
        ca.candidates(pd.Series([1.0, 2.0]), {})


@pytest.mark.parametrize("seed", range(20))
def test_some_path_can_always_end_at_the_budget(seed):
    """Whatever the candidates, random walks among reachable paths never come to a dead end."""
    rng = np.random.default_rng(seed)
    options = [{str(i): rng.integers(2, 9, 5) for i in range(rng.integers(1, 4))} for _ in range(6)]
    averages = [[bits.mean() for bits in option.values()] for option in options]
    cheapest = np.mean([min(a) for a in averages])
    budget = rng.uniform(cheapest, 8)
    reachable, spent = ca.reachable_to(options, budget), 0.0
    for t, choices in enumerate(averages):
        allowed = [a for a in choices if reachable(t, np.array([(spent + a) / (t + 1)]))[0]]
        assert allowed
        spent += rng.choice(allowed)
    assert spent / 6 <= budget + 1e-9


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), float("-inf"), "3.6"])
def test_a_budget_that_is_no_finite_number_is_refused(budget):
    with pytest.raises(ValueError, match=f"budget is {budget!r}, it must be a finite number"):
        ca.reachable_to([{"only": np.array([3, 4])}], budget)
