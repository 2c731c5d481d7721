"""Profiles of sensitivity meet at equal noise levels, and one change at a time is what it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from adatsq import fisher, profiles, trace
from adatsq.models import fingerprint
from adatsq.settings import call_settings

PROMPTS = ["a red circle", "a blue star"]


def run_of(values: np.ndarray, levels: list[float], seeds: list[int]) -> profiles.Run:
    layers = [f"layer {i}" for i in range(values.shape[2])]
    measured = fisher.Fisher(values, list(levels), layers, seeds, "gauss-newton", 1, "model")
    return profiles.Run(measured, np.array(levels))


def test_the_noise_level_is_what_mixes_noise_into_the_recorded_flow(family, family_pipe):
    run = trace.record(family_pipe, PROMPTS, num_inference_steps=4, progress=False)
    levels = profiles.noise_levels(run)
    assert len(levels) == 4 and levels[0] == pytest.approx(1, abs=2e-3) and (np.diff(levels) < 0).all()
    # independent of the scheduler's own list: an Euler step goes along the flow by the change of its level
    if hasattr(run.scheduler, "sigmas") and "UniPC" not in type(run.scheduler).__name__:
        moved = (run.latents[1] - run.latents[0]) / run.velocity[0]
        assert torch.allclose(moved.median(), torch.tensor(levels[1] - levels[0]).float(), atol=1e-3)
    other = trace.record(family_pipe, PROMPTS[:1], num_inference_steps=7, progress=False)
    assert np.allclose(profiles.noise_levels(run, other.timesteps), profiles.noise_levels(other), atol=2e-3)


def test_one_step_does_not_tell_the_noise_level_of_others(tiny_pipe):
    run = trace.record(tiny_pipe, PROMPTS[:1], num_inference_steps=1, progress=False)
    with pytest.raises(ValueError, match="one step"):
        profiles.noise_levels(run, [0.5])


def test_profiles_of_one_law_agree_whatever_the_steps_and_sizes():
    def law(levels, size):  # log I falls linearly with the noise level
        return size * np.exp(-2 * np.array(levels))[:, None, None] * np.ones((1, 2, 3))

    few, many = [1.0, 0.6, 0.2], [1.0, 0.8, 0.6, 0.4, 0.2, 0.1]
    a, b = run_of(law(few, 1), few, [0, 1]), run_of(law(many, 1e-9), many, [0, 1])
    grid = profiles.shared_levels([b, a])
    assert grid.tolist() == [1.0, 0.8, 0.6, 0.4, 0.2]
    assert np.allclose(a.profile(grid), b.profile(grid)) and np.allclose(a.profile(grid).mean(0), 1)


def test_zero_information_is_a_flat_profile_and_correlates_with_nothing():
    a = run_of(np.zeros((3, 1, 2)), [1.0, 0.5, 0.2], [0])
    flat = a.profile(a.levels)
    assert (flat == 1).all() and profiles.correlation(flat, np.arange(6.0).reshape(3, 2)) == 0


def test_correlation_is_that_of_the_ranks():
    a, b = np.random.default_rng(0).random((2, 4, 5))
    expected = np.corrcoef(rankdata(a), rankdata(b))[0, 1]
    assert profiles.correlation(a, b) == pytest.approx(expected)


def test_bootstrap_draws_the_same_images_for_runs_of_the_same_images():
    values = np.random.default_rng(0).random((4, 6, 5))
    levels, seeds = [1.0, 0.7, 0.4, 0.1], list(range(6))
    runs = {
        "base": run_of(values, levels, seeds),
        "same": run_of(values**2, levels, seeds),
        "else": run_of(values, levels, [seed + 9 for seed in seeds]),
    }
    found = profiles.bootstrap({**runs, "copy": runs["base"]}, "base", resamples=20)
    assert np.allclose(found["copy"], 1) and (found["else"] < 0.999).all()
    assert found["same"].mean() > found["else"].mean()
    again = profiles.bootstrap(runs, "base", resamples=20)
    assert np.array_equal(again["same"], profiles.bootstrap(runs, "base", resamples=20)["same"])


def test_another_shift_moves_the_noise_levels_and_no_other_setting(family_pipe):
    own = family_pipe.scheduler
    before = profiles.noise_levels(trace.record(family_pipe, PROMPTS[:1], 4, progress=False))
    with profiles.swapped(family_pipe, scheduler=profiles.other_shift(own)):
        after = profiles.noise_levels(trace.record(family_pipe, PROMPTS[:1], 4, progress=False))
    assert family_pipe.scheduler is own and np.abs(after - before)[1:].min() > 0.02
    even = max(np.ptp(np.diff(levels)) for levels in (before, after)), np.ptp(np.diff(before))
    assert min(np.ptp(np.diff(before)), np.ptp(np.diff(after))) < 1e-3 < even[0]  # one of the two is even


def test_fresh_weights_are_new_repeatable_and_leave_the_random_state(family_pipe):
    state = torch.get_rng_state()
    a, b = (profiles.fresh(family_pipe.transformer, seed=7) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() == torch.float32
    assert fingerprint(a) == fingerprint(b) and not a.training
    old = family_pipe.transformer.state_dict()
    weights = [name for name, tensor in a.state_dict().items() if tensor.ndim == 2]
    assert all(torch.equal(a.state_dict()[n], b.state_dict()[n]) for n in weights)
    same = [n for n in weights if torch.equal(a.state_dict()[n], old[n])]
    assert all(n.endswith("pad_token") for n in same)  # zero before training


def test_every_run_has_the_settings_that_are_given(tiny_pipe, monkeypatch):
    seen, own = [], trace.record
    monkeypatch.setattr(profiles, "record", lambda *args, **call: seen.append(own(*args, **call)) or seen[-1])
    options = {"steps": 2, "batch_size": 1, "guidance_scale": 1.5, "height": 16}
    profiles.what_changes_it(tiny_pipe, PROMPTS, PROMPTS, PROMPTS, **options)
    assert len(seen) == 5 and {run.settings["guidance_scale"] for run in seen} == {1.5}
    assert {run.latents.shape[2:] for run in seen} == {seen[0].latents.shape[2:]}


def test_each_experiment_changes_one_thing_and_gives_the_pipeline_back(tiny_pipe):
    parts = tiny_pipe.transformer, tiny_pipe.scheduler
    found = profiles.what_changes_it(tiny_pipe, PROMPTS[:1], ["a ring"], ["two rings"], steps=2)
    assert (tiny_pipe.transformer, tiny_pipe.scheduler) == parts
    assert {name: len(run.levels) for name, run in found.items()} == {
        "base": 2,
        "other probes": 2,
        "other pictures": 2,
        "twice the steps": 4,
        "other shift": 2,
        "other captions": 2,
        "new weights": 2,
    }
    base = found["base"].fisher
    same_pictures = [name for name, run in found.items() if run.fisher.seeds == base.seeds]
    assert set(found) - set(same_pictures) == {"other pictures"}
    assert [name for name, run in found.items() if run.fisher.model != base.model] == ["new weights"]
    # the base run again, by hand
    assert call_settings(tiny_pipe, {})["num_inference_steps"] != 2
    run = trace.record(tiny_pipe, PROMPTS[:1], num_inference_steps=2, progress=False)
    again = fisher.temporal_fisher(tiny_pipe, run, progress=False)
    assert np.allclose(again.per_image, base.per_image)
    with profiles.swapped(tiny_pipe, transformer=profiles.fresh(tiny_pipe.transformer)):
        blank = replace(run, model=fingerprint(tiny_pipe.transformer))
        seed = list(found).index("new weights")
        new = fisher.temporal_fisher(tiny_pipe, blank, seed=seed, progress=False)
    assert np.allclose(new.per_image, found["new weights"].fisher.per_image)
