"""The beam over prices: its candidates against minima over all bits, its budget, its calls."""

import numpy as np
import pytest

from adatsq.fisher import temporal_fisher
from adatsq.lagrangian import follow, search_policies
from adatsq.policy import act_layers
from adatsq.prices import FACTORS, price_search, priced
from adatsq.recipes import quantize
from adatsq.trace import record

BITS = (3, 4, 8)


@pytest.fixture
def run(tiny_pipe):
    trace = record(tiny_pipe, ["a red circle", "two blue stars"], num_inference_steps=3, progress=False)
    fisher = temporal_fisher(tiny_pipe, trace, progress=False)
    return quantize(tiny_pipe, w_bits=4, a_bits=5, solver="rtn"), trace, fisher


def test_candidates_are_the_bits_that_some_price_buys():
    """For a price lambda between two edges, each entry of a candidate minimises error + lambda bits."""
    rng = np.random.default_rng(0)
    errors = np.exp(rng.normal(0, 2, (4, 20, 1))) * np.sort(rng.uniform(size=(4, 20, 3)))[..., ::-1]
    options = priced({"carried": errors}, ["carried"], BITS, budget=3.6)
    for factor in FACTORS:
        name = f"carried x{factor:g}"
        kept = [t for t, option in enumerate(options) if name in option]
        found = np.array([options[t][name] for t in kept])
        best = 0
        for price in np.geomspace(1e-4, 1e2, 400):
            bought = np.array(BITS)[np.argmin(errors[kept] + price * np.array(BITS), axis=-1)]
            best = max(best, (bought == found).mean())
        assert best >= 1 - 2 / found.size  # but for what is left of the budget at the end
    spent = [np.mean([option[f"carried x{f:g}"].sum() for option in options]) for f in (1.0, 2.0)]
    assert spent[0] < spent[1]


def test_equal_candidates_of_a_step_are_tried_once():
    errors = np.zeros((2, 3, 3))
    errors[0] = [9.0, 1.0, 0.5]  # all that is worth paying for is in the first step
    options = priced({"a": errors, "b": errors}, ["a", "b"], BITS, budget=3.5)
    assert all(name.startswith("a") for option in options for name in option)
    assert len(options[1]) == 1 and len(options[0]) > 1


@pytest.mark.parametrize("budget", [3.2, 3.6, 4.4])
def test_the_budget_is_kept_and_errors_are_those_of_trajectories(run, budget):
    pipe, trace, fisher = run
    result = price_search(pipe, trace, fisher, budget=budget, progress=False)
    assert result.pick(budget).average <= budget + 1e-9
    _, errors = follow(pipe, trace, {str(i): p.policy.bits for i, p in enumerate(result.front)}, [0, 1])
    for i, path in enumerate(result.front):
        assert errors[str(i)] == pytest.approx(path.error, rel=0.05)
    assert {pipe.transformer.get_submodule(layer.name).a_bits for layer in act_layers(trace)} == {5}


def test_calls_are_no_more_than_those_of_the_papers_beam(run):
    """Two images, three steps: 3 + 3 passes, 3 candidates of at most 2 paths; the beam has 3 of at most 4."""
    found = search_policies(*run, search="prices", budget=3.6, progress=False)
    assert found.calls == 2 * (3 * 6 + len(found.evaluated))
    assert len(found.evaluated) <= 3 + 6 + 6
    steps, images = 50, 4
    assert images * (steps * 6 + 3 + 6 * (steps - 1)) <= images * (12 * steps)


def test_what_cannot_be_searched_is_named(run):
    with pytest.raises(ValueError, match="below"):
        price_search(*run, budget=2.5, progress=False)
    with pytest.raises(ValueError, match="images"):
        price_search(*run, budget=3.5, images=[9], progress=False)
