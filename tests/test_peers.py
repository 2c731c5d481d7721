"""Other libraries on tiny random models: what they store, what they change, and rows like the benchmark's."""

import importlib.util
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import adatsq
from adatsq import benchmark, evaluate, peers
from adatsq.models import Layer, quantizable
from adatsq.peers import quanto, stored

ROWS = [(method, *bits) for method, peer in peers.PEERS.items() for bits in peer.bits]


def installed(method):
    """Skip where the library is not installed."""
    pytest.importorskip(peers.PEERS[method].module, exc_type=ImportError)


@pytest.fixture
def quantized(family_folders):
    """quantized(method, w_bits, a_bits, family) -> (pipe, layers, its size, full-precision trace)."""

    def build(method, w_bits, a_bits, family="flux"):
        pipe, fresh = (adatsq.load_pipeline(family_folders(family)) for _ in range(2))
        trace = adatsq.record(fresh, ["a red circle"], 2, progress=False)
        layers = quantizable(pipe.transformer)
        rest = stored.kept(pipe.transformer, layers)
        peers.PEERS[method].quantize(pipe, layers, w_bits, a_bits, lambda: trace)
        return pipe, layers, stored.size(pipe.transformer, layers, rest), trace

    return build


@pytest.mark.parametrize(("method", "w_bits", "a_bits"), ROWS)
def test_library_runs_and_is_near_full_precision(quantized, method, w_bits, a_bits):
    """The answer is changed, by less with more bits; the weights take less than the 32 bits that they had
    (nf4 leaves most of the tiny rows as they are)."""
    installed(method)
    pipe, _, facts, trace = quantized(method, w_bits, a_bits)
    with torch.no_grad():
        found = adatsq.trace.velocity(pipe.transformer, trace, 0).float()
    error = ((found - trace.velocity[0]).norm() / trace.velocity[0].norm()).item()
    assert 0 < error < {8: 0.05, 5: 0.3, 4: 0.3, 3: 0.5, 2: 1.0}[w_bits]
    assert w_bits <= facts["effective_w_bits_16_bit_scales"] <= facts["effective_w_bits"]
    assert facts["effective_w_bits"] < (32 if method == "bnb-nf4" else 14)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("method", "w_bits", "a_bits"), ROWS)
def test_weights_are_integers_on_a_gpu_too(family_folders, method, w_bits, a_bits):
    """bitsandbytes leaves what is on the GPU already for its first call, and stores it as it was."""
    installed(method)
    pipe = adatsq.load_pipeline(family_folders("flux"), device="cuda")
    layers = quantizable(pipe.transformer)
    trace = adatsq.record(pipe, ["a red circle"], 2, progress=False)
    rest = stored.kept(pipe.transformer, layers)
    peers.PEERS[method].quantize(pipe, layers, w_bits, a_bits, lambda: trace)
    facts = stored.size(pipe.transformer, layers, rest)
    assert facts["effective_w_bits_16_bit_scales"] < (32 if method == "bnb-nf4" else 14)


@pytest.mark.parametrize("method", peers.PEERS)
def test_only_the_blocks_linears_change(quantized, method):
    installed(method)
    before = adatsq.load_pipeline(quantized(method, *peers.PEERS[method].bits[0])[0].name_or_path)
    pipe, layers, _, _ = quantized(method, *peers.PEERS[method].bits[0])
    inside = tuple(layer.name + "." for layer in layers)
    for name, parameter in before.transformer.named_parameters():
        if not name.startswith(inside):
            torch.testing.assert_close(pipe.transformer.get_parameter(name), parameter, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["zimage", "wan"])
@pytest.mark.parametrize("method", peers.PEERS)
def test_other_families_draw(quantized, method, family):
    installed(method)
    pipe = quantized(method, *peers.PEERS[method].bits[-1], family)[0]
    drawn = evaluate.generate(pipe, ["a red circle"], [0], progress=False, num_inference_steps=2)
    assert drawn.std() > 0


def test_stored_bits_of_known_storage():
    """8-bit codes of 4 x 6, 4 scales of float32, a bias that does not count; a float weight as in 16 bit."""
    layer = nn.Module()
    layer.register_buffer("weight", torch.zeros(4, 6, dtype=torch.int8))
    layer.register_buffer("scale", torch.rand(4))
    layer.register_buffer("bias", torch.rand(4))
    assert stored.stored_bits(layer) == 8 * 24 + 32 * 4
    assert stored.stored_bits(layer, float_bits=16) == 8 * 24 + 16 * 4
    linear = nn.Linear(6, 4)
    assert stored.stored_bits(linear) == 32 * 24
    linear.weight.data = linear.weight.data.bfloat16().float()
    assert stored.stored_bits(linear) == 16 * 24


def test_groups_divide_rows():
    sizes = {(64, 256): 64, (128, 1280): 128, (64, 48): 16, (128, 32): 32, (64, 682): 682, (64, 85): 85}
    assert {key: stored.group_of(*key) for key in sizes} == sizes


def test_layers_that_are_left_count_sixteen_bits():
    layers = [Layer(name, 8, width, role) for name, width, role in (("a", 8, "act"), ("b", 6, "act"))]
    layers.append(Layer("c", 6, 6, "weight"))  # has no activation bits
    assert stored.average_bits(layers, 8, lambda layer: layer.out_features % 8 > 0) == 12
    assert stored.average_bits(layers, 8, lambda layer: False) is None


class Simulated(nn.Linear):
    class weight_quantizer:
        num_bits, is_enabled = 4, True


def test_simulated_weights_count_as_their_integers():
    layer = Simulated(6, 4)
    assert stored.stored_bits(layer) == 4 * 24
    layer.weight_quantizer = type("Off", (), {"is_enabled": False})
    assert stored.stored_bits(layer) == 32 * 24


def test_size_of_the_unquantized_is_that_of_the_summary(tiny_pipe):
    layers = quantizable(tiny_pipe.transformer)
    found = stored.size(tiny_pipe.transformer, layers, stored.kept(tiny_pipe.transformer, layers))
    table = adatsq.summary(tiny_pipe)
    assert found["transformer_bytes"] == table.at["transformer", "bytes"]
    assert found["effective_w_bits"] == table.at["weights and activations", "effective_bits"]
    assert found["quantized_share"] == 0


@pytest.mark.parametrize("method", peers.PEERS)
def test_a_missing_library_is_named(method, monkeypatch):
    def gone(name):
        raise ModuleNotFoundError(name)

    for find in (lambda name: None, gone):
        monkeypatch.setattr(importlib.util, "find_spec", find)
        said = peers.missing(method)
        assert said.startswith(f"{method}: not run") and peers.PEERS[method].distribution in said


@pytest.mark.parametrize("bits", [2, 4])
def test_quanto_unpacks_as_its_packing_says(bits):
    """Byte j holds the values j, j + n, j + 2n ..., the first in its lowest bits."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**bits, (8, 5))
    planes = values.reshape(8 // bits, -1, 5)
    packed = sum(plane << (bits * i) for i, plane in enumerate(planes)).astype(np.uint8)
    assert (quanto._unpack(torch.as_tensor(packed), bits).numpy() == values).all()


@pytest.fixture
def run(family_folders, tmp_path, monkeypatch):
    """run(*options) -> folder with the rows of the peers of a tiny model."""
    monkeypatch.setattr(benchmark, "CALIBRATION", slice(0, 2))
    monkeypatch.setattr(evaluate, "RESAMPLES", 50)
    model = tmp_path / "tiny"
    shutil.copytree(family_folders("schnell"), model)
    sampling = json.loads((model / "sampling.json").read_text())
    small = {**sampling, "height": 64, "width": 64, "num_inference_steps": 1}
    (model / "sampling.json").write_text(json.dumps(small))
    fixed = ["--device", "cpu", "--limit", "2", "--pictures", "1", "--commit", "test"]

    def command(*options):
        peers.main(["--model", str(model), "--out", str(tmp_path / "out"), *fixed, *options])
        return tmp_path / "out"

    return command


def test_rows_resume(run, monkeypatch, capsys):
    """A stand-in for a library, which does nothing, has the rows of full precision, once."""
    calls = []
    idle = peers.Peer("pandas", "pandas", lambda *args: calls.append(args[2:4]), ((8, 16), (8, 8)))
    monkeypatch.setitem(peers.PEERS, "quanto", idle)
    monkeypatch.setitem(peers.PEERS, "hqq", peers.Peer("no-such", "no_such_library", None, ((4, 16),)))
    out = run("--methods", "quanto", "hqq")
    before = (out / "tiny.csv").read_bytes()
    table = pd.read_csv(out / "tiny.csv")
    run("--methods", "quanto", "hqq")
    assert calls == [(8, 16), (8, 8)] and (out / "tiny.csv").read_bytes() == before
    rows = table[table.metric == "psnr"].set_index(["method", "w_bits", "a_bits"]).value
    assert dict(rows) == {("quanto", 8, 16.0): 100, ("quanto", 8, 8.0): 100}
    assert "hqq: not run, no-such is not installed" in capsys.readouterr().out
    assert set(table[table.metric == "effective_w_bits"].method) == {"quanto"}
