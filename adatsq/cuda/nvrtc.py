"""Kernels in CUDA C++, compiled when they are first used: torch does it by NVRTC, a part of CUDA, so that no
compiler need be installed."""

from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils import cpp_extension


def compiled(source: Path, name: str, defined: Mapping[str, object], shared: int):
    """The kernel of this name for the current device, to be called as kernel(grid, block, arguments, shared).

    defined: what the preprocessor replaces. shared: bytes of shared memory that a call asks for.
    """
    options = [f"-D{key}={value}" for key, value in defined.items()]
    # torch looks for CUDA's headers, which our sources do without: any folder will do
    with patch.object(cpp_extension, "CUDA_HOME", cpp_extension.CUDA_HOME or str(source.parent)):
        kernel = torch.cuda._compile_kernel(source.read_text(), name, nvcc_options=options)
    if shared >= 48 * 1024:
        kernel.set_shared_memory_config(shared)
    return kernel
