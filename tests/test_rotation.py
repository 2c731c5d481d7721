import numpy as np
import pytest
import scipy.linalg
import torch

from adatsq import integer
from adatsq.rotation import block_size, hadamard, operations, rotate, rotate_hessian, signs, unrotate


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_hadamard_is_scipys(n):
    np.testing.assert_allclose(hadamard(n).numpy() * n**0.5, scipy.linalg.hadamard(n), rtol=1e-6)


@pytest.mark.parametrize("n", [0, 3, 12, -4])
def test_hadamard_needs_a_power_of_two(n):
    with pytest.raises(ValueError, match=f"power of two, got {n}"):
        hadamard(n)


def test_blocks():
    sizes = {3072: 1024, 15360: 1024, 1280: 256, 256: 256, 320: 64, 7: 1}
    assert {n: block_size(n) for n in sizes} == sizes
    # of blocks of 32 x 32, 16 x 16, 8 x 8, and of none
    assert [operations(n) for n in (3072, 1280, 320)] == [(10, 64), (8, 32), (6, 16)]
    assert operations(7)[0] == 0


@pytest.mark.parametrize("n", [1, 2, 32, 64, 96, 320, 7, 1280])
def test_rotate_is_signs_then_scipys_hadamard_in_blocks(n):
    block = block_size(n)
    matrix = torch.from_numpy(scipy.linalg.hadamard(block) / block**0.5)
    dense = torch.block_diag(*[signs(block).double()[:, None] * matrix] * (n // block))
    x = normal(2, 3, n)
    torch.testing.assert_close(rotate(x), x @ dense)
    torch.testing.assert_close(unrotate(rotate(x)), x)
    torch.testing.assert_close(
        rotate(torch.eye(n).double()).T @ rotate(torch.eye(n).double()), torch.eye(n).double()
    )


def test_product_is_kept_when_activation_and_weight_are_rotated():
    x, w = normal(5, 96), normal(7, 96, seed=1)
    torch.testing.assert_close(rotate(x) @ rotate(w).T, x @ w.T)


def test_rotated_hessian_is_the_hessian_of_rotated_inputs():
    x = normal(20, 96)
    torch.testing.assert_close(rotate_hessian(x.T @ x), rotate(x).T @ rotate(x))


@pytest.mark.parametrize("n", [4, 16, 64, 256, 1024])
def test_a_constant_is_spread_evenly(n):
    torch.testing.assert_close(rotate(torch.ones(1, n)).abs(), torch.ones(1, n))


def test_rotation_tames_outliers_before_rounding():
    x = normal(64, 256, dtype=torch.float32)
    x[:, 3] *= 50  # a massive channel, as transformers have them

    def error(a, b):
        return (a - b).square().mean().item()

    plain = error(integer.fake_quant(x, 4), x)
    rotated = error(unrotate(integer.fake_quant(rotate(x), 4)), x)
    assert rotated < plain / 5


def test_tables_made_in_inference_mode_serve_gradients_later():
    with torch.inference_mode():
        rotate(torch.ones(1, 2048))
    x = torch.ones(1, 2048, requires_grad=True)
    rotate(x).sum().backward()
    assert x.grad is not None
