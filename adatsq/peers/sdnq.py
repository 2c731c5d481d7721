"""SDNQ: weights of 8 bits (a scale per row) and of 4, 3 and 2 (scale and zero point per group, whose size it
chooses by the bits), alone, or with int8 activations, scaled per token as they come; then all weights are
brought to int8 for the product, whatever their stored bits."""

import logging
import os

import torch

from adatsq.peers.stored import replace


def sdnq(pipe, layers, w_bits: int, a_bits: int, trace) -> None:
    os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")  # read at import: many small layers, no compiler
    logging.getLogger("sdnq").setLevel(logging.ERROR)  # else it asks for Triton once per layer
    from sdnq.quantizer import SDNQConfig, sdnq_quantize_layer

    if a_bits == 8 and pipe.transformer.device.type == "cuda":
        _give_triton_memory()
    for layer in layers:
        bits = w_bits if layer.role == "act" else max(4, w_bits)
        config = SDNQConfig(
            weights_dtype="int8" if bits == 8 else f"uint{bits}",
            use_quantized_matmul=a_bits == 8 and layer.role == "act",
        )
        linear = pipe.transformer.get_submodule(layer.name)
        module, _ = sdnq_quantize_layer(linear, config, param_name=f"{layer.name}.weight")
        replace(pipe.transformer, layer.name, module)


def _give_triton_memory() -> None:
    """Its int8 product asks Triton for memory on the GPU, and leaves it to its caller to say from where."""
    import triton

    triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
