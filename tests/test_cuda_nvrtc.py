"""How a kernel in CUDA C++ is launched: what the driver is given, read back as C reads it."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from adatsq.cuda import few_rows_table, nvrtc, rotation_kernel

CPU = torch.device("cpu")
DRIVERS = ctypes.CFUNCTYPE(  # of cuLaunchKernel, in CUDA's documentation
    ctypes.c_int,
    ctypes.c_void_p,
    *[ctypes.c_uint] * 7,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)


CUDA1 = torch.device("cuda:1")


@pytest.fixture
def driver(monkeypatch):
    """A driver that notes what it is given; `kinds` are the kernel's parameters as C has them."""
    noted = SimpleNamespace(kinds=[], calls=[], error=0, shared=None, options=None)

    def launch(function, *others):
        *sizes, stream, places, extra = others
        values = [kind.from_address(places[i]).value for i, kind in enumerate(noted.kinds)]
        noted.calls.append((function, tuple(sizes), stream, values, extra))
        return noted.error

    def compile_kernel(source, name, nvcc_options):
        noted.options = name, nvcc_options
        return SimpleNamespace(func=ctypes.c_void_p(77), set_shared_memory_config=configure)

    def configure(size):
        noted.shared = size

    library = SimpleNamespace(cuLaunchKernel=DRIVERS(launch))
    monkeypatch.setattr(torch.cuda, "_compile_kernel", compile_kernel, raising=False)
    monkeypatch.setattr(torch.cuda._utils, "_get_gpu_runtime_library", lambda: library)
    streams = {None: 2**40 + 5, 1: 2**41}  # by the device's number, which the CPU has not
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", streams.get, raising=False)
    return noted


def compiled(shared=64, device=CPU, **defined):
    return nvrtc.compiled(rotation_kernel.SOURCE, "name", defined, shared, device)


def test_arguments_arrive_as_c_reads_them(driver):
    x = torch.randn(3)
    driver.kinds = [ctypes.c_void_p, ctypes.c_int, ctypes.c_double, ctypes.c_int, ctypes.c_double]
    compiled(1024)((5, 2, 1), (96, 1, 1), [x, 3, 0.1, -7, 2.0])
    sizes, values = (5, 2, 1, 96, 1, 1, 1024), [x.data_ptr(), 3, 0.1, -7, 2.0]
    assert driver.calls == [(77, sizes, 2**40 + 5, values, None)]


def test_each_call_has_arguments_of_its_own(driver):
    kernel = compiled()
    driver.kinds = [ctypes.c_int, ctypes.c_double]
    for i in range(3):
        kernel((1, 1, 1), (32, 1, 1), [i, i / 2])
    assert [values for *_, values, _ in driver.calls] == [[0, 0.0], [1, 0.5], [2, 1.0]]


def test_a_call_joins_the_stream_of_its_device(driver):
    compiled(device=CUDA1)((1, 1, 1), (32, 1, 1), [])
    assert driver.calls[0][2] == 2**41


def test_it_is_compiled_as_asked(driver):
    compiled(INPUTS=3072, SCALE="float")
    assert driver.options == ("name", ["-DINPUTS=3072", "-DSCALE=float"]) and driver.shared is None
    compiled(48 * 1024)  # from here on CUDA wants to be told
    assert driver.shared == 48 * 1024


def test_a_tensor_elsewhere_is_an_error_and_nothing_runs(driver):
    with pytest.raises(ValueError, match="name runs on cpu, and is given a tensor on meta"):
        compiled()((1, 1, 1), (32, 1, 1), [torch.empty(2, device="meta")])
    assert not driver.calls


def test_what_the_driver_refuses_is_an_error(driver, monkeypatch):
    def refuse(error):
        raise RuntimeError(f"CUDA error: number {error}")

    monkeypatch.setattr(torch.cuda._utils, "_check_cuda", refuse)
    driver.error = 701
    with pytest.raises(RuntimeError, match="number 701"):
        compiled()((1, 1, 1), (2048, 1, 1), [])


@pytest.mark.parametrize(("room", "fits"), [(99 * 1024, False), (227 * 1024, True)])
def test_what_takes_more_memory_than_a_block_has_is_left_to_others(room, fits, monkeypatch):
    monkeypatch.setattr(nvrtc, "room", lambda device: room)
    x = torch.empty(2, 28672, dtype=torch.bfloat16)
    assert rotation_kernel.fits(x, None) == fits
    assert rotation_kernel.fits(x[:, :3072], None)  # needs none
    monkeypatch.setattr(nvrtc, "room", lambda device: 64 * 1024)
    scale = torch.ones(8, 1, dtype=torch.bfloat16)
    assert few_rows_table.fits(x[:, :3072], scale, None) and not few_rows_table.fits(x[:, :4096], scale, None)
