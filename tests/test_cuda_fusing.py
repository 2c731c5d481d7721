"""Modules that leave their activation function to a rounding answer as before, in every way of running."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention import FeedForward
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import adatsq
from adatsq.call import layer_inputs
from adatsq.cuda import activations, full_size_models, fusing, steps
from adatsq.cuda.linear import PackedLinear
from adatsq.cuda.prologue import NONE
from adatsq.scheme import Scheme, quantized

# Feed-forwards (two in a double block of Flux) and single blocks of the tiny models.
BLOCKS = {"flux-dev": "single_transformer_blocks", "z-image": "layers", "wan2.1-1.3b": "blocks"}


def built(model, **options):
    pipe = full_size_models.build(model, "cpu", tiny=True)
    adatsq.quantize(pipe, solver="rtn", w_bits=4, a_bits=4, **options)
    return adatsq.accelerate(pipe, verbose=False, fuse=False).transformer


@pytest.fixture
def prologues(monkeypatch):
    """Of each rounding, in order."""
    seen, right = [], activations.quantize

    def quantize(*args):
        seen.append(args[-1])
        return right(*args)

    monkeypatch.setattr(activations, "quantize", quantize)
    return seen


@pytest.mark.parametrize("model", full_size_models.MODELS)
def test_a_transformer_answers_the_same(model, prologues):
    transformer = built(model)
    arguments = steps.inputs(model, transformer, torch.device("cpu"), tiny=True)
    layers = [name for name, m in transformer.named_modules() if isinstance(m, PackedLinear)]
    read, names = {}, list(transformer.state_dict())
    with layer_inputs(transformer, layers, read.__setitem__):
        expected = steps.answer(transformer, arguments)
    before = len(prologues)
    assert set(prologues) == {NONE}
    prologues.clear()
    adatsq.accelerate(SimpleNamespace(transformer=transformer), verbose=False)
    again = {}
    with layer_inputs(transformer, layers, again.__setitem__):
        assert torch.equal(steps.answer(transformer, arguments), expected)
    assert all(torch.equal(again[name], read[name]) for name in layers)
    assert list(transformer.state_dict()) == names and len(prologues) == before
    kinds = (fusing.FeedForward, fusing.SwiGLU, fusing.FluxSingleTransformerBlock)
    fused = sum(isinstance(module, kinds) for module in transformer.modules())
    assert fused == sum(kind != NONE for kind in prologues) > 0
    assert fusing.fuse(transformer) == 0  # all of them are


def test_what_a_hook_takes_away_is_missed():
    """The second tensor of a prologue, say: rows of another width are no answer."""
    transformer = built("flux-dev")
    fusing.fuse(transformer)
    layer = transformer.single_transformer_blocks[0].proj_out
    layer.register_forward_pre_hook(lambda module, args: args[:1])
    arguments = steps.inputs("flux-dev", transformer, torch.device("cpu"), tiny=True)
    with pytest.raises(ValueError, match=rf"{layer.name} has {layer.in_features} inputs, not "):
        steps.answer(transformer, arguments)


@pytest.mark.parametrize("bits", [3, 8, 16])
def test_other_bits_answer_the_same(bits):
    transformer = built("flux-dev")
    arguments = steps.inputs("flux-dev", transformer, torch.device("cpu"), tiny=True)
    for module in transformer.modules():
        if isinstance(module, PackedLinear) and "norm" not in module.name:
            module.a_bits = bits
    expected = steps.answer(transformer, arguments)
    fusing.fuse(transformer)
    assert torch.equal(steps.answer(transformer, arguments), expected)


@pytest.mark.parametrize("model", full_size_models.MODELS)
def test_blocks_still_compile_to_one_graph(model):
    torch._dynamo.reset()
    transformer = built(model)
    arguments = steps.inputs(model, transformer, torch.device("cpu"), tiny=True)
    expected, counts = steps.answer(transformer, arguments), []
    for fuse in (False, True):
        torch._dynamo.reset()
        twin = copy.deepcopy(transformer)
        if fuse:
            fusing.fuse(twin)
        counter = CompileCounterWithBackend("aot_eager")
        twin.compile_repeated_blocks(backend=counter, fullgraph=True)
        found = steps.answer(twin, arguments)
        assert (found - expected).norm() <= 1e-2 * expected.norm()
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] > 0


def feed_forward(scheme=None, activation="gelu-approximate", **options):
    torch.manual_seed(0)
    module = FeedForward(32, activation_fn=activation, **options).requires_grad_(False)
    if scheme is not None:
        last = module.net[2]
        smoothing = None if scheme.rank or scheme.asymmetric else torch.rand(last.in_features) + 0.5
        module.net[2] = PackedLinear(quantized(last, scheme, smoothing=smoothing, iterate=False))
    return module


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(4, 4, rank=4),
        Scheme(8, 8, rotation=True),
        Scheme(4, 4, asymmetric=True),
        Scheme(4, 4, shift=0.17),
    ],
    ids=["low rank", "8 bits", "asymmetric", "unsigned"],
)
def test_other_forms_of_a_layer(scheme):
    module = feed_forward(scheme)
    x = torch.randn(2, 5, 32)
    expected = module(x)
    assert fusing.fuse(module) == 1 and type(module) is fusing.FeedForward
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)


def test_what_is_something_else_stays():
    packed = Scheme(4, 4)
    others = [
        feed_forward(),  # not packed
        feed_forward(packed, "gelu"),  # not by tanh
        feed_forward(packed, "geglu"),
        feed_forward(packed, dropout=0.1),
        feed_forward(packed, final_dropout=True),
    ]
    kinds = [type(module) for module in others]
    assert fusing.fuse(nn.ModuleList(others)) == 0 and [type(module) for module in others] == kinds


def test_a_layer_that_is_replaced_later_gets_what_it_always_did():
    """By an adapter around it, say."""
    module = feed_forward(Scheme(4, 4))
    x = torch.randn(2, 5, 32)
    expected = module(x)
    fusing.fuse(module)
    module.net[2] = nn.Sequential(module.net[2])
    assert torch.equal(module(x), expected)


def test_half_precision_stays_in_its_range():
    transformer = built("flux-dev").to(torch.float16)
    arguments = steps.inputs("flux-dev", transformer, torch.device("cpu"), tiny=True)
    for key, value in arguments.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            arguments[key] = value.half()
    block = transformer.single_transformer_blocks[0]
    block.proj_out.bias.fill_(6e4)
    block.norm.linear.bias.fill_(2.0)  # gates, which multiply it
    expected = steps.answer(transformer, arguments)
    fusing.fuse(transformer)
    found = steps.answer(transformer, arguments)
    assert torch.isfinite(found).all() and torch.equal(found, expected)
