"""Rounding with a prologue: rows by their formulas in float64, then plain torch and the Triton kernel."""

import math

import pytest
import torch

from adatsq import integer
from adatsq.cuda import activations, rotation_kernel
from adatsq.cuda.prologue import CAT_GELU, GELU, KINDS, NONE, SWIGLU, rows_of, width
from adatsq.rotation import block_size, rotate, signs


def tensors(kind, inputs, rows=4, dtype=torch.float32):
    """x and the second tensor that make rows of `inputs` values, 0 and large values among them."""
    generator = torch.Generator().manual_seed(inputs)
    first = inputs // 4 if kind == CAT_GELU else inputs
    sizes = (first, {CAT_GELU: inputs - first, SWIGLU: inputs}.get(kind))
    x, second = (n if n is None else (3 * torch.randn(rows, n, generator=generator)).to(dtype) for n in sizes)
    x[1], x[2, 0], x[2, -1] = 0, -50, 50
    return x, second


def gelu(x):
    return 0.5 * x * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + math.exp(-x))


def by_formula(kind, x, second):
    """Value by value, in Python's floats."""
    x, second = x.double().tolist(), None if second is None else second.double().tolist()
    rows = {
        NONE: lambda m: x[m],
        GELU: lambda m: [gelu(v) for v in x[m]],
        CAT_GELU: lambda m: x[m] + [gelu(v) for v in second[m]],
        SWIGLU: lambda m: [silu(g) * v for g, v in zip(x[m], second[m])],
    }
    return torch.tensor([rows[kind](m) for m in range(len(x))], dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_the_formulas_say(kind):
    x, second = tensors(kind, 36)
    assert width(kind, x, second) == 36
    torch.testing.assert_close(rows_of(kind, x, second).double(), by_formula(kind, x, second))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rotation", [False, True])
def test_plain_torch_rounds_these_rows(kind, rotation):
    x, second = tensors(kind, 36, dtype=torch.bfloat16)
    for smoothing in (None, torch.rand(36) + 0.5):
        how = 4, 0.9, rotation, smoothing, None, torch.int8, None
        codes, scale = activations.quantize(x, *how, second, kind)
        wanted, wanted_scale = activations.quantize(rows_of(kind, x, second), *how)
        assert torch.equal(codes, wanted) and torch.equal(scale, wanted_scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("inputs", "rotated"), [(100, False), (256, True), (768, True)])
@pytest.mark.parametrize("smooth", [False, True])
def test_the_kernel_rounds_these_rows(kind, inputs, rotated, smooth, kernel_device):
    from adatsq.cuda.activations_kernel import quantize_rows

    x, second = tensors(kind, inputs)
    smoothing = torch.linspace(0.5, 1.5, inputs) if smooth else None
    table = signs(block_size(inputs)).to(kernel_device) if rotated else None
    there = [None if t is None else t.to(kernel_device) for t in (x, smoothing, second)]
    finite = torch.ones((), dtype=torch.int32, device=kernel_device)
    codes, scale = quantize_rows(
        there[0], 4, 0.9, table, there[1], torch.int8, finite, second=there[2], prologue=kind
    )
    z = by_formula(kind, x, second)
    z = z / smoothing.double() if smooth else z
    z = rotate(z) if rotated else z
    wanted = integer.absmax_scale(z, 4, clip=0.9).double()
    torch.testing.assert_close(scale.cpu().double(), wanted, rtol=3e-6, atol=0)
    exact = z / wanted
    rounded = exact.round().clamp(-7, 7)
    near_tie = (exact - exact.floor() - 0.5).abs() < 1e-4
    assert codes.shape == (4, inputs) and (near_tie | (codes.cpu() == rounded)).all()
    assert finite.item() == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rotated", [False, True])
def test_rows_may_lie_apart(kind, rotated, kernel_device):
    """Columns of wider tensors are rounded as copies of them, and so are neighbours that lie apart."""
    from adatsq.cuda.activations_kernel import quantize_rows

    pair = [None if t is None else t.to(kernel_device) for t in tensors(kind, 256)]
    table = signs(256).to(kernel_device) if rotated else None
    how = 4, 0.9, table, None, torch.int8, None
    codes, scale = quantize_rows(pair[0], *how, second=pair[1], prologue=kind)
    wide = [None if t is None else torch.cat([t + 1, t, t - 1], dim=1) for t in pair]
    columns = [None if t is None else t[:, t.shape[1] // 3 : -(t.shape[1] // 3)] for t in wide]
    turned = [None if t is None else t.t().contiguous().t() for t in pair]
    for x, second in (columns, turned):
        assert torch.equal(x, pair[0]) and not x.is_contiguous()
        found, found_scale = quantize_rows(x, *how, second=second, prologue=kind)
        assert torch.equal(found, codes) and torch.equal(found_scale, scale)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_kernel_sees_what_is_not_finite_in_either_tensor(kind, value, kernel_device):
    from adatsq.cuda.activations_kernel import quantize_rows

    for which in (0, 1) if kind in (CAT_GELU, SWIGLU) else (0,):
        pair = tensors(kind, 100)
        pair[which][0, 1] = value
        x, second = (None if t is None else t.to(kernel_device) for t in pair)
        finite = torch.ones((), dtype=torch.int32, device=kernel_device)
        quantize_rows(x, 4, 1.0, None, None, torch.int8, finite, second=second, prologue=kind)
        assert finite.item() == 0


def test_two_dtypes_are_joined_as_torch_joins_them():
    x, second = tensors(CAT_GELU, 36)
    codes, _ = activations.quantize(x.bfloat16(), 4, second=second, prologue=CAT_GELU)
    assert torch.equal(codes, activations.quantize(rows_of(CAT_GELU, x.bfloat16(), second), 4)[0])


def test_the_kernel_in_cuda_counts_columns_of_both_tensors():
    x, second = (torch.zeros(1, n, dtype=torch.bfloat16) for n in (3072, 12288))
    assert rotation_kernel.fits(x, None, second, CAT_GELU)
    assert not rotation_kernel.fits(
        x[:, :-4], None, torch.zeros(1, 12292), CAT_GELU
    )  # no eight of one tensor
    defined = rotation_kernel.options(15360, True, CAT_GELU, 3072)
    assert (defined["INPUTS"], defined["FIRST"], defined["PROLOGUE"]) == (15360, 3072, 2)


def test_numbers_of_prologues_are_those_of_the_source():
    defined = rotation_kernel.SOURCE.read_text()
    for name, kind in {"GELU": GELU, "CAT_GELU": CAT_GELU, "SWIGLU": SWIGLU}.items():
        assert f"#define {name} {KINDS.index(kind)}\n" in defined


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [3072, 15360, 10240, 8960])
def test_the_kernel_in_cuda_rounds_these_rows(kind, inputs):
    x, second = (None if t is None else t.cuda() for t in tensors(kind, inputs, 33, torch.bfloat16))
    how = 4, 0.9, True, None, None, torch.int8, None
    codes, scale = activations.quantize(x, *how, second, kind)
    z = rotate(rows_of(kind, x, second).float())
    off = (integer.quantize(z, integer.absmax_scale(z, 4, clip=0.9), 4) - codes).abs()
    assert off.max() <= 1 and off.float().mean() < 1e-2
    for shift in (0, 8, 5):  # columns of wider tensors; the last are copied, for they are no whole vectors
        wide = [None if t is None else torch.cat([t[:, :shift], t, t[:, :16]], dim=1) for t in (x, second)]
        apart = [None if t is None else t[:, shift:-16] for t in wide]
        found = activations.quantize(apart[0], *how, apart[1], kind)
        assert torch.equal(found[0], codes) and torch.equal(found[1], scale)
