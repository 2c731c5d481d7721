"""Seconds, peak memory and rows of a table, written one by one as they are measured."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import diffusers
import pandas as pd
import torch
from torch import nn

from adatsq.cuda.benchmark import origin
from adatsq.files import write_text
from adatsq.measurements import COMMITS

COLUMNS = ("model", "method", "w_bits", "a_bits", "metric", "value", "ci_low", "ci_high", "n", "seed")


@dataclass
class Rows:
    """A tidy CSV file that grows by a row at a time; a row of the same things replaces an older one.

    fixed: columns that all rows share. keys: columns that say what a row is of.
    """

    file: Path
    fixed: dict
    keys: tuple[str, ...] = ("model", "method", "w_bits", "a_bits", "metric", "device")
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        if self.file.exists():
            self.table = pd.read_csv(self.file, dtype=COMMITS)

    def add(self, **row: object) -> None:
        new = pd.DataFrame([{**self.fixed, **row}])
        if len(self.table):
            # by value: a file has 4 where the row has 4.0
            same = [self.table[key] == new[key][0] for key in self.keys]
            self.table = self.table[~pd.concat(same, axis=1).all(axis=1)]
        self.table = pd.concat([self.table, new], ignore_index=True) if len(self.table) else new
        self.write()

    def write(self) -> None:
        write_text(self.file, self.table.to_csv(index=False, float_format="%.6g"))


def versions(device: torch.device, commit: str | None = None) -> dict:
    """Device, versions and commit, for each row."""
    return {**origin(device, commit), "diffusers": diffusers.__version__}


@contextmanager
def phase(name: str, device: torch.device) -> Iterator[dict]:
    """Prints that it starts, how long it took and how much memory tensors took at most.

    Afterwards {"NAME_s": seconds, "NAME_peak_memory_bytes": on CUDA alone}; the body may add to it.
    """
    found: dict = {}
    cuda = device.type == "cuda"
    print(f"{name} ...", flush=True)
    gc.collect()  # pipelines and policies know each other
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    yield found
    if cuda:
        torch.cuda.synchronize(device)
        found[f"{name}_peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    found[f"{name}_s"] = time.perf_counter() - start
    said = [f"{key} {value:.4g}" for key, value in found.items()]
    print(f"{name}: {', '.join(said)}", flush=True)


@contextmanager
def call_seconds(module: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """Afterwards the seconds of each call of the module: between events on the stream on CUDA."""
    times: list[float] = []
    marks: list = []

    def mark() -> object:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    before = module.register_forward_pre_hook(lambda *_: marks.append(mark()))
    after = module.register_forward_hook(lambda *_: marks.append(mark()))
    try:
        yield times
    finally:
        before.remove()
        after.remove()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        for start, end in zip(marks[::2], marks[1::2]):
            times.append(start.elapsed_time(end) / 1000 if device.type == "cuda" else end - start)


def steady(times: list[float]) -> float:
    """Median without the first call, which warms up, unless it is the only one."""
    return median(times[1:] or times)


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers, as they are held; tensors shared by two names once."""
    from adatsq.peers.stored import plain

    tensors = [part for t in (*module.parameters(), *module.buffers()) for part in plain(t)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
