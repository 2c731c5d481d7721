"""How a kernel in CUDA C++ is launched: what the driver is given, read back as C reads it."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from adatsq.cuda import nvrtc, rotation_kernel

CPU = torch.device("cpu")
DRIVERS = ctypes.CFUNCTYPE(  # of cuLaunchKernel, in CUDA's documentation
    ctypes.c_int,
    ctypes.c_void_p,
    *[ctypes.c_uint] * 7,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)


@pytest.fixture
def driver(monkeypatch):
    """A driver that notes what it is given; `kinds` are the kernel's parameters as C has them."""
    noted = SimpleNamespace(kinds=[], calls=[], error=0)

    def launch(function, *others):
        *sizes, stream, places, extra = others
        values = [kind.from_address(places[i]).value for i, kind in enumerate(noted.kinds)]
        noted.calls.append((function, tuple(sizes), stream, values, extra))
        return noted.error

    library = SimpleNamespace(cuLaunchKernel=DRIVERS(launch))
    kernel = SimpleNamespace(func=ctypes.c_void_p(77), set_shared_memory_config=lambda size: None)
    monkeypatch.setattr(torch.cuda, "_compile_kernel", lambda *args, **kwargs: kernel, raising=False)
    monkeypatch.setattr(torch.cuda._utils, "_get_gpu_runtime_library", lambda: library)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 2**40 + 5, raising=False)
    return noted


def test_arguments_arrive_as_c_reads_them(driver):
    x = torch.randn(3)
    kernel = nvrtc.compiled(rotation_kernel.SOURCE, "name", {}, 64, CPU)
    driver.kinds = [ctypes.c_void_p, ctypes.c_int, ctypes.c_double, ctypes.c_int, ctypes.c_double]
    kernel((5, 2, 1), (96, 1, 1), [x, 3, 0.1, -7, 2.0], 1024)
    sizes, values = (5, 2, 1, 96, 1, 1, 1024), [x.data_ptr(), 3, 0.1, -7, 2.0]
    assert driver.calls == [(77, sizes, 2**40 + 5, values, None)]


def test_each_call_has_arguments_of_its_own(driver):
    kernel = nvrtc.compiled(rotation_kernel.SOURCE, "name", {}, 64, CPU)
    driver.kinds = [ctypes.c_int, ctypes.c_double]
    for i in range(3):
        kernel((1, 1, 1), (32, 1, 1), [i, i / 2], 0)
    assert [values for *_, values, _ in driver.calls] == [[0, 0.0], [1, 0.5], [2, 1.0]]


def test_a_tensor_elsewhere_is_an_error_and_nothing_runs(driver):
    kernel = nvrtc.compiled(rotation_kernel.SOURCE, "name", {}, 64, CPU)
    with pytest.raises(ValueError, match="name runs on cpu, and is given a tensor on meta"):
        kernel((1, 1, 1), (32, 1, 1), [torch.empty(2, device="meta")], 0)
    assert not driver.calls


def test_what_the_driver_refuses_is_an_error(driver, monkeypatch):
    def refuse(error):
        raise RuntimeError(f"CUDA error: number {error}")

    monkeypatch.setattr(torch.cuda._utils, "_check_cuda", refuse)
    kernel = nvrtc.compiled(rotation_kernel.SOURCE, "name", {}, 64, CPU)
    driver.error = 701
    with pytest.raises(RuntimeError, match="number 701"):
        kernel((1, 1, 1), (2048, 1, 1), [], 0)
