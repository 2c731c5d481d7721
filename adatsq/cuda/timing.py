"""Milliseconds on a device, and the two ceilings that they are held against."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

MODES = ("eager", "compiled", "graph")  # of whole steps; the last is compiled, and its call a CUDA graph


def milliseconds(
    function: Callable[[], object], device: torch.device, repeats: int = 30, warm_up: int = 5
) -> float:
    """Median time of a call. On CUDA between two events on the stream, with the L2 cache flushed before."""
    for _ in range(warm_up):
        function()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            start = perf_counter()
            function()
            times.append(1000 * (perf_counter() - start))
        return median(times)
    flush = torch.empty(2**30, dtype=torch.uint8, device=device)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        # Takes half a millisecond: the CPU can send all launches of the call, and no gap between is timed.
        flush.zero_()
        flush.zero_()
        start.record()
        function()
        end.record()
    torch.cuda.synchronize(device)
    return median(start.elapsed_time(end) for start, end in events)


def bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a large copy."""
    x = torch.empty(2**31 if device.type == "cuda" else 2**22, dtype=torch.uint8, device=device).random_()
    y = torch.empty_like(x)
    return 2 * x.nbytes / (milliseconds(lambda: y.copy_(x), device) / 1000)
