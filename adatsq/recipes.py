"""Each method as a short composition of the shared parts: read two side by side to see how they differ.

All recipes quantise the same layers. Block linears get weights at `w_bits` and activations at `a_bits`; the
adaLN modulation linears get weights alone, at 4 bits in groups of 64 (8 when w_bits is), with the recipe's
own solver. Weights are static. A policy may change the activation bits later, from timestep to timestep.
A recipe's `options` are those of `quantize` that cost time or memory but change no result.
"""

from numbers import Integral

import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from adatsq.calibration import hessians
from adatsq.gptq import gptq, round_to_nearest
from adatsq.integer import SCALE_BITS
from adatsq.linear import QuantLinear, check_finite
from adatsq.models import Layer, quantizable
from adatsq.packing import narrow
from adatsq.rotation import rotate, rotate_hessian
from adatsq.trace import Trace

MODULATION_GROUP = 64


def rtn(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """Round to nearest: weights per output channel, activations per token, scaled by their largest value."""
    return quantize(pipe, None, w_bits, a_bits, None, solver="rtn", rotation=False, clip=False, **options)


def hadamard(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """Round to nearest after a Hadamard rotation, clipped for least squared error."""
    return quantize(pipe, None, w_bits, a_bits, None, solver="rtn", rotation=True, clip=True, **options)


def hadamard_gptq(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """QuaRot (arXiv:2404.00456): Hadamard rotation, then GPTQ on the inputs of all timesteps alike."""
    return quantize(pipe, trace, w_bits, a_bits, None, solver="gptq", rotation=True, clip=True, **options)


def adatsq_weights(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """AdaTSQ's weights (arXiv:2602.09883): `hadamard_gptq` with timesteps weighted by Fisher information."""
    if alpha is None:
        raise ValueError("adatsq_weights needs alpha, such as temporal_fisher(pipe, trace).alpha(tau=1.0)")
    return quantize(pipe, trace, w_bits, a_bits, alpha, solver="gptq", rotation=True, clip=True, **options)


def quantize(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int | None = None,
    alpha: pd.DataFrame | None = None,
    *,
    solver: str = "gptq",
    rotation: bool = True,
    clip: bool = True,
    group_size: int | None = None,
    modulation_bits: int | None = None,
    blocks_per_pass: int | None = 1,
    batch_size: int = 8,
    progress: bool = True,
) -> DiffusionPipeline:
    """Replace the block linears of pipe.transformer by `QuantLinear`s, in place, and return the pipeline.

    trace, alpha (timestep x layer, None: uniform): calibration of the "gptq" solver; "rtn" needs neither.
    w_bits, a_bits: 2..8 or 16 (left as they are); a_bits is w_bits if not given. At 16 and 16 nothing is
    rotated, and the pipeline computes exactly what it did.
    clip: weight scales by a search for the least squared error, activation scales as suits Gaussian rows;
    else absmax.
    group_size: inputs of a block linear that share a weight scale, None for the whole output channel.
    modulation_bits: of adaLN weights; by default 4, or w_bits if that is more.
    blocks_per_pass: Hessians of so many blocks are held at once (None: all). It changes memory and time, not
    the result: all layers are calibrated on full-precision inputs, and nothing is replaced before the last is
    done.

    Raises ValueError for a pipeline that is quantized already, bits outside 2..8 and 16, an unknown solver,
    "gptq" without a trace, "rtn" with an alpha, and what `hessians` and `gptq` raise, FloatingPointError for
    NaN among it, with the layer's name; the pipeline is then as it was.
    """
    w_bits = _checked("w_bits", w_bits)
    a_bits = w_bits if a_bits is None else _checked("a_bits", a_bits)
    modulation_bits = _checked(
        "modulation_bits", max(4, w_bits) if modulation_bits is None else modulation_bits
    )
    if solver not in ("gptq", "rtn"):
        raise ValueError(f"solver must be 'gptq' or 'rtn', got {solver!r}")
    transformer, layers = pipe.transformer, quantizable(pipe.transformer)
    if any(isinstance(transformer.get_submodule(layer.name), QuantLinear) for layer in layers):
        raise ValueError("this pipeline is quantized already: load the full-precision one again")
    calibrated = solver == "gptq" and min(w_bits, modulation_bits) < 16
    if calibrated and trace is None:
        raise ValueError(
            "the gptq solver needs a trace to calibrate on: trace = adatsq.record(pipe, prompts)"
        )
    if solver == "rtn" and alpha is not None:
        raise ValueError("the rtn solver rounds each weight alone and cannot use alpha: choose solver='gptq'")
    rotation = rotation and min(w_bits, a_bits) < 16

    def replacement(layer: Layer, hessian: Tensor | None) -> QuantLinear:
        linear = transformer.get_submodule(layer.name)
        bias = None if linear.bias is None else linear.bias.detach()
        clip_weights = "mse" if clip else 1.0
        if layer.role == "weight":
            group = MODULATION_GROUP if layer.in_features % MODULATION_GROUP == 0 else None
            codes, scale = _solve(
                linear.weight, hessian, modulation_bits, group, clip_weights, rotation=False
            )
            return QuantLinear(codes, scale, bias, modulation_bits, name=layer.name)
        codes, scale = _solve(linear.weight, hessian, w_bits, group_size, clip_weights, rotation)
        return QuantLinear(codes, scale, bias, w_bits, a_bits, rotation, clip, layer.name)

    by_name = {layer.name: layer for layer in layers}
    if calibrated:
        blocks = hessians(pipe, trace, alpha, list(by_name), blocks_per_pass, batch_size, progress=progress)
    else:
        blocks = [("all blocks", dict.fromkeys(by_name))]
    replacements = {}
    with torch.no_grad():
        for _, block in blocks:
            for name, hessian in block.items():
                try:
                    replacements[name] = replacement(by_name[name], hessian)
                except (FloatingPointError, ValueError) as error:
                    raise type(error)(f"layer {name}: {error}") from error
    for name, module in replacements.items():
        transformer.set_submodule(name, module)
    transformer.register_forward_hook(check_finite)
    return pipe


def _checked(name: str, bits: int) -> int:
    if not isinstance(bits, Integral) or bits not in (*range(2, 9), 16):
        raise ValueError(f"{name} must be 16 or a whole number from 2 to 8, got {bits!r}")
    return int(bits)


def _solve(
    weight: Tensor,
    hessian: Tensor | None,
    w_bits: int,
    group_size: int | None,
    clip: str | float,
    rotation: bool,
) -> tuple[Tensor, Tensor]:
    """Codes and scale of a weight, or the weight itself and scale 1 if it stays in 16 bits."""
    matrix = rotate(weight.float()) if rotation else weight.detach()
    if w_bits == 16:
        return matrix.to(weight.dtype), torch.ones(len(weight), 1, device=weight.device)
    if hessian is None:
        return round_to_nearest(matrix, w_bits, group_size, clip)
    return gptq(matrix, rotate_hessian(hessian) if rotation else hessian, w_bits, group_size, clip)


def summary(pipe: DiffusionPipeline) -> pd.DataFrame:
    """What is quantised to how many bits: a row per part of the transformer, and one for the whole.

    parameters: weights; biases and all else are in the part that is kept. share: of all parameters. a_bits:
    average over layers, and over timesteps if a policy is applied. effective_bits: stored bits per parameter,
    scales included (a float32 tensor that bfloat16 holds exactly counts, and is saved, as 16 bits). bytes:
    all of these.
    """
    transformer, layers = pipe.transformer, quantizable(pipe.transformer)
    policy = getattr(transformer, "_adatsq_policy", None)
    rows = {}
    for role, part in (("act", "weights and activations"), ("weight", "weights only (adaLN)")):
        linears = [transformer.get_submodule(layer.name) for layer in layers if layer.role == role]
        a_bits = [getattr(linear, "a_bits", 16) for linear in linears]
        rows[part] = {
            "layers": len(linears),
            "parameters": sum(linear.in_features * linear.out_features for linear in linears),
            "w_bits": _mean([getattr(linear, "w_bits", 16) for linear in linears]),
            "a_bits": policy.average if policy and role == "act" else _mean(a_bits),
            "bytes": sum(_stored_bits(linear) for linear in linears) / 8,
        }
    inside = {f"{layer.name}.{tensor}" for layer in layers for tensor in ("weight", "codes", "scale")}
    kept = [narrow(tensor) for name, tensor in transformer.state_dict().items() if name not in inside]
    rows["kept"] = {"parameters": sum(t.numel() for t in kept), "bytes": sum(t.nbytes for t in kept)}
    table = pd.DataFrame(rows).T.rename_axis("part")
    table.loc["transformer", ["layers", "parameters", "bytes"]] = table[
        ["layers", "parameters", "bytes"]
    ].sum()
    table["share"] = table["parameters"] / table.at["transformer", "parameters"]
    table["effective_bits"] = 8 * table["bytes"] / table["parameters"]
    whole = {"layers": "Int64", "parameters": "Int64", "bytes": "Int64"}
    columns = ["layers", "parameters", "share", "w_bits", "a_bits", "effective_bits", "bytes"]
    return table.round({"bytes": 0}).astype(whole)[columns]


def _stored_bits(linear: nn.Module) -> int:
    """Bits that the weight takes in a saved file, its scales included."""
    if isinstance(linear, QuantLinear) and linear.w_bits < 16:
        return linear.codes.numel() * linear.w_bits + linear.scale.numel() * SCALE_BITS
    weight = linear.codes if isinstance(linear, QuantLinear) else linear.weight
    return 8 * narrow(weight).nbytes


def _mean(values: list[int]) -> float:
    return sum(values) / len(values) if values else float("nan")
