"""Whether a GPU has room for a pipeline, asked before it is loaded: from the headers of its files."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import nn

ROOM = 1.1  # the libraries' own, and what a step needs: measured at full size, far less than a tenth


def tensors(file: Path) -> dict[str, tuple[int, int]]:
    """{name: (numbers, bytes)} from the header of a safetensors file."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return {
        name: (math.prod(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }


def weight_files(part: Path) -> list[Path]:
    """The safetensors files of a part of a diffusers folder. Variants (`model.fp16.safetensors`) count where
    there is nothing else; beside other files they repeat them."""
    every = sorted(part.glob("*.safetensors"))
    return [file for file in every if "." not in file.stem] or every


def pipeline_bytes(folder: Path, dtype: torch.dtype | None) -> int:
    """Bytes of all weights of a diffusers folder in this dtype; None: as in the files."""
    files = [f for part in sorted(folder.iterdir()) if part.is_dir() for f in weight_files(part)]
    found = [of for file in files for of in tensors(file).values()]
    return sum(size if dtype is None else numbers * dtype.itemsize for numbers, size in found)


def quantized_bytes(folder: Path, layers: Mapping[str, Mapping], weights: Path, packed: bool) -> int:
    """Bytes of a folder that `adatsq.save` wrote: as in the files, and a byte per weight if not packed."""
    held = sum(size for file in folder.glob("*/*.safetensors") for _, size in tensors(file).values())
    if packed:
        return held
    planes = {f"{name}.codes": layer for name, layer in layers.items() if layer["w_bits"] < 16}
    stored = sum(size for name, (_, size) in tensors(weights).items() if name in planes)
    return held - stored + sum(math.prod(layer["shape"]) for layer in planes.values())


def part_bytes(pipe: DiffusionPipeline) -> int:
    """Bytes of the weights of a pipeline that is loaded already."""
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    tensors = {id(t): t.nbytes for part in parts for t in (*part.parameters(), *part.buffers())}
    return sum(tensors.values())


def unused(device: str | torch.device) -> int:
    """Bytes that torch keeps on a CUDA device and nothing is in: free for tensors, though not for others."""
    if not torch.cuda.is_initialized():
        return 0
    return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def check(needed: Callable[[], int], device: str | torch.device | None, advice: Callable[[], str]) -> None:
    """ValueError if a CUDA device has less memory free than so many bytes, and some room to work in.

    advice: what to do about it. Both are asked for only if they are needed; files that cannot be read are
    left to whoever loads them.
    """
    if device is None or torch.device(device).type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(torch.device(device))
    free += unused(device)
    try:
        wanted = needed()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if wanted * ROOM > free:
        raise ValueError(
            f"the weights need {wanted / 1e9:.3g} GB, and about {ROOM * wanted / 1e9:.3g} GB to run; "
            f"{device} has {free / 1e9:.3g} GB free of {total / 1e9:.3g}. {advice()}"
        )
