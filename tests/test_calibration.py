from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build_tiny_pipe

from adatsq import calibration as ca
from adatsq import trace as tr
from adatsq.models import block_names

PROMPTS = ["a red circle", "two blue stars", "a ring"]


@pytest.fixture
def trace(tiny_pipe):
    return tr.record(tiny_pipe, PROMPTS, num_inference_steps=3, progress=False)


@pytest.fixture
def alpha(trace):
    weights = np.random.default_rng(0).dirichlet(np.ones(3), len(trace.layers)).T
    return pd.DataFrame(weights, index=trace.timesteps, columns=[layer.name for layer in trace.layers])


def direct_sum(pipe, trace, alpha):
    """sum_t alpha X^T X / rows in float64, one image at a time, with inputs kept by plain torch hooks."""
    found, inputs = {}, {}
    modules = {layer.name: pipe.transformer.get_submodule(layer.name) for layer in trace.layers}
    hooks = [
        module.register_forward_hook(lambda m, args, y, name=name: inputs.__setitem__(name, args[0]))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        for t, timestep in enumerate(trace.timesteps):
            for n in range(len(trace)):
                pipe.transformer(**trace.call(t, [n]))
                for name, x in inputs.items():
                    x = x.double().flatten(0, -2)
                    weight = 1 / len(trace.timesteps) if alpha is None else alpha.loc[timestep, name]
                    found[name] = found.get(name, 0) + weight * (x.T @ x) / (len(x) * len(trace))
    for hook in hooks:
        hook.remove()
    return found


def hooks(pipe):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.transformer.modules())


@pytest.mark.parametrize(
    "how", [{"blocks_per_pass": 1}, {"blocks_per_pass": 3}, {"blocks_per_pass": None}, {"stream": True}]
)
@pytest.mark.parametrize("weighted", [True, False])
def test_it_is_the_sum(tiny_pipe, trace, alpha, weighted, how):
    alpha = alpha if weighted else None
    expected = direct_sum(tiny_pipe, trace, alpha)
    found = {}
    for _, some in ca.hessians(tiny_pipe, trace, alpha, batch_size=2, progress=False, **how):
        assert not found.keys() & some.keys()
        found |= some
    assert found.keys() == expected.keys() == {layer.name for layer in trace.layers}
    for name, hessian in found.items():
        assert hessian.dtype == torch.float32
        torch.testing.assert_close(hessian.double(), expected[name], rtol=1e-4, atol=1e-6)


def test_float64_is_exact_enough_for_any_solver(tiny_pipe, trace, alpha):
    tiny_pipe.transformer.double()
    double = replace(
        trace,
        form=replace(trace.form, dtype=torch.float64, timestep_dtype=torch.float64),
        conditioning={k: as_double(v) for k, v in trace.conditioning.items()},
    )
    expected = direct_sum(tiny_pipe, double, alpha)
    for _, some in ca.hessians(tiny_pipe, double, alpha, dtype=torch.float64, progress=False):
        for name, hessian in some.items():
            torch.testing.assert_close(hessian, expected[name], rtol=1e-10, atol=1e-12)
            assert torch.linalg.eigvalsh(hessian).min() > -1e-12


def as_double(value):
    return value.double() if isinstance(value, torch.Tensor) else value


def test_it_is_what_sqrt_alpha_times_x_gives(tiny_pipe, trace):
    """All weight on one timestep is calibration on that timestep alone."""
    name = "transformer_blocks.1.ff.net.2"
    one = pd.DataFrame(0.0, index=trace.timesteps, columns=[name])
    one.iloc[2] = 1.0
    alone = replace(
        trace, timesteps=trace.timesteps[2:], latents=trace.latents[2:], velocity=trace.velocity[2:]
    )
    ((_, a),) = ca.hessians(tiny_pipe, trace, one, [name], progress=False)
    ((_, b),) = ca.hessians(tiny_pipe, alone, None, [name], progress=False)
    torch.testing.assert_close(a[name], b[name])


def test_blocks_come_in_order_and_alone(tiny_pipe, trace):
    """A pass visits no block after its own, and holds no other block's Hessians."""
    blocks = block_names(tiny_pipe.transformer)
    visited = []
    for block in blocks:
        note = lambda *_, block=block: visited.append(block)  # noqa: E731
        tiny_pipe.transformer.get_submodule(block).register_forward_pre_hook(note)
    before, seen = hooks(tiny_pipe), []
    for block, some in ca.hessians(tiny_pipe, trace, progress=False):
        assert hooks(tiny_pipe) == before  # while the caller works, nothing listens
        assert some and all(name.startswith(f"{block}.") for name in some)
        assert set(visited) == set(blocks[: blocks.index(block) + 1])
        visited.clear()
        seen.append(block)
    assert seen == blocks


def test_hooks_go_after_a_failure_and_after_an_early_end(tiny_pipe, trace, monkeypatch):
    for _ in ca.hessians(tiny_pipe, trace, progress=False):
        break
    assert hooks(tiny_pipe) == 0

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    last = tiny_pipe.transformer.single_transformer_blocks[1]
    monkeypatch.setattr(last.proj_out, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(ca.hessians(tiny_pipe, trace, blocks_per_pass=None, progress=False))
    assert hooks(tiny_pipe) == 0


def test_layers_that_share_an_input_get_their_own_copies(tiny_pipe, trace):
    block = "transformer_blocks.0.attn"
    names = [f"{block}.{name}" for name in ("to_q", "to_k", "to_v")]
    ((_, found),) = ca.hessians(tiny_pipe, trace, layers=names, progress=False)
    assert torch.equal(found[names[0]], found[names[1]]) and torch.equal(found[names[1]], found[names[2]])
    assert found[names[0]] is not found[names[1]]


def test_tf32_is_off_only_meanwhile(tiny_pipe, trace):
    before = torch.get_float32_matmul_precision()
    inside = []
    hook = tiny_pipe.transformer.register_forward_pre_hook(
        lambda *_: inside.append(torch.get_float32_matmul_precision())
    )
    torch.set_float32_matmul_precision("high")
    try:
        list(ca.hessians(tiny_pipe, trace, blocks_per_pass=None, progress=False))
        assert torch.get_float32_matmul_precision() == "high" and set(inside) == {"highest"}
    finally:
        torch.set_float32_matmul_precision(before)
        hook.remove()


def test_bad_input_is_named_at_the_call(tiny_pipe, trace, alpha):
    with pytest.raises(ValueError, match="alpha has 2 timesteps, the trace has 3: compute"):
        ca.hessians(tiny_pipe, trace, alpha.iloc[:2])
    last = "single_transformer_blocks.1.proj_out"
    with pytest.raises(ValueError, match=rf"alpha lacks 1 of the trace's \d+ layers, such as {last}:"):
        ca.hessians(tiny_pipe, trace, alpha.drop(columns=last))
    for index in (alpha.index + 0.01, alpha.index[::-1], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=r"alpha is for timesteps \[.*\], the trace has \[1.0, "):
            ca.hessians(tiny_pipe, trace, alpha.set_axis(index))
    for value in (float("nan"), float("inf"), -0.25):
        broken = alpha.copy()
        broken.iloc[1, 2] = value
        with pytest.raises(ValueError, match=f"alpha of layer {alpha.columns[2]} at timestep .* is {value}"):
            ca.hessians(tiny_pipe, trace, broken)
    with pytest.raises(ValueError, match="no block with layer 'proj_out'"):
        ca.hessians(tiny_pipe, trace, layers=["proj_out"])
    with pytest.raises(ValueError, match="the pipeline holds"):
        ca.hessians(build_tiny_pipe(seed=1), trace)
