"""The whole method on each family's own pipeline: what must hold for Flux must hold for all."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from families import FAMILIES

from adatsq import calibration, evaluate, io, models, recipes, search, storage
from adatsq import trace as tr
from adatsq.fisher import LOSSES, _noise, temporal_fisher
from adatsq.linear import QuantLinear
from adatsq.policy import Policy, act_layers, apply

PROMPTS = ["a red circle", "two blue stars", "a ring left of a square"]
BRANCHES = {"flux": 1, "schnell": 1, "zimage": 1, "zimage-guided": 2, "wan": 2}
WEIGHTS = {"zimage": (-1.0,), "zimage-guided": (-5.0, 4.0), "wan": (4.5, -3.5)}
ALL = list(FAMILIES)


@pytest.fixture
def trace(family_pipe):
    return tr.record(family_pipe, PROMPTS, batch_size=2, seed=5, num_inference_steps=3, progress=False)


def run(pipe, prompts, seeds, **settings):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return np.asarray(pipe(list(prompts), generator=generators, **{"output_type": "np", **settings})[0])


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_record_makes_the_pipelines_own_images(family, family_pipe, trace):
    frames = (5,) if family == "wan" else ()
    assert trace.images.shape == (3, *frames, 32, 32, 3) and trace.images.dtype == np.uint8
    assert (trace.branches, trace.weights) == (BRANCHES[family], WEIGHTS.get(family, (1.0,)))
    for i, prompt in enumerate(PROMPTS):  # one at a time, with a plain call
        image = run(family_pipe, [prompt], [5 + i], **trace.settings)[0]
        assert np.abs((image * 255).round() - trace.images[i]).max() <= 1  # batches may round differently
    final = run(family_pipe, PROMPTS[:2], [5, 6], **{**trace.settings, "output_type": "latent"})
    assert np.array_equal(trace.latents[-1][:2].numpy(), final)
    assert np.array_equal(
        evaluate.generate(family_pipe, PROMPTS, [5, 6, 7], 2, **trace.settings), trace.images
    )
    assert "step" not in vars(family_pipe.scheduler) and "step" not in vars(trace.scheduler)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_velocity_and_step_repeat_the_run(family, family_folders, dtype):
    pipe = models.load_pipeline(family_folders(family), torch_dtype=dtype)
    trace = tr.record(pipe, PROMPTS[:2], progress=False)
    scheduler, latents = copy.deepcopy(trace.scheduler), trace.latents[0].to(trace.dtype)
    steps = []
    with torch.no_grad():
        for t in range(4):
            v = tr.velocity(pipe.transformer, trace, t, latents)
            latents = tr.step(scheduler, v, t, latents)
            steps += [(v.float(), trace.velocity[t]), (latents.float(), trace.latents[t + 1])]
    if family == "wan":  # its pipeline calls the branches one by one, which may round differently
        assert max(relative(a, b) for a, b in steps) < (1e-5 if dtype == torch.float32 else 0.05)
    else:
        assert all(torch.equal(a, b) for a, b in steps)


def test_two_images_of_a_call_know_nothing_of_each_other(family_pipe, trace):
    with torch.no_grad():
        together = tr.velocity(family_pipe.transformer, trace, 1, index=[2, 0, 2])
    for row, i in enumerate([2, 0, 2]):
        torch.testing.assert_close(together[row], trace.velocity[1][i], rtol=1e-3, atol=1e-4)


def test_split_and_join_are_inverse(trace):
    whole = tr.join(trace.split(2))
    assert whole.form == trace.form and torch.equal(whole.latents, trace.latents)
    for t in range(3):
        for name, value in trace.call(t).items():
            assert tr.same(value, whole.call(t)[name])


def test_tokens_are_the_rows_of_each_linear(family, trace):
    """By hand: 16 image tokens and 16 of text for Flux; 16 padded to 32, and text to 64, for Z-Image (a batch
    with a caption of more than 32); 8 of video and 16 of text for Wan. Twice that with guidance.
    """
    expected = {
        "flux": {"transformer_blocks.0.attn.to_q": 16, "single_transformer_blocks.1.proj_out": 32},
        "zimage": {
            "noise_refiner.0.attention.to_q": 32,
            "context_refiner.0.feed_forward.w2": 64,
            "layers.1.attention.to_v": 96,
            "layers.0.adaLN_modulation.0": 1,
        },
        "wan": {"blocks.0.attn1.to_q": 8, "blocks.1.attn2.to_k": 16, "blocks.1.ffn.net.2": 8},
    }[{"schnell": "flux"}.get(family, family.split("-")[0])]
    for name, rows in expected.items():
        assert trace.tokens[name] == BRANCHES[family] * rows
    assert set(trace.tokens) == {layer.name for layer in trace.layers}


@pytest.mark.parametrize("loss", LOSSES)
def test_fisher_is_autograd_through_all_branches(family_pipe, trace, loss):
    """The gradient of an image is that of the whole guided answer: its branches add up before the square."""
    trace = trace.subset([0, 2])
    fisher = temporal_fisher(family_pipe, trace, seed=7, loss=loss, batch_size=2, progress=False)
    weights = [family_pipe.transformer.get_submodule(l.name).weight.requires_grad_() for l in trace.layers]
    for t, n in [(0, 0), (2, 1)]:
        z = _noise(trace, n, t, 7, 0)[None]
        if loss == "gauss-newton":
            scalar = (tr.velocity(family_pipe.transformer, trace, t, index=[n]) * z).sum()
        else:
            sigma, x_0 = trace.scheduler.sigmas[t], trace.latents[-1][[n]]
            v = tr.velocity(family_pipe.transformer, trace, t, (1 - sigma) * x_0 + sigma * z, [n])
            scalar = 0.5 * (v - (z - x_0)).square().sum()
        expected = [float(g.double().square().mean()) for g in torch.autograd.grad(scalar, weights)]
        np.testing.assert_allclose(fisher.per_image[t, n], expected, rtol=5e-3)
    assert (fisher.per_image > 0).all()


def test_hessians_are_the_sum_over_branches_and_tokens(family_pipe, trace):
    """From the pipeline's own run, not the trace: inputs seen by plain hooks while it generates."""
    trace = tr.record(family_pipe, PROMPTS[:2], seed=5, num_inference_steps=3, progress=False)
    names = [layer.name for layer in trace.layers]
    weight = np.random.default_rng(0).dirichlet(np.ones(3), len(names)).T
    alpha = pd.DataFrame(weight, index=trace.timesteps, columns=names)
    found, inputs = {}, {name: [] for name in names}
    with tr.layer_inputs(family_pipe.transformer, names, lambda name, x: inputs[name].append(x)):
        run(family_pipe, PROMPTS[:2], [5, 6], **trace.settings)
    for _, some in calibration.hessians(family_pipe, trace, alpha, batch_size=2, progress=False):
        found |= some
    for name in names:
        calls, expected = len(inputs[name]) // 3, 0
        for t in range(3):
            x = torch.cat([x.double().flatten(0, -2) for x in inputs[name][t * calls : (t + 1) * calls]])
            expected += alpha.at[trace.timesteps[t], name] * (x.T @ x) / len(x)
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-3, atol=1e-5)


def test_sixteen_bits_change_nothing(family_pipe, trace):
    before = run(family_pipe, PROMPTS, [5, 6, 7], **trace.settings)
    recipes.hadamard_gptq(family_pipe, trace, 16, 16, modulation_bits=16, progress=False)
    linears = [family_pipe.transformer.get_submodule(layer.name) for layer in trace.layers]
    assert all(isinstance(linear, QuantLinear) for linear in linears)
    assert np.array_equal(run(family_pipe, PROMPTS, [5, 6, 7], **trace.settings), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_method(family, family_folders, tmp_path, dtype):
    """Fisher, GPTQ, beam search, a policy on the pipeline, and the saved folder, which draws the same."""
    pipe = models.load_pipeline(family_folders(family), torch_dtype=dtype)
    trace = tr.record(pipe, PROMPTS[:2], progress=False)
    fisher = temporal_fisher(pipe, trace, progress=False)
    recipes.adatsq_weights(pipe, trace, 4, 4, fisher.alpha(1.0), progress=False)
    result = search.beam_search(pipe, trace, fisher, budget=3.6, batch_size=2, progress=False)
    policy = result.pick(3.6)
    assert 3 <= policy.average <= 3.6 and policy.bits.shape == (4, len(act_layers(trace)))

    applied, errors = apply(pipe, policy), []

    def compare(pipe, i, t, state):
        errors.append((state["latents"].double() - trace.latents[i + 1]).square().mean().item())
        return {}

    images = run(pipe, PROMPTS[:2], trace.seeds, callback_on_step_end=compare, **trace.settings)
    path = next(path for path in result.front if path.policy is policy)
    exact = family != "wan"
    assert sum(errors) == path.error if exact else sum(errors) == pytest.approx(path.error, rel=0.1)

    table = io.save(pipe, tmp_path / "saved")
    again = io.load(tmp_path / "saved")
    assert np.array_equal(run(again, PROMPTS[:2], trace.seeds, **trace.settings), images)
    summary = storage.summary(again)
    assert summary.equals(storage.summary(pipe)) and summary.at["weights and activations", "layers"] > 0
    parts = ["transformer: quantized weights", "transformer: rest"]
    assert table.loc[parts, "parameters"].sum() == summary.at["transformer", "parameters"]
    applied.remove()


def test_beam_search_is_held_against_all_81_paths(family, family_pipe):
    trace = tr.record(family_pipe, PROMPTS[:2], progress=False)
    fisher = temporal_fisher(family_pipe, trace, progress=False)
    recipes.quantize(family_pipe, w_bits=4, a_bits=4, solver="rtn")
    truth = search.brute_force(family_pipe, trace, fisher, progress=False)
    assert (truth.evaluated.step == 3).sum() == 81
    result = search.beam_search(family_pipe, trace, fisher, beam=8, progress=False)
    assert 0.8 < search.hypervolume_share(result, truth) <= 1


def test_a_policy_is_followed_in_all_branches(family, family_pipe, trace):
    recipes.quantize(family_pipe, w_bits=8, a_bits=8, solver="rtn")
    layers = act_layers(trace)
    bits = np.random.default_rng(0).choice([3, 4, 8], (3, len(layers)))
    apply(family_pipe, Policy.of(trace, bits))
    seen = []

    def note(name, x):
        seen.append(family_pipe.transformer.get_submodule(name).a_bits)

    with tr.layer_inputs(family_pipe.transformer, [layer.name for layer in layers], note):
        run(family_pipe, PROMPTS[:2], [5, 6], **trace.settings)
    order = {layer.name: i for i, layer in enumerate(layers)}
    calls = 2 if family == "wan" else 1
    assert sorted(seen) == sorted(np.repeat(bits, calls, axis=0).flatten().tolist())
    assert len(order) * 3 * calls == len(seen)
    with pytest.raises(ValueError, match="policy is for 3 steps, the pipeline is set to 4"):
        evaluate.generate(family_pipe, PROMPTS, [1, 2, 3], progress=False)


def test_blocks_are_in_the_order_the_model_runs_them(family_pipe):
    seen = []
    for name in models.block_names(family_pipe.transformer):
        block = family_pipe.transformer.get_submodule(name)
        block.register_forward_hook(lambda *_, name=name: seen.append(name))
    evaluate.generate(family_pipe, PROMPTS[:1], [0], num_inference_steps=1, progress=False)
    names = models.block_names(family_pipe.transformer)
    assert seen[: len(names)] == names and set(seen) == set(names)


def test_kept_and_quantized_are_all_there_is(family_pipe):
    table = models.kept(family_pipe.transformer)
    inside = sum(l.in_features * l.out_features for l in models.quantizable(family_pipe.transformer))
    parameters = sum(p.numel() for p in family_pipe.transformer.parameters())
    assert table.parameters.sum() + inside == parameters and len(table) < 15
    recipes.quantize(family_pipe, w_bits=4, a_bits=4, solver="rtn")
    assert models.kept(family_pipe.transformer).equals(table)
    assert table.parameters.sum() == storage.summary(family_pipe).at["kept", "parameters"]


def test_clips_are_compared_frame_by_frame():
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)
    for measure in (evaluate.psnr, evaluate.ssim):
        frames = [measure(clips[:, f], other[:, f]) for f in range(3)]
        np.testing.assert_allclose(measure(clips, other), np.mean(frames, axis=0), rtol=1e-5)
