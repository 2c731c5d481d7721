"""What the moving figures show, against the run, the search and the softmax that they are made from."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SAMPLING, build_tiny_pipe

import adatsq
from adatsq import denoising, growth, reweighting
from adatsq.candidates import every_step
from adatsq.fisher import Fisher


@pytest.fixture(scope="module")
def pipe():
    return build_tiny_pipe()


@pytest.fixture(scope="module")
def fp(pipe):
    return adatsq.record(pipe, ["a red <circle>", "a star"], progress=False, **SAMPLING)


@pytest.fixture(scope="module")
def searched(fp):
    """A pipeline of its own, its candidates, and searches with and without a budget."""
    qpipe = adatsq.hadamard(build_tiny_pipe(), None, 3, 3)
    fisher = adatsq.temporal_fisher(build_tiny_pipe(), fp, progress=False)
    options = every_step(fp, fisher, adatsq.SHARES[3])
    found = {
        budget: adatsq.beam_search(qpipe, fp, fisher, beam=2, budget=budget, images=[0], progress=False)
        for budget in (None, 3.6, 4.1)
    }
    return qpipe, options, found


def test_the_last_picture_in_mind_is_the_finished_one(pipe, fp):
    clean = denoising.predicted_clean(fp)
    assert clean.shape == fp.latents[:-1].shape
    torch.testing.assert_close(clean[-1], fp.latents[-1])
    assert np.array_equal(denoising.decode(pipe, fp, fp.latents[-1]), fp.images)


def test_a_model_that_knows_the_answer_has_it_in_mind_at_every_step(fp):
    x_0, noise = torch.randn(2, *fp.latents.shape[1:]).unbind(0)
    sigmas = fp.scheduler.sigmas[: len(fp.timesteps)].view(-1, 1, 1, 1)
    latents = torch.cat([(1 - sigmas) * x_0 + sigmas * noise, x_0[None]])
    known = replace(fp, latents=latents, velocity=(noise - x_0).expand(len(sigmas), *x_0.shape))
    torch.testing.assert_close(denoising.predicted_clean(known), x_0.expand_as(known.velocity))


def test_no_flow_and_clips_are_refused(pipe, fp):
    other = replace(fp, scheduler=SimpleNamespace(config={}, sigmas=[1.0]))
    with pytest.raises(ValueError, match="no flow-matching scheduler"):
        denoising.predicted_clean(other)
    with pytest.raises(ValueError, match="holds clips"):
        denoising.decode(pipe, replace(fp, images=fp.images[None]), fp.latents[-1])


def test_the_scrubber_has_a_frame_per_step_and_only_runs_of_the_same_noise(pipe, fp, searched):
    run = adatsq.record(searched[0], fp.prompts, progress=False, **SAMPLING)
    page = denoising.scrubber(pipe, fp, {"hadamard W3A3": run})
    assert page.count("<section") == len(fp.timesteps) and "a red &lt;circle&gt;" in page
    assert page.count("<img") == 5 * len(fp.timesteps)  # two given, two in mind, a difference
    away = denoising.distances(run, fp)
    assert all(f"error {value:.2g}" in page for value in away) and (away > 0).all()
    assert (denoising.distances(fp, fp) == 0).all()
    other = adatsq.record(pipe, fp.prompts, seed=1, progress=False, **SAMPLING)
    with pytest.raises(ValueError, match="run 'rtn' has other timesteps or starts from other noise"):
        denoising.scrubber(pipe, fp, {"rtn": other})


@pytest.mark.parametrize("budget", [None, 3.6, 4.1])
def test_every_path_dropped_has_the_reason_that_brute_force_finds(searched, budget):
    _, options, found = searched
    tried, why = found[budget].evaluated, growth.reasons(found[budget], options, budget)
    assert ((why == growth.KEPT) == tried.kept).all()
    low, high = ([f(bits.mean() for bits in o.values()) for o in options] for f in (min, max))
    for t, rows in tried.groupby("step"):
        inside = rows[~why[rows.index].isin([growth.ABOVE, growth.BELOW])]
        for row in rows.itertuples():
            beaten = (
                (inside.average_bits <= row.average_bits)
                & (inside.error <= row.error)
                & ((inside.average_bits < row.average_bits) | (inside.error < row.error))
            ).any()
            if why[row.Index] in (growth.ABOVE, growth.BELOW):
                spent = row.average_bits * (t + 1)
                span = max(h - l for h, l in zip(high, low))
                too_rich = spent + sum(low[t + 1 :]) > budget * len(options)
                too_poor = spent + sum(high[t + 1 :]) < min(budget * len(options), sum(high)) - span
                assert too_rich == (why[row.Index] == growth.ABOVE) and too_poor != too_rich
            else:
                assert beaten == (why[row.Index] == growth.DOMINATED)
    assert why.isin([growth.ABOVE, growth.BELOW]).any() == (budget is not None)


def test_reasons_of_another_search_are_refused(searched):
    _, options, found = searched
    with pytest.raises(ValueError, match="was kept at step .* give those of the search"):
        growth.reasons(found[None], options, 3.0)
    with pytest.raises(ValueError, match="the search has 4 steps, the options are for 3"):
        growth.reasons(found[None], options[:3])


def test_the_animation_tells_the_counts_of_each_step(searched):
    _, options, found = searched
    page, tried = growth.animation(found[3.6], options, 3.6), found[3.6].evaluated
    assert page.count("<section") == 2 * len(options) and len(page) < 300_000
    for t, rows in tried.groupby("step"):
        assert f"Step {t + 1} of {len(options)}: {int(rows.kept.sum())} kept" in page
        assert f"extended to {len(rows)}<" in page
    for budget, reason in ((3.6, growth.ABOVE), (4.1, growth.BELOW)):
        count = (growth.reasons(found[budget], options, budget) == reason).groupby(
            found[budget].evaluated.step
        )
        assert any(
            f"{n} {reason}" in growth.animation(found[budget], options, budget) for n in count.sum() if n
        )


def made_up() -> tuple[Fisher, list[torch.Tensor]]:
    """Three steps, one layer of two channels; each step has its own Hessian."""
    per_image = np.array([1.0, 2.0, 6.0]).reshape(3, 1, 1)
    fisher = Fisher(per_image, [1.0, 0.6, 0.2], ["layer"], [0], "gauss-newton", 1, "none")
    return fisher, [torch.diag(torch.tensor(d)) for d in ([3.0, 1.0], [2.0, 2.0], [1.0, 3.0])]


def test_the_weighted_hessian_goes_from_the_mean_to_the_most_sensitive_step():
    fisher, per_step = made_up()
    alpha, hessian = reweighting.weighted(fisher, "layer", per_step, math.inf)
    assert alpha == pytest.approx([1 / 3] * 3)
    torch.testing.assert_close(hessian, torch.eye(2, dtype=torch.float64))
    alpha, hessian = reweighting.weighted(fisher, "layer", per_step, 1.0)
    by_hand = np.exp(np.array([1, 2, 6]) / 3)
    assert alpha == pytest.approx(by_hand / by_hand.sum())
    assert hessian[0, 0].item() == pytest.approx(alpha @ [1.5, 1.0, 0.5])
    _, sharp = reweighting.weighted(fisher, "layer", per_step, 1e-3)
    assert reweighting.cosine(sharp, per_step[2].double()) == pytest.approx(1)
    with pytest.raises(ValueError, match="2 Hessians for 3 timesteps"):
        reweighting.weighted(fisher, "layer", per_step[:2], 1.0)


def test_directions_are_counted_and_a_rotation_does_not_matter():
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    three = torch.diag(torch.tensor([2.0, 2, 2, 0, 0, 0], dtype=torch.float64))
    assert reweighting.spread(three) == pytest.approx(3)
    assert reweighting.spread(turn @ three @ turn.T) == pytest.approx(3)


def test_the_slider_over_tau_starts_uniform_and_shows_one_first():
    fisher, per_step = made_up()
    page = reweighting.turning(fisher, "layer", per_step, "double 0 <ff>")
    labels = pd.Series(page.split('<section aria-label="')[1:]).str.split('"').str[0]
    assert len(labels) == len(reweighting.TAUS) and "double 0 &lt;ff&gt;" in page
    assert labels[0].startswith("τ = ∞, uniform: 3.0 effective steps of 3, cosine to uniform H 1.000")
    effective = labels.str.extract(r"([\d.]+) effective")[0].astype(float)
    assert effective.is_monotonic_decreasing and effective.iloc[-1] < 1.1
    shown = [
        i for i, part in enumerate(page.split("<section ")[1:]) if " hidden>" not in part.split("<p>")[0]
    ]
    assert [labels[i].split(":")[0] for i in shown] == ["τ = 1"]
