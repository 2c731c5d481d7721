"""What stands between two linears, computed while the second one's input is rounded: a prologue.

A diffusion transformer has an elementwise function before the second linear of each feed-forward. Done by
itself it is written to memory, and read again to be rounded; as the first part of the rounding it costs no
bytes. The kinds, and the rows of activations that they make of one or two tensors:

    GELU       gelu(x), approximated by tanh        feed-forwards of Flux and Wan
    CAT_GELU   x beside gelu(second)                Flux's single blocks: attention and feed-forward in one
    SWIGLU     silu(x) * second                     Z-Image's feed-forwards

`rows_of` is the definition, in plain torch, and rounds to x's dtype where that does. Kernels compute in
float32 and round at the same places; by gelu(x) = x / (1 + exp(-2 u)), which is 0.5 x (1 + tanh u) without
its cancellation, u = sqrt(2 / pi) (x + 0.044715 x^3).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

NONE, GELU, CAT_GELU, SWIGLU = "", "gelu", "cat gelu", "swiglu"
KINDS = (NONE, GELU, CAT_GELU, SWIGLU)


def width(kind: str, x: Tensor, second: Tensor | None) -> int:
    """Values of a row that the prologue makes."""
    return x.shape[-1] + (second.shape[-1] if kind == CAT_GELU else 0)


def rows_of(kind: str, x: Tensor, second: Tensor | None = None) -> Tensor:
    """(..., `width`) of x and, for the last two kinds, a second tensor with the same leading dimensions."""
    if kind == GELU:
        return F.gelu(x, approximate="tanh")
    if kind == CAT_GELU:
        return torch.cat([x, F.gelu(second, approximate="tanh")], dim=-1)
    return F.silu(x) * second if kind == SWIGLU else x
