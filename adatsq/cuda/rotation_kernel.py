"""Rotation and rounding of bfloat16 rows in CUDA C++ (`rotation_kernel.cu`).

Triton multiplies by the two Hadamard matrices that a block is made of (`activations_kernel`), 130 to 510
operations for each value. Here 256 values are two products with 16 x 16, the second of them in two parts: 96
operations, which leave a value in the registers of the thread that loaded it. What is above are sums and
differences.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from adatsq.cuda import nvrtc
from adatsq.cuda.packing import UNIT
from adatsq.cuda.prologue import CAT_GELU, KINDS, NONE, width
from adatsq.integer import qmax
from adatsq.rotation import block_size

SOURCE = Path(__file__).with_suffix(".cu")
MOST_EACH = 40  # values of a row that a thread holds in registers
LOW = 256  # values that a warp transforms by tensor cores
MOST_BLOCK = 4096  # values of the largest block
MOST_OWN = 4  # parts of LOW values of a block, up to which a warp has all of them; else they are exchanged
VECTOR = 8  # values that a thread loads at once


def threads_of(inputs: int) -> int | None:
    """Threads that share a row, or None if the kernel is not for rows of so many inputs."""
    block = block_size(inputs)
    if not LOW <= block <= MOST_BLOCK:
        return None
    far = block // LOW
    together = far * (VECTOR if far <= MOST_OWN else 2)  # values that stay with one thread
    for threads in range(32, 1025, 32):
        if inputs % (VECTOR * threads) == 0 and inputs % (together * threads) == 0:
            if inputs <= MOST_EACH * threads:
                return threads
    return None


def fits(x: Tensor, smoothing: Tensor | None, second: Tensor | None = None, prologue: str = NONE) -> bool:
    """Whether the kernel does it: bfloat16 rows without smoothing, of a width it knows."""
    if x.dtype is not torch.bfloat16 or smoothing is not None:
        return False
    if prologue == CAT_GELU and x.shape[1] % 8:  # a thread's eight values are of one tensor
        return False
    inputs = width(prologue, x, second)
    return threads_of(inputs) is not None and shared_bytes(inputs) <= nvrtc.room(x.device)


def rotate_rows(
    x: Tensor,
    bits: int,
    clip: float,
    signs: Tensor,
    dtype: torch.dtype,
    finite: Tensor | None,
    second: Tensor | None = None,
    prologue: str = NONE,
) -> tuple[Tensor, Tensor]:
    """`activations.quantize` with a rotation; signs: bfloat16, of one block, 0 and -0 for 1 and -1."""
    tokens, inputs = len(x), width(prologue, x, second)
    codes = torch.empty(tokens, inputs, dtype=dtype, device=x.device)
    scales = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    e4m3 = dtype is torch.float8_e4m3fn
    kernel, threads = _compiled(inputs, e4m3, x.device, prologue, x.shape[1])
    unit = 1 / UNIT if e4m3 else 1.0
    finite = torch.empty((), dtype=torch.int32, device=x.device) if finite is None else finite
    x, second = in_vectors(x), in_vectors(x if second is None else second)  # not read, if there is none
    apart = [t.stride(0) // VECTOR for t in (x, second)]
    numbers = [float(qmax(bits)), clip / qmax(bits), unit]
    tensors = [x, second, signs, codes, scales, finite]
    kernel((tokens, 1, 1), (threads, 1, 1), [*tensors, *apart, *numbers])
    return codes, scales


def in_vectors(x: Tensor) -> Tensor:
    """x (rows, columns) itself if its rows are made of whole vectors in memory, else a copy. The rows may lie
    apart, as columns of a wider tensor do; columns are a multiple of VECTOR."""
    size = VECTOR * x.element_size()
    if x.stride(1) == 1 and x.stride(0) % VECTOR == 0 and x.data_ptr() % size == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def options(inputs: int, e4m3: bool, prologue: str, first: int) -> dict[str, int]:
    """What `rotation_kernel.cu` wants to be set; first: columns of x."""
    block = block_size(inputs)
    sizes = {"INPUTS": inputs, "BLOCK": block, "THREADS": threads_of(inputs), "MOST_OWN": MOST_OWN}
    return {**sizes, "FIRST": first, "E4M3": int(e4m3), "PROLOGUE": KINDS.index(prologue)}


def shared_bytes(inputs: int) -> int:
    """Through which warps exchange values; a row whose blocks a warp has whole needs none."""
    return 4 * inputs if block_size(inputs) > MOST_OWN * LOW else 0


@cache
def _compiled(inputs: int, e4m3: bool, device: torch.device, prologue: str, first: int):
    """(kernel, threads) for the current device, which is `device`."""
    defined = options(inputs, e4m3, prologue, first)
    kernel = nvrtc.compiled(SOURCE, "rotate_rows", defined, shared_bytes(inputs), device)
    return kernel, threads_of(inputs)
