"""What a device can do for us, found out once: Triton kernels, exact FP8 products."""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Abilities(NamedTuple):
    """triton: kernels compile and run right. e4m3: FP8 tensor cores whose promoted sums `exact` describes.
    nvrtc: those in CUDA C++ do too (`rotation_kernel`, `few_rows_table`); without it, Triton's, or torch."""

    triton: bool
    e4m3: bool
    nvrtc: bool = False

    def products(self) -> str:
        """What multiplies integers, in words."""
        eight = "a Triton kernel on the int8 tensor cores" if self.triton else "torch._int_mm (int8)"
        if self.e4m3:
            return f"up to 4 bits: torch._scaled_mm (FP8 tensor cores, exact); up to 8 bits: {eight}"
        return f"2 to 8 bits: {eight}"


def abilities(device: torch.device) -> Abilities:
    """Of a device; the CPU has none of them. Where a kernel has failed since (`falls_back`), no Triton."""
    device = _numbered(device)
    found = _abilities(device)
    return found._replace(triton=False) if device in _without_triton else found


_without_triton: set[torch.device] = set()


def falls_back(work: Callable) -> Callable:
    """The function, done again in plain torch if a Triton kernel cannot be made for it: at shapes that the
    trial has not seen, one may ask for more than a card has. That device has no Triton from then on, and one
    warning says so. Its first argument that is a tensor, or a list of them, tells the device."""

    @functools.wraps(work)
    def run(*given, **named):
        try:
            return work(*given, **named)
        except Exception as error:
            device = _numbered(_device_of((*given, *named.values())))
            if device in _without_triton or not isinstance(error, _triton_errors()):
                raise
            _without_triton.add(device)
            _warn_of_triton(device, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
            return work(*given, **named)

    return run


def _device_of(given: tuple) -> torch.device:
    tensors = (x for part in given for x in (part if isinstance(part, (list, tuple)) else [part]))
    return next(x.device for x in tensors if isinstance(x, Tensor))


def _triton_errors() -> tuple[type[Exception], ...]:
    """What Triton raises before a kernel runs."""
    try:
        from triton.errors import TritonError
    except ImportError:
        return ()
    return (TritonError,)


def _warn_of_triton(device: torch.device, reason: str) -> None:
    said = f"Triton does not work on {device} ({reason}): plain torch unpacks and rounds, slowly"
    warnings.warn(said, stacklevel=3)


def _numbered(device: str | torch.device) -> torch.device:
    """ "cuda" and "cuda:0" are one: one trial, and one warning."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@cache
def _abilities(device: torch.device) -> Abilities:
    """What `abilities` says, found out once for each device.

    FP8 products are used on Hopper only: other cards have FP8 tensor cores too, but what their accumulators
    keep is another question, and their int8 tensor cores are exact by construction.
    """
    if device.type != "cuda":
        return Abilities(triton=False, e4m3=False)
    # From CUDA 12.9 on, cuBLAS takes a scale per row and answers in any dtype.
    cuda = tuple(int(part) for part in (torch.version.cuda or "0").split("."))
    hopper = torch.version.hip is None and torch.cuda.get_device_capability(device) == (9, 0)
    return Abilities(_triton_works(device), hopper and cuda >= (12, 9), _nvrtc_works(device))


def _triton_works(device: torch.device) -> bool:
    """Compile the kernels in small, run them and look at the results; one warning if that fails."""
    if importlib.util.find_spec("triton") is None:
        warnings.warn("Triton is not installed: plain torch unpacks and rounds, slowly", stacklevel=2)
        return False
    try:
        wrong = _wrong_kernel(device)
        if wrong is None:
            return True
        reason = f"in a trial {wrong} computed something else"
    except Exception as error:  # a missing C compiler, an unknown card: Triton raises all kinds
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    _warn_of_triton(device, reason)
    return False


def _nvrtc_works(device: torch.device) -> bool:
    """Whether torch compiles the kernels in CUDA C++ and they compute what plain torch does; if not, warn."""
    try:
        wrong = _wrong_in_cuda(device)
        if wrong is None:
            return True
        reason = f"in a trial {wrong} computed something else"
    except Exception as error:  # no NVRTC, a torch that calls it by another name
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    warnings.warn(
        f"CUDA C++ fails on {device} ({reason}): the rotation and few rows go without it, more slowly",
        stacklevel=2,
    )
    return False


def _wrong_in_cuda(device: torch.device) -> str | None:
    """Which kernel in CUDA C++ does not compute what plain torch does; None if all do."""
    from adatsq import integer, packing, rotation
    from adatsq.cuda.few_rows_table import multiply_few
    from adatsq.cuda.rotation_kernel import rotate_rows

    with torch.cuda.device_of(torch.empty(0, device=device)):
        for inputs in (3072, 12288):  # within a warp, and with an exchange through shared memory
            # Sums that need both of the parts that they are cut into, and bits enough to see the second.
            x = torch.randn(2, inputs, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
            zeros = rotation.signs(rotation.block_size(inputs)).bfloat16() * 0  # and minus zeros
            zeros = zeros.to(device)
            found, _ = rotate_rows(x, 8, 1.0, zeros, torch.int8, None)
            z = rotation.rotate(x.float())
            off = (integer.quantize(z, integer.absmax_scale(z, 8), 8) - found).abs()
            if off.max() > 1 or off.sum() > 60:
                return "the rotation"
        x = torch.arange(2 * 3072, device=device).remainder(17).sub(8).to(torch.bfloat16).view(2, 3072)
        codes = torch.arange(5 * 3072, device=device).remainder(15).sub(7).to(torch.int8).view(5, 3072)
        y = multiply_few(x, packing.pack(codes, 4), torch.ones(5, 48, device=device), None)
        # sums of integers, rounded to bfloat16
        return None if torch.equal(y, (x.double() @ codes.double().T).to(y.dtype)) else "the few rows"


def _wrong_kernel(device: torch.device) -> str | None:
    """Which kernel does not compute what plain torch does; None if all do."""
    from adatsq import integer, packing, rotation
    from adatsq.cuda.activations_kernel import quantize_rows
    from adatsq.cuda.few_rows_kernel import multiply_few
    from adatsq.cuda.products_kernel import multiply_int8
    from adatsq.cuda.unpack_kernel import unpack_layers, unpack_words

    with torch.cuda.device_of(torch.empty(0, device=device)):
        codes = torch.arange(512, device=device).remainder(15).sub(7).to(torch.int8).view(2, 256)
        found = torch.empty(512, dtype=torch.uint8, device=device)
        unpack_words(packing.pack(codes, 4), found, False)
        if not torch.equal(found.view(torch.int8).view(2, 256), codes):
            return "the unpacking"
        one, exact = torch.ones(2, 1, device=device), codes.float() @ codes.float().T
        found, planes = torch.empty(1024, dtype=torch.uint8, device=device), packing.pack(codes, 4)
        scales, _ = unpack_layers([planes, planes], [one, 2 * one], [], found, False)
        both = torch.cat([codes, codes]), torch.cat([one, 2 * one])
        if not (torch.equal(found.view(torch.int8).view(4, 256), both[0]) and torch.equal(scales, both[1])):
            return "the unpacking of two layers"
        if not torch.equal(multiply_int8(codes, one, codes, one, None, torch.float32), exact):
            return "the product of integers"
        if not torch.equal(multiply_few(codes.float(), packing.pack(codes, 4), one, None), exact):
            return "the product of few rows"
        x = codes.to(torch.bfloat16)
        rows, _ = quantize_rows(x, 4, 1.0, rotation.signs(256).to(device), None, torch.int8, None)
        z = rotation.rotate(x.float())
        off = (integer.quantize(z, integer.absmax_scale(z, 4), 4) - rows).abs()
        return "the rounding" if off.max() > 1 or off.sum() > 10 else None


_told: set[torch.device] = set()


def tell(device: str | torch.device, again: bool = False) -> None:
    """Print the `note` of a device; unless `again`, once, and only of what has CUDA."""
    device = _numbered(device)
    if again or (device.type == "cuda" and device not in _told):
        _told.add(device)
        print(note(device))


def note(device: torch.device) -> str:
    """One line for a reader: what runs on this device, and why."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"{device}: no CUDA, the reference in plain torch"
    major, minor = torch.cuda.get_device_capability(device)
    found = abilities(device)
    kernels = "Triton kernels" if found.triton else "plain torch (no working Triton)"
    kernels += " and some in CUDA C++" if found.nvrtc else ""
    return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor}): {kernels}; {found.products()}"
