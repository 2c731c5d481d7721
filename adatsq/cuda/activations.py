"""Activations to integers: z = x / smoothing, R the Hadamard rotation,

    s[m] = clip * max|z R| / qmax,    codes[m, k] = clamp(round((z R)[m, k] / s[m]), -qmax, qmax)

for each token m, halves to even, in float32: what `QuantLinear.forward` does, in one pass on a GPU.

Without a rotation, codes and scales are the reference's to the bit, in any dtype of x: the maximum is exact,
and the division and the rounding are IEEE's. With one, sums of up to 4096 values are added in another order,
and tensor cores may have each as two bfloat16 (`rotation_kernel`), so that z R differs in its last bits (by
about 1e-6 of the row's largest value): the scale does too, and where z R / s lies that close to a half, the
code is the neighbouring one. An x in bfloat16 changes nothing in this: it is read as it is, and the sums are
float32. (The reference in bfloat16 also rounds the weight and the product to bfloat16 before it multiplies by
s; see `products`.)
"""

import torch
from torch import Tensor

from adatsq import integer
from adatsq.cuda import devices, rotation_kernel
from adatsq.cuda.packing import UNIT
from adatsq.cuda.prologue import NONE, rows_of, width
from adatsq.rotation import block_size, rotate, signs

WIDEST = 32768  # inputs that the kernel holds in one program's registers


def clip_ratio(a_clip: bool | float, bits: int, inputs: int) -> float:
    """What `QuantLinear` clips at: True as suits Gaussian rows, False at the largest, or the ratio itself."""
    if a_clip is True:
        return integer.gaussian_clip(bits, inputs)
    return a_clip or 1.0


def quantize(
    x: Tensor,
    bits: int,
    clip: float = 1.0,
    rotation: bool = False,
    smoothing: Tensor | None = None,
    seed: int | None = None,
    dtype: torch.dtype = torch.int8,
    finite: Tensor | None = None,
    second: Tensor | None = None,
    prologue: str = NONE,
) -> tuple[Tensor, Tensor]:
    """x (tokens, in) -> codes (tokens, in) in `dtype`, and their scales (tokens, 1) in float32.

    dtype: torch.int8, or torch.float8_e4m3fn for codes up to 16; the scales are then divided by UNIT, on
    behalf of the weights that the codes will meet (`packing`). finite: an int32 tensor of one element,
    which becomes 0 if a token is NaN or infinite, and is left alone otherwise; nothing waits for it.
    second (tokens, any), prologue: what makes the activations of x (`prologue.rows_of`), in the same pass.
    """
    if second is not None and second.dtype != x.dtype:
        x, second, prologue = rows_of(prologue, x, second), None, NONE
    inputs, can = width(prologue, x, second), devices.abilities(x.device)
    if rotation and can.nvrtc and x.numel() > 0 and rotation_kernel.fits(x, smoothing, second, prologue):
        table = _signs(block_size(inputs), seed, x.device, as_bits=True)
        return rotation_kernel.rotate_rows(x, bits, clip, table, dtype, finite, second, prologue)
    kernel = can.triton and inputs <= WIDEST and x.numel() > 0
    if not kernel or (rotation and block_size(inputs) < 256):
        x, second, prologue = rows_of(prologue, x, second), None, NONE
        if rotation:
            # The kernel multiplies Hadamard matrices of at least 16 x 16: only toy models have less.
            x = rotate(x.float() if smoothing is None else x.float() / smoothing.float(), seed)
            rotation, smoothing = False, None
    if kernel:
        from adatsq.cuda.activations_kernel import quantize_rows

        table = _signs(block_size(inputs), seed, x.device) if rotation else None
        return quantize_rows(x, bits, clip, table, smoothing, dtype, finite, second=second, prologue=prologue)
    if smoothing is not None:
        x = x.float() / smoothing.float()
    scale = integer.absmax_scale(x, bits, clip=clip)
    if finite is not None:
        finite.logical_and_(torch.isfinite(scale).all())
    codes = integer.round_to_grid(x.float(), scale, bits).to(dtype)
    return codes, scale / UNIT if dtype is torch.float8_e4m3fn else scale


_tables: dict[tuple, Tensor] = {}


def _signs(block: int, seed: int | None, device: torch.device, as_bits: bool = False) -> Tensor:
    """The rotation's signs on the device, made once: float32, or bfloat16 zeros that have them."""
    key = block, seed, device, as_bits
    if key not in _tables:
        with torch.inference_mode(False):
            table = signs(block, seed)
            _tables[key] = (table.bfloat16() * 0 if as_bits else table).to(device)
    return _tables[key]
