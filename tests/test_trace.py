import copy

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipe

from adatsq import trace as tr
from adatsq.models import quantizable

PROMPTS = ["a red circle", "two blue stars", "a ring left of a square"]


@pytest.fixture
def trace(tiny_pipe):
    return tr.record(tiny_pipe, PROMPTS, batch_size=2, seed=5, progress=False)


def hook_count(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_record_makes_the_pipelines_own_images(tiny_pipe, trace):
    for i, prompt in enumerate(PROMPTS):  # one at a time, with a plain call
        image = tiny_pipe(
            prompt, generator=torch.Generator().manual_seed(5 + i), output_type="np", **trace.settings
        ).images[0]
        assert np.abs((image * 255).round() - trace.images[i]).max() <= 1  # batches may round differently
    assert trace.images.shape == (3, 32, 32, 3) and trace.images.dtype == np.uint8
    assert trace.images.std() > 0


def test_latents_and_velocities_are_those_of_the_loop(tiny_pipe, trace):
    """Repeat the Euler steps x + (sigma' - sigma) v in float64 from the recorded pieces."""
    sigmas = trace.scheduler.sigmas.double()
    for t in range(len(trace.timesteps)):
        expected = trace.latents[t].double() + (sigmas[t + 1] - sigmas[t]) * trace.velocity[t].double()
        torch.testing.assert_close(trace.latents[t + 1].double(), expected, rtol=0, atol=1e-6)
    assert trace.timesteps == sigmas[:-1].tolist()  # Flux's transformer is called with sigma in [0, 1]
    final = tiny_pipe(
        PROMPTS[:2],
        generator=[torch.Generator().manual_seed(s) for s in (5, 6)],
        output_type="latent",
        **trace.settings,
    )
    assert torch.equal(trace.latents[-1][:2], final.images)


def test_velocity_and_step_repeat_the_run_bit_for_bit(tiny_pipe, trace):
    scheduler, latents = copy.deepcopy(trace.scheduler), trace.latents[0][:2]
    with torch.no_grad():
        for t in range(len(trace.timesteps)):
            v = tr.velocity(tiny_pipe.transformer, trace, t, latents, index=[0, 1])
            assert torch.equal(v, trace.velocity[t][:2])
            latents = tr.step(scheduler, v, t, latents)
            assert torch.equal(latents, trace.latents[t + 1][:2])


def test_images_may_repeat_in_a_call(tiny_pipe, trace):
    with torch.no_grad():
        v = tr.velocity(tiny_pipe.transformer, trace, 1, index=[2, 0, 2])
    torch.testing.assert_close(v, trace.velocity[1][[2, 0, 2]], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_kept_exactly(tiny_pipe):
    tiny_pipe.to(torch.bfloat16)
    trace = tr.record(tiny_pipe, PROMPTS[:2], num_inference_steps=3, progress=False)
    assert trace.dtype == torch.bfloat16 and trace.latents.dtype == torch.float32
    with torch.no_grad():
        for t in range(3):
            assert torch.equal(tr.velocity(tiny_pipe.transformer, trace, t).float(), trace.velocity[t])


def test_split_and_join_are_inverse(trace):
    parts = trace.split(2)
    assert [len(part) for part in parts] == [2, 1]
    whole = tr.join(parts)
    assert whole.prompts == trace.prompts and whole.seeds == trace.seeds == [5, 6, 7]
    assert torch.equal(whole.latents, trace.latents) and torch.equal(whole.velocity, trace.velocity)
    for name, value in trace.conditioning.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, whole.conditioning[name])
    assert len(trace.split(8)) == 3
    with pytest.raises(ValueError, match="at least one image"):
        trace.subset([])


def test_tokens_are_the_rows_of_each_linear(trace):
    """Flux by hand: 16 image and 16 text tokens, both in single blocks, one row for adaLN."""
    expected = {
        "transformer_blocks.0.attn.to_q": 16,
        "transformer_blocks.1.ff_context.net.2": 16,
        "single_transformer_blocks.1.proj_out": 32,
        "transformer_blocks.0.norm1.linear": 1,
    }
    assert {name: trace.tokens[name] for name in expected} == expected
    assert list(trace.tokens) and set(trace.tokens) == {layer.name for layer in trace.layers}


def test_no_hook_is_left_behind_even_by_a_failure(tiny_pipe, trace):
    assert hook_count(tiny_pipe.transformer) == 0
    with (
        pytest.raises(RuntimeError, match="stop"),
        tr.layer_inputs(
            tiny_pipe.transformer, [layer.name for layer in quantizable(tiny_pipe.transformer)], stop
        ),
    ):
        assert hook_count(tiny_pipe.transformer) == 40
        tr.velocity(tiny_pipe.transformer, trace, 0)
    with (
        pytest.raises(AttributeError, match="nothing"),
        tr.layer_inputs(tiny_pipe.transformer, ["transformer_blocks.0.attn.to_q", "nothing"], stop),
    ):
        pass
    assert hook_count(tiny_pipe.transformer) == 0


def stop(name, x):
    raise RuntimeError("stop")


def test_fingerprint_knows_the_model_but_not_its_dtype(tiny_pipe, trace):
    assert tr.fingerprint(tiny_pipe.transformer) == trace.model
    assert tr.fingerprint(copy.deepcopy(tiny_pipe.transformer).to(torch.bfloat16)) == trace.model
    assert tr.fingerprint(build_tiny_pipe(seed=1).transformer) != trace.model  # same shapes, other weights


@pytest.mark.parametrize(
    "prompts, options, message",
    [
        ([], {}, "list is empty"),
        (["a star", "  "], {}, "prompt 1 is empty"),
        (["a star", 7], {}, "prompt 1 is 7, it must be a string"),
        (None, {}, "prompt 0 is None, it must be a string"),
        (["a star"], {"num_inference_steps": 0}, "num_inference_steps is 0"),
        (["a star"], {"num_inference_steps": "4"}, "num_inference_steps is '4'"),
        (["a star"], {"num_inference_steps": 4.5}, "num_inference_steps is 4.5"),
        (["a star"], {"batch_size": 0}, "batch_size is 0"),
        (["a star"], {"generator": None}, "generator"),
    ],
)
def test_bad_input_is_named(tiny_pipe, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        tr.record(tiny_pipe, prompts, progress=False, **options)
    assert hook_count(tiny_pipe.transformer) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_transformer_that_answers_nan_is_named(tiny_pipe, value):
    tiny_pipe.transformer.proj_out.bias.data[0] = value
    with pytest.raises(FloatingPointError, match="output at step 0, timestep 1"):
        tr.record(tiny_pipe, PROMPTS[:1], progress=False)
    assert hook_count(tiny_pipe.transformer) == 0


def test_flux_with_true_guidance_has_two_branches(tiny_pipe):
    """Its pipeline calls first with the prompt, then with the negative one: v- + 2 (v+ - v-)."""
    trace = tr.record(
        tiny_pipe, PROMPTS[:2], true_cfg_scale=2.0, negative_prompt=["a ring", "a hat"], progress=False
    )
    assert trace.weights == (2.0, -1.0)
    for t in range(4):
        v = tr.velocity(tiny_pipe.transformer, trace, t, index=[1])
        torch.testing.assert_close(v, trace.velocity[t][[1]], rtol=1e-3, atol=1e-5)


def test_join_refuses_runs_that_do_not_match(tiny_pipe, trace):
    other = tr.record(tiny_pipe, PROMPTS[:1], num_inference_steps=3, progress=False)
    with pytest.raises(ValueError, match="different timesteps"):
        tr.join([trace, other])
