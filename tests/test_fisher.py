import copy
import math
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipe

from adatsq import fisher as fi
from adatsq import trace as tr

PROMPTS = ["a red circle", "two blue stars", "a ring"]


@pytest.fixture
def trace(tiny_pipe):
    return tr.record(tiny_pipe, PROMPTS, num_inference_steps=2, seed=3, progress=False)


def made_up(information):
    """A Fisher with the given I (T, L)."""
    information = np.asarray(information, dtype=float)
    t, l = information.shape
    return fi.Fisher(
        information[:, None], [1 - i / t for i in range(t)], [f"l{i}" for i in range(l)], [0], "-", 1, "m"
    )


def weights_of(pipe, trace):
    return [pipe.transformer.get_submodule(layer.name).weight.requires_grad_() for layer in trace.layers]


@pytest.mark.parametrize("loss", ["gauss-newton", "flow-matching"])
def test_it_is_autograd_on_the_weights_image_by_image(tiny_pipe, trace, loss):
    fisher = fi.temporal_fisher(tiny_pipe, trace, probes=2, seed=7, loss=loss, batch_size=2, progress=False)
    weights = weights_of(tiny_pipe, trace)
    for t in range(2):
        for n in range(3):
            expected = np.zeros(len(weights))
            for probe in range(2):
                z = fi._noise(trace, n, t, 7, probe)[None]
                if loss == "gauss-newton":
                    v = tr.velocity(tiny_pipe.transformer, trace, t, index=[n])
                    scalar = (v * z).sum()
                else:
                    sigma, x_0 = trace.scheduler.sigmas[t], trace.latents[-1][[n]]
                    v = tr.velocity(tiny_pipe.transformer, trace, t, (1 - sigma) * x_0 + sigma * z, [n])
                    scalar = 0.5 * (v - (z - x_0)).square().sum()
                grads = torch.autograd.grad(scalar, weights)
                expected += [float(g.double().square().mean()) / 2 for g in grads]
            np.testing.assert_allclose(fisher.per_image[t, n], expected, rtol=2e-3)
    assert (fisher.per_image > 0).all()


def test_many_probes_converge_to_the_exact_gauss_newton_diagonal(tiny_pipe):
    """E[(J^T z)^2] = sum over outputs of J^2: the full Jacobian of three layers, output by output."""
    trace = tr.record(tiny_pipe, PROMPTS[:1], num_inference_steps=1, progress=False)
    fisher = fi.temporal_fisher(tiny_pipe, trace, probes=200, progress=False)
    for name in (
        "transformer_blocks.0.attn.add_q_proj",
        "transformer_blocks.1.norm1.linear",
        "single_transformer_blocks.1.proj_out",
    ):
        weight = tiny_pipe.transformer.get_submodule(name).weight.requires_grad_()
        v = tr.velocity(tiny_pipe.transformer, trace, 0).flatten()
        exact = sum(
            float(torch.autograd.grad(out, weight, retain_graph=True)[0].square().mean()) for out in v
        )
        assert fisher.values[name].item() == pytest.approx(exact, rel=0.15)
        weight.requires_grad_(False)


def test_parts_measured_side_by_side_are_those_of_one_run(trace):
    """The guide's way to use several GPUs, with the CPU in their place: a pipeline and a thread for each."""
    pipes, parts = [build_tiny_pipe() for _ in range(3)], trace.split(3)
    whole = fi.temporal_fisher(pipes[0], trace, seed=7, batch_size=1, progress=False)
    with ThreadPoolExecutor(len(parts)) as pool:
        found = pool.map(
            lambda pipe, part: fi.temporal_fisher(pipe, part, seed=7, batch_size=1, progress=False),
            pipes,
            parts,
        )
        joined = fi.join(list(found))
    np.testing.assert_allclose(joined.values, whole.values, rtol=1e-4)


def test_batches_and_splitting_change_nothing(tiny_pipe, trace):
    whole = fi.temporal_fisher(tiny_pipe, trace, batch_size=3, progress=False)
    parts = fi.join([fi.temporal_fisher(tiny_pipe, part, progress=False) for part in trace.split(2)])
    np.testing.assert_allclose(parts.per_image, whole.per_image, rtol=1e-3)
    assert parts.seeds == whole.seeds == [3, 4, 5]
    again = fi.temporal_fisher(tiny_pipe, trace, seed=1, batch_size=3, progress=False)
    assert not np.allclose(again.per_image, whole.per_image, rtol=0.01)  # other probes
    with pytest.raises(ValueError, match="different timesteps"):
        fi.join([whole, made_up([[1.0], [2.0], [3.0]])])


def test_the_model_is_left_as_it_was(tiny_pipe, trace, monkeypatch):
    parameters = list(tiny_pipe.transformer.parameters())
    before = [i % 2 == 0 for i in range(len(parameters))]
    for parameter, wanted in zip(parameters, before):
        parameter.requires_grad_(wanted)
    fi.temporal_fisher(tiny_pipe, trace.subset([0]), progress=False)
    assert [p.requires_grad for p in parameters] == before
    assert all(p.grad is None for p in parameters)

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(fi, "velocity", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        fi.temporal_fisher(tiny_pipe, trace, progress=False)
    assert [p.requires_grad for p in parameters] == before
    assert not any(m._forward_hooks for m in tiny_pipe.transformer.modules())


def test_only_one_gradient_exists_at_a_time(tiny_pipe, trace, monkeypatch):
    """Watch the life of each dY^T X, from where it is squared until it is freed."""
    alive, most = set(), [0]
    square = torch.Tensor.square

    def watched(g):
        if g.ndim == 2:
            alive.add(id(g))
            most[0] = max(most[0], len(alive))
            weakref.finalize(g, alive.discard, id(g))
        return square(g)

    monkeypatch.setattr(torch.Tensor, "square", watched)
    fi.temporal_fisher(tiny_pipe, trace.subset([0]), progress=False)
    assert most[0] == 1


def test_bfloat16_agrees_roughly(tiny_pipe, trace):
    full = fi.temporal_fisher(tiny_pipe, trace, progress=False)
    tiny_pipe.to(torch.bfloat16)
    half = tr.record(tiny_pipe, PROMPTS, num_inference_steps=2, seed=3, progress=False)
    rough = fi.temporal_fisher(tiny_pipe, half, progress=False)
    assert np.median(np.abs(np.log(rough.per_image / full.per_image))) < 0.2


def test_alpha_sums_to_one_over_time():
    alpha = made_up(np.random.default_rng(0).random((5, 3))).alpha(0.5)
    np.testing.assert_allclose(alpha.sum(), 1)
    assert alpha.index.name == "timestep" and alpha.columns.name == "layer" and (alpha.to_numpy() > 0).all()


def test_alpha_by_hand():
    alpha = made_up([[1.0], [3.0]]).alpha(2.0)["l0"]  # I / mean = 0.5, 1.5
    assert alpha.iloc[1] / alpha.iloc[0] == pytest.approx(math.exp((1.5 - 0.5) / 2.0))


def test_alpha_at_the_ends_of_tau():
    fisher = made_up([[1.0, 9.0], [2.0, 4.0], [4.0, 1.0]])
    np.testing.assert_allclose(fisher.alpha(math.inf), 1 / 3)
    np.testing.assert_allclose(fisher.alpha(1e-3).to_numpy(), [[0, 1], [0, 0], [1, 0]], atol=1e-12)
    np.testing.assert_allclose(fisher.effective_timesteps(math.inf), 3)
    np.testing.assert_allclose(fisher.effective_timesteps(1e-3), 1)
    assert fisher.effective_timesteps(1.0).between(1, 3).all()


def test_alpha_has_no_units():
    information = np.random.default_rng(0).random((6, 2)) + 0.1
    a, b = made_up(information).alpha(0.7), made_up(information * [1e-12, 1e9]).alpha(0.7)
    np.testing.assert_allclose(a, b)


def test_a_layer_without_gradient_is_weighted_uniformly():
    alpha = made_up([[0.0, 1.0], [0.0, 2.0]]).alpha()
    np.testing.assert_allclose(alpha["l0"], 0.5)


@pytest.mark.parametrize("tau", [0, -1.0, math.nan])
def test_tau_must_be_positive(tau):
    with pytest.raises(ValueError, match="tau is"):
        made_up([[1.0], [2.0]]).alpha(tau)


def test_file_round_trip(tiny_pipe, trace, tmp_path):
    fisher = fi.temporal_fisher(tiny_pipe, trace.subset([0, 2]), loss="flow-matching", progress=False)
    loaded = fi.Fisher.load(fisher.save(tmp_path / "fisher.json"))
    assert (loaded.per_image == fisher.per_image).all()
    assert {**vars(loaded), "per_image": 0} == {**vars(fisher), "per_image": 0}
    text = (tmp_path / "fisher.json").read_text()
    (tmp_path / "cut.json").write_text(text[: len(text) // 2])
    (tmp_path / "other.json").write_text(text.replace('"seeds": [3, 5]', '"seeds": [3]'))
    with pytest.raises(FileNotFoundError, match="none.json"):
        fi.Fisher.load(tmp_path / "none.json")
    for name in ("cut.json", "other.json"):
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            fi.Fisher.load(tmp_path / name)


def test_bad_input_is_named(tiny_pipe, trace):
    with pytest.raises(ValueError, match="'hessian': choose one of 'gauss-newton', 'flow-matching'"):
        fi.temporal_fisher(tiny_pipe, trace, loss="hessian")
    with pytest.raises(ValueError, match="got 0 and 4"):
        fi.temporal_fisher(tiny_pipe, trace, probes=0)
    with pytest.raises(ValueError, match="recorded from Flux.*, the pipeline holds Flux"):
        fi.temporal_fisher(build_tiny_pipe(seed=1), trace)


def test_a_quantized_layer_is_refused(tiny_pipe, trace):
    class Rounded(torch.nn.Module):
        in_features = out_features = 32

    name = "transformer_blocks.0.attn.to_q"
    tiny_pipe.transformer.set_submodule(name, Rounded())
    with pytest.raises(ValueError, match=f"layer {name} is quantized"):
        fi.temporal_fisher(tiny_pipe, trace)


def test_nan_is_named(tiny_pipe, trace):
    trace = copy.copy(trace)
    trace.latents[1, 0] = math.nan
    with pytest.raises(FloatingPointError, match=f"transformer_blocks.* at timestep {trace.timesteps[1]}"):
        fi.temporal_fisher(tiny_pipe, trace, progress=False)
