"""SVDQuant's three searches, each against a loop of its own in float64: branch, smoothing, rest by GPTQ."""

import numpy as np
import pytest
import torch
from test_gptq import naive_obq

from adatsq import baselines, recipes
from adatsq.inputs import inputs
from adatsq.lowrank import decompose
from adatsq.models import load_pipeline
from adatsq.smoothing import GRID
from adatsq.trace import layer_inputs, record, velocity

RANK, GROUP = 4, 16  # that fit layers of 32 channels
HEADS = [f"transformer_blocks.0.attn.to_{c}" for c in "qkv"]


@pytest.fixture(scope="module")
def trace(tiny_folder):
    pipe = load_pipeline(tiny_folder)
    return record(pipe, ["a red circle", "two blue squares"], num_inference_steps=3, progress=False)


@pytest.fixture(scope="module")
def weights(tiny_folder):
    pipe = load_pipeline(tiny_folder)
    return {name: pipe.transformer.get_submodule(name).weight.detach().double().numpy() for name in HEADS}


@pytest.fixture(scope="module")
def transformer(tiny_folder, trace):
    """With GPTQ on the rest, which changes neither smoothing nor branches."""
    pipe = load_pipeline(tiny_folder)
    groups = {layer.name: GROUP for layer in trace.layers}
    small = {"low_rank": RANK, "group_size": groups, "a_group_size": groups}
    recipes.quantize(pipe, trace, 4, 4, None, **baselines._low_rank(pipe, "gptq") | small, progress=False)
    return pipe.transformer


def short(x: np.ndarray) -> np.ndarray:
    """To 16 bits."""
    return torch.from_numpy(x).bfloat16().double().numpy()


def rounded(x: np.ndarray, short_scale: bool = True) -> np.ndarray:
    """To [-7, 7] in groups of a row, scale = max|x| / 7, that of weights in 16 bits."""
    parts = x.reshape(len(x), -1, GROUP)
    scale = np.abs(parts).max(-1, keepdims=True) / 7
    scale = short(scale) if short_scale else scale
    return (np.clip(np.rint(parts / scale), -7, 7) * scale).reshape(x.shape)


def branch(matrix: np.ndarray) -> np.ndarray:
    """L of rank RANK by numpy's SVD, from factors in 16 bits that share the singular values."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(s[:RANK])
    return short(u[:, :RANK] * root) @ short(root[:, None] * v[:RANK])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iterations", [0, 3, 100])
def test_the_branch_improves_in_turns_until_the_error_rises(seed, iterations):
    """L_k+1 = SVD_r(W - Q(W - L_k)); of all until the first rise the best, and as many as this loop tries."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(48, 32)) * np.exp(rng.normal(size=32))
    x = rng.normal(size=(100, 32)) / np.exp(rng.normal(size=32))
    low, errors, found = branch(w), [], []
    while len(errors) <= iterations:
        errors.append(np.square(x @ (w - low - rounded(w - low)).T).sum())
        found.append(low)
        if len(errors) > 1 and not errors[-1] < errors[-2]:
            break
        low = branch(w - rounded(w - low))
    tried = []

    def error(down, up):
        rest = w - (up.double() @ down.double()).numpy()
        tried.append(np.square(x @ (rest - rounded(rest)).T).sum())
        return tried[-1]

    def nearest(rest):
        return torch.from_numpy(rounded(rest.double().numpy()))

    down, up = decompose(torch.from_numpy(w).float(), RANK, nearest, error, iterations)
    assert len(tried) == len(errors) and tried == pytest.approx(errors, rel=1e-3)
    best = found[int(np.argmin(errors))]
    assert np.abs((up.double() @ down.double()).numpy() - best).max() < 1e-3 * np.abs(best).max()


def test_the_smoothing_is_the_best_of_39_for_all_that_share_the_input(
    tiny_folder, trace, weights, transformer
):
    """Query, key and value share s: of every (p, q) the summed error of the three on the sampled rows."""
    given = inputs(load_pipeline(tiny_folder), trace, HEADS)
    x, largest = given.rows[HEADS[0]].double().numpy(), given.largest[HEADS[0]].double().numpy()
    largest_w = np.max([np.abs(w).max(0) for w in weights.values()], axis=0)
    errors, scales = [], []
    for p, q in GRID:
        s = short(np.maximum(np.maximum(largest, 1e-5) ** p / np.maximum(largest_w, 1e-5) ** q, 1e-5))
        z, total = x / s, 0.0
        for w in weights.values():
            low = branch(w * s)
            answer = z @ low.T + rounded(z, short_scale=False) @ rounded(w * s - low).T
            total += np.square(answer - x @ w.T).sum()
        errors.append(total)
        scales.append(s)
    chosen = [transformer.get_submodule(name).smoothing.double().numpy() for name in HEADS]
    assert all(np.array_equal(s, chosen[0]) for s in chosen)
    distance = [np.abs(np.log(s / chosen[0])).max() for s in scales]
    assert min(distance) < 2**-7 and int(np.argmin(distance)) == int(np.argmin(errors))
    assert sorted(errors)[1] > 1.001 * min(errors)  # no tie: a neighbour of the grid is told apart


@pytest.mark.parametrize("name", HEADS[:2])
def test_the_rest_is_rounded_by_gptq_on_the_smoothed_inputs(name, tiny_folder, trace, weights, transformer):
    """R = W s - L with H = z^T z, z = x / s, column by column with a fresh inverse each time."""
    rows, pipe = [], load_pipeline(tiny_folder)
    with layer_inputs(pipe.transformer, [name], lambda _, x: rows.append(x)), torch.no_grad():
        for t in range(3):
            velocity(pipe.transformer, trace, t)
    x = torch.cat([part.reshape(-1, part.shape[-1]) for part in rows]).double()
    module = transformer.get_submodule(name)
    s, down, up = (getattr(module, part).double() for part in ("smoothing", "down", "up"))
    rest, z = torch.from_numpy(weights[name]) * s - up @ down, x / s
    scale = torch.from_numpy(short(np.abs(rest.numpy().reshape(len(rest), -1, GROUP)).max(-1) / 7))
    torch.testing.assert_close(module.scale.double(), scale)
    wanted = naive_obq(rest, z.T @ z, scale, 4, act_order=True, damping=0.01)
    assert (module.codes == wanted).double().mean() > 0.98  # a code on an edge moves those after it
    nearest = (rest / scale.repeat_interleave(GROUP, 1)).round()
    assert (module.codes == nearest).double().mean() < 0.95
