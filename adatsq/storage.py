"""What a quantized transformer takes to store, part by part: effective bits, with all that they need."""

import pandas as pd
from diffusers import DiffusionPipeline
from torch import nn

from adatsq.integer import SCALE_BITS
from adatsq.linear import PARTS, QuantLinear
from adatsq.models import quantizable
from adatsq.packing import narrow


def summary(pipe: DiffusionPipeline) -> pd.DataFrame:
    """What is quantized to how many bits: a row per part of the transformer, and one for the whole.

    parameters: weights; biases and all else are in the part that is kept. share: of all parameters. a_bits:
    average over layers, and over timesteps if a policy is applied. effective_bits: stored bits per parameter,
    with scales, zero points, smoothing factors and low-rank branches (a float32 tensor that bfloat16 holds
    exactly counts, and is saved, as 16 bits). bytes: all of these.
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
    inside = {f"{layer.name}.{tensor}" for layer in layers for tensor in ("weight", "planes", *PARTS)}
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
    """Bits that the weight takes in a saved file, with all parts of it but the bias."""
    if not isinstance(linear, QuantLinear):
        return 8 * narrow(linear.weight).nbytes
    extra = (linear.smoothing, linear.down, linear.up)
    bits = sum(8 * narrow(tensor).nbytes for tensor in extra if tensor is not None)
    if linear.w_bits == 16:
        return bits + 8 * narrow(linear.codes).nbytes
    zeros = 0 if linear.zero is None else linear.zero.numel()
    return (
        bits
        + (linear.out_features * linear.in_features + zeros) * linear.w_bits
        + linear.scale.numel() * SCALE_BITS
    )


def _mean(values: list[int]) -> float:
    return sum(values) / len(values) if values else float("nan")
