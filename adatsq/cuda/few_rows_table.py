"""`few_rows_kernel.multiply_few` by tables of sums, in CUDA C++ (`few_rows_table.cu`).

Triton's kernel takes some eight operations to make a number of each code; a look into a table takes four for
as many codes, in one plane. Tables want a place in shared memory that fits the lane which looks, for which
Triton has no words.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from adatsq.cuda import nvrtc
from adatsq.integer import qmax

SOURCE = Path(__file__).with_suffix(".cu")
MOST_INPUTS = 4096  # whose words and tables fit a thread's registers and a block's memory
TYPES = {torch.float32: "float", torch.bfloat16: "bf16"}


def fits(x: Tensor, scale: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel does it: bfloat16 rows of whole 32-bit words, like groups of weights."""
    inputs, groups = x.shape[-1], scale.shape[1]
    types = scale.dtype in TYPES and (bias is None or bias.dtype in TYPES)
    whole = inputs % 32 == 0 and inputs // groups % 32 == 0
    small = inputs <= MOST_INPUTS and shared_bytes(inputs) <= nvrtc.room(x.device)
    return x.dtype is torch.bfloat16 and types and whole and small


def multiply_few(
    x: Tensor, planes: Tensor, scale: Tensor, bias: Tensor | None, finite: Tensor | None = None
) -> Tensor:
    """x (rows, in), planes of symmetric codes (`packing`), scale (out, groups) -> (rows, out) in bfloat16.

    Sums are float32. finite: as in `activations.quantize`. Only where `fits`.
    """
    (rows, inputs), (outputs, groups) = x.shape, scale.shape
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    finite = torch.empty((), dtype=torch.int32, device=x.device) if finite is None else finite
    scale = scale.contiguous()
    kernel, threads, processors = _compiled(
        inputs, groups, len(planes), scale.dtype, None if bias is None else bias.dtype, x.device
    )
    tensors = [x.contiguous(), planes, scale, scale if bias is None else bias, y, finite]
    numbers = [outputs, planes.shape[1] // 4, int(bias is not None)]
    kernel((min(processors, outputs), rows, 1), (threads, 1, 1), [*tensors, *numbers])
    return y


def options(
    inputs: int, groups: int, bits: int, scale: torch.dtype, bias: torch.dtype | None
) -> dict[str, object]:
    """What `few_rows_table.cu` wants to be set."""
    chunks = -(-inputs // 1024)
    return {
        "INPUTS": inputs,
        "GROUP": inputs // groups,
        "BITS": bits,
        "QMAX": f"{qmax(bits)}.0f",
        "THREADS": 1024 if chunks * bits <= 12 else 512,  # a thread holds two rows' words
        "SCALE": TYPES[scale],
        "BIAS": TYPES[bias or scale],
    }


def shared_bytes(inputs: int) -> int:
    """Of the tables of a row, and of its sums."""
    return -(-inputs // 1024) * (8 * 16 + 1) * 32 * 4


@cache
def _compiled(
    inputs: int,
    groups: int,
    bits: int,
    scale: torch.dtype,
    bias: torch.dtype | None,
    device: torch.device,
):
    """(kernel, threads, processors) for the current device, which is `device`."""
    defined = options(inputs, groups, bits, scale, bias)
    kernel = nvrtc.compiled(SOURCE, "multiply_few", defined, shared_bytes(inputs), device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return kernel, defined["THREADS"], processors
