"""Packed weights on a device: plain torch and the Triton kernel, bit for bit."""

import pytest
import torch

from adatsq import packing as files
from adatsq.cuda import packing
from adatsq.integer import qmax

# One and many programs, less than a byte, a word, odd sizes, sizes of layers in small.
SHAPES = [(1, 1), (3, 5), (7, 33), (16, 48), (32, 64), (5, 256), (96, 192)]


def codes_of(shape, bits):
    q = qmax(bits)
    codes = torch.randint(-q, q + 1, shape, generator=torch.Generator().manual_seed(bits))
    codes.view(-1)[:2] = torch.tensor([q, -q])[: codes.numel()]
    return codes.to(torch.int8)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_planes_are_those_of_a_file(bits, shape):
    codes = codes_of(shape, bits)
    planes = packing.pack(codes, bits)
    assert planes.shape == (bits, 4 * -(-codes.numel() // 32))
    assert torch.equal(packing.trimmed(planes, shape), files.pack(codes, bits))
    assert torch.equal(packing.padded(files.pack(codes, bits)), planes)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacked_in_plain_torch(bits, shape):
    codes = codes_of(shape, bits)
    planes = packing.pack(codes, bits)
    assert torch.equal(packing.unpack(planes, shape), codes)
    if bits <= 5:
        e4m3 = packing.unpack(planes, shape, torch.float8_e4m3fn)
        assert torch.equal(e4m3.float(), codes.float() * 2.0**-9)


def test_an_e4m3_byte_is_sign_and_magnitude():
    numbers = torch.arange(-16, 17).float()
    bytes_ = (numbers * packing.UNIT).to(torch.float8_e4m3fn).view(torch.uint8).int()
    assert torch.equal(bytes_, numbers.abs().int() + 128 * (numbers < 0))


def test_codes_that_e4m3_cannot_hold_are_refused():
    planes = packing.pack(codes_of((4, 8), 6), 6)
    with pytest.raises(ValueError, match="6-bit codes go up to 31: e4m3 has integers up to 16"):
        packing.unpack(planes, (4, 8), torch.float8_e4m3fn)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("e4m3", [False, True])
def test_the_kernel_writes_the_same_bytes(bits, e4m3, kernel_device):
    from adatsq.cuda.unpack_kernel import unpack_words

    if e4m3 and bits > 5:
        pytest.skip("e4m3 holds integers up to 16")
    dtype = torch.float8_e4m3fn if e4m3 else torch.int8
    for shape in SHAPES:
        planes = packing.pack(codes_of(shape, bits), bits)
        out = torch.full((8 * planes.shape[1] + 4,), 99, dtype=torch.uint8, device=kernel_device)
        unpack_words(planes.to(kernel_device), out, e4m3)
        expected = packing.unpack(planes, shape, dtype).view(torch.uint8).flatten()
        assert torch.equal(out[: expected.numel()].cpu(), expected), shape
        assert (out[8 * planes.shape[1] :] == 99).all(), "written past the end"


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("e4m3", [False, True])
@pytest.mark.parametrize("bias", [None, torch.float32, torch.bfloat16])
def test_layers_are_unpacked_one_after_the_other(bits, e4m3, bias, kernel_device):
    """Of few and of many programs, with more outputs than a program has words."""
    from adatsq.cuda.unpack_kernel import unpack_layers

    if e4m3 and bits > 5:
        pytest.skip("e4m3 holds integers up to 16")
    dtype = torch.float8_e4m3fn if e4m3 else torch.int8
    for inputs, outputs in [(32, (300,)), (64, (5, 700, 1)), (96, (96, 32, 32, 32))]:
        codes = [codes_of((count, inputs), bits) for count in outputs]
        scales = [torch.rand(count, 1).bfloat16() for count in outputs]
        biases = [torch.randn(count).to(bias) for count in outputs] if bias else []
        there = [
            [t.to(kernel_device) for t in tensors]
            for tensors in ([packing.pack(each, bits) for each in codes], scales, biases)
        ]
        size = sum(outputs) * inputs
        out = torch.full((size + 4,), 99, dtype=torch.uint8, device=kernel_device)
        scale, found = unpack_layers(*there, out, e4m3)
        expected = torch.cat(codes).float() * (2.0**-9 if e4m3 else 1)
        assert torch.equal(out[:size].view(dtype).view(-1, inputs).float().cpu(), expected)
        assert (out[size:] == 99).all(), "written past the end"
        assert scale.dtype == torch.float32 and torch.equal(scale.cpu(), torch.cat(scales).float())
        if bias:
            assert found.dtype == bias and torch.equal(found.cpu(), torch.cat(biases))
        else:
            assert found is None


def test_all_layers_share_one_buffer():
    packing.release_buffers()
    small, large = (packing.pack(codes_of(shape, 3), 3) for shape in [(8, 16), (16, 64)])
    first = packing.shared_buffer(small)
    assert packing.shared_buffer(small) is first
    second = packing.shared_buffer(large)
    assert packing.shared_buffer(small) is second and second.numel() == 16 * 64
    both = packing.shared_buffer(large, small)
    assert packing.shared_buffer(large) is both and both.numel() == 16 * 64 + 8 * 16
    packing.release_buffers()
