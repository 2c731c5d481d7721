"""NVIDIA Model Optimizer's `auto_quantize`: it gives each layer int4 weights (blocks of 128), int8 weights (a
scale per row), or none of these, within a budget of effective bits, which is what `w_bits` says here.

With a_bits = 8 both formats also round activations to int8, one static scale per tensor. Scales are the
largest values on the calibration run; a layer's sensitivity is the squared change of its output times the
gradient of the loss, and a linear program chooses. The loss is the product of the output and random normal
probes, as in `temporal_fisher`: at the full-precision weights the distance to the own output has no gradient.
The budget counts weights alone, so scales come on top of it, and it holds for the linears of the blocks: what
is outside stays as it is for all methods. All of this is simulated in the model's own precision.
"""

import torch

from adatsq.trace import velocity

OFF = {"quantizer_name": "*", "enable": False}
INT8 = {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}}
INT4 = {
    "quantizer_name": "*weight_quantizer",
    "cfg": {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}},
}
INPUT = {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": None}}


def modelopt(pipe, layers, w_bits: int, a_bits: int, trace) -> float | None:
    import modelopt.torch.quantization as library
    from modelopt.torch.quantization.nn import QuantModuleRegistry

    # Attention's own operands stay as they are for all methods. Where onnx is installed, the library would
    # put an attention in the place of diffusers' that has no gradient.
    for kind in {type(module) for module in pipe.transformer.modules()}:
        if kind in QuantModuleRegistry and not issubclass(kind, torch.nn.Linear):
            library.unregister(kind)
    transformer, inside = pipe.transformer, {layer.name for layer in layers}
    weight = [{"quant_cfg": [OFF, bits], "algorithm": "max"} for bits in (INT4, INT8)]
    both = [{"quant_cfg": [OFF, bits, INPUT], "algorithm": "max"} for bits in (INT4, INT8)]
    spaces = [
        {
            "module_name_patterns": [layer.name for layer in layers if layer.role == role],
            "quantization_formats": weight if role == "weight" or a_bits == 16 else both,
        }
        for role in ("act", "weight")
    ]
    linears = {n: m for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    outside = [name for name in linears if name not in inside]
    numbers = {name: linear.weight.numel() for name, linear in linears.items()}
    most = sum(n * (w_bits if name in inside else 16) for name, n in numbers.items()) / sum(numbers.values())
    steps = len(trace().timesteps)
    with torch.enable_grad():
        transformer.requires_grad_(True)
        library.auto_quantize(
            transformer,
            constraints={"effective_bits": most},
            data_loader=range(steps),
            forward_step=lambda model, t: velocity(model, trace(), t),
            loss_func=_loss,
            disabled_layers=outside,
            module_search_spaces=[space for space in spaces if space["module_name_patterns"]],
            quantization_formats=weight,
            num_calib_steps=steps,
            num_score_steps=steps,
        )
    transformer.requires_grad_(False)
    return None if a_bits == 16 else activation_bits(transformer, layers)


def _loss(output: torch.Tensor, t: int) -> torch.Tensor:
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(t))
    return (output.float() * probe.to(output.device)).sum()


def activation_bits(transformer: torch.nn.Module, layers) -> float:
    """Average over the layers of role "act": what `auto_quantize` left alone has 16."""
    quantizers = [transformer.get_submodule(x.name).input_quantizer for x in layers if x.role == "act"]
    return sum(q.num_bits if q.is_enabled else 16 for q in quantizers) / len(quantizers)
