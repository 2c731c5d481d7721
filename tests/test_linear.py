import copy

import pytest
import torch
from torch.nn import functional as F

from adatsq import integer
from adatsq.gptq import round_to_nearest
from adatsq.linear import QuantLinear, check_finite
from adatsq.rotation import hadamard, rotate, signs

OUT, IN = 24, 32


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(w_bits=4, group_size=None, bias=True, **options):
    weight = normal(OUT, IN)
    codes, scale = round_to_nearest(rotate(weight) if options.get("rotation") else weight, w_bits, group_size)
    return weight, QuantLinear(codes, scale, normal(OUT, seed=2) if bias else None, w_bits, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("a_bits", [2, 3, 4, 8])
def test_forward_is_the_integer_product_with_its_scales(a_bits, group_size, bias):
    """Against int64 sums: token scale * sum over groups of weight scale * (codes of x) (codes of w)."""
    _, quantized = layer(group_size=group_size, bias=bias, a_bits=a_bits)
    x = normal(2, 5, IN, seed=1)
    q = 2 ** (a_bits - 1) - 1
    token_scale = x.abs().amax(-1, keepdim=True) / q
    x_codes = (x / token_scale).round().long().unflatten(-1, (-1, group_size or IN))
    w_codes = quantized.codes.long().unflatten(-1, (-1, group_size or IN))
    sums = torch.einsum("btgi,ogi->btog", x_codes, w_codes)
    expected = (sums * quantized.scale.double()).sum(-1) * token_scale
    expected = expected + (quantized.bias if bias else 0)
    torch.testing.assert_close(quantized(x), expected.float())


def test_16_bit_activations_pass_as_they_are():
    weight, quantized = layer(a_bits=16)
    x = normal(3, IN, seed=1)
    assert torch.equal(quantized(x), F.linear(x, quantized.weight_matrix(), quantized.bias))
    assert (quantized.weight_matrix() - weight).abs().max() <= quantized.scale.max() / 2 * 1.001


def test_16_bit_weights_are_kept_as_they_are():
    weight, bias, x = normal(OUT, IN), normal(OUT, seed=2), normal(3, IN, seed=1)
    same = QuantLinear(weight, torch.ones(OUT, 1), bias, w_bits=16)
    assert torch.equal(same(x), F.linear(x, weight, bias))
    same.a_bits = 4
    torch.testing.assert_close(same(x), F.linear(integer.fake_quant(x, 4), weight, bias))


def test_rotation_is_undone_by_the_weight():
    weight, quantized = layer(w_bits=8, rotation=True, a_bits=8)
    x = normal(50, IN, seed=1)
    error = quantized(x) - F.linear(x, weight, quantized.bias)
    assert error.std() < 0.02 * F.linear(x, weight).std()
    dense = signs(IN)[:, None] * hadamard(IN)
    expected = F.linear(integer.fake_quant(x @ dense, 8), quantized.weight_matrix(), quantized.bias)
    torch.testing.assert_close(
        quantized(x), expected, atol=0.05, rtol=0
    )  # a code on a rounding edge may differ


def test_activation_bits_change_by_an_assignment_alone():
    _, quantized = layer(a_bits=8)
    x = normal(50, IN, seed=1)
    exact = F.linear(x, quantized.weight_matrix(), quantized.bias)
    before = {k: v.clone() for k, v in quantized.state_dict().items()}
    errors = []
    for bits in (8, 4, 3, 2):
        quantized.a_bits = bits
        errors.append((quantized(x) - exact).square().mean().item())
    assert errors == sorted(errors)
    quantized.a_bits = 8
    assert (quantized(x) - exact).square().mean().item() == errors[0]
    assert all(torch.equal(before[k], v) for k, v in quantized.state_dict().items())
    quantized.a_bits = 9
    with pytest.raises(ValueError, match="from 2 to 8, got 9"):
        quantized(x)


def test_activation_clip_helps_gaussian_rows():
    _, quantized = layer(a_bits=3)
    x = normal(500, IN, seed=1)
    exact = F.linear(x, quantized.weight_matrix(), quantized.bias)
    plain = (quantized(x) - exact).square().mean()
    quantized.a_clip = True
    assert (quantized(x) - exact).square().mean() < 0.9 * plain
    scale = integer.absmax_scale(x, 3, clip=integer.gaussian_clip(3, IN))
    rounded = integer.dequantize(integer.quantize(x, scale, 3), scale)
    torch.testing.assert_close(quantized(x), F.linear(rounded, quantized.weight_matrix(), quantized.bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{"a_bits": 8}, {"a_bits": 3, "rotation": True}, {"a_bits": 16}])
def test_low_precision_input_is_as_good_as_its_dtype(dtype, options):
    _, quantized = layer(**options)
    x = normal(40, IN, seed=1).to(dtype)
    expected = quantized(x.float())
    cast = copy.deepcopy(quantized).to(dtype)  # what pipe.to(dtype) does
    assert torch.equal(cast.codes, quantized.codes)
    output = cast(x)
    assert output.dtype == dtype
    assert (output.float() - expected).abs().max() < 4 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rotation", [True, False])
@pytest.mark.parametrize("a_bits", [4, 16])
def test_activations_that_are_not_finite_are_named(value, rotation, a_bits):
    _, quantized = layer(a_bits=a_bits, rotation=rotation, name="transformer_blocks.3.attn.to_q")
    x = normal(3, IN, seed=1)
    x[1, 5] = value
    with pytest.raises(FloatingPointError, match="layer transformer_blocks.3.attn.to_q"):
        quantized(x)
    assert quantized(normal(3, IN)).isfinite().all()  # it recovers


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("a_bits", [4, 16])
def test_check_finite_raises_at_the_end_of_the_transformers_call(device, a_bits):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = torch.nn.Sequential(torch.nn.Identity(), layer(a_bits=a_bits, name="blocks.0.first")[1]).to(
        device
    )
    model.register_forward_hook(check_finite)
    x = normal(3, IN).to(device)
    model(x)
    with pytest.raises(FloatingPointError, match="layer blocks.0.first"):
        model(x * float("nan"))
    model(x)


def test_check_finite_reads_the_flags_of_all_layers():
    """As left by layers on an accelerator, which do not look at them themselves."""
    model = torch.nn.Sequential(layer(name="first")[1], layer(name="second")[1], layer(name="third")[1])
    check_finite(model, (), None)
    model[1].finite, model[2].finite = torch.tensor(True), torch.tensor(False)
    with pytest.raises(FloatingPointError, match="layer third"):
        check_finite(model, (), None)
    model[2].finite = torch.tensor(True)
    check_finite(model, (), None)
