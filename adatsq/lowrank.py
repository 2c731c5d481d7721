"""A low-rank branch in 16 bits beside the integers, which takes over what they read worst.

SVDQuant, arXiv:2411.05007: W = L + R with L = up @ down the best approximation of rank r, and only R is
rounded. X L^T is computed from the inputs as they are, before rounding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ITERATIONS = 100
ON_CPU = 512


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """down (r, in) and up (out, r) of the truncated SVD of matrix (out, in): float32 that fits 16 bits.

    The singular values are shared out evenly, so that neither factor is large. They come from the
    eigenvectors v of M^T M (or M M^T, if that is smaller) in float64, M v = s u: an SVD of the whole matrix
    takes several times as long, on a GPU above all, and SVDQuant needs thousands. Those of up to
    ON_CPU channels are found on the CPU, in milliseconds: nothing in them fills a GPU, whose solver waits for
    its other work many times.
    """
    if len(matrix) < matrix.shape[1]:
        up, down = low_rank(matrix.T, rank)
        return down.T.contiguous(), up.T.contiguous()
    m = matrix.double()
    gram = m.T @ m
    _, v = torch.linalg.eigh(gram.cpu() if len(gram) <= ON_CPU else gram)  # rising eigenvalues
    v = v[:, -rank:].flip(1).to(m.device)
    su = m @ v
    root = su.norm(dim=0).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    return _16_bits(root[:, None] * v.T), _16_bits(su / root)


def _16_bits(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


def decompose(
    matrix: Tensor,
    rank: int,
    rounded: Callable[[Tensor], Tensor],
    error: Callable[[Tensor, Tensor], float],
    iterations: int = ITERATIONS,
) -> tuple[Tensor, Tensor]:
    """down, up of matrix (out, in), improved in turns with the integers for the rest.

        L_0 = SVD_r(W),    L_k+1 = SVD_r(W - rounded(W - L_k))

    until error(down, up) rises, or `iterations` times; the best pair is returned.
    """
    best = pair = low_rank(matrix, rank)
    least = error(*pair)
    for _ in range(iterations):
        down, up = pair
        pair = low_rank(matrix - rounded(matrix - up @ down), rank)
        found = error(*pair)
        if not found < least:
            break
        best, least = pair, found
    return best
