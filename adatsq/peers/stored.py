"""What a peer's layers take to store, counted from the tensors that their own state dicts hold."""

import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from adatsq.models import Layer
from adatsq.packing import narrow


def stored_bits(module: nn.Module, float_bits: int | None = None) -> int:
    """Bits of all that a layer stores but its bias: packed integers, scales, zero points, tables.

    Scales count as they are stored, in float32 as 32 bits, or each as `float_bits`. A weight that is left in
    floats counts as our own do, 16 bits if bfloat16 holds it exactly; one that Model Optimizer only simulates
    as the integers that it is rounded to.
    """
    quantizer, bits = getattr(module, "weight_quantizer", None), 0
    for name, value in module.state_dict().items():
        if name == "bias":
            continue
        for tensor in plain(value):
            if tensor is value and name == "weight" and tensor.is_floating_point():
                simulated = quantizer is not None and quantizer.is_enabled
                bits += quantizer.num_bits * tensor.numel() if simulated else 8 * narrow(tensor).nbytes
            elif tensor.is_floating_point() and float_bits is not None:
                bits += float_bits * tensor.numel()
            else:
                bits += 8 * tensor.nbytes
    return bits


def plain(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor subclass of torchao or quanto is made of, or the tensor itself."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain(getattr(tensor, name))
    elif isinstance(tensor, Tensor):
        yield tensor


def kept(transformer: nn.Module, layers: Sequence[Layer]) -> dict:
    """What no method quantizes, of the full-precision transformer: {"numbers": ..., "bits": ...}."""
    weights = {f"{layer.name}.weight" for layer in layers}
    tensors = [t for name, t in transformer.state_dict().items() if name not in weights]
    return {"numbers": sum(t.numel() for t in tensors), "bits": sum(8 * narrow(t).nbytes for t in tensors)}


def size(transformer: nn.Module, layers: Sequence[Layer], rest: dict) -> dict:
    """The facts that `adatsq.summary` gives of our own methods. layers, rest: as before the quantization.

    transformer_bytes; effective_bits, of the whole transformer; effective_w_bits, of the weights of role
    "act", and the same if all scales had 16 bits, as ours have: some libraries keep them in the model's own
    precision, float32 here, others always in float32; quantized_share: parameters in layers that now take
    less than 16 bits each.
    """
    numbers = {layer.name: layer.in_features * layer.out_features for layer in layers}
    bits = {name: stored_bits(transformer.get_submodule(name)) for name in numbers}
    act = [layer.name for layer in layers if layer.role == "act"]
    short = sum(stored_bits(transformer.get_submodule(name), float_bits=16) for name in act)
    weights = sum(numbers[name] for name in act)
    total = sum(numbers.values()) + rest["numbers"]
    whole = sum(bits.values()) + rest["bits"]
    return {
        "transformer_bytes": round(whole / 8),
        "effective_bits": whole / total,
        "effective_w_bits": sum(bits[name] for name in act) / weights,
        "effective_w_bits_16_bit_scales": short / weights,
        "quantized_share": sum(numbers[name] for name in bits if bits[name] < 16 * numbers[name]) / total,
    }


def replace(transformer: nn.Module, name: str, module: nn.Module) -> None:
    """Put a quantized layer where the linear was, without a gradient."""
    transformer.set_submodule(name, module.requires_grad_(False).eval())


def group_of(size: int, in_features: int) -> int:
    """Inputs that share a scale: `size`, or its largest part that divides a row, if that is 8 or more; else
    the whole row."""
    group = math.gcd(size, in_features)
    return group if group >= 8 else in_features


def average_bits(layers: Sequence[Layer], a_bits: int, left: Callable[[Layer], bool]) -> float | None:
    """Activation bits of the layers of role "act", where those that are left have 16; None if none is."""
    acts = [layer for layer in layers if layer.role == "act"]
    count = sum(map(left, acts))
    return a_bits + (16 - a_bits) * count / len(acts) if count else None
