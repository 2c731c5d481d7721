"""Kernels in CUDA C++, compiled when they are first used: torch does it by NVRTC, a part of CUDA, so that no
compiler need be installed.

A launch is ours. Torch's opens CUDA's library and asks for the stream and the device anew at each call, which
takes longer than some kernels do; a step of Flux has hundreds of them, and the GPU would wait for each.
"""

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils import cpp_extension

# Bytes of an argument as it is handed over, the widest: hosts are little-endian, a C int is the first four.
SLOT = 8


def room(device: torch.device) -> int:
    """Bytes of shared memory that a block may ask for on this device; the CPU is as if it had enough."""
    return _room(device) if device.type == "cuda" else 1 << 30


@cache
def _room(device: torch.device) -> int:
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 48 * 1024)


def compiled(source: Path, name: str, defined: Mapping[str, object], shared: int, device: torch.device):
    """The kernel of this name for the current device, which is `device`: to be called as
    kernel(grid, block, arguments), with tensors, ints (a C int) and floats (a double).

    defined: what the preprocessor replaces. shared: bytes of shared memory that a call takes, at most `room`.
    The kernel raises ValueError for a tensor that is elsewhere, RuntimeError for what CUDA refuses.
    """
    options = [f"-D{key}={value}" for key, value in defined.items()]
    # torch looks for CUDA's headers, which our sources do without: any folder will do
    with patch.object(cpp_extension, "CUDA_HOME", cpp_extension.CUDA_HOME or str(source.parent)):
        kernel = torch.cuda._compile_kernel(source.read_text(), name, nvcc_options=options)
    if shared >= 48 * 1024:
        kernel.set_shared_memory_config(shared)
    library = torch.cuda._utils._get_gpu_runtime_library()

    def launch(grid: Sequence[int], block: Sequence[int], arguments: Sequence) -> None:
        for each in arguments:
            if isinstance(each, Tensor) and each.device != device:  # its address means something else here
                raise ValueError(f"{name} runs on {device}, and is given a tensor on {each.device}")
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        call(library.cuLaunchKernel, kernel.func, grid, block, arguments, shared, stream)

    return launch


def call(
    launch_kernel: Callable[..., int],
    function: ctypes.c_void_p,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[Tensor | int | float],
    shared: int,
    stream: int,
) -> None:
    """One call of `launch_kernel`, the CUDA driver's cuLaunchKernel, which copies the arguments before it
    returns. Raises RuntimeError for what it refuses."""
    values = [each.data_ptr() if isinstance(each, Tensor) else each for each in arguments]
    kinds = "".join("d" if isinstance(value, float) else "q" for value in values)
    slots = ctypes.create_string_buffer(struct.pack(kinds, *values))
    start = ctypes.addressof(slots)
    places = (ctypes.c_void_p * len(values))(*range(start, start + SLOT * len(values), SLOT))
    error = launch_kernel(function, *grid, *block, shared, ctypes.c_void_p(stream), places, None)
    if error:
        torch.cuda._utils._check_cuda(error)  # raises, in CUDA's words
