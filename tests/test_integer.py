import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from adatsq import integer

BITS = range(2, 9)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [1, 0, 9, 16, 3.5, None, "4"])
def test_bits_outside_2_to_8_are_refused(bits):
    with pytest.raises(ValueError, match=f"from 2 to 8, got {bits!r}"):
        integer.qmax(bits)


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_the_nearest_points_of_a_symmetric_grid(bits):
    x = normal(5, 40)
    scale = integer.absmax_scale(x, bits)
    codes = integer.quantize(x, scale, bits)
    grid = torch.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1))  # all that b bits can hold, by symmetry
    nearest = grid[(x[..., None] - scale[..., None] * grid).abs().argmin(-1)]
    assert codes.dtype == torch.int8 and torch.equal(codes.long(), nearest)
    assert torch.equal(integer.quantize(-x, scale, bits), -codes)
    assert codes.abs().max() == grid.max()
    error = (integer.dequantize(codes, scale) - x).abs()
    assert (error <= scale / 2 * 1.00001).all()


@pytest.mark.parametrize("granularity, shape", [("tensor", (1, 1, 1)), ("row", (2, 3, 1)), (4, (2, 3, 2))])
def test_granularities_agree_with_numpy(granularity, shape):
    x = normal(2, 3, 8)
    parts = {"tensor": (1, 1, 1, 48), "row": (2, 3, 1, 8), 4: (2, 3, 2, 4)}[granularity]
    expected = np.abs(x.numpy().reshape(parts)).max(-1) / 7
    scale = integer.absmax_scale(x, 4, granularity)
    assert scale.shape == shape
    np.testing.assert_allclose(scale.numpy(), expected, rtol=1e-6)
    rounded = integer.fake_quant(x, 4, granularity).numpy().reshape(parts)
    np.testing.assert_allclose(
        rounded / expected[..., None], np.rint(rounded / expected[..., None]), atol=1e-5
    )


def test_clip_ratio_scales_the_grid_and_clamps():
    x = torch.tensor([[1.0, -0.5, 0.25]])
    scale = integer.absmax_scale(x, 3, clip=0.5)
    assert torch.allclose(scale, torch.tensor(0.5 / 3))
    assert integer.quantize(x, scale, 3).tolist() == [[3, -3, 2]]  # 1.0 clipped; 1.5 rounds to even


def test_zero_rows_give_zero_codes_and_nan_is_not_hidden():
    x = torch.stack([torch.zeros(4), torch.full((4,), float("nan")), torch.tensor([1.0, float("inf"), 0, 0])])
    scale = integer.absmax_scale(x, 4)
    assert scale[0] == 1 and integer.quantize(x[:1], scale[:1], 4).eq(0).all()
    assert scale[1].isnan() and scale[2].isinf()
    with pytest.raises(FloatingPointError, match=r"weight of shape \(3, 4\)"):
        integer.weight_scale(x, 4)


@pytest.mark.parametrize("group_size", [0, -4, 5, 64, 2.0])
def test_group_size_must_divide_the_row(group_size):
    with pytest.raises(ValueError, match=f"group size {group_size} does not divide rows of 48"):
        integer.weight_scale(normal(2, 48), 4, group_size)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [None, 16])
def test_mse_scale_is_the_best_clip_ratio(bits, group_size):
    w = normal(3, 32)
    scale = integer.weight_scale(w, bits, group_size, clip="mse")
    parts = w.reshape(-1, group_size or 32)

    def errors(scale):
        return (integer.dequantize(integer.quantize(parts, scale, bits), scale) - parts).square().sum(1)

    largest = parts.abs().amax(1, keepdim=True) / integer.qmax(bits)
    tried = [(largest * clip).bfloat16().float() for clip in integer.CLIP_GRID]
    best = torch.stack([errors(s) for s in tried]).amin(0)
    torch.testing.assert_close(errors(scale.reshape(-1, 1)), best)
    assert scale.shape == (3, 1 if group_size is None else 2)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [None, 8])
def test_asymmetric_grid_reaches_from_min_to_max(bits, group_size):
    x = normal(6, 32) + 1.5
    parts = x.reshape(-1, group_size or 32)
    scale, zero = integer.minmax_scale(x, bits, group_size)
    low, high = parts.amin(1).clamp(max=0), parts.amax(1).clamp(min=0)
    torch.testing.assert_close(scale.flatten(), (high - low) / (2**bits - 1))
    codes = integer.round_asymmetric(x, scale, zero, bits)
    assert codes.min() >= -(2 ** (bits - 1)) and codes.max() <= 2 ** (bits - 1) - 1
    found = integer.fake_quant_asymmetric(x, bits, group_size).reshape(parts.shape)
    assert ((found - parts).abs() <= scale.reshape(-1, 1) * 1.001).all()  # half each for x and zero
    assert integer.fake_quant_asymmetric(torch.zeros(2, 8), bits).eq(0).all()


@pytest.mark.parametrize("bits", BITS)
def test_unsigned_grid_has_all_its_points_above_zero(bits):
    x = normal(4, 32).abs()
    scale = x.reshape(4, 4, 8).amax(2, keepdim=True) / (2**bits - 1)
    found = integer.fake_quant_unsigned(x, bits, 8).reshape(4, 4, 8)
    assert ((found - x.reshape(4, 4, 8)).abs() <= scale / 2 * 1.0001).all()
    assert integer.fake_quant_unsigned(-x, bits, 8).eq(0).all()


def test_weight_scales_fit_16_bits():
    for clip in (1.0, "mse"):
        scale = integer.weight_scale(normal(64, 32) / 50, 4, clip=clip)
        assert scale.dtype == torch.float32 and torch.equal(scale, scale.bfloat16().float())


@pytest.mark.parametrize("bits", BITS)
def test_normal_clip_minimises_the_squared_error_of_a_normal_variable(bits):
    q = integer.qmax(bits)

    def squared_error(clip):
        """Exact, from the normal distribution's moments over the interval of each code."""
        points = np.arange(-q, q + 1) * clip / q
        edges = np.concatenate([[-40], (points[1:] + points[:-1]) / 2, [40]])
        mass = np.diff(norm.cdf(edges))
        first = -np.diff(norm.pdf(edges))
        second = mass - np.diff(edges * norm.pdf(edges))
        return (second - 2 * points * first + points**2 * mass).sum()

    best = minimize_scalar(squared_error, bounds=(0.5, 6), method="bounded", options={"xatol": 1e-7}).x
    assert integer.NORMAL_CLIP[bits] == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("bits, n", [(2, 256), (3, 256), (4, 256), (3, 1024), (4, 1024), (4, 128), (8, 256)])
def test_gaussian_clip_is_near_the_best_single_ratio_for_gaussian_rows(bits, n):
    x = normal(400, n, seed=bits)

    def error(clip):
        return (integer.fake_quant(x, bits, clip=clip) - x).square().mean().item()

    assert error(integer.gaussian_clip(bits, n)) <= 1.02 * min(error(c) for c in np.arange(0.25, 1.001, 0.05))


def test_effective_bits_count_the_scales():
    assert integer.effective_bits(4, 256) == 4 + 16 / 256
    assert integer.effective_bits(3, 256, group_size=64) == 3.25


def test_bfloat16_activations_get_a_float32_scale():
    x = normal(4, 64).bfloat16()
    scale = integer.absmax_scale(x, 4)
    assert scale.dtype == torch.float32
    assert torch.equal(scale, integer.absmax_scale(x.float(), 4))
    assert integer.fake_quant(x, 4).dtype == torch.bfloat16
