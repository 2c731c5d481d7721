"""Few rows by 8-bit codes with scales in groups: the kernel against float64."""

import pytest
import torch

from adatsq import integer
from adatsq.cuda import linear as cuda_linear
from adatsq.cuda.devices import Abilities
from adatsq.cuda.linear import PackedLinear
from adatsq.linear import QuantLinear

# rows, in, out, inputs per scale: whole groups, one scale per row, sizes that no power of two divides
SHAPES = [
    (1, 128, 48, 64),
    (3, 128, 20, 128),
    (2, 96, 33, 48),
    (1, 36, 7, 36),
    (2, 45, 5, 9),
    (1, 1280, 16, 64),
]


def problem(rows, inputs, outputs, group, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-7, 8, (outputs, inputs), generator=generator, dtype=torch.int8)
    scale = (torch.rand(outputs, inputs // group, generator=generator) + 0.1).bfloat16().float()
    x = torch.randn(rows, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    expected = x.double() @ integer.dequantize(codes.double(), scale.double()).T + bias.double()
    return *(part.to(device) for part in (x, codes, scale, bias)), expected


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_computes_the_product(shape, kernel_device):
    from adatsq.cuda.few_rows_kernel import multiply_few

    x, codes, scale, bias, expected = problem(*shape, kernel_device)
    y = multiply_few(x, codes, scale, bias)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    y = multiply_few(x, codes, scale, None)
    torch.testing.assert_close(y.cpu().double(), expected - bias.cpu().double(), rtol=1e-5, atol=1e-5)
    short = multiply_few(x.half(), codes, scale, bias)
    assert short.dtype == torch.float16
    torch.testing.assert_close(short.cpu().double(), expected, rtol=1e-2, atol=2e-2)


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
