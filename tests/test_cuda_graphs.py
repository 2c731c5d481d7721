"""Calls as CUDA graphs: the same answers as without, at all bits; on the CPU nothing changes."""

import copy

import pytest
import torch
from torch import nn

import adatsq
from adatsq.cuda import graphs
from adatsq.cuda.linear import PackedLinear
from adatsq.linear import check_finite
from adatsq.scheme import Scheme, quantized

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        up, down = nn.Linear(256, 512).requires_grad_(False), nn.Linear(512, 256).requires_grad_(False)
        self.up = PackedLinear(quantized(up, Scheme(4, 4, rotation=True)))
        self.down = PackedLinear(quantized(down, Scheme(4, 8, rotation=True)))

    def forward(self, x, text=None, scale=1.0, waits=False):
        y = self.down(nn.functional.gelu(self.up(x))) * scale
        if waits:
            y = y * float(y.abs().max() > 0)
        return (y, text)


def test_on_the_cpu_calls_run_as_they_are():
    model = Model()
    x = torch.randn(3, 256)
    expected = model(x)[0]
    kept = graphs.record_calls(model)
    with torch.no_grad():
        assert torch.equal(model(x)[0], expected)
    assert not kept.recorded
    graphs.forget(model)
    assert "forward" not in model.__dict__ and torch.equal(model(x)[0], expected)


def test_what_was_recorded_before_another_acceleration_is_dropped(tiny_pipe):
    pipe = adatsq.accelerate(adatsq.quantize(tiny_pipe, solver="rtn"), verbose=False, graphs=True)
    kept = pipe.transformer._adatsq_graphs
    kept.recorded["some bits"] = None
    adatsq.accelerate(pipe, verbose=False, fast_accumulation=True)
    assert pipe.transformer._adatsq_graphs is not kept and not pipe.transformer._adatsq_graphs.recorded
    assert pipe.transformer.forward.__wrapped__.__func__ is type(pipe.transformer).forward


class Replay:
    """In place of a graph: reads the layers' tensors that were there when it was made."""

    def __init__(self, model, x):
        self.model, self.x, self.output = copy.copy(model), x, torch.empty(3, 256)
        self.model._modules = {name: copy.copy(layer) for name, layer in model.named_children()}
        for layer in self.model.children():
            layer._buffers = dict(layer._buffers)
        self.model.__dict__.pop("forward", None)

    def replay(self):
        self.output.copy_(self.model(self.x)[0])


def test_graphs_are_dropped_when_tensors_are_elsewhere(monkeypatch):
    made = []

    def record(self, leaves, form):
        x = leaves[0].clone()
        made.append(Replay(self.transformer, x))
        return graphs.Recorded(made[-1], [x], (made[-1].output, None), [])

    monkeypatch.setattr(graphs, "on_cuda", lambda tensors: True)
    monkeypatch.setattr(graphs.Graphs, "_record", record)
    model, x = Model(), torch.randn(3, 256)
    plain = copy.deepcopy(model)
    graphs.record_calls(model)
    with torch.no_grad():
        for layer in (model.up, plain.up):
            layer.a_bits = 3
        assert all(torch.equal(model(x)[0], plain(x)[0]) for _ in range(2)) and len(made) == 1
        model.up.a_bits = plain.up.a_bits = 4
        assert all(torch.equal(model(x)[0], plain(x)[0]) for _ in range(2)) and len(made) == 2
        old = model.down.planes
        model._apply(torch.clone)  # as a way to another device and back
        old.zero_()
        with pytest.warns(UserWarning, match="Model was moved since its CUDA graphs were recorded") as seen:
            assert all(torch.equal(model(x)[0], plain(x)[0]) for _ in range(2))
        assert len(made) == 3 and len(seen) == 1


def test_nan_that_was_found_leaves_the_graph_its_place_to_write_to():
    model = Model()
    model.register_forward_hook(check_finite)
    places = [layer.finite.data_ptr() for layer in (model.up, model.down)]
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="NaN or infinity"):
            model(torch.full((3, 256), torch.nan))
        assert torch.isfinite(model(torch.randn(3, 256))[0]).all()
    assert places == [layer.finite.data_ptr() for layer in (model.up, model.down)]


@pytest.mark.gpu
@GPU
@pytest.mark.filterwarnings("ignore:Model was moved")
def test_a_model_that_was_moved_answers_the_same():
    model, x = Model().cuda(), torch.randn(5, 256, device="cuda")
    expected = copy.deepcopy(model)(x)[0]
    graphs.record_calls(model)
    with torch.no_grad():
        assert torch.equal(model(x)[0], expected)
        model.cpu()
        others = [torch.full_like(t, 7, device="cuda") for t in model.buffers()]  # where it was
        model.cuda()
        assert torch.equal(model(x)[0], expected) and len(others)


@pytest.mark.gpu
@GPU
def test_a_graph_for_each_assignment_of_bits():
    model = Model().cuda().bfloat16()
    plain = copy.deepcopy(model)
    kept = graphs.record_calls(model)
    with torch.no_grad():
        for bits in (4, 8, 3, 4, 8):
            model.up.a_bits = plain.up.a_bits = bits
            for _ in range(2):
                x, text = (torch.randn(5, 256, device="cuda", dtype=torch.bfloat16) for _ in range(2))
                y, same = model(x, text, scale=2.0)
                assert torch.equal(y, plain(x, text, scale=2.0)[0]) and torch.equal(same, text)
    assert len(kept.recorded) == 3
    with torch.no_grad():
        before = model(x, scale=2.0)[0]
        model(torch.randn_like(x), scale=2.0)
    assert torch.equal(before, plain(x, scale=2.0)[0])  # an answer is the caller's own


@pytest.mark.gpu
@GPU
def test_what_waits_for_the_device_runs_as_it_is():
    model = Model().cuda()
    graphs.record_calls(model)
    x = torch.randn(5, 256, device="cuda")
    with torch.no_grad(), pytest.warns(UserWarning, match="cannot be a CUDA graph"):
        assert model(x, waits=True)[0].abs().max() > 0
    with torch.no_grad():
        assert model(x, waits=True)[0].abs().max() > 0


@pytest.mark.gpu
@GPU
def test_a_pipeline_follows_its_policy(tiny_pipe):
    pipe = tiny_pipe.to("cuda")
    trace = adatsq.record(pipe, ["a ring"], seed=0)
    adatsq.quantize(pipe, trace, solver="rtn")
    adatsq.apply(pipe, adatsq.Policy.of(trace, 4))
    adatsq.accelerate(pipe, verbose=False)

    def draw():
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe("a ring", generator=generator, output_type="np", **adatsq.sampling(pipe))[0]

    expected = draw()
    adatsq.accelerate(pipe, verbose=False, graphs=True)
    assert abs(draw() - expected).max() < 1e-2 and abs(draw() - expected).max() < 1e-2
