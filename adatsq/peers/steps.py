"""Other libraries on a whole transformer, as they are meant to run on a GPU: for `adatsq.cuda.steps`.

Those that `adatsq.peers` has too are called through it. gemlite is no requirement, not even of the extra
"peers": it cannot be imported without a driver of NVIDIA's. Modulation linears see one row per image: they
are quantized in their weights alone, or left as they are.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn

from adatsq import peers
from adatsq.models import Layer
from adatsq.peers.stored import replace


@dataclass(frozen=True)
class Peer:
    """quantize(transformer, layers): in place. w_bits, a_bits: 16 for activations as they come."""

    distribution: str
    w_bits: int
    a_bits: int
    quantize: Callable[[nn.Module, Sequence[Layer]], None]


def _through(name: str, w_bits: int, a_bits: int) -> Peer:
    peer = peers.PEERS[name]

    def quantize(transformer: nn.Module, layers: Sequence[Layer]) -> None:
        peer.quantize(SimpleNamespace(transformer=transformer), layers, w_bits, a_bits, None)

    return Peer(peer.distribution, w_bits, a_bits, quantize)


def _torchao_fp8(transformer: nn.Module, layers: Sequence[Layer]) -> None:
    """A scale per token and per output channel, both found by their largest value; torch.compile's settings
    stay as they are (`peers.torchao`)."""
    from torchao import quantization as library

    made = library.Float8DynamicActivationFloat8WeightConfig
    config = made(granularity=library.PerRow(), set_inductor_config=False)
    act = {layer.name for layer in layers if layer.role == "act"}
    library.quantize_(transformer, config, lambda module, name: name in act)


def _gemlite_int8(transformer: nn.Module, layers: Sequence[Layer]) -> None:
    made = importlib.import_module("gemlite.helper").A8W8_int8_dynamic

    def quantized(linear: nn.Linear) -> nn.Module:
        return made(device=str(linear.weight.device), dtype=linear.weight.dtype).from_linear(linear)

    _replace(transformer, layers, quantized)


def _gemlite_int4(transformer: nn.Module, layers: Sequence[Layer]) -> None:
    """Weights in groups of 64 with zero points, activations in FP8."""
    made = importlib.import_module("gemlite.helper").A8W4_HQQ_INT_dynamic

    def quantized(linear: nn.Linear) -> nn.Module:
        w = linear.weight.detach().float().view(-1, 64)
        low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
        scale = ((high - low) / 15).clamp(min=1e-8)
        zero = (-low / scale).round()
        codes = (w / scale + zero).round().clamp(0, 15).to(torch.uint8).view(linear.weight.shape)
        helper = made(device=str(linear.weight.device), dtype=linear.weight.dtype)
        dtype = linear.weight.dtype
        return helper.from_weights(codes, scale.to(dtype), zero.to(dtype), linear.bias)

    _replace(transformer, layers, quantized)


def _replace(transformer: nn.Module, layers: Sequence[Layer], quantized: Callable) -> None:
    for layer in layers:
        if layer.role == "act":
            replace(transformer, layer.name, quantized(transformer.get_submodule(layer.name)))


# Why a method of another library is not run here: a row of its own.
NOT_HERE = {
    "nunchaku W4A4": "its kernels need tensor cores of 4 bits, in integers or floats: Hopper has none",
}

PEERS = {
    "torchao fp8": Peer("torchao", 8, 8, _torchao_fp8),
    "torchao int8 dynamic": _through("torchao", 8, 8),
    "gemlite A8W8": Peer("gemlite", 8, 8, _gemlite_int8),
    "gemlite A8W4": Peer("gemlite", 4, 8, _gemlite_int4),
    "bitsandbytes nf4": _through("bnb-nf4", 4, 16),
    "optimum-quanto int8": _through("quanto", 8, 16),
    "optimum-quanto int4": _through("quanto", 4, 16),
}
