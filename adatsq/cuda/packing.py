"""Packed weights on the device, and one byte per weight for as long as one layer's product takes.

A layer holds its b-bit codes as the b bit planes of `adatsq.packing`, the same bytes as in a saved file,
padded to whole 32-bit words. Before its product they are unpacked into a buffer that all layers share: a
linear of a diffusion transformer multiplies thousands of tokens, so that unpacking inside the product would
be done again for every tile of tokens, and costs more there than the one pass here.

In the buffer a code c is an int8, or the e4m3 number c * 2^-9. That is e4m3's smallest step, so that the byte
of c >= 0 is the integer c itself (0 .. 16), with the sign bit set for -c: no conversion is needed, and the
scale of the product carries the 2^9.
"""

import torch
from torch import Tensor

from adatsq import packing
from adatsq.cuda import devices, sharing
from adatsq.cuda.exact import E4M3_INTEGERS
from adatsq.integer import qmax

UNIT = 2.0**-9  # what 1 is stored as in e4m3

_buffers: dict[torch.device, Tensor] = {}


def pack(codes: Tensor, bits: int, symmetric: bool = True) -> Tensor:
    """int8 codes -> uint8 planes (bits, 4 * ceil(n / 32)). ValueError if a code does not fit."""
    return padded(packing.pack(codes, bits, symmetric))


def padded(planes: Tensor) -> Tensor:
    """Planes of a file with zeros at the end up to a whole number of 32-bit words."""
    return torch.nn.functional.pad(planes, (0, -planes.shape[1] % 4))


def trimmed(planes: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The planes as a file has them."""
    return planes[:, : -(-torch.Size(shape).numel() // 8)]


@devices.falls_back
def unpack(
    planes: Tensor, shape: tuple[int, int], dtype: torch.dtype = torch.int8, out: Tensor | None = None
) -> Tensor:
    """The symmetric codes (out, in) that `pack` was given, as int8 or float8_e4m3fn (times UNIT).

    out: uint8, at least 32 bytes for each 32-bit word of a plane; the result is a view of it. By one Triton
    kernel where there is Triton, else by plain torch. ValueError for codes that e4m3 cannot hold.
    """
    bits, n = len(planes), torch.Size(shape).numel()
    if dtype is torch.float8_e4m3fn and qmax(bits) > E4M3_INTEGERS:
        raise ValueError(f"{bits}-bit codes go up to {qmax(bits)}: e4m3 has integers up to {E4M3_INTEGERS}")
    if out is None:
        out = torch.empty(8 * planes.shape[1], dtype=torch.uint8, device=planes.device)
    codes = out[:n].view(dtype).view(shape)
    if devices.abilities(planes.device).triton:
        from adatsq.cuda.unpack_kernel import unpack_words

        unpack_words(planes, out, dtype is torch.float8_e4m3fn)
        return codes
    found = packing.unpack(trimmed(planes, shape), bits, shape)
    return codes.copy_(found if dtype is torch.int8 else found.float() * UNIT)


def shared_buffer(*planes: Tensor) -> Tensor:
    """Room for the unpacked codes of one product's layers: the same memory for all products on a device.

    It grows to the largest. The next product overwrites it, which is safe in the order of one stream.
    """
    size, device = 8 * sum(each.shape[1] for each in planes), planes[0].device
    buffer = _buffers.get(device)
    if buffer is None or len(buffer) < size:
        with torch.inference_mode(False):
            buffer = _buffers[device] = torch.empty(size, dtype=torch.uint8, device=device)
    return buffer


def buffers(device: torch.device) -> list[Tensor]:
    """The shared buffers on this device."""
    return [buffer for place, buffer in _buffers.items() if place == device]


def buffer_bytes(device: torch.device) -> int:
    """What the shared buffers on devices of this kind take now."""
    return sum(buffer.nbytes for place, buffer in _buffers.items() if place.type == device.type)


def release_buffers() -> None:
    """Give the shared buffers back, and codes of activations; they are made again when needed."""
    _buffers.clear()
    sharing.forget()
