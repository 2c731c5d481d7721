"""Products of codes against int64 sums: plain torch, the FP8 route as the CPU computes it, the kernel."""

import itertools

import pytest
import torch

from adatsq.cuda import devices, packing, products
from adatsq.integer import qmax

SHAPES = [(1, 16, 16), (5, 48, 32), (33, 40, 24), (7, 3, 5), (130, 144, 48)]  # tokens, in, out


def problem(shape, a_bits, w_bits, bias=True):
    """Codes as int64, scales, bias, and y in float64."""
    tokens, inputs, out = shape
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randint(-qmax(a_bits), qmax(a_bits) + 1, (tokens, inputs), generator=generator)
    w = torch.randint(-qmax(w_bits), qmax(w_bits) + 1, (out, inputs), generator=generator)
    s_x = (torch.rand(tokens, 1, generator=generator) + 0.1) / 100
    s_w = (torch.rand(out, 1, generator=generator) + 0.1).bfloat16().float()
    b = torch.randn(out, generator=generator).bfloat16() if bias else None
    y = (x @ w.T).double() * s_x.double() * s_w.double().T
    return x, w, s_x, s_w, b, y if b is None else y + b.double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("a_bits", "w_bits"), [(4, 4), (3, 3), (8, 4), (8, 8)])
def test_int8_codes(shape, bias, a_bits, w_bits):
    x, w, s_x, s_w, b, expected = problem(shape, a_bits, w_bits, bias)
    for dtype, tolerance in [(torch.float32, 2e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-10)]:
        y = products.multiply(x.to(torch.int8), s_x, w.to(torch.int8), s_w, b, dtype)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fast", [False, True])
def test_e4m3_codes_in_scaled_mm(shape, bias, fast):
    x, w, s_x, s_w, b, expected = problem(shape, 4, 4, bias)
    x8, w8 = x.float().to(torch.float8_e4m3fn), (w.float() * packing.UNIT).to(torch.float8_e4m3fn)
    for dtype, tolerance in [(torch.float32, 2e-6), (torch.bfloat16, 2**-7)]:
        y = products.multiply(x8, s_x / packing.UNIT, w8, s_w, b, dtype, fast)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=0.02 if bias else 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_equal_to_plain_torch(shape, kernel_device):
    from adatsq.cuda.products_kernel import multiply_int8

    for a_bits, bias in [(8, True), (4, False)]:
        x, w, s_x, s_w, b, expected = problem(shape, a_bits, 8, bias)
        arguments = [x.to(torch.int8), s_x, w.to(torch.int8), s_w, b]
        arguments = [None if a is None else a.to(kernel_device) for a in arguments]
        tile = {"BM": 32, "BN": 32, "BK": 32}
        y = multiply_int8(*arguments, torch.float32, tile, warps=4).cpu()
        torch.testing.assert_close(y.double(), expected, rtol=2e-6, atol=1e-4)
        short = multiply_int8(*arguments, torch.bfloat16, tile, warps=4).cpu()
        # 2^-7: the interpreter cuts bfloat16 off instead of rounding
        torch.testing.assert_close(short.double(), expected, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_int_mm_with_padding_gives_the_integers(shape):
    x, w, *_ = problem(shape, 8, 8)
    sums = products.int_mm(x.to(torch.int8), w.to(torch.int8))
    assert torch.equal(sums.long(), x @ w.T)


def columns(y, device):
    """Room for y among columns of a wider tensor, poisoned; the wider tensor."""
    wide = torch.full((len(y), y.shape[1] + 48), 99.0, dtype=y.dtype, device=device)
    return wide[:, 16:-32], wide


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_columns_of_a_wider_tensor_are_the_same_to_the_bit(shape, bias, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x, w, s_x, s_w, b, _ = problem(shape, 4, 4, bias is not None)
    kinds = [(torch.int8, 1.0)]
    if device == "cpu" or devices.abilities(torch.device(device)).e4m3:
        kinds.append((torch.float8_e4m3fn, packing.UNIT))
    for (kind, unit), dtype in itertools.product(kinds, (torch.float32, torch.bfloat16, torch.float16)):
        given = (
            x.float().to(kind),
            s_x / unit,
            (w.float() * unit).to(kind),
            s_w,
            b if b is None else b.to(bias),
        )
        given = [None if t is None else t.to(device) for t in given]
        expected = products.multiply(*given, dtype)
        out, wide = columns(expected, device)
        assert products.multiply(*given, dtype, False, out) is out and torch.equal(out, expected)
        assert (wide[:, :16] == 99).all() and (wide[:, -32:] == 99).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_writes_columns_of_a_wider_tensor(shape, kernel_device):
    from adatsq.cuda.products_kernel import multiply_int8

    x, w, s_x, s_w, b, _ = problem(shape, 8, 4)
    given = [t.to(kernel_device) for t in (x.to(torch.int8), s_x, w.to(torch.int8), s_w, b)]
    tile = {"BM": 32, "BN": 32, "BK": 32}
    expected = multiply_int8(*given, torch.float32, tile, warps=4)
    out, wide = columns(expected, kernel_device)
    multiply_int8(*given, torch.float32, tile, warps=4, out=out)
    assert torch.equal(out, expected) and (wide[:, :16] == 99).all() and (wide[:, -32:] == 99).all()
