"""Settings that a pipeline would round, refuse or take in another sense, named before it does anything."""

import warnings

import pytest
import torch
from families import zimage

from adatsq import recipes
from adatsq.evaluate import generate
from adatsq.policy import Policy, apply
from adatsq.settings import call_settings
from adatsq.trace import record

PROMPTS = ["a red circle"]
BAD = [
    ("flux", {"height": 20}, "height is 20, .*FluxPipeline .* multiple of 8: the nearest are 16 and 24"),
    ("flux", {"width": 4}, "width is 4, .*the nearest are 8$"),
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
