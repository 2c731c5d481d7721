"""Other methods as published, and AdaTSQ's weights on their base: a few options of `quantize` each.

All quantize the same layers, and have the signature of `recipes`. Those without AdaTSQ's name ignore `alpha`.
"""

import pandas as pd
from diffusers import DiffusionPipeline

from adatsq.groups import search_groups
from adatsq.mixed import most_sensitive, sensitivity
from adatsq.models import quantizable
from adatsq.replacement import quantize
from adatsq.sizes import rank_of_equal_bits
from adatsq.smoothing import GRID
from adatsq.trace import Trace

SVDQUANT_GROUP, SVDQUANT_RANK = 64, 32
SVDQUANT_MODEL = "black-forest-labs/FLUX.1-dev"  # that the rank was published for
VIDIT_Q = {"solver": "rtn", "rotation": True, "clip": False, "smoothing": 0.5, "asymmetric": True}


def smoothquant(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """SmoothQuant (arXiv:2211.10438): s_j = max|X_j|^0.5 / max|W_j|^0.5; round to nearest, no clipping."""
    return quantize(pipe, trace, w_bits, a_bits, None, **_smooth("rtn"), **options)


def smoothquant_gptq(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """SmoothQuant with GPTQ in place of rounding to the nearest: `adatsq_smooth` with all timesteps alike."""
    return quantize(pipe, trace, w_bits, a_bits, None, **_smooth("gptq"), **options)


def adatsq_smooth(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """AdaTSQ's weights on SmoothQuant: GPTQ whose Hessian weighs timesteps by alpha (None: alike)."""
    return quantize(pipe, trace, w_bits, a_bits, alpha, **_smooth("gptq"), **options)


def plain_gptq(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """GPTQ (arXiv:2210.17323) alone, no rotation, clipping or smoothing: `adatsq_plain` with all timesteps
    alike."""
    return quantize(pipe, trace, w_bits, a_bits, None, rotation=False, clip=False, **options)


def adatsq_plain(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """AdaTSQ's weights on nothing: GPTQ without rotation, clipping or smoothing."""
    return quantize(pipe, trace, w_bits, a_bits, alpha, rotation=False, clip=False, **options)


def svdquant(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """SVDQuant (arXiv:2411.05007): smoothing by the best of 39 (p, q), a branch of rank 32, groups of 64,
    unsigned inputs after a GELU. Read here: linears that share an input share s, each has its own branch; the
    39 are scored, and the branch is improved, on 128 rows of all timesteps; a projection of GELU's outputs
    next to others (Flux's single blocks) is not split, and stays signed."""
    return quantize(pipe, trace, w_bits, a_bits, None, **_low_rank(pipe, "rtn"), **options)


def svdquant_small_rank(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """SVDQuant with the lowest rank whose branch takes at least the bits per weight that rank 32 takes on
    FLUX.1-dev (`sizes.rank_of_equal_bits`): on that model rank 32, on narrower layers less."""
    rank = rank_of_equal_bits(pipe.transformer, SVDQUANT_RANK, SVDQUANT_MODEL)
    fixed = {**_low_rank(pipe, "rtn"), "low_rank": rank}
    return quantize(pipe, trace, w_bits, a_bits, None, **fixed, **options)


def svdquant_gptq(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """SVDQuant with GPTQ on what the branch leaves."""
    return quantize(pipe, trace, w_bits, a_bits, None, **_low_rank(pipe, "gptq"), **options)


def adatsq_svdquant(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """AdaTSQ's weights on SVDQuant: `svdquant_gptq` whose Hessian weighs timesteps by alpha (None: alike)."""
    return quantize(pipe, trace, w_bits, a_bits, alpha, **_low_rank(pipe, "gptq"), **options)


def quarot(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """QuaRot (arXiv:2404.00456): randomised Hadamard, GPTQ with a clip search, activations clipped at 0.9 of
    the largest. `hadamard_gptq` is the same with fixed signs, and clips as suits the bits."""
    fixed = {"rotation": True, "clip": True, "a_clip": 0.9, "seed": 0}
    return quantize(pipe, trace, w_bits, a_bits, None, **fixed, **options)


def vidit_q(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """ViDiT-Q (arXiv:2406.02540) without mixed precision: channels balanced, m_j = (max|W_j| / max|X_j|)^0.5,
    then a rotation; weights per channel and activations per token from min to max."""
    return quantize(pipe, trace, w_bits, a_bits, None, **VIDIT_Q, **options)


def vidit_q_mixed(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """ViDiT-Q with its mixed precision: the most sensitive third of the layers of each kind at 8 bits
    (`mixed.sensitivity`, a transformer call per layer and timestep)."""
    eight = []
    if min(w_bits, a_bits) < 8 and trace is not None:
        eight = most_sensitive(sensitivity(pipe, trace, w_bits, a_bits, **VIDIT_Q), 1 / 3)
    return quantize(pipe, trace, w_bits, a_bits, None, **VIDIT_Q, at_8_bits=eight, **options)


def q_dit(
    pipe: DiffusionPipeline,
    trace: Trace | None = None,
    w_bits: int = 4,
    a_bits: int = 4,
    alpha: pd.DataFrame | None = None,
    **options,
) -> DiffusionPipeline:
    """Q-DiT (arXiv:2406.17343): groups of weights and activations from min to max, GPTQ, and a size of groups
    for each layer by an evolutionary search (`groups`), whose cost is printed unless progress=False, and
    noted at the transformer (`facts.group_search`)."""
    fixed, found, sizes = {"rotation": False, "clip": False, "asymmetric": True}, None, None
    if min(w_bits, a_bits) < 16 and trace is not None:
        found = search_groups(pipe, trace, w_bits, a_bits, **fixed)
        sizes = found.sizes
        if options.get("progress", True):
            cost = f"{found.tried} tried, {found.calls} transformer calls, {found.seconds:.0f} s"
            print(f"Q-DiT's search of group sizes: {cost}")
    quantize(pipe, trace, w_bits, a_bits, None, group_size=sizes, a_group_size=sizes, **fixed, **options)
    pipe.transformer._adatsq_group_search = found
    return pipe


def _smooth(solver: str) -> dict:
    return {"solver": solver, "rotation": False, "clip": False, "smoothing": 0.5}


def _low_rank(pipe: DiffusionPipeline, solver: str) -> dict:
    groups = {
        layer.name: SVDQUANT_GROUP if layer.in_features % SVDQUANT_GROUP == 0 else None
        for layer in quantizable(pipe.transformer)
    }
    return {
        "solver": solver,
        "rotation": False,
        "clip": False,
        "smoothing": GRID,
        "low_rank": SVDQUANT_RANK,
        "group_size": groups,
        "a_group_size": groups,
        "gelu_shift": True,
    }


METHODS = {
    "gptq": plain_gptq,
    "smoothquant": smoothquant,
    "smoothquant+gptq": smoothquant_gptq,
    "quarot": quarot,
    "vidit-q": vidit_q,
    "vidit-q+mixed": vidit_q_mixed,
    "svdquant": svdquant,
    "svdquant+small-rank": svdquant_small_rank,
    "svdquant+gptq": svdquant_gptq,
    "q-dit": q_dit,
    "adatsq+plain": adatsq_plain,
    "adatsq+smoothquant": adatsq_smooth,
    "adatsq+svdquant": adatsq_svdquant,
}
