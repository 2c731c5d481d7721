"""What a step costs, counted on the meta device, against counts of a real run; floors by hand."""

import pathlib

import pandas as pd
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import adatsq
from adatsq import roofline, step_cost
from adatsq.cuda import steps
from adatsq.cuda.full_size_models import MODELS, build
from adatsq.cuda.linear import PackedLinear
from adatsq.cuda.measuring import tensor_bytes

CARD = roofline.Card(1e15, 2e15, 4e12)


@pytest.mark.parametrize("model", MODELS)
def test_counted_operations_are_those_of_a_run(model):
    module = build(model, "cpu", tiny=True).transformer
    arguments = steps.inputs(model, module, torch.device("cpu"), tiny=True)
    # attention as two products of matrices, which the counter knows on every device
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        module(**arguments)
    seen = counter.get_flop_counts()["Global"]
    convolution = sum(n for op, n in seen.items() if "conv" in str(op))
    twin = steps.inputs(model, module, torch.device("meta"), tiny=True)
    counted = step_cost.count(module.to("meta"), twin)
    assert counted["operations"].sum() == sum(seen.values()) - convolution
    attention = counted[counted["kind"] == "attention"]["operations"].sum()
    assert attention == sum(n for op, n in seen.items() if "bmm" in str(op))
    block = counted[counted["kind"] == "block linears"]["operations"].sum()
    assert block == steps.linear_operations(build(model, "cpu", tiny=True).transformer, arguments)


def test_bytes_of_operators_that_are_no_products():
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Module()])
            self.blocks[0].attn = torch.nn.Linear(8, 4)

        def forward(self, x):
            return self.blocks[0].attn(x.view(3, 8)).view(-1) + 1

    with torch.device("meta"):
        counted = step_cost.count(Small(), {"x": torch.empty(24)})
    assert counted["kind"].tolist() == ["block linears", "rest"]
    assert counted["bytes"].tolist() == [4 * (24 + 12 + 32), 4 * (12 + 12)]  # views are free
    assert counted.loc[0, ["name", "tokens", "operations"]].tolist() == ["blocks.0.attn", 3, 2 * 3 * 8 * 4]


def test_floors_by_hand():
    rows = [("block linears", 1000, 2000, 4000, 3), ("modulation linears", 1, 640, 1000, 1)]
    shapes = pd.DataFrame(rows, columns=["kind", "tokens", "inputs", "outputs", "calls"])
    shapes = shapes.assign(operations=[16e9, 1.28e6], bytes=[2 * (8e6 + 2e6 + 4e6), 2 * (640_000 + 1640)])
    found = roofline.floors(shapes, CARD, 3)
    assert found["bf16"].tolist() == pytest.approx([0.016, 2 * 641_640 / 4e9])
    assert found["fp8"].tolist() == pytest.approx([0.008, (640_000 + 640 + 2000) / 4e9])
    assert found["unpack"].tolist() == pytest.approx([8e6 * 1.375 / 4e9, 640_000 * (4.25 / 8 + 1) / 4e9])
    assert found["activations"].tolist() == pytest.approx([3 * 2e6 / 4e9, 0])
    assert roofline.gain(128, 64, 2) == pytest.approx(4 / 3)


def test_the_parts_of_a_step_add_up():
    rows = [
        {"kind": "block linears", "name": "a", "tokens": 1000, "inputs": 1000, "outputs": 1000},
        {"kind": "attention", "operations": 4e12, "bytes": 1},
        {"kind": "rest", "operations": 0, "bytes": 4e9},
    ]
    counted = pd.DataFrame(rows).fillna({"operations": 2e9, "bytes": 6e6})
    table = roofline.before_after(counted, CARD, 3)
    assert table.loc["bf16"].tolist() == pytest.approx([0.002, 4, 1, 0, 0])
    assert table.loc["W3A4"].tolist() == pytest.approx([0.001, 4, 1, 1.375e6 / 4e9, 3e6 / 4e9])


@pytest.mark.parametrize("w_bits", [3, 4])
@pytest.mark.parametrize("model", MODELS)
def test_counted_bytes_are_those_that_packed_layers_hold(model, w_bits):
    pipe = build(model, "cpu", tiny=True)
    arguments = steps.inputs(model, pipe.transformer, torch.device("cpu"), tiny=True)
    parameters = sum(p.numel() for p in pipe.transformer.parameters())
    buffers = tensor_bytes(pipe.transformer) - 2 * parameters  # tables of rotary embeddings
    counted = step_cost.count(pipe.transformer, arguments)
    adatsq.accelerate(adatsq.quantize(pipe, solver="rtn", w_bits=w_bits), verbose=False)
    layers = [m for m in pipe.transformer.modules() if isinstance(m, PackedLinear)]
    expected = sum(roofline.held(counted, parameters, w_bits).values()) + buffers
    assert tensor_bytes(pipe.transformer) == expected + 4 * len(layers)  # a flag each


def test_a_card_is_read(tmp_path):
    card = roofline.card(pathlib.Path(__file__).parents[1] / "data" / "hardware.csv")
    assert card.fp8 == 2 * card.bf16 and card.bandwidth > 1e12
    (tmp_path / "card.csv").write_text("quantity,value\nbf16 peak,1\n")
    with pytest.raises(ValueError, match="has no bandwidth, fp8 peak"):
        roofline.card(tmp_path / "card.csv")
