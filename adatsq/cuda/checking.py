"""What the checks of `check` are made of."""

from typing import NamedTuple

import torch
from torch import Tensor


class Check(NamedTuple):
    """right: None if nothing is promised and the numbers alone are of interest."""

    name: str
    right: bool | None
    seen: str


def random_codes(shape: tuple[int, int], largest: int, device: torch.device) -> Tensor:
    """int8, the largest and its negative among them."""
    codes = torch.randint(-largest, largest + 1, shape, dtype=torch.int8, device=device)
    codes[0, 0], codes[-1, -1] = largest, -largest
    return codes


def differing(name: str, found: Tensor, expected: Tensor) -> Check:
    """Right if the two are equal to the last one; NaN is equal to nothing."""
    wrong = int((found != expected).sum()) if found.shape == expected.shape else expected.numel()
    return Check(name, wrong == 0, f"{wrong} of {expected.numel()} differ")
