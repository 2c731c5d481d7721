"""Few rows by tables of sums: the walk of the kernel in CUDA C++, step by step in numpy; when it is taken."""

import numpy as np
import pytest
import torch
from test_cuda_few_rows import problem

from adatsq import integer
from adatsq.cuda import few_rows_kernel, few_rows_table, packing
from adatsq.cuda import linear as cuda_linear
from adatsq.cuda.devices import Abilities
from adatsq.cuda.linear import PackedLinear
from adatsq.linear import QuantLinear

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# in, out, inputs per scale, bits: as Flux has them (fewer outputs), one scale per row, lanes without a word
SHAPES = [(3072, 9, 64, 4), (3072, 5, 3072, 3), (96, 33, 32, 2), (1056, 6, 32, 8), (32, 4, 32, 4)]


def as_the_kernel_does(x, planes, scale, bits, processors=2):
    """y of one row: every index is one that few_rows_table.cu computes."""
    inputs, (outputs, groups) = len(x), scale.shape
    words, chunks, lane = inputs // 32, -(-inputs // 1024), np.arange(32)
    plane = planes.numpy().view(np.uint32)
    table = np.full(few_rows_table.shared_bytes(inputs) // 4, np.nan)
    totals = chunks * 8 * 16 * 32
    for i in range(chunks * 8):  # of 32 threads
        j, nibble = i // 8 * 32 + lane, i % 8
        sums = np.zeros((16, 32))
        for b in range(4):
            four = np.where(j < words, x[np.minimum(32 * j + 4 * nibble + b, inputs - 1)], 0)
            sums[1 << b : 2 << b] = sums[: 1 << b] + four
        for s in range(16):
            table[(i * 16 + s) * 32 + lane] = sums[s]
    for c in range(chunks):
        table[totals + 32 * c + lane] = sum(table[((8 * c + e) * 16 + 15) * 32 + lane] for e in range(8))
    assert not np.isnan(table).any()

    y, warps = np.full(outputs, np.nan), 2
    for block in range(processors):
        for warp in range(warps):
            for n in range(warp * processors + block, outputs, warps * processors):
                lanes = np.zeros(32)
                for c in range(chunks):
                    j = 32 * c + lane
                    at = np.minimum(j, words - 1)
                    of_word = np.zeros(32)
                    for p in reversed(range(bits)):
                        word = np.where(j < words, plane[p, n * words + at], 0).astype(np.uint32)
                        looked = 0
                        for e in range(8):
                            shifted = word << (7 - 4 * e) if e < 2 else word >> (4 * e - 7)
                            place = (8 * c + e) * 2048 + ((shifted & 0x780) | (4 * lane))
                            looked = looked + table[place // 4]
                        of_word = 2 * of_word + looked
                    s = np.where(j < words, scale[n, at * 32 // (inputs // groups)], 0)
                    lanes += s * (of_word - integer.qmax(bits) * table[totals + j])
                y[n] = lanes.sum()
    return y


@pytest.mark.parametrize(("inputs", "outputs", "group", "bits"), SHAPES)
def test_the_walk_of_the_kernel_is_the_product(inputs, outputs, group, bits):
    x, codes, scale, bias, expected = problem(1, inputs, outputs, group, "cpu", bits)
    codes[0], codes[1] = integer.qmax(bits), -integer.qmax(bits)
    expected = x.double() @ integer.dequantize(codes.double(), scale.double()).T
    y = as_the_kernel_does(x[0].double().numpy(), packing.pack(codes, bits), scale.double().numpy(), bits)
    np.testing.assert_allclose(y, expected[0].numpy(), rtol=1e-9, atol=1e-9)


def test_it_is_for_bfloat16_and_whole_words():
    x, scale = torch.zeros(1, 3072, dtype=torch.bfloat16), torch.ones(8, 48, dtype=torch.bfloat16)
    assert few_rows_table.fits(x, scale, None) and few_rows_table.fits(x, scale.float(), scale[:, 0])
    assert not few_rows_table.fits(x.float(), scale, None)
    assert not few_rows_table.fits(x, scale.half(), None)
    assert not few_rows_table.fits(x, torch.ones(8, 192), None)  # groups of 16
    assert not few_rows_table.fits(x.repeat(1, 2), scale, None)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("inputs", [32, 3072, 4096])
def test_two_rows_of_words_fit_the_registers(inputs, bits):
    defined = few_rows_table.options(inputs, 1, bits, torch.bfloat16, None)
    held = 2 * -(-inputs // 1024) * (bits + 1)
    assert held <= 65536 // defined["THREADS"] - 30 or defined["THREADS"] == 512
    assert defined["GROUP"] == inputs and defined["SCALE"] == defined["BIAS"] == "bf16"
    assert few_rows_table.shared_bytes(inputs) < 227 * 1024


def test_a_layer_takes_it_where_it_fits(monkeypatch):
    x, codes, scale, bias, _ = problem(3, 128, 48, 64, "cpu")
    taken = []

    def instead(name):
        def multiply_few(rows, planes, *others):
            taken.append(name)
            return rows.new_zeros(len(rows), 48)

        return multiply_few

    monkeypatch.setattr(cuda_linear.devices, "abilities", lambda device: Abilities(True, False, True))
    monkeypatch.setattr(few_rows_table, "multiply_few", instead("tables"))
    monkeypatch.setattr(few_rows_kernel, "multiply_few", instead("Triton"))
    packed = PackedLinear(QuantLinear(codes, scale, bias, 4, 16))
    packed(x.bfloat16())
    packed(x)
    monkeypatch.setattr(cuda_linear.devices, "abilities", lambda device: Abilities(True, False, False))
    packed(x.bfloat16())
    assert taken == ["tables", "Triton", "Triton"]


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("rows", [1, 2, 16])
@pytest.mark.parametrize(("inputs", "outputs", "group", "bits"), [*SHAPES, (3072, 18432, 64, 4)])
def test_on_a_card(rows, inputs, outputs, group, bits):
    x, codes, scale, bias, expected = problem(rows, inputs, outputs, group, "cuda", bits)
    x = x.bfloat16()
    expected = x.double() @ integer.dequantize(codes.double(), scale.double()).T
    planes, finite = packing.pack(codes, bits), torch.ones((), dtype=torch.int32, device="cuda")
    for s, b in ((scale, None), (scale, bias), (scale.bfloat16(), bias.bfloat16())):
        y = few_rows_table.multiply_few(x, planes, s, b, finite)
        wanted = expected if b is None else expected + b.double()
        torch.testing.assert_close(y.double(), wanted, rtol=2**-8, atol=1e-3)
    assert finite.item() == 1
    x[-1, -1] = torch.nan
    few_rows_table.multiply_few(x, planes, scale, None, finite)
    assert finite.item() == 0
