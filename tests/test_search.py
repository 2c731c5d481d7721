import copy
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipe

from adatsq import candidates as ca
from adatsq import search as se
from adatsq import search_replay
from adatsq.fisher import temporal_fisher
from adatsq.pareto import nearest_origin, non_dominated
from adatsq.policy import Policy, act_layers, apply
from adatsq.replacement import quantize
from adatsq.trace import record

PROMPTS = ["a red circle", "two blue stars"]


@pytest.fixture(scope="module")
def run():
    """(quantized pipeline, trace, fisher) of a 4-step run; tests leave them as they are."""
    pipe = build_tiny_pipe()
    pipe.set_progress_bar_config(disable=True)
    settings = {"height": 32, "width": 32, "max_sequence_length": 16, "guidance_scale": 3.5}
    trace = record(pipe, PROMPTS, num_inference_steps=4, progress=False, **settings)
    fisher = temporal_fisher(pipe, trace, progress=False)
    return quantize(pipe, w_bits=4, a_bits=5, solver="rtn"), trace, fisher


@pytest.fixture(scope="module")
def truth(run):
    return se.brute_force(*run, progress=False)


def points(result):
    return np.array([(path.average_bits, path.error) for path in result.front])


def trajectory_error(pipe, trace, policy):
    """Run the real pipeline under the policy and add up the squared distances to the recorded latents."""
    errors = []

    def compare(pipe, i, t, state):
        errors.append((state["latents"].double() - trace.latents[i + 1]).square().mean().item())
        return {}

    applied = apply(pipe, policy)
    generators = [torch.Generator().manual_seed(seed) for seed in trace.seeds]
    pipe(trace.prompts, generator=generators, callback_on_step_end=compare, **trace.settings)
    applied.remove()
    return sum(errors)


# Brute force is the truth


def test_brute_force_follows_all_81_paths(run, truth):
    complete = truth.evaluated[truth.evaluated.step == 3]
    assert len(complete) == 81 and len(truth.evaluated) == 3 + 9 + 27 + 81
    everything = complete[["average_bits", "error"]].to_numpy()
    front = everything[non_dominated(everything)]
    assert sorted(map(tuple, front)) == list(map(tuple, points(truth)))
    assert len(truth.front) > 2


def test_each_error_is_that_of_the_real_pipeline_bit_for_bit(run):
    pipe, trace, fisher = run
    result = se.beam_search(pipe, trace, fisher, batch_size=2, progress=False)
    for path in result.front:
        assert path.error == trajectory_error(pipe, trace, path.policy)
        assert path.average_bits == path.policy.average


def test_serving_several_paths_per_call_changes_only_rounding(run):
    pipe, trace, fisher = run
    alone = se.brute_force(pipe, trace, fisher, batch_size=1, progress=False)
    together = se.brute_force(pipe, trace, fisher, batch_size=64, progress=False)
    np.testing.assert_allclose(together.evaluated.error, alone.evaluated.error, rtol=0.05)
    assert (together.evaluated.average_bits == alone.evaluated.average_bits).all()


def test_errors_of_the_tree_are_errors_of_its_policies(run, truth):
    """Pick some of the 81 at random, rebuild their policies from the table, and run them."""
    pipe, trace, fisher = run
    options = ca.every_step(trace, fisher, ca.SHARES[3])
    table = truth.evaluated.set_index("path")
    for path in np.random.default_rng(0).choice(table.index[table.step == 3], 5, replace=False):
        bits, at = [], path
        while at >= 0:
            row = table.loc[at]
            bits.insert(0, options[int(row.step)][row.candidate])
            at = row.parent
        policy = Policy.of(trace, np.array(bits))
        assert policy.average == pytest.approx(table.average_bits[path])
        assert trajectory_error(pipe, trace, policy) == pytest.approx(table.error[path], rel=0.05)


# The beam


def test_a_wide_beam_loses_little(run, truth):
    """Only Pareto pruning on the way is left. It may drop a path that would recover later, so the front
    need not be the whole truth; but all that it keeps are some of the 81 paths, with the same errors.
    """
    result = se.beam_search(*run, beam=1000, progress=False)
    found, every = (each.evaluated[["average_bits", "error"]].to_numpy() for each in (result, truth))
    off = np.abs(found[:, None] - every).max(axis=-1).min(axis=1)
    assert off.max() < 1e-9
    assert se.hypervolume_share(result, truth) > 0.97


def decisions(result):
    """{candidates of a path so far: whether it was kept}, in whatever order the paths were tried."""
    chains = {-1: ()}
    for row in result.evaluated.itertuples():
        chains[row.path] = (*chains[row.parent], row.candidate)
    return {chains[row.path]: row.kept for row in result.evaluated.itertuples()}


@pytest.mark.parametrize("beam, budget", [(1, None), (2, None), (4, None), (2, 3.6), (4, 3.2)])
def test_a_beam_among_the_enumerated_paths_is_the_beam_search(run, truth, beam, budget):
    _, trace, fisher = run
    found = se.beam_search(*run, beam=beam, budget=budget, progress=False)
    among = search_replay.beam_among(truth, trace, fisher, beam=beam, budget=budget)
    assert [path.candidates for path in among.front] == [path.candidates for path in found.front]
    for one, other in zip(among.front, found.front):
        assert (one.policy.bits == other.policy.bits).all()
    np.testing.assert_allclose(points(among), points(found), rtol=1e-3)
    assert decisions(among) == decisions(found)


def test_a_beam_among_paths_of_other_candidates_is_refused(run, truth):
    with pytest.raises(ValueError, match="other candidates"):
        search_replay.beam_among(truth, *run[1:], shares={"low": (0, 0, 1)})


def test_share_of_the_true_front(run, truth):
    """The distance to the origin drops the ends of the front, which a wider beam or a budget brings back."""
    beams = [se.beam_search(*run, beam=beam, progress=False) for beam in (1, 4, 8)]
    shares = [se.hypervolume_share(result, truth) for result in beams]
    assert 0.5 < shares[0] < shares[1] < shares[2] <= 1
    assert shares[1] > 0.8 and se.hypervolume_share(truth, truth) == 1


def test_a_share_is_of_the_errors_that_all_paths_have(run, truth):
    """Whatever rounding a beam's own calls met: the same paths have the same share, counted by hand here."""
    result = se.beam_search(*run, beam=2, progress=False)
    lucky = replace(result, front=[replace(path, error=0.5 * path.error) for path in result.front])
    assert se.hypervolume_share(lucky, truth) == se.hypervolume_share(result, truth)
    paths = se.complete_paths(truth)
    assert len(paths) == 81 and paths.candidates.nunique() == 81
    ends = paths[["average_bits", "error"]]
    corner = ends.max() + 0.1 * (ends.max() - ends.min())
    grid = np.stack(np.meshgrid(*(np.linspace(ends[c].min(), corner[c], 400) for c in ends)), axis=-1)
    found = paths[paths.candidates.isin({path.candidates for path in result.front})][ends.columns]
    mine, whole = (
        (grid[:, :, None] >= rows.to_numpy()).all(-1).any(-1).mean() for rows in (found, ends)
    )  # shares of the points of a grid
    assert se.hypervolume_share(result, truth) == pytest.approx(mine / whole, abs=0.01)
    other = replace(result.front[0], candidates=("other",) * 4)
    with pytest.raises(ValueError, match="path other other other other is of other candidates than the 81"):
        se.hypervolume_share(replace(result, front=[other]), truth)


def test_a_single_path_is_its_own_front(run):
    only = {"all": (0.0, 0.0, 1.0)}
    result, truth = (f(*run, shares=only, progress=False) for f in (se.beam_search, se.brute_force))
    assert len(truth.front) == 1 and se.hypervolume_share(result, truth) == 1
    assert result.front[0].policy.average == 3


@pytest.mark.parametrize("budget", [3.1, 3.6, 4.0])
def test_at_a_budget_the_beam_comes_near_the_best_path(run, truth, budget):
    result = se.beam_search(*run, budget=budget, progress=False)
    best = min(path.error for path in truth.front if path.average_bits <= budget)
    assert min(path.error for path in result.front) < 1.1 * best


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_each_step_keeps_what_the_paper_keeps(run, beam):
    """Replay every selection from the table of evaluated paths."""
    result = se.beam_search(*run, beam=beam, progress=False)
    for step, rows in result.evaluated.groupby("step"):
        at = rows[["average_bits", "error"]].to_numpy()
        front = np.flatnonzero(non_dominated(at))
        expected = front if step == 3 else front[nearest_origin(at[front], beam)]
        assert set(rows.path[rows.kept]) == set(rows.path.iloc[expected])
        assert step == 3 or rows.kept.sum() <= beam
        if step > 0:
            before = result.evaluated[result.evaluated.step == step - 1]
            assert set(rows.parent) == set(before.path[before.kept])  # each kept path was extended
            assert (rows.groupby("parent").size() == 3).all()  # by each candidate, once
    if beam == 1:
        assert len(result.evaluated) == 3 * 4  # greedy


@pytest.mark.parametrize("budget", [3.1, 3.4, 3.6, 4.0, 4.1, 8.0])
def test_paths_that_miss_the_budget_are_dropped_and_others_end_at_it(run, budget):
    pipe, trace, fisher = run
    averages = [[b.mean() for b in option.values()] for option in ca.every_step(trace, fisher, ca.SHARES[3])]
    low, high = np.array([min(a) for a in averages]), np.array([max(a) for a in averages])
    result = se.beam_search(pipe, trace, fisher, beam=2, budget=budget, progress=False)
    widest = (high - low).max() / 4
    kept = result.evaluated[result.evaluated.kept]
    for row in kept.itertuples():
        spent = row.average_bits * (row.step + 1)
        assert (spent + low[row.step + 1 :].sum()) / 4 <= budget + 1e-9
        assert (spent + high[row.step + 1 :].sum()) / 4 >= min(budget, high.mean()) - widest - 1e-9
    for path in result.front:
        assert min(budget, high.mean()) - widest - 1e-9 <= path.average_bits <= budget + 1e-9
    assert result.pick(budget).average <= budget


def test_an_impossible_budget_names_both_numbers(run):
    with pytest.raises(ValueError, match="budget 2.5 is below the cheapest candidates, which average 3 bits"):
        se.beam_search(*run, budget=2.5)


def test_pick(run, truth):
    errors = {path.error for path in truth.front if path.average_bits <= 3.6}
    best = truth.pick(3.6)
    assert best.average <= 3.6
    assert next(path.error for path in truth.front if path.policy is best) == min(errors)
    cheapest = truth.pick(3.6, judge=lambda policy: -policy.average)
    assert cheapest.average == min(path.average_bits for path in truth.front)
    assert truth.pick(3.6, judge=lambda policy: 0.5) is best  # a tie
    with pytest.raises(ValueError, match="no path within 2.9 bits: .* takes 3, .* average 3. "):
        truth.pick(2.9)


def test_the_pipeline_is_left_as_it_was(run, monkeypatch):
    pipe, trace, fisher = run
    modules = [pipe.transformer.get_submodule(layer.name) for layer in act_layers(trace)]
    scheduler = copy.deepcopy(trace.scheduler.__dict__)
    se.beam_search(pipe, trace, fisher, beam=1, progress=False)
    assert {module.a_bits for module in modules} == {5}
    assert trace.scheduler._step_index == scheduler["_step_index"]

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(modules[3], "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            se.beam_search(pipe, trace, fisher, beam=1, progress=False)
    assert {module.a_bits for module in modules} == {5}


def test_only_some_images_are_followed(run):
    pipe, trace, fisher = run
    one = se.beam_search(pipe, trace, fisher, beam=1, images=[1], batch_size=1, progress=False)
    alone = trace.subset([1])
    path = one.front[0]
    assert path.error == trajectory_error(pipe, alone, path.policy)


def test_nothing_is_copied_but_schedulers(run, monkeypatch):
    copied = []

    def noted(x):
        copied.append(type(x).__name__)
        return copy.deepcopy(x)

    monkeypatch.setattr(se, "copy", SimpleNamespace(deepcopy=noted))
    se.beam_search(*run, beam=1, progress=False)
    assert copied == ["FlowMatchEulerDiscreteScheduler"] * 12


def test_bad_input_is_named(run):
    pipe, trace, fisher = run
    with pytest.raises(ValueError, match="beam is 0"):
        se.beam_search(pipe, trace, fisher, beam=0)
    for budget in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"budget is {budget}"):
            se.beam_search(pipe, trace, fisher, budget=budget)
    for images in ([], [2], [0, -1]):
        with pytest.raises(ValueError, match=rf"images are {re.escape(str(images))}: give some of 0 to 1"):
            se.beam_search(pipe, trace, fisher, images=images)
    with pytest.raises(ValueError, match="at 4 timesteps, the trace of .* at 3"):
        se.beam_search(pipe, se.Trace(**{**vars(trace), "timesteps": trace.timesteps[:3]}), fisher)
    with pytest.raises(ValueError, match="34 of the policy's 34 layers are not quantized"):
        se.beam_search(build_tiny_pipe(), trace, fisher)
    with pytest.raises(ValueError, match="the pipeline holds"):
        se.beam_search(build_tiny_pipe(seed=1), trace, fisher)
    applied = apply(pipe, Policy.of(trace, 4))
    with pytest.raises(ValueError, match="would overrule the search"):
        se.beam_search(pipe, trace, fisher)
    applied.remove()
    with pytest.raises(ValueError, match=r"4 steps have 1e\+04 paths|over 10000: use beam_search"):
        se.brute_force(pipe, trace, fisher, shares={f"{i}": (i / 11, 0.0, 1 - i / 11) for i in range(11)})
