import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipe
from torch import nn

from adatsq import policy as po
from adatsq import trace as tr
from adatsq.models import quantizable

PROMPTS = ["a red circle", "two blue stars"]
LAYERS = [("a", 2, 3, 5), ("b", 4, 1, 10)]


class Noted(nn.Linear):
    """A linear that notes the activation bits it is run with."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.load_state_dict(linear.state_dict())
        self.a_bits, self.seen = 16, []

    def forward(self, x):
        self.seen.append(self.a_bits)
        return super().forward(x)


def with_bits(pipe):
    """Give the pipeline's activation-quantized layers `a_bits`, without any rounding."""
    for layer in quantizable(pipe.transformer):
        if layer.role == "act":
            pipe.transformer.set_submodule(layer.name, Noted(pipe.transformer.get_submodule(layer.name)))
    return pipe


def seen(pipe, layers):
    """Bits (calls, layers) of every call since the last look."""
    modules = [pipe.transformer.get_submodule(layer.name) for layer in layers]
    bits = np.array([module.seen for module in modules]).T
    for module in modules:
        module.seen.clear()
    return bits


@pytest.fixture
def trace(tiny_pipe):
    return tr.record(tiny_pipe, PROMPTS, progress=False)


@pytest.fixture
def random_policy(trace):
    bits = np.random.default_rng(0).choice([3, 4, 8], (4, len(po.act_layers(trace))))
    return po.Policy.of(trace, bits)


def test_averages_by_hand():
    policy = po.Policy([1.0, 0.5], LAYERS, [[3, 4], [8, 2]], "m")
    assert policy.average == (3 + 4 + 8 + 2) / 4
    assert policy.parameter_weighted == pytest.approx((6 * (3 + 8) + 4 * (4 + 2)) / (2 * (6 + 4)))
    assert policy.flop_weighted == pytest.approx((30 * (3 + 8) + 40 * (4 + 2)) / (2 * (30 + 40)))
    uniform = po.Policy([1.0, 0.5], LAYERS, np.full((2, 2), 5), "m")
    assert uniform.average == uniform.parameter_weighted == uniform.flop_weighted == 5


def test_a_policy_covers_the_activation_layers(trace):
    policy = po.Policy.of(trace, 4)
    names = [layer.name for layer in policy.layers]
    assert names == [layer.name for layer in quantizable_act(trace)]
    assert (
        len(names) == 34
    )  # 2 x 12 linears in double blocks, 2 x 5 in single ones; adaLN keeps its activations
    assert policy.table().shape == (4, 34) and policy.table().index.name == "timestep"


def quantizable_act(trace):
    return [layer for layer in trace.layers if layer.role == "act"]


def test_json_round_trip(random_policy, tmp_path):
    path = random_policy.save(tmp_path / "new" / "policy.json")
    loaded = po.Policy.load(path)
    assert (loaded.bits == random_policy.bits).all() and loaded.bits.dtype == np.int64
    for name in ("timesteps", "layers", "model", "branches", "latents"):
        assert getattr(loaded, name) == getattr(random_policy, name)
    assert loaded.latents == (16, 16)  # 4 x 4 tokens of 2 x 2 x 4 values
    assert [file.name for file in path.parent.iterdir()] == ["policy.json"]  # no temporary file stays


def test_a_file_without_branches_is_read_as_it_is(random_policy, tmp_path):
    assert random_policy.branches == 1
    assert po.Policy.load(random_policy.save(tmp_path / "policy.json")).branches == 1
    old = po.Policy(random_policy.timesteps, LAYERS, np.full((4, 2), 3), "m")
    assert "branches" not in old.to_dict()
    assert po.Policy.from_dict(old.to_dict()).branches is None
    stored = sorted((Path(__file__).parents[1] / "data" / "results").glob("*-policy-*.json"))
    assert stored and all(po.Policy.load(file).bits.size for file in stored)


def test_a_failing_save_leaves_the_old_file(random_policy, tmp_path, monkeypatch):
    path = random_policy.save(tmp_path / "policy.json")
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adatsq.files.os.replace", full)
    with pytest.raises(OSError, match=f"could not write {path}, nothing was changed: .*No space"):
        random_policy.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="could not write .*policy.json/below.json"):
        random_policy.save(path / "below.json")  # where a folder would have to be, there is a file
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_files_that_are_not_the_policy_are_refused(random_policy, tmp_path):
    path = random_policy.save(tmp_path / "policy.json")
    content = json.loads(path.read_text())
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        po.Policy.load(tmp_path / "nowhere.json")
    edits = {
        "edited after it was saved": {**content, "bits": np.full_like(content["bits"], 2).tolist()},
        "format_version 2": {**content, "format_version": 2},
        "is not a policy": {"bits": content["bits"]},
    }
    for message, edited in edits.items():
        path.write_text(json.dumps(edited))
        with pytest.raises(ValueError, match=message):
            po.Policy.load(path)
    path.write_text(json.dumps(content)[:-50])
    with pytest.raises(ValueError, match="damaged"):
        po.Policy.load(path)


@pytest.mark.parametrize("bits", [1, 0, 9, 15, 17, -4, 3.5])
def test_bits_off_the_grid_are_refused(bits):
    with pytest.raises(ValueError, match=f"^{bits} activation bits"):
        po.Policy([1.0, 0.5], LAYERS, [[3, bits], [4, 4]], "m")


def test_shapes_and_timesteps_are_checked():
    with pytest.raises(ValueError, match=r"\(1, 2\).*\(2, 2\)"):
        po.Policy([1.0, 0.5], LAYERS, [[3, 3]], "m")
    with pytest.raises(ValueError, match="rise or fall"):
        po.Policy([1.0, 0.5, 0.7], LAYERS, [[3, 3]] * 3, "m")


def test_the_pipeline_follows_the_policy(tiny_pipe, trace, random_policy):
    pipe = with_bits(tiny_pipe)
    before = pipe(PROMPTS, output_type="np", generator=generators(), **trace.settings).images
    seen(pipe, random_policy.layers)
    applied = po.apply(pipe, random_policy)
    for prompts in (PROMPTS, PROMPTS[:1]):  # run after run, whatever the batch
        after = pipe(prompts, output_type="np", generator=generators(len(prompts)), **trace.settings).images
        assert (seen(pipe, random_policy.layers) == random_policy.bits).all()
        np.testing.assert_allclose(after, before[: len(prompts)], atol=1e-4)
    assert pipe.transformer._adatsq_policy is random_policy
    applied.remove()
    applied.remove()
    assert not hasattr(pipe.transformer, "_adatsq_policy")
    assert not pipe.transformer._forward_pre_hooks
    pipe(PROMPTS, output_type="np", **trace.settings)
    assert (seen(pipe, random_policy.layers) == 16).all()


def generators(n=2):
    return [torch.Generator().manual_seed(i) for i in range(n)]


def test_a_second_policy_replaces_the_first(tiny_pipe, trace, random_policy):
    pipe = with_bits(tiny_pipe)
    first = po.apply(pipe, random_policy)
    second = po.apply(pipe, po.Policy.of(trace, 5))
    pipe(PROMPTS, output_type="np", **trace.settings)
    assert (seen(pipe, random_policy.layers) == 5).all()
    first.remove()  # no longer there: must not take the second one off
    assert pipe.transformer._adatsq_policy.average == 5
    second.remove()
    pipe(PROMPTS, output_type="np", **trace.settings)
    assert (seen(pipe, random_policy.layers) == 16).all()


def test_two_calls_per_step_share_a_row(tiny_pipe, trace, random_policy):
    pipe = with_bits(tiny_pipe)
    po.apply(pipe, random_policy)
    pipe(PROMPTS, negative_prompt=["x", "y"], true_cfg_scale=2.0, output_type="np", **trace.settings)
    assert (seen(pipe, random_policy.layers) == random_policy.bits.repeat(2, axis=0)).all()


def test_a_run_may_start_anew_after_an_interruption(tiny_pipe, trace, random_policy):
    pipe = with_bits(tiny_pipe)
    po.apply(pipe, random_policy)

    def interrupt(pipe, i, t, state):
        if i == 1:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        pipe(PROMPTS, callback_on_step_end=interrupt, **trace.settings)
    seen(pipe, random_policy.layers)
    pipe(PROMPTS, output_type="np", **trace.settings)
    assert (seen(pipe, random_policy.layers) == random_policy.bits).all()


@pytest.mark.parametrize("steps", [4, 50])
def test_a_policy_searched_in_float32_serves_bfloat16(tiny_pipe, steps):
    trace = tr.record(tiny_pipe, PROMPTS[:1], num_inference_steps=steps, progress=False)
    layers = po.act_layers(trace)
    policy = po.Policy.of(trace, np.random.default_rng(0).choice([3, 4, 8], (steps, len(layers))))
    pipe = with_bits(tiny_pipe)
    pipe.to(torch.bfloat16)
    po.apply(pipe, policy)
    pipe(PROMPTS[:1], output_type="np", **trace.settings)
    assert (seen(pipe, layers) == policy.bits).all()


@pytest.mark.parametrize("steps", [1, 3, 5, 8])
def test_another_step_count_is_refused_at_once(tiny_pipe, trace, random_policy, steps):
    pipe = with_bits(tiny_pipe)
    po.apply(pipe, random_policy)
    with pytest.raises(ValueError, match=f"^this policy is for 4 steps, the pipeline is set to {steps}: "):
        pipe(PROMPTS, **{**trace.settings, "num_inference_steps": steps})
    assert seen(pipe, random_policy.layers).size == 0
    pipe(PROMPTS, output_type="np", **trace.settings)  # the right count is still welcome
    assert (seen(pipe, random_policy.layers) == random_policy.bits).all()


def test_other_timesteps_are_refused(tiny_pipe, trace, random_policy):
    pipe = with_bits(tiny_pipe)
    po.apply(pipe, random_policy)
    with pytest.raises(ValueError, match="timestep 0.3.* where 0.82.* was due"):
        pipe(PROMPTS, sigmas=[1.0, 0.25, 0.2, 0.1], **trace.settings)
    with pytest.raises(ValueError, match="is at timestep .* where 1 was due"):
        pipe(PROMPTS, sigmas=[0.75, 0.5, 0.25, 0.1], **trace.settings)


@pytest.mark.parametrize("off, refused", [(0.005, False), (0.03, True)])
def test_as_many_steps_at_other_timesteps_are_refused(tiny_pipe, trace, random_policy, off, refused):
    """Each of them is nearest to its own step's place."""
    pipe = with_bits(tiny_pipe)
    po.apply(pipe, random_policy)
    with torch.no_grad():
        pipe.transformer(**trace.call(0))
        call = trace.call(1)
        call["timestep"] = call["timestep"] - off
        if refused:
            with pytest.raises(ValueError, match="is at timestep .* was due"):
                pipe.transformer(**call)
        else:
            pipe.transformer(**call)
            assert (seen(pipe, random_policy.layers)[-1] == random_policy.bits[1]).all()


def test_another_model_is_refused(trace, random_policy):
    with pytest.raises(ValueError, match="made for FluxTransformer2DModel-.*, the pipeline holds Flux"):
        po.apply(with_bits(build_tiny_pipe(seed=1)), random_policy)


def test_an_unquantized_pipeline_is_refused(tiny_pipe, random_policy):
    with pytest.raises(
        ValueError, match="34 of the policy's 34 layers are not quantized, such as transformer_bl"
    ):
        po.apply(tiny_pipe, random_policy)
    assert not tiny_pipe.transformer._forward_pre_hooks


def test_a_copied_pipeline_follows_its_own_policy(tiny_pipe, trace, random_policy):
    pipe = with_bits(tiny_pipe)
    po.apply(pipe, random_policy)
    twin = copy.deepcopy(pipe.transformer)
    pipe.transformer._adatsq_applied.remove()
    with torch.no_grad():
        twin(**trace.call(0))
    assert [twin.get_submodule(layer.name).a_bits for layer in random_policy.layers] == random_policy.bits[
        0
    ].tolist()
    assert {pipe.transformer.get_submodule(layer.name).a_bits for layer in random_policy.layers} == {16}
