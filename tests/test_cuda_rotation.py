"""The rotation in CUDA C++: for which widths it is, and its walk through a row, step by step in numpy."""

import numpy as np
import pytest
import torch

from adatsq import rotation
from adatsq.cuda import rotation_kernel
from adatsq.rotation import block_size

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Inputs of linears of Flux, Z-Image, Wan 1.3B and 14B that the kernel is for.
WIDTHS = (3072, 12288, 15360, 3840, 10240, 1536, 8960, 5120, 13824)


@pytest.fixture(params=[64, 128, 256])
def low(request, monkeypatch):
    monkeypatch.setattr(rotation_kernel, "LOW", request.param)
    rotation_kernel._compiled.cache_clear()
    yield request.param
    rotation_kernel._compiled.cache_clear()


def shares(inputs):
    """(W, V, threads, values of a thread), as the macros at the top of rotation_kernel.cu."""
    far = block_size(inputs) // rotation_kernel.low_of(block_size(inputs))
    threads = rotation_kernel.threads_of(inputs)
    return far, 2 if far >= 8 else 4, threads, inputs // threads


@pytest.mark.parametrize("inputs", WIDTHS)
def test_threads_share_a_row_evenly(inputs, low):
    far, near, threads, each = shares(inputs)
    assert threads % 32 == 0 and threads <= 1024
    assert inputs == threads * each and each % 8 == 0 and each <= rotation_kernel.MOST_EACH
    assert far == 1 or each % (far * near) == 0


@pytest.mark.parametrize("inputs", [64, 384, 255, 8192, 3 * 8192])
def test_other_widths_are_left_to_others(inputs):
    assert rotation_kernel.threads_of(inputs) is None
    assert not rotation_kernel.fits(torch.zeros(1, inputs, dtype=torch.bfloat16), None)


def test_it_is_for_bfloat16_without_smoothing():
    x = torch.zeros(1, 3072, dtype=torch.bfloat16)
    assert rotation_kernel.fits(x, None)
    assert not rotation_kernel.fits(x.float(), None) and not rotation_kernel.fits(x, torch.ones(3072))


def test_rows_of_whole_vectors_are_read_where_they_are():
    wide = torch.arange(5 * 96, dtype=torch.bfloat16).view(5, 96)
    for x in (wide, wide[:, 8:72], wide[1:, 80:], wide[:1]):
        assert rotation_kernel.in_vectors(x) is x
    odd = torch.arange(5 * 97, dtype=torch.bfloat16).view(5, 97)
    for x in (wide[:, 4:68], odd[:, :64], wide[:, ::3], odd.flatten()[1:481].view(5, 96)):
        copy = rotation_kernel.in_vectors(x)
        assert torch.equal(copy, x) and copy.is_contiguous() and copy.data_ptr() % 16 == 0


def butterflies(v, bit):
    """Along the last axis: values whose indices differ in this bit become their sum and their difference."""
    i = np.arange(v.shape[-1])
    return v[..., i ^ bit] + np.where(i & bit, -1, 1) * v


def as_the_kernel_does(x):
    """A row (inputs,) rotated: every index is one that rotation_kernel.cu computes."""
    inputs, block = len(x), block_size(len(x))
    far, near, threads, each = shares(inputs)
    low = rotation_kernel.low_of(block)
    t = np.arange(threads)[:, None]
    sign = rotation.signs(block).numpy()
    z = np.empty((threads, each))
    for c in range(each // 8):  # 8 neighbours, then lanes of a warp
        at = 8 * (c * threads + t) + np.arange(8)
        v = x[at] * sign[at % block]
        for bit in (1, 2, 4):
            v = butterflies(v, bit)
        lanes = v.T.reshape(8, -1, 32)
        for bit in (1, 2, 4, 8, 16):
            lanes = butterflies(lanes, bit) if bit < low // 8 else lanes
        z[:, 8 * c : 8 * c + 8] = lanes.reshape(8, threads).T
    out = np.full(inputs, np.nan)
    if far == 1:
        for c in range(each // 8):
            out[8 * (c * threads + t) + np.arange(8)] = z[:, 8 * c : 8 * c + 8]
        return out / block**0.5
    shared = np.empty(inputs)
    for c in range(each // 8):
        shared[8 * (c * threads + t) + np.arange(8)] = z[:, 8 * c : 8 * c + 8]
    for g in range(each // (far * near)):  # values that lie LOW apart
        place = (g * threads + t) * near
        w, i = np.divmod(np.arange(far * near), near)
        at = place // low * block + w * low + place % low + i
        v = shared[at]
        bit = near
        while bit < far * near:
            v, bit = butterflies(v, bit), 2 * bit
        out[at] = v
    return out / block**0.5


@pytest.mark.parametrize("inputs", WIDTHS)
def test_the_walk_of_the_kernel_is_the_rotation(inputs, low):
    x = np.random.default_rng(0).standard_normal(inputs)
    expected = rotation.rotate(torch.from_numpy(x)[None])[0].numpy()
    assert np.abs(as_the_kernel_does(x) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("inputs", WIDTHS)
def test_codes_are_those_of_plain_torch(inputs, low):
    from adatsq import integer
    from adatsq.cuda import activations

    x = torch.randn(5, inputs, device="cuda", dtype=torch.bfloat16)
    codes, _ = activations.quantize(x, 4, rotation=True)
    z = rotation.rotate(x.float())
    off = (integer.quantize(z, integer.absmax_scale(z, 4), 4) - codes).abs()
    assert off.max() <= 1 and off.float().mean() < 1e-3
