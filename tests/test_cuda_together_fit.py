"""Linears that cannot share a product are called one by one, and answer what they always did."""

import pytest
import torch
from accelerate import cpu_offload
from test_cuda_linear import layer
from test_cuda_together import OUTPUTS, Block, bf16, equal
from torch import nn

from adatsq.cuda import devices
from adatsq.cuda.devices import Abilities
from adatsq.cuda.linear import PackedLinear
from adatsq.scheme import Scheme


def replaced(block, n, **options):
    scheme = {"rotation": True, "a_clip": True, **options.pop("scheme", {})}
    w_bits = options.pop("w_bits", 4)
    block.layers[n] = PackedLinear(layer(Scheme(w_bits, 4, **scheme), 64, OUTPUTS[n], **options))


def group_offloaded(block):
    from diffusers.hooks import apply_group_offloading

    cpu = torch.device("cpu")
    apply_group_offloading(block, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.layers[2].register_forward_hook(lambda *args: None),
        lambda block: block.layers[2].register_forward_pre_hook(lambda *args: None),
        lambda block: cpu_offload(block, "cpu", offload_buffers=True),
        group_offloaded,
        lambda block: replaced(block, 1, w_bits=3),
        lambda block: replaced(block, 1, bias=False),
        lambda block: replaced(block, 3, scheme={"rank": 4}),
        lambda block: replaced(block, 3, scheme={"asymmetric": True}),
        lambda block: replaced(block, 3, scheme={"a_clip": 0.9}),
        lambda block: replaced(block, 3, scheme={"a_clip": 1.0}),  # which is no True
        lambda block: replaced(block, 0, scheme={"seed": 3}),
        lambda block: replaced(block, 0, scheme={"rotation": False}),
        lambda block: replaced(block, 0, smoothing=torch.rand(64) + 0.5),
        lambda block: setattr(block.layers[1], "fast_accumulation", True),
        lambda block: block.layers.__setitem__(1, nn.Linear(64, 64)),
        lambda block: setattr(block.layers[1], "bias", block.layers[1].bias.to(bf16)),
    ],
    ids=[
        "hook",
        "hook before",
        "offloaded",
        "offloaded by diffusers",
        "other weight bits",
        "no bias",
        "low rank",
        "asymmetric",
        "other clipping",
        "no clipping",
        "other rotation",
        "no rotation",
        "smoothing",
        "fast sums",
        "not packed",
        "bias of another dtype",
    ],
)
def test_layers_that_differ_are_called_one_by_one(change, calls):
    block, x = Block(), torch.randn(5, 64)
    change(block)
    assert equal(block(x), block.apart(x)) and not calls


def test_odd_outputs_are_products_of_their_own(calls, monkeypatch):
    monkeypatch.setattr(devices, "abilities", lambda device: Abilities(False, True))
    block, x = Block(outputs=(20, 32, 7, 48)), torch.randn(5, 64).bfloat16()  # with biases in float32
    assert equal(block(x), block.apart(x)) and not calls


def test_a_gradient_is_that_of_each_layer(calls):
    block, found = Block(), []
    block.set_bits(16, 4, 16, 16)
    x = torch.randn(5, 64)
    for answers in (block, block.apart):
        given = x.clone().requires_grad_()
        first, _, *others = answers(given)
        torch.cat([first, *others], dim=-1).square().sum().backward()
        found.append(given.grad)
    assert torch.equal(*found) and found[0].any() and not calls
    with torch.no_grad():
        block(given)
    assert calls


def test_odd_inputs_are_products_of_their_own(calls):
    block = Block(inputs=36)
    x = torch.randn(5, 36)
    assert equal(block(x), block.apart(x)) and not calls
    with pytest.raises(ValueError, match="linear 0 has 36 inputs, not 64"):
        block(torch.randn(5, 64))
