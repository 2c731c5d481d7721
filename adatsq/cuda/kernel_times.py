"""Where the milliseconds of a call go, by kind of kernel, as torch's profiler sees them."""

from collections.abc import Callable

import torch

# What stands in a kernel's name, in the order in which it is looked for. All else is elementwise, or small.
KINDS = {
    "attention": ("sdpa", "attention", "flash", "fmha"),
    "unpack": ("_unpack",),
    "round": ("_quantize_rows", "rotate_rows"),
    "linear": ("nvjet", "gemm", "cutlass", "multiply_", "gemv", "splitK", "matmul", "kernel_int8"),
}


def kind_of(kernel: str) -> str:
    """attention, unpack, round, linear or rest. A fused kernel of inductor names all that it does."""
    if kernel.startswith("triton_"):
        return "rest"
    return next((kind for kind, parts in KINDS.items() if any(p in kernel for p in parts)), "rest")


def kernel_ms(call: Callable, device: torch.device) -> dict[str, float]:
    """Milliseconds of the kernels of a call, all of them and by kind; prints those that take longest.

    If all are far below the time of the call, the device waits for the CPU to launch them.
    """
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, *([activity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profile:
        call()
    events, of = profile.key_averages(), "device" if device.type == "cuda" else "cpu"
    if device.type == "cuda":  # operators of torch have the times of their kernels too
        events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    times = {event.key: getattr(event, f"self_{of}_time_total") / 1000 for event in events}
    calls = {event.key: event.count for event in events}
    for name in sorted(times, key=times.get, reverse=True)[:20]:
        print(f"{times[name]:9.3f} ms {calls[name]:6d} x {name[:90]}", flush=True)
    kinds = {f"{kind}_ms": 0.0 for kind in (*KINDS, "rest")}
    for name, ms in times.items():
        kinds[f"{kind_of(name)}_ms"] += ms
    return {"kernel_ms": sum(times.values()), **kinds}
