"""Integers packed to their true width: b-bit codes as b planes of single bits, so that 3 bits take 3 bits."""

import torch
from torch import Tensor

from adatsq.integer import qmax


def pack(codes: Tensor, bits: int, symmetric: bool = True) -> Tensor:
    """int8 codes of any shape -> uint8 planes (bits, ceil(n / 8)), the codes shifted by qmax to be unsigned.

    Bit i of byte j in plane k is bit k of code 8j + i. symmetric=False allows -2^(b-1) too, which takes the
    pattern that is left, all ones. ValueError if a code does not fit the grid.
    """
    q = qmax(bits)
    low = -q if symmetric else -q - 1
    if codes.numel() and (codes.max() > q or codes.min() < low):
        raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit {bits} bits, [{low}, {q}]")
    unsigned = ((codes.flatten().to(torch.int16) + q) % 2**bits).to(torch.uint8)
    unsigned = torch.nn.functional.pad(unsigned, (0, -unsigned.numel() % 8)).view(-1, 8)
    place = torch.arange(8, dtype=torch.uint8, device=codes.device)
    planes = [((unsigned >> k & 1) << place).sum(dim=1, dtype=torch.uint8) for k in range(bits)]
    return torch.stack(planes)


def unpack(planes: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The int8 codes that `pack` was given. ValueError if the planes have another size than `shape` needs."""
    check_planes(planes, bits, shape)
    n = torch.Size(shape).numel()
    place = torch.arange(8, dtype=torch.uint8, device=planes.device)
    unsigned = torch.zeros(planes.shape[1], 8, dtype=torch.uint8, device=planes.device)
    for k in range(bits):
        unsigned |= (planes[k, :, None] >> place & 1) << k
    codes = unsigned.flatten()[:n].to(torch.int16) - qmax(bits)
    return codes.masked_fill(codes > qmax(bits), -qmax(bits) - 1).to(torch.int8).view(shape)


def check_planes(planes: Tensor, bits: int, shape: tuple[int, ...]) -> None:
    """ValueError if the planes have another size than codes of `shape` need."""
    n = torch.Size(shape).numel()
    if planes.dtype != torch.uint8 or planes.shape != (bits, -(-n // 8)):
        raise ValueError(
            f"{n} codes of {bits} bits take uint8 planes ({bits}, {-(-n // 8)}), "
            f"got {planes.dtype} {tuple(planes.shape)}"
        )


def narrow(tensor: Tensor) -> Tensor:
    """A tensor in bfloat16 if that loses nothing (a bfloat16 model loaded in float32), else as it is."""
    if tensor.is_floating_point() and tensor.element_size() > 2:
        short = tensor.to(torch.bfloat16)
        if torch.equal(short.to(tensor.dtype), tensor):
            return short
    return tensor
