"""Norm and rotation in one pass: formulas in float64, then the kernel, the operator, whole transformers."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import nn

from adatsq.cuda import flux_attention, full_size_models, fusing, norm_rope, steps
from adatsq.cuda.devices import Abilities
from adatsq.cuda.flux_attention import FluxProcessor

EPS = 1e-6
bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
# Units in the last place: a value between norm and rotation may fall to the other side, and a last rounding;
# float32 is not rounded between, and sums in another order.
LIMITS = {bf16: 2, f16: 2, f32: 8}
# batch, tokens, heads, values of a head: one block of heads and several, sizes that no power of two divides
SIZES = [(1, 5, 3, 16), (2, 3, 24, 128), (3, 1, 1, 64), (1, 2, 19, 256), (1, 7, 5, 32)]


def parts(sizes, dtype=f32, device="cpu", seed=0):
    """query and key as chunks of one tensor, their weights, cosines and sines (which need not be such)."""
    batch, tokens, heads, size = sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    both = 3 * normal(batch, tokens, 3 * heads * size)
    both[0, 0, :size] = 0
    query, key, _ = (x.unflatten(-1, (heads, size)) for x in both.to(device, dtype).chunk(3, dim=-1))
    weights = [(1 + 0.3 * normal(size)).to(device, dtype) for _ in range(2)]
    return query, key, *weights, normal(tokens, size).to(device), normal(tokens, size).to(device)


def by_formula(x, weight, cos, sin):
    """Pair by pair in float64, rounded between norm and rotation alone; and the size of what is added."""
    dtype, x, weight, cos, sin = x.dtype, *(t.cpu().double() for t in (x, weight, cos, sin))
    normed = x / ((x * x).sum(-1, keepdim=True) / x.shape[-1] + EPS) ** 0.5 * weight
    normed = normed.to(dtype).double()
    y, size = torch.empty_like(x), torch.empty_like(x)
    for i in range(0, x.shape[-1], 2):
        a, b = normed[..., i], normed[..., i + 1]
        c, d, s, t = (v[None, :, None] for v in (cos[:, i], cos[:, i + 1], sin[:, i], sin[:, i + 1]))
        y[..., i], y[..., i + 1] = a * c - b * s, b * d + a * t
        size[..., i], size[..., i + 1] = (a * c).abs() + (b * s).abs(), (b * d).abs() + (a * t).abs()
    return y, size


def steps_off(found, x, weight, cos, sin):
    """The largest error, in units in the last place of what is added."""
    expected, size = by_formula(x, weight, cos, sin)
    off = (found.cpu().double() - expected).abs() / torch.finfo(x.dtype).eps
    return float((off / size.clamp(min=8 * torch.finfo(x.dtype).tiny)).max())  # places below are all as wide


@pytest.fixture
def triton_here(kernel_device, monkeypatch):
    """The device of kernels; the operator takes them in the interpreter too."""
    if kernel_device.type == "cpu":
        monkeypatch.setattr(norm_rope.devices, "abilities", lambda device: Abilities(True, False))
    return kernel_device


@pytest.fixture
def kernels(triton_here, monkeypatch):
    """Values of a head, for each call of the kernel."""
    from adatsq.cuda import norm_rope_kernel

    taken, right = [], norm_rope_kernel.norm_and_rotate

    def norm_and_rotate(*args):
        taken.append(args[0][0].shape[3])
        return right(*args)

    monkeypatch.setattr(norm_rope_kernel, "norm_and_rotate", norm_and_rotate)
    return taken


def in_parts(query, key, query_weight, key_weight, cos, sin, cut=0):
    """Arguments of `norm_rope`: all tokens as one part, or those up to `cut`, with weights turned round, and
    the rest."""
    if not cut:
        return [query], [key], [query_weight], [key_weight], cos, sin, EPS
    queries, keys = (list(x.tensor_split([cut], dim=1)) for x in (query, key))
    weights = ([weight.flip(0), weight] for weight in (query_weight, key_weight))
    return queries, keys, *weights, cos, sin, EPS


@pytest.mark.parametrize("dtype", [bf16, f16, f32])
def test_the_definition_is_what_the_formulas_say(dtype):
    query, key, *weights, cos, sin = parts((2, 3, 5, 12), dtype)
    found = norm_rope.norm_rope(*in_parts(query, key, *weights, cos, sin))
    for x, weight, y in zip((query, key), weights, found):
        assert y.dtype is dtype and y.is_contiguous()
        assert steps_off(y, x, weight, cos, sin) <= LIMITS[dtype]


@pytest.mark.parametrize("dtype", [bf16, f16, f32])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_kernel_computes_it(sizes, dtype, kernel_device):
    from adatsq.cuda.norm_rope_kernel import fits, norm_and_rotate

    query, key, *weights, cos, sin = parts(sizes, dtype, kernel_device)
    given = in_parts(query, key, *weights, cos, sin)
    assert fits(*given[:2], cos, sin)
    # the interpreter cuts bfloat16 off instead of rounding, twice
    limit = LIMITS[dtype] + (kernel_device.type == "cpu" and dtype is bf16)
    found = norm_and_rotate(*given)
    for x, weight, y in zip((query, key), weights, found):
        assert y.dtype is dtype and y.shape == x.shape and y.is_contiguous()
        assert steps_off(y, x, weight, cos, sin) <= limit
    assert (found[0][0, 0, 0] == 0).all()  # a head of zeros


@pytest.mark.parametrize("sizes", [(2, 5, 3, 16), (1, 9, 24, 128)])
def test_two_parts_are_put_one_behind_the_other(sizes, triton_here, kernels):
    query, key, *weights, cos, sin = parts(sizes, f32, triton_here)
    found = norm_rope.norm_rope(*in_parts(query, key, *weights, cos, sin, cut=2))
    assert kernels == [sizes[3]]
    for x, weight, y in zip((query, key), weights, found):
        assert y.shape == x.shape and y.is_contiguous()
        for tokens, own in ((slice(2), weight.flip(0)), (slice(2, None), weight)):
            off = steps_off(y[:, tokens], x[:, tokens], own, cos[tokens], sin[tokens])
            assert off <= LIMITS[f32]


def test_any_strides(triton_here):
    query, key, *others = parts((2, 5, 3, 32), f32, triton_here)
    expected = norm_rope.norm_rope(*in_parts(query.contiguous(), key.contiguous(), *others))
    turned = query.transpose(1, 2).contiguous().transpose(1, 2)  # heads before tokens
    apart = key.transpose(2, 3).contiguous().transpose(2, 3)  # neighbours apart
    shifted = torch.cat([key.new_zeros(1), query.flatten()])[1:].view(query.shape)  # no whole 16 bytes
    for pair in ((turned, apart), (shifted, key)):
        for y, wanted in zip(norm_rope.norm_rope(*in_parts(*pair, *others)), expected):
            assert torch.equal(y, wanted) and y.is_contiguous()


def test_the_operator_takes_the_kernel_where_it_fits(triton_here, kernels):
    for size in (16, 12, 32, 8):
        query, key, *others = parts((1, 3, 2, size), f32, triton_here)
        found = norm_rope.norm_rope(*in_parts(query, key, *others))
        assert steps_off(found[1], key, *others[1:]) <= LIMITS[f32]
    assert kernels == [16, 32]
    doubles = [x.double() for x in parts((1, 3, 2, 16), f32, triton_here)]
    assert norm_rope.norm_rope(*in_parts(*doubles))[0].dtype is torch.float64
    query, key, *others = parts((1, 5, 2, 16), f32, triton_here)
    given = in_parts(query, key, *others, cut=2)
    given[1][0] = key[:, :2].bfloat16()  # a key of another dtype than its query
    assert norm_rope.norm_rope(*given)[0].dtype is f32
    assert kernels == [16, 32]


@pytest.mark.parametrize("cut", [0, 2])
def test_the_operator_keeps_what_torch_asks_of_one(cut):
    given = in_parts(*parts((1, 3, 2, 16), bf16), cut=cut)
    torch.library.opcheck(torch.ops.adatsq.norm_rope.default, given)


@pytest.mark.parametrize("which", [0, 2, 4])
def test_gradients_are_those_of_plain_torch(which, triton_here):
    tensors = [tensor.detach().clone() for tensor in parts((1, 3, 2, 16), f32, triton_here)]
    tensors[which].requires_grad_()
    y, _ = norm_rope.norm_rope(*in_parts(*tensors))
    plain = norm_rope.by_definition(tensors[:1], tensors[2:3], *tensors[4:], EPS)
    grads = [torch.autograd.grad(z.square().sum(), tensors[which])[0] for z in (y, plain)]
    assert torch.equal(*grads) and grads[0].abs().sum() > 0


def flux(device="cpu"):
    """A tiny Flux in float32, and the arguments of a step."""
    transformer = full_size_models.build("flux-dev", device, tiny=True).transformer.float()
    arguments = steps.inputs("flux-dev", transformer, torch.device(device), tiny=True)
    for key, value in arguments.items():
        if isinstance(value, torch.Tensor):
            arguments[key] = value.float()
    return transformer, arguments


def processors(transformer):
    blocks = *transformer.single_transformer_blocks, *transformer.transformer_blocks
    return [block.attn.processor for block in blocks]


def test_a_transformer_answers_the_same(triton_here, kernels):
    transformer, arguments = flux(triton_here)
    expected, names = steps.answer(transformer, arguments), list(transformer.state_dict())
    transformer.single_transformer_blocks[0].attn.set_attention_backend("native")
    found = processors(transformer)
    assert all(type(processor) is FluxAttnProcessor for processor in found)
    assert fusing.norm_and_rotate_together(transformer) == len(found)
    found = processors(transformer)
    assert all(type(processor) is FluxProcessor for processor in found)
    assert found[0]._attention_backend == "native" and found[1]._attention_backend is None
    assert list(transformer.state_dict()) == names
    twin = copy.deepcopy(transformer)
    answer = steps.answer(twin, arguments)
    assert len(kernels) == len(found) and all(type(p) is FluxProcessor for p in processors(twin))
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)


def test_plain_torch_answers_the_same_to_the_bit():
    transformer, arguments = flux()
    expected = steps.answer(transformer, arguments)
    fusing.norm_and_rotate_together(transformer)
    assert torch.equal(steps.answer(transformer, arguments), expected)


class Mine(FluxAttnProcessor):
    pass


def test_a_processor_of_the_users_stays():
    transformer, _ = flux()
    mine = Mine()
    transformer.single_transformer_blocks[0].attn.set_processor(mine)
    fusing.norm_and_rotate_together(transformer)
    first, *others = processors(transformer)
    assert first is mine and others and all(type(p) is FluxProcessor for p in others)
    fusing.norm_and_rotate_together(transformer)
    assert processors(transformer)[0] is mine


@pytest.fixture
def attention(monkeypatch):
    """answers(change, **options): before and after, of an attention that is none for `norm_rope`."""

    def called(*args):
        raise AssertionError("not for this attention")

    def answers(change=None, text=False, rotary=True, **options):
        torch.manual_seed(0)
        attn = FluxAttention(32, heads=2, dim_head=16, **options).requires_grad_(False)
        if change is not None:
            change(attn)
        given = [torch.randn(1, 5, 32), torch.randn(1, 3, 32) if text else None, None]
        table = torch.randn(2, 8 if text else 5, 16)
        given.append(tuple(table) if rotary else None)
        expected = attn(*given)
        attn.set_processor(flux_attention.processor_for(attn.processor, "one_pass"))
        assert type(attn.processor) is FluxProcessor
        return attn(*given), expected

    monkeypatch.setattr(flux_attention, "norm_rope", called)
    return answers


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (None, {"rotary": False}),
        (None, {"added_kv_proj_dim": 32, "text": True, "rotary": False}),
        (lambda attn: setattr(attn.norm_added_k, "eps", 1e-3), {"added_kv_proj_dim": 32, "text": True}),
        (None, {"elementwise_affine": False}),
        (lambda attn: setattr(attn.norm_k, "eps", 1e-3), {}),
        (lambda attn: setattr(attn, "norm_q", nn.Identity()), {}),
        (lambda attn: attn.fuse_projections(), {}),
        (lambda attn: cpu_offload(attn, "cpu"), {}),  # weights that are there in a module's own call alone
    ],
    ids=[
        "no rotation",
        "text, no rotation",
        "text, two eps",
        "no weight",
        "two eps",
        "another norm",
        "fused projections",
        "offloaded",
    ],
)
def test_other_attentions_are_what_they_were(change, options, attention):
    pre_only = not options.get("text", False)
    found, expected = attention(change, pre_only=pre_only, **options)
    for y, wanted in zip(found, expected):
        assert torch.equal(y, wanted)


def test_a_mask_reaches_the_attention():
    torch.manual_seed(0)
    attn = FluxAttention(32, heads=2, dim_head=16, pre_only=True).requires_grad_(False)
    x, rotary = torch.randn(1, 5, 32), tuple(torch.randn(2, 5, 16))
    mask = torch.rand(1, 1, 5, 5) > 0.3
    mask |= torch.eye(5, dtype=torch.bool)
    given = x, None, mask, rotary
    expected, without = attn(*given), attn(x, None, None, rotary)
    attn.set_processor(flux_attention.processor_for(attn.processor, "one_pass"))
    assert torch.equal(attn(*given), expected) and not torch.equal(expected, without)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [bf16, f16, f32])
def test_the_operator_at_the_size_of_flux(dtype):
    query, key, *weights, cos, sin = parts((1, 4608, 24, 128), dtype, "cuda")
    compiled = torch.compile(norm_rope.norm_rope, fullgraph=True)
    for call in (norm_rope.norm_rope, compiled):
        found = call(*in_parts(query, key, *weights, cos, sin))
        for x, weight, y in zip((query, key), weights, found):
            assert steps_off(y, x, weight, cos, sin) <= LIMITS[dtype]
