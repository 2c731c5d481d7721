"""Each method as a short composition of the shared parts: read two side by side to see how they differ.

All recipes quantize the same layers. Block linears get weights at `w_bits` and activations at `a_bits`; the
adaLN modulation linears get weights alone, at 4 bits in groups of 64 (8 when w_bits is), with the recipe's
own solver. Weights are static. A policy may change the activation bits later, from timestep to timestep.
A recipe's `options` are those of `quantize` that cost time or memory but change no result.
"""

import pandas as pd
from diffusers import DiffusionPipeline

from adatsq.replacement import quantize
from adatsq.trace import Trace


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
