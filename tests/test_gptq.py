import itertools

import pytest
import torch

from adatsq import integer
from adatsq.gptq import gptq, inverse_cholesky, layer_error, round_to_nearest


def problem(out=6, n=24, rows=200, seed=0, dtype=torch.float64):
    """A weight and the Hessian of correlated inputs, some channels ten times as large as others."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=g, dtype=torch.float64)
    mix = torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5 + torch.eye(n, dtype=torch.float64)
    x = x @ mix * torch.logspace(-1, 0, n, dtype=torch.float64)[torch.randperm(n, generator=g)]
    return torch.randn(out, n, generator=g), (x.T @ x).to(dtype)


def naive_obq(weight, hessian, scale, bits, act_order, damping):
    """GPTQ by its derivation: a fresh inverse of what remains after each column; no Cholesky, no blocks."""
    h = hessian + damping * hessian.diag().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    order = sorted(range(len(h)), key=lambda j: -hessian[j, j].item()) if act_order else list(range(len(h)))
    w, q = weight.double().clone(), integer.qmax(bits)
    s = integer.expand(scale, w.shape[1]).expand_as(w).double()
    codes = torch.zeros_like(w)
    for i, j in enumerate(order):
        rest = order[i:]
        inverse = torch.linalg.inv(h[rest][:, rest])
        codes[:, j] = (w[:, j] / s[:, j]).round().clamp(-q, q)
        error = (w[:, j] - codes[:, j] * s[:, j]) / inverse[0, 0]
        w[:, rest] -= error[:, None] * inverse[0]
    return codes.to(torch.int8)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("bits, block_size", [(2, 128), (3, 5), (4, 8), (8, 1)])
def test_equals_the_unblocked_float64_reference(bits, block_size, group_size, act_order):
    w, h = problem()
    codes, scale = gptq(w, h, bits, group_size, act_order=act_order, block_size=block_size)
    assert torch.equal(codes, naive_obq(w, h, scale, bits, act_order, 0.01))
    assert torch.equal(scale, integer.weight_scale(w, bits, group_size, "mse"))
    assert codes.dtype == torch.int8 and codes.abs().max() <= integer.qmax(bits)


def test_float32_hessian_gives_nearly_the_same_codes():
    w, h = problem(n=64)
    codes, _ = gptq(w, h.float(), 4)
    reference, _ = gptq(w, h, 4)
    assert (codes != reference).float().mean() < 0.01


def test_against_all_codes_of_a_tiny_layer():
    """3^7 codes of one row: GPTQ is nearer to the true optimum than rounding to nearest."""
    every = torch.tensor(list(itertools.product([-1, 0, 1], repeat=7)), dtype=torch.float64)
    total = torch.zeros(3, dtype=torch.float64)
    for seed in range(40):
        w, h = problem(out=1, n=7, rows=30, seed=seed)
        codes, scale = gptq(w, h, 2, damping=1e-6)
        delta = w.double() - every * scale.double()
        best = ((delta @ h) * delta).sum(1).min().item()
        ours = layer_error(w, codes, scale, h)
        assert ours >= best * (1 - 1e-9)  # layer_error is the enumerated objective
        total += torch.tensor([best, ours, layer_error(w, *round_to_nearest(w, 2, clip="mse"), h)])
    best, ours, nearest = total.tolist()
    assert ours < 1.75 * best and nearest > 2 * best


def test_diagonal_hessian_is_rounding_to_nearest():
    """Without correlation there is nothing to make up for, and rounding to nearest is the optimum."""
    w, _ = problem()
    codes, scale = gptq(w, torch.logspace(-3, 3, 24).diag(), 3, group_size=12)
    nearest, nearest_scale = round_to_nearest(w, 3, group_size=12, clip="mse")
    assert torch.equal(codes, nearest) and torch.equal(scale, nearest_scale)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_beats_round_to_nearest(bits):
    """On the same scales. GPTQ is greedy: single rows may come out worse, these layers of 16 do not."""
    rows = worse = 0
    for seed in range(25):
        w, h = problem(out=16, n=48, seed=seed)
        codes, scale = gptq(w, h, bits)
        nearest, _ = round_to_nearest(w, bits, clip="mse")
        assert layer_error(w, codes, scale, h) < layer_error(w, nearest, scale, h)
        for i in range(16):
            row = slice(i, i + 1)
            error = [layer_error(w[row], c[row], scale[row], h) for c in (codes, nearest)]
            worse += error[0] > error[1]
            rows += 1
    assert worse / rows < 0.05


def test_layer_error_is_the_squared_output_error():
    w, _ = problem(n=8)
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)).double()
    codes, scale = round_to_nearest(w, 3)
    rounded = integer.dequantize(codes, scale).double()
    expected = (x @ w.double().T - x @ rounded.T).square().sum().item()
    assert layer_error(w, codes, scale, x.T @ x) == pytest.approx(expected)


def test_dead_channels_are_rounded_to_nearest_and_do_not_disturb_the_rest():
    w, h = problem()
    dead = torch.zeros(24, dtype=torch.bool)
    dead[[0, 7, 23]] = True
    h[dead] = 0
    h[:, dead] = 0
    # The damping follows the mean diagonal, which dead channels lower: take a part of it to compare with.
    codes, scale = gptq(w, h, 3, damping=1e-8)
    assert torch.equal(codes[:, dead], integer.quantize(w, scale, 3)[:, dead])
    alive = naive_obq(w[:, ~dead], h[~dead][:, ~dead], scale, 3, True, 1e-8)
    assert torch.equal(codes[:, ~dead], alive)
    codes, _ = gptq(w, torch.zeros(24, 24), 3)
    assert torch.equal(codes, integer.quantize(w, scale, 3))


def test_fewer_tokens_than_channels_needs_and_gets_damping():
    w, h = problem(rows=5, dtype=torch.float32)
    codes, scale = gptq(w, h, 4)
    nearest, _ = round_to_nearest(w, 4, clip="mse")
    assert layer_error(w, codes, scale, h) < layer_error(w, nearest, scale, h)


def test_inverse_cholesky_falls_back_to_float64_then_to_more_damping():
    _, h = problem(rows=5)
    exact = h + 1e-9 * h.diag().mean() * torch.eye(24, dtype=torch.float64)
    upper = inverse_cholesky(h.float(), 1e-9)  # in float32 this is singular, in float64 the rounding shows
    assert upper.dtype == torch.float64
    upper = inverse_cholesky(h, 1e-9)
    torch.testing.assert_close(upper.T @ upper @ exact, torch.eye(24, dtype=torch.float64), atol=1e-4, rtol=0)
    assert torch.equal(upper, upper.triu())

    indefinite = h - 0.03 * h.diag().mean() * torch.eye(24, dtype=torch.float64)
    upper = inverse_cholesky(indefinite, 0.01)  # 0.01 is too little, 0.1 is enough
    damped = indefinite + 0.1 * indefinite.diag().mean() * torch.eye(24, dtype=torch.float64)
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(damped))


def test_bad_hessians_are_named():
    w, h = problem()
    with pytest.raises(ValueError, match="not positive definite, even with 10 of its mean diagonal"):
        gptq(w, h - 100 * h.diag().mean() * torch.eye(24), 4)
    with pytest.raises(ValueError, match=r"shape \(6, 24\) needs a Hessian \(24, 24\), got \(6, 6\)"):
        gptq(w, h[:6, :6], 4)
    h[3, 4] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN or infinity in the Hessian"):
        gptq(w, h, 4)
    with pytest.raises(ValueError, match="from 2 to 8, got 9"):
        gptq(w, torch.eye(24), 9)


def test_the_arguments_are_left_as_they_were():
    w, h = problem()
    before = w.clone(), h.clone()
    gptq(w, h, 4)
    assert torch.equal(w, before[0]) and torch.equal(h, before[1])
