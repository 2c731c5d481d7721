"""What a device can do: the kernels are tried in small, and what fails is said once."""

import sys
import types
import warnings

import pytest
import torch

from adatsq import integer, packing
from adatsq.cuda import activations, devices, few_rows_table, rotation_kernel
from adatsq.cuda.linear import PackedLinear
from adatsq.scheme import Scheme, quantized

CPU = torch.device("cpu")


def test_the_cpu_needs_no_trial():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert devices.abilities("cpu") == devices.Abilities(triton=False, e4m3=False)
    assert devices.note(CPU) == "cpu: no CUDA, the reference in plain torch"


def test_without_triton(monkeypatch):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="Triton is not installed: plain torch unpacks") as caught:
        assert not devices._triton_works(CPU)
    assert len(caught) == 1


def test_a_kernel_that_does_not_compile_is_one_warning(monkeypatch):
    def fails(device):
        raise RuntimeError("no C compiler\nfound")

    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(devices, "_wrong_kernel", fails)
    with pytest.warns(UserWarning, match=r"does not work on cpu \(RuntimeError: no C compiler\)") as caught:
        assert not devices._triton_works(CPU)
    assert len(caught) == 1
    monkeypatch.setattr(devices, "_wrong_kernel", lambda device: "the rounding")
    with pytest.warns(UserWarning, match="in a trial the rounding computed something else"):
        assert not devices._triton_works(CPU)


@pytest.fixture
def triton_on_the_cpu(monkeypatch):
    """As on a card whose trial went well; what a failure changes is undone."""
    monkeypatch.setattr(devices, "_abilities", lambda device: devices.Abilities(True, False))
    monkeypatch.setattr(devices, "_without_triton", set())


def too_large(tried):
    def kernel(*given, **named):
        from triton.runtime.errors import OutOfResources

        tried.append(1)
        raise OutOfResources(300_000, 232_448, "shared memory")

    return kernel


@pytest.mark.parametrize("a_bits", [4, 8, 16])
def test_a_kernel_that_a_card_has_no_room_for_is_plain_torch_from_then_on(
    a_bits, triton_on_the_cpu, monkeypatch
):
    pytest.importorskip("triton")
    from adatsq.cuda import activations_kernel, few_rows_kernel, unpack_kernel

    tried = []
    for module, name in (
        (activations_kernel, "quantize_rows"),
        (unpack_kernel, "unpack_words"),
        (few_rows_kernel, "multiply_few"),
    ):
        monkeypatch.setattr(module, name, too_large(tried))
    linear, x = torch.nn.Linear(256, 48), torch.randn(3, 256)
    reference = quantized(linear, Scheme(4, a_bits, rotation=True))
    packed = PackedLinear(reference)
    with pytest.warns(UserWarning, match=r"Triton does not work on cpu \(OutOfResources: out of") as caught:
        found = [packed(x), packed(x)]
    assert len(caught) == 1 and len(tried) == 1
    for y in found:
        torch.testing.assert_close(y, reference(x), rtol=1e-5, atol=1e-5)
    assert not devices.abilities(CPU).triton


def test_what_is_no_failure_of_triton_is_raised(triton_on_the_cpu):
    @devices.falls_back
    def work(tensors):
        raise RuntimeError("something else")

    for given, named in ((([torch.ones(1)],), {}), ((), {"tensors": torch.ones(1)})):
        with pytest.raises(RuntimeError, match="something else"):
            work(*given, **named)
    assert devices.abilities(CPU).triton


def test_a_failure_without_triton_is_raised(triton_on_the_cpu):
    """It is tried twice at most."""
    pytest.importorskip("triton")
    tried = []
    work = devices.falls_back(too_large(tried))
    with pytest.warns(UserWarning, match="Triton does not work"), pytest.raises(Exception, match="out of"):
        work(torch.ones(1))
    assert len(tried) == 2


def test_one_trial_for_all_names_of_a_card(monkeypatch):
    tried = []
    monkeypatch.setattr(devices, "_triton_works", lambda device: bool(tried.append(device)))
    monkeypatch.setattr(devices, "_nvrtc_works", lambda device: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    devices._abilities.cache_clear()
    for name in ("cuda", "cuda:0", torch.device("cuda", 0)):
        assert devices.abilities(name) == devices.Abilities(triton=False, e4m3=False)
    devices._abilities.cache_clear()
    assert tried == [torch.device("cuda", 0)]


def test_what_a_card_does_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(devices, "note", lambda device: f"note of {device}")
    monkeypatch.setattr(devices, "_told", set())
    for name in ("cuda", "cuda:0", "cpu"):
        devices.tell(name)
    assert capsys.readouterr().out == "note of cuda:0\n"
    devices.tell("cuda", again=True)
    devices.tell("cpu", again=True)
    assert capsys.readouterr().out == "note of cuda:0\nnote of cpu\n"


@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize("nvrtc", [True, False])
@pytest.mark.parametrize("e4m3", [True, False])
def test_the_note_says_what_is_used(triton, nvrtc, e4m3, monkeypatch):
    monkeypatch.setattr(devices, "abilities", lambda device: devices.Abilities(triton, e4m3, nvrtc))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some card")
    said = devices.note(torch.device("cuda"))
    assert said.startswith("Some card (sm_89): ")
    assert ("Triton kernels" in said) == triton and ("plain torch (no working Triton)" in said) != triton
    assert ("CUDA C++" in said) == nvrtc and ("FP8 tensor cores" in said) == e4m3
    assert ("torch._int_mm" in said) != triton


@pytest.mark.parametrize(
    ("module", "kernel", "said"),
    [
        ("unpack_kernel", "unpack_words", "the unpacking"),
        ("products_kernel", "multiply_int8", "the product of integers"),
        ("few_rows_kernel", "multiply_few", "the product of few rows"),
        ("activations_kernel", "quantize_rows", "the rounding"),
    ],
)
def test_the_trial_knows_right_from_wrong(module, kernel, said, kernel_device, monkeypatch):
    __import__(f"adatsq.cuda.{module}")
    there: types.ModuleType = sys.modules[f"adatsq.cuda.{module}"]
    assert devices._wrong_kernel(kernel_device) is None
    right = getattr(there, kernel)

    def wrong(*args):
        """As a kernel may that leaves the last row out."""
        found = right(*args)
        for answer in (found, *args[1:2]) if module == "unpack_kernel" else (found,):
            answer = answer[0] if isinstance(answer, tuple) else answer
            if answer is not None:
                answer.view(torch.uint8)[len(answer) // 2 :] = 0
        return found

    monkeypatch.setattr(there, kernel, wrong)
    assert devices._wrong_kernel(kernel_device) == said


def rotated_rows(x, bits, clip, table, dtype, finite):
    return activations.quantize(x, bits, clip, True, dtype=dtype)


def few_rows(x, planes, scale, bias):
    codes = packing.unpack(planes, len(planes), (len(scale), x.shape[1]))
    return (x.double() @ integer.dequantize(codes.double(), scale.double()).T).to(x.dtype)


def test_the_trial_of_cuda_knows_right_from_wrong(monkeypatch):
    """Plain torch in place of the kernels, and then with half of the first row of answers left out."""
    monkeypatch.setattr(rotation_kernel, "rotate_rows", rotated_rows)
    monkeypatch.setattr(few_rows_table, "multiply_few", few_rows)
    assert devices._wrong_in_cuda(CPU) is None and devices._nvrtc_works(CPU)

    def without(answer):
        answer[0, ::2] = 0
        return answer

    monkeypatch.setattr(few_rows_table, "multiply_few", lambda *args: without(few_rows(*args)))
    with pytest.warns(
        UserWarning,
        match="trial the few rows computed something else.*: the rotation and few rows go without",
    ):
        assert not devices._nvrtc_works(CPU)
    half = lambda *args: (without(rotated_rows(*args)[0]), None)  # noqa: E731
    monkeypatch.setattr(rotation_kernel, "rotate_rows", half)
    assert devices._wrong_in_cuda(CPU) == "the rotation"
