"""Hadamard rotation: spread each value over many before rounding, and let the weight undo it.

QuaRot, arXiv:2404.00456. For an orthogonal R, x W^T = (x R)(W R)^T. After R an activation row is nearly
Gaussian: outliers, which would stretch the integer grid, are gone. A DiT's adaLN stands between layers, so R
cannot be merged into the layer before; it is computed online, and must be cheap.
"""

from functools import cache

import torch
from torch import Tensor


def hadamard(n: int) -> Tensor:
    """Sylvester's orthonormal n x n Hadamard matrix, n a power of two: symmetric, and its own inverse."""
    if n < 1 or n & (n - 1):
        raise ValueError(f"a Sylvester Hadamard matrix needs a power of two, got {n}")
    h = torch.ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / n**0.5


def signs(n: int, seed: int | None = None) -> Tensor:
    """Rudin-Shapiro signs: entry i is -1 if the binary digits of i hold the pair "11" an odd number of times.

    QuaRot draws random signs; these need no seed, and do best what signs are for. A constant (the mean of
    GELU's outputs, say), which H alone would pile up on one coordinate, comes out spread evenly (n = 4^k)
    or nearly so. With a seed: random ones.
    """
    if seed is not None:
        return torch.randint(2, (n,), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    return torch.tensor([(-1.0) ** (i & (i >> 1)).bit_count() for i in range(n)])


def block_size(n: int) -> int:
    """Largest power of two that divides n: 3072 -> 1024, 1280 -> 256, 256 -> 256."""
    return n & -n


def rotate(x: Tensor, seed: int | None = None) -> Tensor:
    """x R along the last dimension, R = diag(signs) H in equal blocks on the diagonal. Same shape and dtype.
    seed: of the signs.

    A block of p*q is done as H_p X H_q on X of shape (p, q): n(p + q) products a row instead of n * pq.
    """
    p, q = _factors(block_size(x.shape[-1]))
    h_p, h_q, s = _tables(p, q, x.device, x.dtype, seed)
    return (h_p @ (x.unflatten(-1, (-1, p, q)) * s @ h_q)).reshape(x.shape)


def unrotate(x: Tensor, seed: int | None = None) -> Tensor:
    """The inverse, x R^T."""
    p, q = _factors(block_size(x.shape[-1]))
    h_p, h_q, s = _tables(p, q, x.device, x.dtype, seed)
    return (h_p @ x.unflatten(-1, (-1, p, q)) @ h_q * s).reshape(x.shape)


def rotate_hessian(hessian: Tensor, seed: int | None = None) -> Tensor:
    """R^T H R: what X^T X becomes when X is rotated, so a Hessian is recorded once for both."""
    return rotate(rotate(hessian, seed).T, seed).T


def operations(n: int) -> tuple[int, int]:
    """For one value of a row of n, in a block of p q: (sums or differences of the fast transform, log2(p q);
    multiplications of `rotate`, p + q)."""
    block = block_size(n)
    return block.bit_length() - 1, sum(_factors(block))


def _factors(block: int) -> tuple[int, int]:
    p = 2 ** ((block.bit_length() - 1) // 2)
    return p, block // p


@cache
def _tables(
    p: int, q: int, device: torch.device, dtype: torch.dtype, seed: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """H_p, H_q and the signs as (p, q), made once per shape, device, dtype and seed."""
    with torch.inference_mode(False):  # kept for later calls, which may want gradients
        tables = hadamard(p), hadamard(q), signs(p * q, seed).view(p, q)
        return tuple(table.to(device, dtype) for table in tables)
