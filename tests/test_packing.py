import numpy as np
import pytest
import torch

from adatsq.packing import narrow, pack, unpack


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(1,), (3, 5), (4, 16), (2, 3, 7), (0, 4)])
def test_round_trip_and_true_width(bits, shape):
    q = 2 ** (bits - 1) - 1
    codes = torch.randint(-q, q + 1, shape, generator=torch.Generator().manual_seed(bits), dtype=torch.int8)
    planes = pack(codes, bits)
    assert planes.dtype == torch.uint8
    assert planes.numel() == bits * -(-codes.numel() // 8)
    assert torch.equal(unpack(planes, bits, shape), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_asymmetric_codes_have_one_more(bits):
    codes = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).to(torch.int8)
    planes = pack(codes, bits, symmetric=False)
    assert planes.shape == (bits, -(-(2**bits) // 8))
    assert torch.equal(unpack(planes, bits, codes.shape), codes)


def test_planes_are_numpys_packbits():
    codes = torch.tensor([-3, -2, -1, 0, 1, 2, 3, 0, 1, -1], dtype=torch.int8)
    unsigned = (codes.numpy() + 3).astype(np.uint8)
    expected = np.stack([np.packbits(unsigned >> k & 1, bitorder="little") for k in range(3)])
    np.testing.assert_array_equal(pack(codes, 3).numpy(), expected)


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"do not fit 3 bits, \[-3, 3\]"):
        pack(torch.tensor([0, 4], dtype=torch.int8), 3)
    with pytest.raises(ValueError, match="do not fit 8 bits"):
        pack(torch.tensor([-128], dtype=torch.int8), 8)


def test_planes_of_another_size_are_refused():
    planes = pack(torch.zeros(16, dtype=torch.int8), 4)
    for shape in [(17,), (8,), (3, 2)]:
        with pytest.raises(ValueError, match=r"got torch.uint8 \(4, 2\)"):
            unpack(planes, 4, shape)
    with pytest.raises(ValueError, match="3 bits"):
        unpack(planes, 3, (16,))


def test_narrow_only_when_nothing_is_lost():
    exact = torch.randn(8).bfloat16().float()
    assert narrow(exact).dtype == torch.bfloat16 and torch.equal(narrow(exact).float(), exact)
    inexact = exact + 1e-7
    assert narrow(inexact) is inexact
    half, whole = exact.half(), torch.arange(3)
    assert narrow(half) is half and narrow(whole) is whole
