"""Settings that a pipeline would round, refuse or take in another sense, named before it does anything."""

import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from conftest import build_tiny_pipe
from families import zimage

from adatsq import recipes
from adatsq.evaluate import generate
from adatsq.policy import Policy, apply
from adatsq.settings import _size_step, _vae_factor, call_settings
from adatsq.trace import record

PROMPTS = ["a red circle"]
TRUE_CFG = {"true_cfg_scale": 2.0, "negative_prompt": ["a ring"]}
BAD = [
    ("flux", {"height": 20}, "height is 20, .*FluxPipeline .* multiple of 8: the nearest are 16 and 24"),
    ("flux", {"width": 4}, "width is 4, .*multiple of 8: the least is 8$"),
    ("flux", {"width": 32.0}, "width is 32.0, it must be a whole number: give width=32$"),
    ("flux", {"height": "32"}, "height is '32'"),
    ("zimage", {"width": 30}, "width is 30, .*multiple of 8: the nearest are 24 and 32"),
    ("wan", {"height": 40}, "height is 40, .*WanPipeline .*multiple of 16: the nearest are 32 and 48"),
    ("wan", {"num_frames": 16}, r"num_frames is 16, .* 4 k \+ 1: the nearest are 13 and 17"),
    ("wan", {"num_frames": 0}, r"num_frames is 0, .* 4 k \+ 1"),
    ("wan", {"num_frames": 5.5}, "num_frames is 5.5, .* 5 and 9"),
    ("wan", {"guidance_scale": 1.0}, "1.0 switches guidance off, so that one .* at 4.5, this model's own"),
    ("zimage", {"guidance_scale": 3.0}, "3.0 switches guidance on, so that two .* at 0.0, this model's own"),
    ("zimage-guided", {"guidance_scale": 0}, "switches guidance off"),
    ("wan", {"num_inference_steps": 0}, "num_inference_steps is 0"),
    ("wan", {"num_inference_steps": True}, "num_inference_steps is True"),
    ("wan", {"num_frames": True}, r"num_frames is True, .* 4 k \+ 1"),
    ("wan", {"height": math.inf}, "height is inf"),
    ("wan", {"guidance_scale": None}, "guidance_scale is None, it must be a finite number"),
    ("zimage", {"guidance_scale": "5"}, "guidance_scale is '5'"),
    ("flux", {"guidance_scale": math.nan}, "guidance_scale is nan"),
    ("flux", {"true_cfg_scale": math.inf}, "true_cfg_scale is inf"),
    ("zimage", {"height": 136}, "height is 136, ZImage.* no positions for more than 128: give height=128"),
    ("wan", {"width": 528}, "width is 528, WanTransformer3DModel has no positions for more than 512"),
    ("wan", {"num_frames": 129}, "num_frames is 129, .* no positions for more than 125"),
    ("wan", {"hight": 32}, "WanPipeline takes no hight"),
]


@pytest.mark.parametrize("family, call, message", BAD)
def test_bad_settings_are_named_before_any_work(family_pipe, call, message, monkeypatch):
    monkeypatch.setattr(type(family_pipe), "encode_prompt", None)  # nothing may even read the prompt
    with pytest.raises(ValueError, match=message):
        record(family_pipe, PROMPTS, progress=False, **call)
    with pytest.raises(ValueError, match=message):
        generate(family_pipe, PROMPTS, [0], progress=False, **call)


@pytest.mark.parametrize(
    "family, call",
    [
        ("flux", {"height": 40, "width": 8, "guidance_scale": 0.0}),  # guidance is an input of Flux-dev
        ("schnell", {"guidance_scale": 3.5}),
        ("wan", {"num_frames": 1, "height": 16, "guidance_scale": 1.5}),
        ("zimage-guided", {"guidance_scale": 0.5, "height": 8}),
    ],
)
def test_what_the_check_lets_through_the_pipeline_takes_as_it_is(family_pipe, call):
    """Its own sizes come out; and what the check knows of guidance is left as it was."""
    image = generate(family_pipe, PROMPTS, [0], progress=False, num_inference_steps=1, **call)
    settings = call_settings(family_pipe, call)
    assert image.shape[-3:] == (settings["height"], settings["width"], 3)
    assert image.shape[1:-3] == ((call["num_frames"],) if "num_frames" in call else ())
    assert settings["guidance_scale"] == call["guidance_scale"]


def test_guidance_is_only_warned_of_where_the_model_has_no_setting_of_its_own():
    """ZImagePipeline's default suits Z-Image; Z-Image-Turbo is called with 0, and has no setting but that."""
    pipe = zimage()
    with pytest.warns(UserWarning, match="0.0 switches guidance off.* at 5.0, ZImagePipeline's own"):
        call_settings(pipe, {"guidance_scale": 0.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call_settings(pipe, {"guidance_scale": 2.0})


@pytest.mark.parametrize("family", ["wan", "schnell"])
def test_steps_of_another_policy_are_named_before_any_work(family_pipe, monkeypatch):
    trace = record(family_pipe, PROMPTS, num_inference_steps=2, progress=False)
    recipes.quantize(family_pipe, w_bits=8, a_bits=8, solver="rtn")
    apply(family_pipe, Policy.of(trace, 4))
    assert generate(family_pipe, PROMPTS, [0], progress=False, num_inference_steps=2).any()
    called = []
    family_pipe.transformer.register_forward_hook(lambda *_: called.append(1))
    generators = [torch.Generator().manual_seed(0)]
    with pytest.raises(ValueError, match="policy is for 2 steps, the pipeline is set to 3"):
        family_pipe(PROMPTS, generator=generators, **{**trace.settings, "num_inference_steps": 3})
    assert not called  # a pipeline called by hand is stopped at its first transformer call
    monkeypatch.setattr(type(family_pipe), "encode_prompt", None)
    with pytest.raises(ValueError, match="policy is for 2 steps, the pipeline is set to 4"):
        generate(family_pipe, PROMPTS, [0], progress=False)


@pytest.mark.parametrize(
    "family, call",
    [("zimage", {"height": 128, "width": 8}), ("wan", {"num_frames": 125, "height": 16, "width": 16})],
)
def test_the_largest_size_is_taken_and_the_next_one_fails_without_the_check(family_pipe, call):
    images = generate(family_pipe, PROMPTS, [0], progress=False, num_inference_steps=1, **call)
    assert images.shape[1 if family_pipe.__class__ is diffusers.WanPipeline else -3] in call.values()
    name = next(iter(call))
    beyond = {**call_settings(family_pipe, call), name: call[name] + (8 if name == "height" else 4)}
    with pytest.raises((IndexError, RuntimeError)):
        family_pipe(PROMPTS, **{**beyond, "num_inference_steps": 1})


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("family, size", [("zimage", {"height": 16}), ("wan", {"num_frames": 12})])
def test_size_of_a_pipeline_called_by_hand_is_checked(family_pipe, size, known):
    """Wan rounds its frames, and says so nowhere but in its log; a policy that knows no size takes any."""
    trace = record(family_pipe, PROMPTS, num_inference_steps=2, progress=False)
    assert {**trace.settings, **size} != trace.settings
    recipes.quantize(family_pipe, w_bits=8, a_bits=8, solver="rtn")
    policy = Policy.of(trace, 4)
    apply(family_pipe, policy if known else replace(policy, latents=None))
    if known:
        with pytest.raises(
            ValueError, match=r"for latents of shape \(.*\), the pipeline is at .*search a pol"
        ):
            family_pipe(list(PROMPTS), output_type="np", **{**trace.settings, **size})
    else:
        family_pipe(list(PROMPTS), output_type="np", **{**trace.settings, **size})
    family_pipe(list(PROMPTS), output_type="np", **trace.settings)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("family, scale", [("zimage", 5.0), ("wan", 1.0), ("zimage-guided", 0.0)])
def test_guidance_of_a_pipeline_called_by_hand_is_checked(family_pipe, scale, known):
    """At the first transformer call, whether the policy knows its branches or the model's own settings do."""
    trace = record(family_pipe, PROMPTS, num_inference_steps=2, progress=False)
    recipes.quantize(family_pipe, w_bits=8, a_bits=8, solver="rtn")
    policy = Policy.of(trace, np.repeat([[4], [6]], len(Policy.of(trace, 4).layers), axis=1))
    assert policy.branches == trace.branches
    if not known:
        policy = Policy(policy.timesteps, policy.layers, policy.bits, policy.model)
    apply(family_pipe, policy)
    layer, bits = family_pipe.transformer.get_submodule(policy.layers[0].name), []
    family_pipe.transformer.register_forward_hook(lambda *_: bits.append(layer.a_bits))
    for _ in range(2):
        family_pipe(list(PROMPTS), output_type="np", **trace.settings)
        assert [4, 6] == sorted(set(bits)) and bits == sorted(bits)
        bits.clear()
        with pytest.raises(ValueError, match="this policy is for runs with.*the pipeline is called with"):
            family_pipe(list(PROMPTS), **{**trace.settings, "guidance_scale": scale})
        assert not bits


def test_a_policy_of_a_model_without_settings_of_its_own_knows_its_guidance():
    """As Z-Image-Turbo from the hub, called with 0 where its pipeline's default is 5."""
    pipe = zimage()
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 32, "width": 32, "num_inference_steps": 1, "max_sequence_length": 64}
    with pytest.warns(UserWarning, match="switches guidance off"):
        trace = record(pipe, PROMPTS, progress=False, guidance_scale=0.0, **size)
    recipes.quantize(pipe, w_bits=8, a_bits=8, solver="rtn")
    apply(pipe, Policy.of(trace, 4))
    with pytest.raises(ValueError, match="without guidance .* is called with guidance"):
        pipe(list(PROMPTS), **size)
    with pytest.raises(
        ValueError, match="5.0 switches guidance on.*applied policy was searched on it is off"
    ):
        generate(pipe, PROMPTS, [0], progress=False, **size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call_settings(pipe, trace.settings)["guidance_scale"] == 0.0


def test_a_second_branch_by_true_cfg_is_noticed(tiny_pipe):
    own = {"num_inference_steps": 1}
    with pytest.warns(UserWarning, match="true_cfg_scale 2.0 with a neg.* guidance on.*this model's own set"):
        trace = record(tiny_pipe, PROMPTS, progress=False, **own, **TRUE_CFG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = record(
            tiny_pipe, PROMPTS, progress=False, **own, true_cfg_scale=2.0
        )  # nothing to guide from
    assert (trace.branches, single.branches) == (2, 1)
    recipes.quantize(tiny_pipe, w_bits=8, a_bits=8, solver="rtn")
    with pytest.raises(ValueError, match="guidance on.* say it in its sampling.json"):
        generate(tiny_pipe, PROMPTS, [0], progress=False, **own, **TRUE_CFG)
    apply(tiny_pipe, Policy.of(single, 4))
    with pytest.raises(ValueError, match="guidance on.*applied policy was searched on it is off"):
        generate(tiny_pipe, PROMPTS, [0], progress=False, **own, **TRUE_CFG)
    apply(tiny_pipe, Policy.of(trace, 4))
    assert generate(tiny_pipe, PROMPTS, [0], progress=False, **own, **TRUE_CFG).any()
    with pytest.raises(ValueError, match="true_cfg_scale 1.0 without a neg.* guidance off.*on it is on"):
        generate(tiny_pipe, PROMPTS, [0], progress=False, **own)


def test_true_cfg_with_embeddings_instead_of_a_prompt_counts():
    pipe = build_tiny_pipe()
    with pytest.warns(UserWarning, match="with a negative prompt .*FluxPipeline's own settings it is off"):
        call_settings(pipe, {"true_cfg_scale": 3, "negative_prompt_embeds": torch.zeros(1, 16, 32)})


def test_numbers_of_other_types_are_numbers(tiny_pipe):
    assert call_settings(tiny_pipe, {"guidance_scale": np.float32(3), "height": np.int64(32)})


@pytest.mark.parametrize("name, sizes", [("LTXPipeline", (32, 8)), ("MochiPipeline", (16, 6))])
def test_other_spellings_of_the_autoencoders_factors(name, sizes):
    """Built without weights: their defaults are those of the real models."""
    parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "transformer"))
    pipe = getattr(diffusers, name)(**parts)
    pipe.transformer = SimpleNamespace(config={"patch_size": 1 if name == "LTXPipeline" else 2})
    assert (_size_step(pipe), _vae_factor(pipe, "temporal")) == sizes
