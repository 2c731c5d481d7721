"""Each baseline against its formula in float64, on tiny random pipelines."""

import inspect
import re

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch

from adatsq import baselines, io, mixed, recipes, scheme, storage
from adatsq.baselines import METHODS
from adatsq.benchmark import RECIPES
from adatsq.inputs import inputs
from adatsq.linear import QuantLinear
from adatsq.lowrank import low_rank
from adatsq.models import load_pipeline, quantizable
from adatsq.rotation import signs
from adatsq.smoothing import GRID, best_scale, smoothing_scale
from adatsq.trace import layer_inputs, record, velocity

TO_Q = "transformer_blocks.0.attn.to_q"
AFTER_GELU = "transformer_blocks.0.ff.net.2"


@pytest.fixture(scope="module")
def trace(tiny_folder):
    pipe = load_pipeline(tiny_folder)
    return record(pipe, ["a red circle", "two blue squares"], num_inference_steps=3, progress=False)


@pytest.fixture(scope="module")
def alpha(trace):
    names = [layer.name for layer in trace.layers]
    raw = np.arange(1.0, 4.0)[:, None] ** np.linspace(0.5, 2, len(names))
    return pd.DataFrame(raw / raw.sum(0), index=pd.Index(trace.timesteps), columns=names)


@pytest.fixture(scope="module")
def full(tiny_folder, trace):
    """(linears, inputs): the full-precision layers by name, and all rows that each reads."""
    pipe, rows = load_pipeline(tiny_folder), {}
    names = [layer.name for layer in trace.layers]

    def add(name, x):
        rows.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))

    with layer_inputs(pipe.transformer, names, add), torch.no_grad():
        for t in range(3):
            velocity(pipe.transformer, trace, t)
    linears = {name: pipe.transformer.get_submodule(name).requires_grad_(False) for name in names}
    return linears, {name: torch.cat(parts) for name, parts in rows.items()}


def absmax_rounded(x, bits, group=None, short=False):
    """float64: per row or group, scale = max|x| / (2^(b-1) - 1), rounded to 16 bits if short."""
    parts = x.double().reshape(len(x), -1, group or x.shape[1])
    scale = np.maximum(np.abs(parts.numpy()).max(-1, keepdims=True), 1e-30) / (2 ** (bits - 1) - 1)
    if short:
        scale = torch.from_numpy(scale).bfloat16().double().numpy()
    return torch.from_numpy(np.rint(parts.numpy() / scale) * scale).reshape(x.shape)


def answer(linear, x_rounded, w_rounded):
    return x_rounded @ w_rounded.T + linear.bias.double()


def test_every_baseline_has_the_recipes_signature():
    wanted = inspect.signature(recipes.rtn)
    assert all(inspect.signature(method) == wanted for method in METHODS.values())


@pytest.mark.parametrize("method", RECIPES)
def test_16_bit_is_exactly_full_precision(method, tiny_pipe, tiny_images, trace, alpha):
    """Of every row of the benchmark, with all that calibrates it."""
    before = tiny_images(tiny_pipe)
    RECIPES[method](tiny_pipe, trace, 16, 16, alpha, progress=False)
    layers = quantizable(tiny_pipe.transformer)
    assert all(isinstance(tiny_pipe.transformer.get_submodule(n.name), QuantLinear) for n in layers)
    np.testing.assert_array_equal(tiny_images(tiny_pipe), before)


def test_inputs_are_the_largest_and_a_sample_of_all_rows(tiny_folder, trace, full):
    found = inputs(load_pipeline(tiny_folder), trace, [TO_Q, AFTER_GELU], rows=30, batch_size=1)
    for name in (TO_Q, AFTER_GELU):
        rows = full[1][name]
        torch.testing.assert_close(found.largest[name], rows.abs().amax(0))
        assert len(found.rows[name]) == 30
        nearest = (found.rows[name][:, None] - rows).abs().amax(2).amin(1)
        assert nearest.max() < 1e-4 and found.rows[name].unique(dim=0).shape[0] > 25


def test_smoothquant_is_its_formula(tiny_pipe, trace, full):
    linears, rows = full
    baselines.smoothquant(tiny_pipe, trace, 4, 4)
    heads = [f"transformer_blocks.0.attn.to_{c}" for c in "qkv"]
    largest_w = torch.stack([linears[name].weight.abs().amax(0) for name in heads]).amax(0).double()
    s = (rows[TO_Q].abs().amax(0).double() ** 0.5 / largest_w**0.5).clamp(min=1e-5)
    for name in heads:
        module = tiny_pipe.transformer.get_submodule(name)
        torch.testing.assert_close(module.smoothing.double(), s, rtol=2**-8, atol=0)
        s16 = module.smoothing.double()
        x, w = rows[name].double() / s16, linears[name].weight.double() * s16
        expected = answer(linears[name], absmax_rounded(x, 4), absmax_rounded(w, 4, short=True))
        found = module(rows[name]).double()
        # 16-bit scales and codes on an edge differ by less than the rounding itself
        exact = torch.nn.functional.linear(rows[name], linears[name].weight, linears[name].bias).double()
        assert (found - expected).square().mean() < 0.1 * (expected - exact).square().mean()


def test_the_grid_has_39_points_and_the_best_is_taken():
    assert len(GRID) == len(set(GRID)) == 39 and {round(p + q, 9) for p, q in GRID[20:]} == {1}
    x, w = torch.tensor([1.0, 100.0, 0.0]), torch.tensor([[0.5, -2.0, 1.0], [0.1, 1.0, 0.3]])
    assert torch.equal(smoothing_scale(x, w.abs().amax(0), 0.0, 0.0), torch.ones(3))
    found = best_scale(x, [w], GRID, lambda s: abs(s[1].item() - 10.0))
    by_hand = [100.0**p / 2.0**q for p, q in GRID]
    assert abs(found[1] - min(by_hand, key=lambda s: abs(s - 10))) < 0.05


@pytest.mark.parametrize("name", [TO_Q, AFTER_GELU])
def test_svdquant_is_its_formula(name, tiny_folder, trace, full):
    """z = x / s, M = W s = L + R: y = z L^T + Q(z) Q(R)^T, Q(z) unsigned where a GELU was before."""
    pipe = load_pipeline(tiny_folder)
    groups = {layer.name: 16 for layer in trace.layers}
    options = baselines._low_rank(pipe, "rtn") | {"low_rank": 4, "group_size": groups, "a_group_size": groups}
    recipes.quantize(pipe, trace, 4, 4, None, **options)
    linear, x = full[0][name], full[1][name].double()
    module = pipe.transformer.get_submodule(name)
    s, down, up = (module.state_dict()[part].double() for part in ("smoothing", "down", "up"))
    assert down.shape == (4, linear.in_features) and up.shape == (linear.out_features, 4)
    low = up @ down
    rounded_w = absmax_rounded(linear.weight.double() * s - low, 4, 16, short=True)
    torch.testing.assert_close(module.weight_matrix().double(), rounded_w)
    z = x / s
    if name == AFTER_GELU:
        parts = ((x + 0.171875) / s).reshape(len(x), -1, 16)
        assert parts.min() > 0
        scale = parts.amax(-1, keepdim=True) / 15
        rounded_z = ((parts / scale).round() * scale).reshape(x.shape) - 0.171875 / s
    else:
        rounded_z = absmax_rounded(z, 4, 16)
    expected = z @ low.T + answer(linear, rounded_z, module.weight_matrix().double())
    difference = (module(x.float()).double() - expected).abs()
    assert difference.median() < 1e-5  # a code on a rounding edge may differ
    assert (
        difference.mean() < 0.02 * (expected - answer(linear, x, linear.weight.double())).abs().mean() + 1e-6
    )


def test_the_branch_is_the_best_of_its_rank():
    """Against the singular value decomposition in float64 (Eckart, Young): no matrix of rank r is nearer."""
    for shape in ((40, 24), (24, 40)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        best = (u[:, :5] * s[:5]) @ v[:5]
        down, up = low_rank(matrix, 5)
        assert down.shape == (5, shape[1]) and up.shape == (shape[0], 5)
        found = up.double() @ down.double()  # of factors in 16 bits, 8 of which are the mantissa's
        assert (found - best).norm() < 2**-8 * best.norm()
        assert ((matrix - found).norm() ** 2).item() == pytest.approx((s[5:] ** 2).sum().item(), rel=1e-3)


def test_what_is_remembered_is_what_would_be_found(tiny_folder, trace, alpha, monkeypatch):
    """SVDQuant, then two methods on its smoothing and branches: the same to the bit, without their search."""
    names = ("svdquant", "svdquant+gptq", "adatsq+svdquant")
    memory, fresh, remembered, searches = {}, {}, {}, []
    best = scheme.best_scale
    monkeypatch.setattr(scheme, "best_scale", lambda *args: searches.append(1) or best(*args))
    monkeypatch.setattr(baselines, "GRID", GRID[::13])
    for found, options in ((fresh, {}), (remembered, {"memory": memory})):
        for name in names:
            pipe = METHODS[name](load_pipeline(tiny_folder), trace, 3, 3, alpha, progress=False, **options)
            found[name] = pipe.transformer.state_dict()
            if found is remembered and name == names[0]:
                searches.clear()
    assert not searches and memory
    for name in names:
        assert fresh[name].keys() == remembered[name].keys()
        assert all(torch.equal(fresh[name][part], remembered[name][part]) for part in fresh[name])
    layer = f"{TO_Q}.codes"  # the solvers do differ
    assert not torch.equal(remembered[names[0]][layer], remembered[names[1]][layer])
    pipe = METHODS[names[0]](load_pipeline(tiny_folder), trace, 4, 4, alpha, progress=False, memory=memory)
    assert searches and pipe.transformer.get_submodule(TO_Q).w_bits == 4  # other bits are another search


@pytest.mark.parametrize("base", ["plain", "smoothquant", "svdquant"])
def test_adatsq_on_a_base_lowers_the_weighted_output_error(base, tiny_folder, trace, alpha, full):
    """Weights at 3 bits, inputs as they come: sum_t alpha_t |x dW|^2 of each layer, with alpha or without."""
    late = alpha.copy()
    late[:] = np.array([0.01, 0.01, 0.98])[:, None]
    errors = {}
    for weights in (None, late):
        pipe = METHODS[f"adatsq+{base}"](load_pipeline(tiny_folder), trace, 3, 16, weights, progress=False)
        total = 0.0
        for layer in (layer for layer in trace.layers if layer.role == "act"):
            linear, x = full[0][layer.name], full[1][layer.name]
            difference = pipe.transformer.get_submodule(layer.name)(x) - linear(x)
            by_step = difference.square().mean(1).reshape(3, -1).mean(1)
            power = linear(x).square().mean()
            total += (torch.tensor(late[layer.name].to_numpy()) * by_step).sum() / power
        errors[weights is None] = float(total)
    assert errors[False] < errors[True]


@pytest.mark.parametrize("method", METHODS)
def test_saved_loaded_and_counted(method, tiny_folder, tiny_images, trace, alpha, tmp_path):
    pipe = METHODS[method](load_pipeline(tiny_folder), trace, 3, 4, alpha, progress=False)
    summary = storage.summary(pipe)
    report = io.save(pipe, tmp_path / "saved")
    again = io.load(tmp_path / "saved")
    numbers, loaded = pipe.transformer.state_dict(), again.transformer.state_dict()
    assert list(numbers) == list(loaded) and all(torch.equal(loaded[key], numbers[key]) for key in numbers)
    for transformer in (pipe.transformer, again.transformer):
        # The last bit of a product on a CPU depends on where in memory a tensor begins: torch's own places.
        for tensor in (*transformer.parameters(), *transformer.buffers()):
            tensor.data = tensor.data.clone()
    np.testing.assert_array_equal(tiny_images(again), tiny_images(pipe))
    assert storage.summary(again).equals(summary)
    total = sum(p.numel() for p in load_pipeline(tiny_folder).transformer.parameters())
    assert summary.at["transformer", "parameters"] == total
    by_hand = 0
    for layer in (layer for layer in trace.layers if layer.role == "act"):
        m = pipe.transformer.get_submodule(layer.name)
        zeros = 0 if m.zero is None else m.zero.numel()
        by_hand += m.w_bits * (m.codes.numel() + zeros) + 16 * m.scale.numel()
        by_hand += 16 * layer.in_features * (m.smoothing is not None)
        rank = 0 if m.down is None else len(m.down)
        by_hand += 16 * rank * (layer.in_features + layer.out_features)
    row = summary.loc["weights and activations"]
    assert row["effective_bits"] == pytest.approx(by_hand / row["parameters"], rel=1e-6)
    quantized_bytes = report.at["transformer: quantized weights", "bytes"]
    counted = row["bytes"] + summary.at["weights only (adaLN)", "bytes"]
    assert counted <= quantized_bytes <= 1.5 * counted + 8192  # float32 scales where 16 bits lose nothing


def minmax_rounded(x, bits, short=False):
    """float64: per row [min, max] with 0, scale = (max - min) / (2^b - 1), zero = round(-min / scale)."""
    x = x.double().numpy()
    low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    scale = (high - low) / (2**bits - 1)
    if short:
        scale = torch.from_numpy(scale).bfloat16().double().numpy()
    zero = np.rint(-low / scale).clip(0, 2**bits - 1)
    codes = (np.rint(x / scale) + zero).clip(0, 2**bits - 1)
    return torch.from_numpy((codes - zero) * scale)


def test_quarot_is_its_formula(tiny_pipe, trace, full):
    """Weights in the basis that random signs and a Hadamard matrix make; activations clipped at 0.9."""
    baselines.quarot(tiny_pipe, trace, 8, 4, progress=False)
    linear, x = full[0][TO_Q], full[1][TO_Q].double()
    module = tiny_pipe.transformer.get_submodule(TO_Q)
    h = torch.from_numpy(scipy.linalg.hadamard(32)).double() / 32**0.5
    q = signs(32, seed=0).double()[:, None] * h
    assert not torch.equal(signs(32, seed=0), signs(32)) and set(signs(32, seed=0).tolist()) == {1, -1}
    weight = module.weight_matrix().double()
    assert (weight - linear.weight.double() @ q).abs().max() < 0.05 * weight.abs().max()
    z = x @ q
    scale = 0.9 * z.abs().amax(1, keepdim=True) / 7
    expected = answer(linear, (z / scale).round().clamp(-7, 7) * scale, weight)
    assert (module(x.float()).double() - expected).abs().median() < 1e-5


def test_vidit_q_is_its_formula(tiny_pipe, trace, full):
    """(X m)(W / m)^T with m = (max|W_j| / max|X_j|)^0.5, both rotated, both from min to max."""
    baselines.vidit_q(tiny_pipe, trace, 4, 4)
    name = "transformer_blocks.0.attn.to_out.0"  # shares its input with no other
    linear, x = full[0][name], full[1][name].double()
    module = tiny_pipe.transformer.get_submodule(name)
    m = (linear.weight.abs().amax(0) / x.float().abs().amax(0)).double() ** 0.5
    torch.testing.assert_close(1 / module.smoothing.double(), m, rtol=2**-7, atol=0)
    m = 1 / module.smoothing.double()
    q = signs(32).double()[:, None] * torch.from_numpy(scipy.linalg.hadamard(32)).double() / 32**0.5
    weight = minmax_rounded((linear.weight / m) @ q, 4, short=True)
    assert (module.weight_matrix() - weight).abs().median() < 1e-6
    expected = answer(linear, minmax_rounded((x * m) @ q, 4), module.weight_matrix().double())
    assert (module(x.float()).double() - expected).abs().median() < 1e-5
    assert (expected - answer(linear, x, linear.weight.double())).abs().median() > 1e-3


def test_vidit_q_mixed_keeps_the_layers_that_hurt_most(tiny_folder, trace):
    """A layer's error: against a pipeline in which someone replaced this layer by hand."""
    pipe, whole = load_pipeline(tiny_folder), load_pipeline(tiny_folder)
    table = mixed.sensitivity(pipe, trace, 4, 4, **baselines.VIDIT_Q)
    assert not any(isinstance(m, QuantLinear) for m in pipe.transformer.modules())
    baselines.vidit_q(whole, trace, 4, 4)
    for name in (TO_Q, AFTER_GELU):
        by_hand = load_pipeline(tiny_folder)
        by_hand.transformer.set_submodule(name, whole.transformer.get_submodule(name))
        with torch.no_grad():
            answers = [velocity(by_hand.transformer, trace, t, index=[0]) for t in range(3)]
        expected = (torch.stack(answers) - trace.velocity[:, :1]).square().mean().item()
        assert table.error[name] == pytest.approx(expected, rel=1e-4)
    baselines.vidit_q_mixed(pipe, trace, 4, 4)
    eight = {n for n in table.index if pipe.transformer.get_submodule(n).w_bits == 8}
    assert {n for n in table.index if pipe.transformer.get_submodule(n).a_bits == 8} == eight
    assert abs(len(eight) / len(table) - 1 / 3) < 0.05
    for _, rows in table.groupby("kind"):
        kept = rows.index.isin(eight)
        assert rows.error[kept].min() >= rows.error[~kept].max()


def test_q_dit_is_its_formula(tiny_folder, trace, full, capsys):
    """Groups from min to max; weights by GPTQ, so on the grid of the weight and better than its nearest."""
    pipe = load_pipeline(tiny_folder)
    baselines.q_dit(pipe, trace, 4, 4)
    calls = re.search(r"(\d+) tried, (\d+) transformer calls", capsys.readouterr().out)
    assert int(calls[2]) == 3 * int(calls[1])
    linear, x = full[0][AFTER_GELU], full[1][AFTER_GELU].double()
    module = pipe.transformer.get_submodule(AFTER_GELU)
    assert module.group_size == module.a_group_size == 128 or module.in_features == 128
    n = module.a_group_size
    groups = linear.weight.reshape(-1, n)
    weight = module.weight_matrix().double()
    scale = (groups.amax(1).clamp(min=0) - groups.amin(1).clamp(max=0)).double() / 15
    torch.testing.assert_close(module.scale.double().flatten(), scale, rtol=2**-8, atol=0)
    nearest = minmax_rounded(groups, 4, short=True).reshape(weight.shape)
    errors = [(x @ (w - linear.weight.double()).T).square().sum() for w in (weight, nearest)]
    assert errors[0] < errors[1] and not torch.equal(weight, nearest)
    expected = answer(linear, minmax_rounded(x.reshape(-1, n), 4).reshape(x.shape), weight)
    assert (module(x.float()).double() - expected).abs().median() < 1e-5


def test_options_that_exclude_each_other_are_named(tiny_pipe, trace):
    for options, message in [
        (dict(smoothing=0.5), "need a trace"),
        (dict(trace=trace, gelu_shift=True), "a rotation mixes signs"),
        (dict(trace=trace, low_rank=-1), "low_rank must be a whole number, .* got -1"),
        (dict(trace=trace, a_group_size=20), "to_q: group size 20 does not divide rows of 32"),
        (dict(trace=trace, at_8_bits=["nothing"]), "at_8_bits names 'nothing'"),
    ]:
        with pytest.raises(ValueError, match=message):
            recipes.quantize(tiny_pipe, solver="rtn", **options)
        assert not any(isinstance(m, QuantLinear) for m in tiny_pipe.transformer.modules())


@pytest.mark.parametrize("method", METHODS)
def test_only_svdquant_shifts_what_a_gelu_gave(method, tiny_folder, trace, alpha):
    pipe = METHODS[method](load_pipeline(tiny_folder), trace, 4, 4, alpha, progress=False)
    shifts = {name: pipe.transformer.get_submodule(name).shift for name in trace.tokens}
    shifted = {name for name, shift in shifts.items() if shift}
    assert shifted == ({n for n in shifts if n.endswith("net.2")} if "svdquant" in method else set())
