import numpy as np
import pytest
import torch

from adatsq.allocation import allocate
from adatsq.error_kinds import every_kind, kinds_of_error
from adatsq.fisher import temporal_fisher
from adatsq.lagrangian import follow, lagrangian_search, search_policies
from adatsq.policy import Policy, act_layers, apply
from adatsq.recipes import quantize
from adatsq.trace import record

PROMPTS = ["a red circle", "two blue stars"]


@pytest.fixture
def run(tiny_pipe):
    trace = record(tiny_pipe, PROMPTS, num_inference_steps=3, progress=False)
    fisher = temporal_fisher(tiny_pipe, trace, progress=False)
    return quantize(tiny_pipe, w_bits=4, a_bits=5, solver="rtn"), trace, fisher


def test_each_error_is_that_of_the_real_pipeline_and_the_bits_are_put_back(run):
    pipe, trace, fisher = run
    result = lagrangian_search(pipe, trace, fisher, budget=3.6, batch_size=2, progress=False)
    assert {pipe.transformer.get_submodule(layer.name).a_bits for layer in act_layers(trace)} == {5}
    for path in result.front:
        errors = []

        def compare(pipe, i, t, state, errors=errors):
            errors.append((state["latents"].double() - trace.latents[i + 1]).square().mean().item())
            return {}

        applied = apply(pipe, path.policy)
        generators = [torch.Generator().manual_seed(seed) for seed in trace.seeds]
        pipe(trace.prompts, generator=generators, callback_on_step_end=compare, **trace.settings)
        applied.remove()
        assert path.error == sum(errors)
        assert path.average_bits == pytest.approx(path.policy.average)


def test_the_budget_is_met_and_the_front_is_monotone(run):
    pipe, trace, fisher = run
    budgets = (3.1, 3.6, 4.4)
    result = lagrangian_search(pipe, trace, fisher, budget=budgets, progress=False)
    cells = 3 * len(act_layers(trace))
    complete = result.evaluated[result.evaluated.step == 2]
    for name, average in zip(complete.candidate, complete.average_bits):
        budget = float(name.split()[-1])
        assert budget - 4 / cells - 1e-9 < average <= budget + 1e-9
    bits, errors = zip(*[(path.average_bits, path.error) for path in result.front])
    assert list(bits) == sorted(bits) and list(errors) == sorted(errors, reverse=True)
    for budget in budgets:
        assert result.pick(budget).average <= budget + 1e-9


def test_the_policy_that_ends_nearest_is_kept(run):
    """One per budget; the distance is that of the pipeline's own last latents."""
    pipe, trace, fisher = run
    options = {"budget": 3.6, "a_bits": (2, 3, 4, 6, 8), "progress": False}
    (kept,) = lagrangian_search(pipe, trace, fisher, at_end=True, **options).front
    scores = every_kind(pipe, trace, fisher, options["a_bits"], [0, 1], progress=False)
    ends = {}
    for name, errors in scores.items():
        applied = apply(pipe, Policy.of(trace, allocate(errors, options["a_bits"], 3.6)))
        generators = [torch.Generator().manual_seed(seed) for seed in trace.seeds]
        settings = {**trace.settings, "output_type": "latent"}
        latents = pipe(trace.prompts, generator=generators, **settings)[0]
        applied.remove()
        ends[f"{name} 3.6"] = (latents.double() - trace.latents[-1]).square().mean().item()
    assert ends[kept.candidates[0]] == pytest.approx(min(ends.values()), rel=1e-6)
    assert len(set(ends.values())) > 1


def test_a_budget_of_multiplications(run):
    pipe, trace, fisher = run
    result = lagrangian_search(pipe, trace, fisher, budget=3.5, weights="flops", progress=False)
    for path in result.front:
        assert path.average_bits == pytest.approx(path.policy.flop_weighted) and path.average_bits <= 3.5


def test_calls_are_counted_alike(run):
    pipe, trace, fisher = run
    paper = search_policies(pipe, trace, fisher, "paper", beam=1, progress=False)
    assert paper.calls == 2 * 3 * 3  # images, steps, candidates
    found = search_policies(pipe, trace, fisher, "lagrangian", budget=3.6, progress=False)
    assert found.calls == 2 * 3 * (6 + found.evaluated.candidate.nunique())


def test_follow_is_what_the_beam_follows(run):
    pipe, trace, fisher = run
    path = search_policies(pipe, trace, fisher, "paper", progress=False).front[1]
    rows, errors = follow(pipe, trace, {"it": path.policy.bits}, [0, 1])
    assert errors["it"] == pytest.approx(path.error, rel=0.05) and len(rows) == 3


def test_kinds_of_error_rank_and_fall_with_bits():
    rng = np.random.default_rng(0)
    carried, fisher = (np.sort(rng.uniform(size=(2, 3, 3)))[..., ::-1] for _ in range(2))
    for errors in kinds_of_error(carried, fisher).values():
        assert (np.diff(errors) <= 0).all()
    flat = kinds_of_error(carried, fisher)["carried^1/2"]
    np.testing.assert_allclose(flat[..., 0] ** 2, carried[..., 0])
    np.testing.assert_allclose(flat[..., 1] / flat[..., 0], carried[..., 1] / carried[..., 0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget": 2.5}, "below"),
        ({"budget": 4, "weights": "x"}, "weights"),
        ({"budget": 4, "images": [9]}, "images"),
    ],
)
def test_what_cannot_be_searched_is_named(run, options, match):
    with pytest.raises(ValueError, match=match):
        lagrangian_search(*run, progress=False, **options)
    with pytest.raises(ValueError, match="search is"):
        search_policies(*run, search="best", budget=4)


def test_all_families(family_pipe):
    trace = record(family_pipe, PROMPTS, num_inference_steps=2, progress=False)
    fisher = temporal_fisher(family_pipe, trace, progress=False)
    quantize(family_pipe, w_bits=4, a_bits=4, solver="rtn")
    result = lagrangian_search(family_pipe, trace, fisher, budget=3.5, images=[1], progress=False)
    apply(family_pipe, result.pick(3.5)).remove()
