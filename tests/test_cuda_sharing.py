"""Layers that read the same activations round them once, and never take what another tensor left."""

import pytest
import torch
from test_cuda_linear import Attention

import adatsq
from adatsq import roofline, step_cost
from adatsq.cuda import activations, full_size_models, sharing, steps
from adatsq.cuda.linear import PackedLinear


@pytest.fixture
def rounded(monkeypatch):
    """Tokens of each rounding, in order."""
    seen, right = [], activations.quantize

    def quantize(x, *others):
        seen.append(x.clone())
        return right(x, *others)

    monkeypatch.setattr(activations, "quantize", quantize)
    sharing.forget()
    yield seen
    sharing.forget()


@pytest.fixture
def attention():
    torch.manual_seed(0)
    found = Attention(0)
    sharing.assign(found, PackedLinear)
    return found


def test_queries_keys_and_values_are_of_one_rounding(attention, rounded):
    x = torch.randn(2, 5, 64)
    expected = [getattr(attention, part)(x.clone()) for part in ("to_q", "to_k", "to_v")]
    rounded.clear()
    found = [getattr(attention, part)(x) for part in ("to_q", "to_k", "to_v")]
    assert len(rounded) == 1 and all(map(torch.equal, found, expected))


def test_other_bits_or_another_tensor_are_rounded_anew(attention, rounded):
    x = torch.randn(3, 64)
    attention.to_k.a_bits = 8
    for part in ("to_q", "to_k", "to_v"):
        getattr(attention, part)(x)
    assert len(rounded) == 3
    attention.to_k.a_bits = 4
    attention.to_q(x)
    attention.to_k(text := torch.randn(3, 64))  # as in cross-attention
    attention.to_v(text)
    assert len(rounded) == 5


@pytest.mark.parametrize("version", ["seen", "unseen"])
def test_memory_that_is_used_again_is_rounded_anew(version, attention, rounded):
    """As torch.compile does it: other numbers at the same address, of which no version tells."""
    x, other = torch.randn(3, 64), torch.randn(3, 64)

    def write(values):
        if version == "seen":
            x.copy_(values)
        else:
            with torch.autograd._unsafe_preserve_version_counter(x):
                x.copy_(values)

    for order in (("to_q", "to_k", "to_v"), ("to_v", "to_k", "to_q"), ("to_k", "to_q", "to_v")):
        for values in (other, x.clone()):
            for part in (*order, "to_out"):
                found = getattr(attention, part)(x)
                assert torch.equal(found, getattr(attention, part)(x.clone())), (order, part)
            write(values)
    q = attention.to_q(x)
    write(x + 1)
    assert not torch.equal(attention.to_q(x), q)  # a second run of the block
    attention.to_q(x)
    attention.to_out(x)
    write(x + 1)
    assert torch.equal(attention.to_k(x), attention.to_k(x.clone()))


@pytest.mark.parametrize("model", full_size_models.MODELS)
def test_a_transformer_answers_the_same_with_fewer_roundings(model, rounded, monkeypatch):
    pipe = full_size_models.build(model, "cpu", tiny=True)
    adatsq.accelerate(adatsq.quantize(pipe, solver="rtn", w_bits=3), verbose=False)
    arguments = steps.inputs(model, pipe.transformer, torch.device("cpu"), tiny=True)
    counted = step_cost.count(full_size_models.build(model, "cpu", tiny=True).transformer, arguments)
    linears = counted[counted["kind"] == roofline.BLOCK]
    rounded.clear()
    found = steps.answer(pipe.transformer, arguments)
    assert len(rounded) == roofline.rounds(linears).sum()
    layers = [m for m in pipe.transformer.modules() if isinstance(m, PackedLinear) and m.a_bits < 16]
    shared = {m.group[0] for m in layers if m.group[0] != sharing.ALONE}
    grouped = sum(m.group[0] != sharing.ALONE for m in layers)
    # cross-attention has two inputs: Wan rounds the picture's and the text's
    crossing = sum(name.endswith("attn2") for name, _ in pipe.transformer.named_modules())
    assert len(rounded) == len(layers) - grouped + len(shared) + crossing
    monkeypatch.setattr(sharing, "take", lambda *_: None)
    assert torch.equal(steps.answer(pipe.transformer, arguments), found)
