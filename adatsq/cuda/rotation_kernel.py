"""Rotation and rounding of bfloat16 rows in CUDA C++ (`rotation_kernel.cu`), compiled when it is first used.

Triton multiplies by Hadamard matrices (`activations_kernel`), 200 to 500 operations for each value; sums and
differences are log2(n) of them. But they need values to move between lanes of a warp, for which Triton has no
words. torch compiles the source by NVRTC, a part of CUDA, so that no compiler need be installed.
"""

from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils import cpp_extension

from adatsq.cuda.packing import UNIT
from adatsq.integer import qmax
from adatsq.rotation import block_size

SOURCE = Path(__file__).with_suffix(".cu")
MOST_EACH = 40  # values of a row that a thread holds in registers
MOST_BLOCK = 4096


def threads_of(inputs: int) -> int | None:
    """Threads that share a row, or None if the kernel is not for rows of so many inputs."""
    block = block_size(inputs)
    if not 256 <= block <= MOST_BLOCK:
        return None
    far = block // 256
    together = far * (2 if far == 16 else 4) if far > 1 else 8  # values that stay with one thread
    for threads in range(32, 1025, 32):
        if inputs % (8 * threads) == 0 and inputs % (together * threads) == 0:
            if inputs <= MOST_EACH * threads:
                return threads
    return None


def fits(x: Tensor, smoothing: Tensor | None) -> bool:
    """Whether the kernel does it: bfloat16 rows without smoothing, of a width it knows."""
    return x.dtype is torch.bfloat16 and smoothing is None and threads_of(x.shape[1]) is not None


def rotate_rows(
    x: Tensor, bits: int, clip: float, signs: Tensor, dtype: torch.dtype, finite: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`activations.quantize` with a rotation; signs: bfloat16, of one block, 0 and -0 for 1 and -1."""
    tokens, inputs = x.shape
    codes = torch.empty(x.shape, dtype=dtype, device=x.device)
    scales = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    e4m3 = dtype is torch.float8_e4m3fn
    kernel, threads, shared = _compiled(inputs, e4m3, x.device)
    unit = 1 / UNIT if e4m3 else 1.0
    finite = torch.empty((), dtype=torch.int32, device=x.device) if finite is None else finite
    arguments = [x.contiguous(), signs, codes, scales, finite, float(qmax(bits)), clip / qmax(bits), unit]
    kernel((tokens, 1, 1), (threads, 1, 1), arguments, shared)
    return codes, scales


@cache
def _compiled(inputs: int, e4m3: bool, device: torch.device):
    """(kernel, threads, bytes of shared memory) for the current device, which is `device`."""
    block, threads = block_size(inputs), threads_of(inputs)
    options = [f"-DINPUTS={inputs}", f"-DBLOCK={block}", f"-DTHREADS={threads}", f"-DE4M3={int(e4m3)}"]
    # torch looks for CUDA's headers, which the source does without: any folder will do
    with patch.object(cpp_extension, "CUDA_HOME", cpp_extension.CUDA_HOME or str(SOURCE.parent)):
        kernel = torch.cuda._compile_kernel(SOURCE.read_text(), "rotate_rows", nvcc_options=options)
    shared = 4 * inputs if block > 256 else 0
    if shared >= 48 * 1024:
        kernel.set_shared_memory_config(shared)
    return kernel, threads, shared
