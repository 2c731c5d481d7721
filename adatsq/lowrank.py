"""A low-rank branch in 16 bits beside the integers, which takes over what they read worst.

SVDQuant, arXiv:2411.05007: W = L + R with L = up @ down the best approximation of rank r, and only R is
rounded. X L^T is computed from the inputs as they are, before rounding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ITERATIONS = 100


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """down (r, in) and up (out, r) of the truncated SVD of matrix (out, in): float32 that fits 16 bits.

    The singular values are shared out evenly, so that neither factor is large.
    """
    u, s, vh = torch.linalg.svd(matrix.float(), full_matrices=False)
    root = s[:rank].sqrt()
    down, up = root[:, None] * vh[:rank], u[:, :rank] * root
    return down.to(torch.bfloat16).float(), up.to(torch.bfloat16).float()


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
