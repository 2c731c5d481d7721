"""optimum-quanto: weights of 8, 4 and 2 bits (groups of 128, or the largest part of it that divides a row),
activations of 8 bits.

An activation has one static scale per tensor, a running mean of its largest values (momentum 0.9) while the
calibration prompts are drawn: here the recorded steps, in order, in quanto's `Calibration`.
"""

from types import SimpleNamespace

import torch

from adatsq.trace import velocity


def quanto(pipe, layers, w_bits: int, a_bits: int, trace) -> None:
    from optimum import quanto as library

    if pipe.transformer.device.type == "cpu":
        compile_nothing()
    qtypes = {8: library.qint8, 4: library.qint4, 2: library.qint2}
    act, modulation = ([x.name for x in layers if x.role == role] for role in ("act", "weight"))
    library.quantize(pipe.transformer, weights=qtypes[max(4, w_bits)], include=modulation)
    activations = library.qint8 if a_bits == 8 else None
    library.quantize(pipe.transformer, weights=qtypes[w_bits], activations=activations, include=act)
    if activations:
        with torch.no_grad(), library.Calibration():
            for t in range(len(trace().timesteps)):
                velocity(pipe.transformer, trace(), t)
    library.freeze(pipe.transformer)


def compile_nothing() -> None:
    """Let quanto unpack its integers by its own definition in torch, rather than compile a kernel for it,
    which takes a minute, and a compiler. The numbers are the same."""
    from optimum.quanto.library.extensions import extension

    for name in ("quanto_cpp", "quanto_cuda"):
        if extension.is_extension_available(name):
            extension.get_extension(name)._lib = SimpleNamespace(unpack=_unpack)


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The 8 / bits integers of each byte, lowest bits first, one below the other."""
    planes = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.cat(planes).to(torch.uint8)
