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


LANES = np.arange(32)


def shares(inputs):
    """(FAR, threads, EACH), as rotation_kernel.cu names them."""
    threads = rotation_kernel.threads_of(inputs)
    return block_size(inputs) // 256, threads, inputs // threads


@pytest.mark.parametrize("inputs", WIDTHS)
def test_threads_share_a_row_evenly(inputs):
    far, threads, each = shares(inputs)
    assert threads % 32 == 0 and threads <= 1024
    assert inputs == threads * each and each % 8 == 0 and each <= rotation_kernel.MOST_EACH
    assert each % (far * (8 if far <= rotation_kernel.MOST_OWN else 2)) == 0


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


def hadamard_signs():
    """(lanes, 2): signs that a lane holds, for k and k + 1."""
    m, k = LANES // 4, LANES % 4 * 2
    return np.stack([1 - 2 * (np.bitwise_count(m & (k + i)) & 1).astype(int) for i in (0, 1)], axis=1)


def product(first, second):
    """mma.m16n8k16 as PTX lays it out: H times words (warps, lanes, 2) -> sums (warps, lanes, 4)."""
    h, group, four = np.zeros((16, 16)), LANES // 4, LANES % 4
    values = np.zeros((len(first), 16, 8))
    for i in (0, 1):
        signs = hadamard_signs()[:, i]
        for rows, columns, factor in ((0, 0, 1), (8, 0, 1), (0, 8, 1), (8, 8, -1)):
            h[group + rows, 2 * four + i + columns] = factor * signs
        for up, word in ((0, first), (8, second)):
            values[:, 2 * four + i + up, group] = word[..., i]
    sums = h @ values
    return np.stack([sums[:, group + up, 2 * four + i] for up in (0, 8) for i in (0, 1)], axis=-1)


def transform_256(v):
    """(warps, lanes, 8), the kernel's function of this name, without its roundings."""
    sums = [product(v[..., 4 * two : 4 * two + 2], v[..., 4 * two + 2 : 4 * two + 4]) for two in (0, 1)]
    out = np.empty_like(v)
    for one in (0, 1):
        ends = product(*(part[..., 2 * one : 2 * one + 2] for part in sums))
        out[..., [2 * one, 2 * one + 1, 4 + 2 * one, 5 + 2 * one]] = ends
    return out


def as_the_kernel_does(x):
    """A row (inputs,) rotated: every index is one that rotation_kernel.cu computes."""
    inputs, block = len(x), block_size(len(x))
    far, threads, each = shares(inputs)
    t, chunks = np.arange(threads), each // 8
    start = t // 32 * 32 * chunks + t % 32
    at = 8 * (start[:, None] + 32 * np.arange(chunks))[..., None] + np.arange(8)  # (threads, chunks, 8)
    v = x[at] * rotation.signs(block).numpy()[at % block]
    for c in range(chunks):
        v[:, c] = transform_256(v[:, c].reshape(-1, 32, 8)).reshape(threads, 8)
    out = np.full(inputs, np.nan)
    if far <= rotation_kernel.MOST_OWN:
        z, bit = v.reshape(threads, each), 8
        while bit < 8 * far:
            z = z.reshape(threads, -1, 8 * far)
            z, bit = butterflies(z, bit), 2 * bit
        out[at] = z.reshape(at.shape)
        return out / block**0.5
    shared = np.empty(inputs)
    shared[at] = v
    for g in range(each // (2 * far)):
        place = ((g * threads + t) * 2)[:, None]
        parts, i = np.divmod(np.arange(2 * far), 2)
        at = place // 256 * block + place % 256 + 256 * parts + i
        z, bit = shared[at], 2
        while bit < 2 * far:
            z, bit = butterflies(z, bit), 2 * bit
        out[at] = z
    return out / block**0.5


@pytest.mark.parametrize("inputs", WIDTHS)
def test_the_walk_of_the_kernel_is_the_rotation(inputs):
    x = np.random.default_rng(0).standard_normal(inputs)
    expected = rotation.rotate(torch.from_numpy(x)[None])[0].numpy()
    assert np.abs(as_the_kernel_does(x) - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_sum_as_two_bfloat16_is_off_by_little():
    """What `transform_256` says of the values of its second product."""
    z = 1 + torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    high = z.bfloat16().float()
    off = ((z.double() - high.double()) - (z - high).bfloat16().double()).abs() / z.double()
    assert 2**-19 < off.max() <= 2**-17


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("inputs", WIDTHS)
def test_codes_are_those_of_plain_torch(inputs):
    from adatsq import integer
    from adatsq.cuda import activations

    x = torch.randn(5, inputs, device="cuda", dtype=torch.bfloat16)
    codes, _ = activations.quantize(x, 4, rotation=True)
    z = rotation.rotate(x.float())
    off = (integer.quantize(z, integer.absmax_scale(z, 4), 4) - codes).abs()
    assert off.max() <= 1 and off.float().mean() < 1e-3
