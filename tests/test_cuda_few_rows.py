"""Few rows by packed weights with scales in groups: the kernel against float64."""

import pytest
import torch

from adatsq import integer
from adatsq.cuda import linear as cuda_linear
from adatsq.cuda.devices import Abilities
from adatsq.cuda.linear import PackedLinear
from adatsq.linear import QuantLinear

# rows, in, out, inputs per scale, bits: whole groups, one scale per row, sizes that no power of two divides
SHAPES = [
    (1, 128, 48, 64, 4),
    (3, 128, 20, 128, 3),
    (2, 96, 33, 96, 2),
    (1, 1280, 16, 64, 8),
    (2, 672, 5, 32, 4),
]


def problem(rows, inputs, outputs, group, device, bits=4, seed=0):
    generator, q = torch.Generator().manual_seed(seed), integer.qmax(bits)
    codes = torch.randint(-q, q + 1, (outputs, inputs), generator=generator, dtype=torch.int8)
    scale = (torch.rand(outputs, inputs // group, generator=generator) + 0.1).bfloat16().float()
    x = torch.randn(rows, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    expected = x.double() @ integer.dequantize(codes.double(), scale.double()).T + bias.double()
    return *(part.to(device) for part in (x, codes, scale, bias)), expected


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_computes_the_product(shape, kernel_device):
    from adatsq.cuda import packing
    from adatsq.cuda.few_rows_kernel import fits, multiply_few

    *sizes, bits = shape
    x, codes, scale, bias, expected = problem(*sizes, kernel_device, bits)
    planes = packing.pack(codes, bits)
    assert fits(x.shape[1], scale.shape[1])
    y = multiply_few(x, planes, scale, bias)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.cpu().double(), expected, rtol=1e-5, atol=1e-4)
    y = multiply_few(x, planes, scale, None)
    torch.testing.assert_close(y.cpu().double(), expected - bias.cpu().double(), rtol=1e-5, atol=1e-4)
    short = multiply_few(x.half(), planes, scale, bias)
    assert short.dtype == torch.float16
    torch.testing.assert_close(short.cpu().double(), expected, rtol=1e-2, atol=1e-1)


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_a_layer_takes_it_for_few_rows_only(rotation, smooth, kernel_device, monkeypatch):
    """With 16-bit activations; more rows go through the reference, and both give the same."""
    if kernel_device.type == "cpu":
        # The interpreter's kernels stand in for those of a card.
        monkeypatch.setattr(cuda_linear.devices, "abilities", lambda device: Abilities(True, False))
    x, codes, scale, bias, _ = problem(cuda_linear.FEW + 1, 128, 48, 64, kernel_device)
    smoothing = torch.linspace(0.5, 1.5, 128).to(kernel_device) if smooth else None
    reference = QuantLinear(codes, scale, bias, 4, 16, rotation, smoothing=smoothing)
    packed, taken = PackedLinear(reference), []
    times_few = cuda_linear._times_few
    monkeypatch.setattr(
        cuda_linear, "_times_few", lambda x, *others: taken.append(x.shape[-2]) or times_few(x, *others)
    )
    for rows in (1, cuda_linear.FEW, cuda_linear.FEW + 1):
        y = packed(x[:rows].view(1, rows, 128))
        assert y.shape == (1, rows, 48)
        torch.testing.assert_close(y[0], reference(x[:rows]), rtol=1e-5, atol=1e-4)  # sums of about 30
    assert taken == [1, cuda_linear.FEW] and packed.finite
    packed(x[:1] * torch.nan)
    assert not packed.finite


def test_rows_that_are_no_whole_words_are_left_to_the_reference():
    pytest.importorskip("triton")
    from adatsq.cuda.few_rows_kernel import fits

    assert fits(256, 4) and fits(96, 1)
    assert not fits(36, 1) and not fits(96, 2)
