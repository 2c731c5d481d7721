"""Facts of a quantized pipeline against counts of another kind."""

import re
import weakref
from pathlib import Path

import pytest
import torch

from adatsq import facts, policy
from adatsq.baselines import METHODS
from adatsq.linear import QuantLinear
from adatsq.models import load_pipeline
from adatsq.recipes import hadamard
from adatsq.trace import record, velocity


@pytest.fixture
def trace(tiny_pipe):
    prompts = ["a red circle", "two blue squares"]
    return record(tiny_pipe, prompts, num_inference_steps=2, progress=False)


def multiplications(pipe, trace, monkeypatch) -> float:
    """Bits x multiplications of one call, over multiplications of a full-precision one, as they are made."""
    seen = {"bits": 0, "whole": 0}
    linear = torch.nn.functional.linear

    def counted(x, weight, bias=None):
        n = x[..., 0].numel() * weight.numel()
        layer = running[-1] if running else None
        if layer is not None and weight.shape == layer.codes.shape:
            seen["bits"] += layer.a_bits * n
            seen["whole"] += n
        elif layer is not None:  # the branch
            seen["bits"] += 16 * n
        return linear(x, weight, bias)

    running = []
    names = [layer.name for layer in trace.layers if layer.role == "act"]
    for name in names:
        layer = pipe.transformer.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        layer.register_forward_pre_hook(lambda module, _: running.append(module))
        layer.register_forward_hook(lambda *_: running.clear())
    monkeypatch.setattr("adatsq.linear.F.linear", counted)
    with torch.no_grad():
        velocity(pipe.transformer, trace, 0)
    monkeypatch.undo()
    return seen["bits"] / seen["whole"]


@pytest.mark.parametrize("method", ["vidit-q", "vidit-q+mixed", "svdquant"])
def test_bits_by_multiplications_as_they_are_made(method, tiny_pipe, trace, monkeypatch):
    METHODS[method](tiny_pipe, trace, 3, 4, progress=False)
    for name in trace.tokens:  # a rank at which down and up cannot be taken for the weight
        layer = tiny_pipe.transformer.get_submodule(name)
        if layer.down is not None:
            layer.down, layer.up = layer.down[:8], layer.up[:, :8]
    found = facts.activation_bits(tiny_pipe, trace)
    counted = multiplications(tiny_pipe, trace, monkeypatch)
    assert found["flop_weighted_bits"] == pytest.approx(counted, rel=1e-9)
    assert {"vidit-q": counted == 4, "vidit-q+mixed": 4 < counted < 8, "svdquant": counted > 4}[method]
    assert (found["average_bits"] == 4) == (method != "vidit-q+mixed")


def test_fixed_bits_agree_with_a_policy_of_the_same(tiny_pipe, trace):
    hadamard(tiny_pipe, trace, 4, 3, progress=False)
    same = policy.Policy.of(trace, 3)
    assert facts.activation_bits(tiny_pipe, trace) == {
        "average_bits": same.average,
        "flop_weighted_bits": same.flop_weighted,
    }


def test_a_policys_bits_count_the_branch_too(tiny_pipe, trace, monkeypatch):
    """Each step's bits as they are counted while it runs; their mean is that of the policy."""
    METHODS["svdquant"](tiny_pipe, trace, 4, 4, progress=False)
    layers = [tiny_pipe.transformer.get_submodule(layer.name) for layer in policy.act_layers(trace)]
    for layer in layers:
        layer.down, layer.up = layer.down[:8], layer.up[:, :8]
    bits = torch.tensor([3, 4, 8])[torch.randint(3, (2, len(layers)), generator=torch.manual_seed(0))]
    counted = []
    for row in bits.tolist():
        for layer, a_bits in zip(layers, row):
            layer.a_bits = a_bits
        counted.append(multiplications(tiny_pipe, trace, monkeypatch))
    applied = policy.Policy.of(trace, bits.numpy())
    found = facts.activation_bits(tiny_pipe, trace, applied)
    assert found["flop_weighted_bits"] == pytest.approx(sum(counted) / 2, rel=1e-9)
    assert found["average_bits"] == pytest.approx(applied.average)
    assert found["flop_weighted_bits"] > applied.flop_weighted


def test_calls_are_counted_in_rows_and_in_copies_too(family_pipe, family):
    trace = record(family_pipe, ["a red circle", "two blue squares"], seed=0, progress=False)
    branches = 2 if family in ("zimage-guided", "wan") else 1
    with facts.counted_calls(family_pipe.transformer) as calls, torch.no_grad():
        velocity(family_pipe.transformer, trace, 0)
        velocity(family_pipe.transformer, trace, 1, index=[1])
    assert calls.rows == 3 * branches
    with facts.counted_calls(family_pipe.transformer) as calls:
        METHODS["vidit-q+mixed"](family_pipe, trace, 4, 4, progress=False)  # tries layers in a copy
    steps, layers = len(trace.timesteps), len(policy.act_layers(trace))
    assert calls.rows == branches * steps * (2 + layers + 2)
    with torch.no_grad():
        velocity(family_pipe.transformer, trace, 0)
    assert calls.rows == branches * steps * (2 + layers + 2)


def test_memory_of_a_cpu_is_that_of_the_process_and_called_so():
    with facts.peak_memory("cpu", "search") as peak:
        pass
    assert set(peak) == {"search_process_bytes"}  # no peak of tensors is claimed
    status = Path("/proc/self/status")
    if status.exists():  # Linux says the same elsewhere, in KiB
        high = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
        assert peak["search_process_bytes"] == pytest.approx(high, rel=0.02)


def test_memory_of_a_gpu_is_not_that_of_models_before(tiny_folder, monkeypatch):
    """A quantized transformer is one of a circle of references, and there until it is collected."""
    gone = weakref.ref(hadamard(load_pipeline(tiny_folder), None, 3, 4, progress=False).transformer)
    assert gone() is not None
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1)
    seen = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: seen.append(gone()))
    with facts.peak_memory("cuda", "search") as peak:
        pass
    assert seen == [None] and peak == {"search_peak_bytes": 1}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_of_a_gpu_is_that_of_tensors_at_their_most():
    with facts.peak_memory("cuda", "search") as peak:
        large = torch.ones(2**24, device="cuda")
        held = torch.cuda.memory_allocated()
        del large
    assert set(peak) == {"search_peak_bytes"} and peak["search_peak_bytes"] >= held >= 2**26
