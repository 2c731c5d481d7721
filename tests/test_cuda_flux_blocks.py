"""Whole transformers whose blocks have products of several linears: the answers, hooks and processors."""

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from diffusers.models.transformers import transformer_flux
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import adatsq
from adatsq.cuda import full_size_models, steps
from adatsq.cuda.linear import PackedLinear


@pytest.fixture
def flux():
    """transformer(**options): a tiny quantized Flux, accelerated with these; and the arguments of a step."""
    pipe = full_size_models.build("flux-dev", "cpu", tiny=True)
    adatsq.quantize(pipe, solver="rtn", w_bits=4, a_bits=4)
    arguments = steps.inputs("flux-dev", pipe.transformer, torch.device("cpu"), tiny=True)

    def transformer(**options):
        made = SimpleNamespace(transformer=copy.deepcopy(pipe.transformer))
        return adatsq.accelerate(made, verbose=False, **options).transformer

    return transformer, arguments


def products(transformer):
    """How many a step has: of a single block one, of a double one for the text and one for the picture."""
    return len(transformer.single_transformer_blocks) + 2 * len(transformer.transformer_blocks)


def packed_layers(transformer):
    return [m for m in transformer.modules() if isinstance(m, PackedLinear) and "norm" not in m.name]


@pytest.mark.parametrize(
    "fuse", [True, ["products"], ("activations", "norm_rope"), {"activations", "products"}, "norm_rope"]
)
def test_a_transformer_answers_the_same(fuse, flux, calls):
    build, arguments = flux
    plain, fused = build(fuse=False), build(fuse=fuse)
    rng = torch.Generator().manual_seed(0)
    for bits in (4, 3, 16, None, None):  # None: other bits for each layer
        for one, two in zip(packed_layers(plain), packed_layers(fused), strict=True):
            one.a_bits = two.a_bits = bits or (3, 4, 8)[int(torch.randint(3, (), generator=rng))]
        calls.clear()
        assert torch.equal(steps.answer(fused, arguments), steps.answer(plain, arguments))
        assert len(calls) == (products(fused) if fuse is True or "products" in fuse else 0)
    assert list(fused.state_dict()) == list(plain.state_dict())


def test_compiled_blocks_follow_their_bits(flux):
    build, arguments = flux
    counts = []
    for fuse in (False, True):
        torch._dynamo.reset()
        transformer, counter = build(fuse=fuse), CompileCounterWithBackend("aot_eager")
        eager = copy.deepcopy(transformer)
        transformer.compile_repeated_blocks(backend=counter, fullgraph=True)
        for bits in (4, 3, 8, 16):
            for n, (one, two) in enumerate(zip(packed_layers(eager), packed_layers(transformer))):
                one.a_bits = two.a_bits = bits if n % 5 else 5
            expected = steps.answer(eager, arguments)
            assert (steps.answer(transformer, arguments) - expected).norm() <= 1e-2 * expected.norm()
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] > 0


def test_a_hook_on_a_linear_or_the_attention_is_called(flux, calls):
    build, arguments = flux
    transformer, seen = build(), []
    expected = steps.answer(transformer, arguments)
    calls.clear()
    first, second, *_ = transformer.single_transformer_blocks
    double = transformer.transformer_blocks[0]
    first.attn.to_k.register_forward_hook(lambda module, args, output: seen.append(output.shape[-1]))
    second.attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(sorted(kwargs)), with_kwargs=True
    )
    double.attn.add_q_proj.register_forward_hook(lambda module, args, output: seen.append("text"))
    double.attn.register_forward_hook(lambda module, args, output: seen.append("double"))
    assert torch.equal(steps.answer(transformer, arguments), expected)
    both = ["hidden_states", "image_rotary_emb"]
    assert seen == ["text", "double", first.attn.to_k.out_features, both]
    # Not of the first single block and the first text: hooks on attentions see what they always saw.
    assert len(calls) == products(transformer) - 2


def test_a_processor_of_the_users_is_given_what_it_always_was(flux, calls):
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    class Mine(FluxAttnProcessor):
        pass

    build, arguments = flux
    transformer = build()
    expected = steps.answer(transformer, arguments)
    calls.clear()
    for block in (*transformer.single_transformer_blocks, *transformer.transformer_blocks):
        block.attn.set_processor(Mine())
    adatsq.accelerate(SimpleNamespace(transformer=transformer), verbose=False)
    assert torch.equal(steps.answer(transformer, arguments), expected) and not calls


def test_an_attention_of_the_users_is_given_what_it_always_was(flux, calls):
    class Mine(nn.Module):
        def __init__(self, attn):
            super().__init__()
            self.attn = attn

        def forward(self, hidden_states, image_rotary_emb=None):
            return self.attn(hidden_states, image_rotary_emb=image_rotary_emb)

    class Other(transformer_flux.FluxAttention):
        def forward(self, hidden_states, image_rotary_emb=None):
            return super().forward(hidden_states, image_rotary_emb=image_rotary_emb)

    build, arguments = flux
    transformer = build(fuse=False)
    expected = steps.answer(transformer, arguments)
    double, others = transformer.transformer_blocks[0], len(transformer.transformer_blocks) - 1
    double.attn.__class__ = type("Other", (transformer_flux.FluxAttention,), {})
    first, second, *_ = transformer.single_transformer_blocks
    first.attn, second.attn.__class__ = Mine(first.attn), Other
    adatsq.accelerate(SimpleNamespace(transformer=transformer), verbose=False)
    assert torch.equal(steps.answer(transformer, arguments), expected) and len(calls) == 2 * others


def test_a_pickled_transformer_answers_the_same(flux, calls):
    build, arguments = flux
    transformer, file = build(), io.BytesIO()
    expected, count = steps.answer(transformer, arguments), len(calls)
    torch.save(transformer, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(steps.answer(again, arguments), expected) and len(calls) == 2 * count > 0
    assert repr(again) == repr(transformer)


def test_an_offloaded_transformer_answers_the_same(flux):
    build, arguments = flux
    transformer = build()
    expected = steps.answer(transformer, arguments)
    cpu_offload(transformer, "cpu", offload_buffers=True)
    for _ in range(2):
        assert torch.equal(steps.answer(transformer, arguments), expected)
    assert transformer.single_transformer_blocks[0].attn.to_q.planes.is_meta


@pytest.mark.parametrize("fuse", ["all", ["activations", "rope"], [True]])
def test_an_unknown_name_is_refused_before_anything_is_done(fuse, tiny_pipe):
    adatsq.quantize(tiny_pipe, solver="rtn", w_bits=4)
    with pytest.raises(ValueError, match=r"fuse has .*: choose of activations, norm_rope, products"):
        adatsq.accelerate(tiny_pipe, verbose=False, fuse=fuse)
    assert not any(isinstance(m, PackedLinear) for m in tiny_pipe.transformer.modules())
