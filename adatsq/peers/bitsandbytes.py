"""bitsandbytes: 4-bit normal floats (weights alone, blocks of 64), and LLM.int8, int8 weights per row with
int8 activations per token, but for input columns with a value over 6, which stay in 16 bit."""

import torch
from torch import nn

from adatsq.peers.stored import average_bits, replace

BLOCK = 64
ALIGNED = 4  # what cuBLAS wants of rows and columns of int8


def nf4(pipe, layers, w_bits: int, a_bits: int, trace) -> None:
    """Layers whose rows are no whole blocks stay in 16 bit: the library cannot run them on all devices."""
    for layer in layers:
        if layer.in_features % BLOCK == 0:
            replace(pipe.transformer, layer.name, _nf4(pipe.transformer.get_submodule(layer.name)))


def int8(pipe, layers, w_bits: int, a_bits: int, trace) -> float | None:
    """Modulation linears see a row per image; LLM.int8 has no weight-only form, so they get it whole. Layers
    whose sizes are no multiples of ALIGNED stay in 16 bit: on a GPU the library fails at them.

    Returns the average activation bits of layers of role "act" if there are such."""
    import bitsandbytes as library

    def taken(layer) -> bool:
        return layer.in_features % ALIGNED == layer.out_features % ALIGNED == 0

    for layer in filter(taken, layers):
        linear = pipe.transformer.get_submodule(layer.name)
        values = linear.weight.detach().cpu()  # it quantizes what it moves from the CPU, and nothing else
        weight = library.nn.Int8Params(values, requires_grad=False, has_fp16_weights=False)
        options = {"bias": linear.bias is not None, "has_fp16_weights": False, "threshold": 6.0}
        module = library.nn.Linear8bitLt(linear.in_features, linear.out_features, **options)
        replace(pipe.transformer, layer.name, _filled(module, weight, linear))
    return average_bits(layers, a_bits, lambda layer: not taken(layer))


def _nf4(linear: nn.Linear) -> nn.Module:
    import bitsandbytes as library

    weight = library.nn.Params4bit(
        linear.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=False
    )
    options = {"bias": linear.bias is not None, "quant_type": "nf4", "compute_dtype": linear.weight.dtype}
    module = library.nn.Linear4bit(linear.in_features, linear.out_features, **options)
    return _filled(module, weight, linear)


def _filled(module: nn.Module, weight: torch.Tensor, linear: nn.Linear) -> nn.Module:
    """Moving the module to its device is what quantizes it."""
    module.weight, module.bias = weight, linear.bias
    return module.to(linear.weight.device)
