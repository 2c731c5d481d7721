"""Linears as one product: to the bit what they answer one by one."""

import copy

import pytest
import torch
from test_cuda_linear import layer
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from adatsq.cuda import activations, devices, graphs, products, sharing, together
from adatsq.cuda.devices import Abilities
from adatsq.cuda.linear import PackedLinear
from adatsq.scheme import Scheme

bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
SCHEME = Scheme(4, 4, rotation=True, a_clip=True)
OUTPUTS = (128, 64, 32, 48)
BITS = [
    (4, 4, 4, 4),
    (3, 3, 3, 3),
    (8, 8, 8, 8),
    (16, 16, 16, 16),
    (8, 4, 4, 4),
    (4, 3, 4, 4),
    (4, 16, 16, 8),
]
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


class Block(nn.Module):
    """Linears of one input, each with scales and biases of its own."""

    def __init__(self, scheme=SCHEME, inputs=64, outputs=OUTPUTS, **options):
        super().__init__()
        found = []
        for n, count in enumerate(outputs):
            packed = PackedLinear(layer(scheme, inputs, count, name=f"linear {n}", **options))
            packed.scale *= 1 + n / 4
            if packed.bias is not None:
                packed.bias += n
            found.append(packed)
        self.layers = nn.ModuleList(found)
        sharing.assign(self, PackedLinear)

    def set_bits(self, *bits):
        for packed, a_bits in zip(self.layers, bits):
            packed.a_bits = a_bits

    def apart(self, x):
        return [packed(x.clone()) for packed in self.layers]

    def forward(self, x):
        return together.linears(self.layers, x)


@pytest.fixture(params=["cpu", "cpu, e4m3", GPU])
def device(request, monkeypatch):
    """Products of int8, of FP8 as the CPU computes it, of a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if request.param == "cpu, e4m3":
        monkeypatch.setattr(devices, "abilities", lambda device: Abilities(False, True))
    return torch.device(request.param.partition(",")[0])


def equal(found, expected):
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", [bf16, f16, f32])
@pytest.mark.parametrize("bias", [True, False])
def test_answers_are_equal_to_the_bit_at_all_bits(dtype, bias, device, calls):
    block = Block(bias=bias).to(device)
    x = torch.randn(3, 64, device=device, dtype=dtype)
    assert equal(block(x), block.apart(x))  # with biases in float32
    for packed in block.layers if bias else ():
        packed.bias = packed.bias.to(dtype)
    for bits in BITS:
        block.set_bits(*bits)
        for shape in ((2, 5, 64), (64,), (33, 64)):
            x = torch.randn(shape, device=device, dtype=dtype)
            found, expected = block(x), block.apart(x)
            assert equal(found, expected), (bits, shape)
            assert all(y.dtype is dtype for y in found)
    assert len(calls) == 3 * len(BITS) + 1
    block.to(dtype)  # scales too
    assert equal(block(x), block.apart(x))


def test_the_kernels_answer_the_same(kernel_device, monkeypatch):
    """All that Triton does in it; on the CPU in its interpreter."""
    if kernel_device.type == "cpu":
        monkeypatch.setattr(devices, "abilities", lambda device: Abilities(True, False))
    block = Block(Scheme(4, 4)).to(kernel_device)
    x = torch.randn(5, 64, device=kernel_device)
    for bits in ((4, 4, 4, 4), (8, 4, 4, 3)):
        block.set_bits(*bits)
        assert equal(block(x), block.apart(x))


@pytest.mark.parametrize("bits", BITS)
def test_no_tokens_have_no_answers(bits, calls):
    block = Block()
    block.set_bits(*bits)
    assert [tuple(y.shape) for y in block(torch.empty(2, 0, 64))] == [(2, 0, count) for count in OUTPUTS]
    assert calls


@pytest.mark.parametrize(
    "scheme",
    [Scheme(2, 4), Scheme(3, 3, rotation=True, seed=1, a_clip=0.9), Scheme(8, 8), Scheme(5, 4, a_clip=1.0)],
    ids=["2 bits", "3 bits", "8 bits", "5 bits"],
)
def test_other_weights(scheme, device, calls):
    block = Block(scheme).to(device)
    x = torch.randn(7, 64, device=device)
    assert equal(block(x), block.apart(x)) and calls


def test_smoothing_is_one_tensor_for_all(device, calls):
    block = Block(smoothing=torch.rand(64) + 0.5).to(device)
    for packed in block.layers:
        packed.smoothing = packed.smoothing.clone()
    x = torch.randn(7, 64, device=device)
    expected = block.apart(x)
    assert equal(block(x), expected) and not calls  # equal numbers in tensors of their own
    for packed in block.layers:
        packed.smoothing = block.layers[0].smoothing
    assert equal(block(x), expected) and calls


def test_products_and_roundings_are_as_few_as_bits_allow(monkeypatch):
    block, rounded, multiplied = Block(), [], []
    quantize, multiply = activations.quantize, products.multiply
    monkeypatch.setattr(activations, "quantize", lambda *args: rounded.append(args[1]) or quantize(*args))
    monkeypatch.setattr(
        products, "multiply", lambda *args: multiplied.append(len(args[2])) or multiply(*args)
    )
    for bits, roundings, outputs in [
        ((4, 4, 4, 4), [4], [272]),
        ((8, 4, 4, 4), [8, 4], [128, 144]),
        ((4, 3, 4, 4), [4, 3], [128, 64, 80]),
        ((4, 16, 4, 4), [4], [128, 80]),
    ]:
        block.set_bits(*bits)
        for _ in range(2):  # of other numbers at the same place, which the sharing of roundings must not miss
            rounded.clear(), multiplied.clear()
            block(torch.randn(5, 64))
            assert (rounded, multiplied) == (roundings, outputs)


def test_fast_sums_are_taken_where_all_weights_allow_them(monkeypatch):
    monkeypatch.setattr(devices, "abilities", lambda device: Abilities(False, True))
    taken, multiply = [], products.multiply
    monkeypatch.setattr(products, "multiply", lambda *args: taken.append(args[6]) or multiply(*args))
    block = Block(Scheme(3, 3), inputs=2048, outputs=(48, 32))
    x = torch.randn(3, 2048)
    for row_sum in (1, 2**14):
        block.layers[1]._bits[3] = row_sum
        block.layers[0]._bits[3] = 1
        block(x)
    for packed in block.layers:
        packed.fast_accumulation = True
    block(x)
    assert taken == [True, False, True]


def test_rounding_ends_the_turn_of_a_group():
    """Another numbers' codes at the same address are not taken by a layer of a group."""
    block, x = Block(), torch.randn(5, 64)
    group = 10**6
    for position, packed in enumerate(block.layers):
        packed.group = group, position
    first = block.layers[0](x)
    with torch.autograd._unsafe_preserve_version_counter(x):
        x.copy_(torch.randn(5, 64))
    found = block(x)
    assert not torch.equal(found[0], first)
    assert equal(found, block.apart(x)) and torch.equal(block.layers[3](x), found[3])


def test_what_is_not_finite_is_noted():
    block, x = Block(), torch.randn(5, 64)
    for bits in (4, 8, 16):
        block.set_bits(*[bits] * 4)
        x[3, 4] = torch.nan
        block(x)
        assert not block.layers[0].finite
        block.layers[0].finite.fill_(1)
        x[3, 4] = 0
        block(x)
        assert block.layers[0].finite


def test_nothing_is_out_of_date(calls):
    """Scales, biases and planes that are loaded, converted, replaced, or written to unseen."""
    block, x = Block(), torch.randn(5, 64)
    other = copy.deepcopy(block)
    block(x)
    for packed in other.layers:
        packed.planes.copy_(packed.planes.flip(1))
        packed.scale *= 2
        packed.bias -= 1
    block.load_state_dict(other.state_dict())
    assert equal(block(x), other.apart(x))
    block.layers[1].scale.data.mul_(3)
    block.layers[2].bias = block.layers[2].bias * 5
    assert equal(block(x), block.apart(x))
    with torch.inference_mode():
        assert equal(block(x), block.apart(x))
    block.half()
    assert equal(block(x), block.apart(x)) and len(calls) == 5


def test_the_operator_is_registered_right():
    block, x = Block(), torch.randn(2, 5, 64)
    layers = list(block.layers)
    lists = [[getattr(packed, part) for packed in layers] for part in ("planes", "scale", "bias")]
    for bits, biases in (((4, 4, 4, 4), lists[2]), ((4, 3, 16, 8), [])):
        block.set_bits(*bits)
        given = *lists[:2], biases, None, [packed._bits for packed in layers], layers[0].finite
        torch.library.opcheck(together.packed_linears, (x, *given, True, -1.0, None, False))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.gpu)])
def test_one_graph_for_all_blocks_and_bits(backend):
    if backend == "inductor" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch._dynamo.reset()
    counter, blocks = CompileCounterWithBackend(backend), [Block().to(device) for _ in range(3)]
    for n, block in enumerate(blocks):
        block.layers[0].scale *= n + 1
        block.compile(backend=counter, fullgraph=True)
    with torch.no_grad():
        for bits in BITS:
            x = torch.randn(2, 5, 64, device=device)
            for block in blocks:
                block.set_bits(*bits)
                assert equal(block(x), block.apart(x))
    assert counter.frame_count == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_for_each_assignment_of_bits():
    block = Block(inputs=256).cuda().bfloat16()
    plain = copy.deepcopy(block)
    kept = graphs.record_calls(block)
    with torch.no_grad():
        for bits in (*BITS, *BITS):
            block.set_bits(*bits), plain.set_bits(*bits)
            for _ in range(2):
                x = torch.randn(5, 256, device="cuda", dtype=bf16)
                assert equal(block(x), plain.apart(x)), bits
    assert len(kept.recorded) == len(BITS) and all(kept.recorded.values())
