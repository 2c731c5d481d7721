"""Activations to integers: plain torch against `integer` and `rotation`, the kernel against plain torch."""

import pytest
import torch

from adatsq import integer
from adatsq.cuda import activations
from adatsq.rotation import block_size, rotate, signs


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("rotation", [False, True])
def test_codes_times_scales_are_the_reference(bits, rotation):
    x, smoothing = normal(5, 96), normal(96, seed=1).abs() + 0.1
    codes, scale = activations.quantize(x, bits, 0.9, rotation, smoothing)
    z = x / smoothing
    z = rotate(z) if rotation else z
    assert codes.dtype == torch.int8 and codes.abs().max() == integer.qmax(bits)
    assert torch.equal(codes * scale, integer.fake_quant(z, bits, clip=0.9))


@pytest.mark.parametrize(("value", "left"), [(1.0, 1), (float("nan"), 0), (float("inf"), 0)])
def test_what_is_not_finite_is_reported_without_waiting(value, left):
    x, finite = normal(3, 8), torch.ones((), dtype=torch.int32)
    x[1, 2] = value
    activations.quantize(x, 4, finite=finite)
    assert finite.item() == left


def kernel(
    device, x, bits, clip=1.0, smoothing=None, rotated=False, dtype=torch.int8, finite=None, seed=None
):
    from adatsq.cuda.activations_kernel import quantize_rows

    table = signs(block_size(x.shape[1]), seed).to(device) if rotated else None
    smoothing = None if smoothing is None else smoothing.to(device)
    codes, scale = quantize_rows(x.to(device), bits, clip, table, smoothing, dtype, finite)
    return codes.cpu(), scale.cpu()


@pytest.mark.parametrize("inputs", [1, 7, 100, 256])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_without_a_rotation_the_kernel_is_equal_to_the_bit(inputs, x_dtype, kernel_device):
    x = normal(6, inputs, dtype=x_dtype)
    x[2], x[3] = 0.0, 0.5  # a row of zeros, and one of equal values
    x[4] = torch.arange(inputs) % 15 - 7.0  # halves, at 3 bits
    smoothing = (normal(inputs, seed=1).abs() + 0.1).bfloat16().float()
    for bits, clip, dtype in [(4, 1.0, torch.float8_e4m3fn), (3, 0.5, torch.int8), (8, 0.97, torch.int8)]:
        for s in (None, smoothing):
            codes, scale = kernel(kernel_device, x, bits, clip, s, dtype=dtype)
            expected, expected_scale = activations.quantize(x, bits, clip, smoothing=s, dtype=dtype)
            assert codes.dtype == dtype
            assert torch.equal(codes.float(), expected.float()) and torch.equal(scale, expected_scale)


def test_halves_go_to_even():
    """Not a matter of taste: torch.round and the kernel must agree on them."""
    x = torch.tensor([[3.0, 2.5, 1.5, 0.5, -0.5, -1.5, -2.5, -3.0]])
    codes, scale = activations.quantize(x, 3)
    assert scale.item() == 1.0 and codes.tolist() == [[3, 2, 2, 0, 0, -2, -2, -3]]


@pytest.mark.parametrize(
    ("inputs", "x_dtype", "seed"),
    [
        (256, torch.float32, None),
        (768, torch.float16, 3),
        (1024, torch.bfloat16, None),
        (1280, torch.bfloat16, None),
        (1536, torch.float32, 0),
    ],
)
def test_with_a_rotation_the_kernel_differs_at_ties_only(inputs, x_dtype, seed, kernel_device):
    x = normal(4, inputs, dtype=x_dtype)
    smoothing = (normal(inputs, seed=1).abs() + 0.1).bfloat16().float()
    for bits, s in [(3, None), (4, smoothing), (8, None)]:
        codes, scale = kernel(kernel_device, x, bits, 0.9, s, rotated=True, seed=seed)
        z = rotate(x.double() if s is None else x.double() / s.double(), seed)
        exact = z / (z.abs().amax(dim=1, keepdim=True) * 0.9 / integer.qmax(bits))
        torch.testing.assert_close(
            scale.double(), z.abs().amax(1, keepdim=True) * 0.9 / integer.qmax(bits), rtol=2e-6, atol=0
        )
        rounded = exact.round().clamp(-integer.qmax(bits), integer.qmax(bits))
        wrong = codes != rounded
        near_tie = (exact - exact.floor() - 0.5).abs() < 1e-4
        assert (near_tie | ~wrong).all() and wrong.float().mean() < 1e-3


def test_three_bfloat16_parts_lose_nothing(kernel_device):
    """Float32 inputs with 24 bits each: the kernel's scale is as good as a float32 sum's."""
    x = normal(3, 256) * torch.logspace(-3, 3, 256)
    _, scale = kernel(kernel_device, x, 8, rotated=True)
    expected = rotate(x.double()).abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(scale.double(), expected, rtol=3e-7, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_kernel_reports_what_is_not_finite(value, rotated, kernel_device):
    x, finite = normal(3, 256), torch.ones((), dtype=torch.int32, device=kernel_device)
    kernel(kernel_device, x, 4, rotated=rotated, finite=finite)
    assert finite.item() == 1
    x[1, 200] = value
    kernel(kernel_device, x, 4, rotated=rotated, finite=finite)
    assert finite.item() == 0


def test_e4m3_scales_make_up_for_the_unit_of_the_weights():
    x = normal(3, 32)
    codes, scale = activations.quantize(x, 4)
    e4m3, per_unit = activations.quantize(x, 4, dtype=torch.float8_e4m3fn)
    assert torch.equal(e4m3.float(), codes.float()) and torch.equal(per_unit, scale * 2**9)
