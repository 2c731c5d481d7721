"""The sources in CUDA C++ compile for Hopper, with what Python sets: by nvcc, where there is one."""

import shutil
import subprocess

import pytest
import torch

from adatsq.cuda import few_rows_table, rotation_kernel
from adatsq.cuda.prologue import CAT_GELU, GELU, NONE, SWIGLU

bf16 = torch.bfloat16
CASES = {
    "rotation, Flux to_q": (rotation_kernel, (3072, True, NONE, 3072)),
    "rotation, Flux single out": (rotation_kernel, (15360, True, CAT_GELU, 3072)),
    "rotation, Flux ff out": (rotation_kernel, (12288, True, GELU, 12288)),
    "rotation, Z-Image ff out": (rotation_kernel, (10240, True, SWIGLU, 10240)),
    "rotation, Wan ff out, int8": (rotation_kernel, (8960, False, GELU, 8960)),
    "few rows, Flux": (few_rows_table, (3072, 48, 4, bf16, bf16)),
    "few rows, a scale per row": (few_rows_table, (1056, 1, 3, torch.float32, None)),
}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("case", CASES)
def test_it_compiles_without_spilling_registers(case, tmp_path):
    module, arguments = CASES[case]
    defined = [f"-D{key}={value}" for key, value in module.options(*arguments).items()]
    flags = ["-arch=sm_90", "-cubin", "-Xptxas", "-v", "-o", str(tmp_path / "kernel.cubin")]
    done = subprocess.run(["nvcc", *flags, *defined, str(module.SOURCE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 bytes spill stores" in done.stderr and "warning" not in done.stderr
