"""Replacing the linears of a pipeline's transformer by `QuantLinear`s: what all recipes are made of."""

from collections.abc import Collection, Sequence
from numbers import Integral

import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from adatsq.calibration import hessians
from adatsq.cuda import devices
from adatsq.cuda.linear import PackedLinear
from adatsq.inputs import Inputs, groups_of, inputs
from adatsq.linear import QuantLinear
from adatsq.models import Layer, quantizable, warn_of_missed
from adatsq.scheme import Scheme, branch, quantized, smoothed_scale
from adatsq.stored_layers import finish
from adatsq.trace import Trace

MODULATION_GROUP = 64
GELU_SHIFT = 0.171875  # SVDQuant: a GELU is nowhere below -0.17


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
    a_clip: bool | float | None = None,
    seed: int | None = None,
    smoothing: float | Sequence[tuple[float, float]] | None = None,
    low_rank: int = 0,
    group_size: int | dict[str, int | None] | None = None,
    a_group_size: int | dict[str, int | None] | None = None,
    asymmetric: bool = False,
    gelu_shift: bool = False,
    at_8_bits: Collection[str] = (),
    modulation_bits: int | None = None,
    blocks_per_pass: int | None = 1,
    batch_size: int = 8,
    stream: bool = False,
    memory: dict | None = None,
    progress: bool = True,
) -> DiffusionPipeline:
    """Replace the block linears of pipe.transformer by `QuantLinear`s, in place, and return the pipeline.

    trace, alpha (timestep x layer, None: uniform): calibration of the "gptq" solver; "rtn" needs neither.
    w_bits, a_bits: 2..8 or 16 (left as they are); a_bits is w_bits if not given. At 16 and 16 nothing is
    smoothed or rotated and there is no branch: the pipeline computes exactly what it did.
    clip: weight scales by a search for the least squared error, activation scales as suits Gaussian rows;
    else absmax. a_clip: the same for activations alone, or a ratio to clip at. seed: of the rotation's signs.
    smoothing: pairs (p, q) for s = max|X|^p / max|W|^q, the best of which is chosen for each input, or a
    number a, short for (a, 1 - a); it needs a trace (`smoothing`). low_rank: rank of a 16-bit branch
    (`lowrank`), improved on a sample of the trace if there is one.
    group_size, a_group_size: inputs of a block linear that share a scale of the weight, and of a token; None
    for the whole row; or {layer: one of these}.
    asymmetric: min-max grids with zero points, of weights and activations (clip has no part in them).
    gelu_shift: inputs that a GELU made, found by running the trace, are shifted to unsigned integers.
    at_8_bits: names of layers whose weight and activations get 8 bits, unless the others have more.
    modulation_bits: of adaLN weights; by default 4, or w_bits if that is more.
    blocks_per_pass: Hessians of so many blocks are held at once (None: all). It changes memory and time, not
    the result: all layers are calibrated on full-precision inputs, and nothing is replaced before the last is
    done.
    stream: blocks are done one by one, in one forward pass of the trace in all (`hessians`), and each is
    replaced as soon as it is done, by `PackedLinear`s as `accelerate` makes them: memory falls from the
    first block on. What fails on the way then leaves a pipeline that is half done, to be loaded again.
    memory: an empty dict, which is filled with the smoothing and the branches that were found; given again,
    with the same model and trace, they are not searched for again: solvers and alpha have no part in them.

    Raises ValueError for a pipeline that is quantized already, bits outside 2..8 and 16, an unknown solver,
    "gptq" or smoothing without a trace, "rtn" with an alpha, options that exclude each other, and what
    `hessians` and `gptq` raise, FloatingPointError for NaN among it, with the layer's name; the pipeline is
    then as it was.
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
    warn_of_missed(transformer)
    calibrated = solver == "gptq" and min(w_bits, modulation_bits) < 16
    if calibrated and trace is None:
        raise ValueError(
            "the gptq solver needs a trace to calibrate on: trace = adatsq.record(pipe, prompts)"
        )
    if solver == "rtn" and alpha is not None:
        raise ValueError("the rtn solver rounds each weight alone and cannot use alpha: choose solver='gptq'")
    changes = min(w_bits, a_bits) < 16
    if not isinstance(low_rank, Integral) or low_rank < 0:
        raise ValueError(f"low_rank must be a whole number, 0 for no branch, got {low_rank!r}")
    if (smoothing is not None or gelu_shift) and changes and trace is None:
        raise ValueError("smoothing and gelu_shift need a trace: trace = adatsq.record(pipe, prompts)")
    if gelu_shift and (rotation or asymmetric):
        raise ValueError(
            "gelu_shift is for inputs of one sign: a rotation mixes signs, asymmetric needs none"
        )
    names = [layer.name for layer in layers if layer.role == "act"]
    if unknown := set(at_8_bits) - set(names):
        raise ValueError(f"at_8_bits names {sorted(unknown)[0]!r}, which is no layer with activation bits")

    stats = Inputs()
    if changes and trace is not None and (smoothing is not None or low_rank or gelu_shift):
        stats = inputs(pipe, trace, names, batch_size=batch_size)
    linears = {layer.name: transformer.get_submodule(layer.name) for layer in layers}

    def scheme(layer: Layer) -> Scheme:
        if layer.role == "weight":
            group = MODULATION_GROUP if layer.in_features % MODULATION_GROUP == 0 else None
            return Scheme(modulation_bits, clip="mse" if clip else 1.0, group_size=group)
        w, a = (max(8, b) if layer.name in at_8_bits else b for b in (w_bits, a_bits))
        return Scheme(
            w,
            a,
            rotation=rotation and changes,
            clip="mse" if clip else 1.0,
            a_clip=clip if a_clip is None else a_clip,
            group_size=_group(group_size, layer),
            a_group_size=_group(a_group_size, layer),
            asymmetric=asymmetric,
            rank=int(low_rank) if changes else 0,
            shift=GELU_SHIFT if gelu_shift and layer.name in stats.gelu else 0.0,
            seed=seed if rotation else None,
        )

    schemes = {layer.name: scheme(layer) for layer in layers}
    _check_groups(layers, schemes)

    memory, factors, exponents = {} if memory is None else memory, {}, ()
    if smoothing is not None and changes:
        exponents = ((smoothing, 1 - smoothing),) if isinstance(smoothing, (int, float)) else tuple(smoothing)
        factors = _smoothing(linears, schemes, stats, exponents, memory)

    def pair(name: str) -> tuple[Tensor, Tensor] | None:
        if not schemes[name].rank:
            return None
        key = name, schemes[name], exponents, name in stats.rows
        if key not in memory:
            memory[key] = branch(linears[name], schemes[name], factors.get(name), stats.rows.get(name))
        return memory[key]

    if calibrated:
        blocks = hessians(
            pipe, trace, alpha, list(linears), blocks_per_pass, batch_size, progress=progress, stream=stream
        )
    else:
        blocks = [("all blocks", dict.fromkeys(linears))]
    replacements = {}
    with torch.no_grad():
        for _, block in blocks:
            for name in list(block):
                hessian = block.pop(name)
                try:
                    replacements[name] = quantized(
                        linears[name],
                        schemes[name],
                        hessian,
                        factors.get(name),
                        name=name,
                        pair=pair(name),
                    )
                except (FloatingPointError, ValueError) as error:
                    raise type(error)(f"layer {name}: {error}") from error
                if stream:
                    del linears[name]
                    transformer.set_submodule(name, _packed(replacements.pop(name)))
    for name, module in replacements.items():
        transformer.set_submodule(name, module)
    if stream:
        devices.tell(transformer.device)
    finish(transformer)
    return pipe


def _packed(layer: QuantLinear) -> QuantLinear:
    return PackedLinear(layer) if layer.w_bits < 16 else layer


def _smoothing(
    linears: dict[str, nn.Linear],
    schemes: dict[str, Scheme],
    stats: Inputs,
    exponents: Sequence[tuple[float, float]],
    memory: dict,
) -> dict[str, Tensor]:
    """{layer: s}, one s for all that share an input; what is not in `memory` is put into it."""
    found = {}
    with torch.no_grad():
        for group in groups_of(stats.shared, list(stats.largest)):
            first, of_each = group[0], tuple(schemes[name] for name in group)
            key = group, of_each, exponents
            if key not in memory:
                memory[key] = smoothed_scale(
                    [linears[name] for name in group],
                    of_each,
                    stats.largest[first],
                    exponents,
                    stats.rows[first],
                )
            found.update(dict.fromkeys(group, memory[key]))
    return found


def _checked(name: str, bits: int) -> int:
    if not isinstance(bits, Integral) or bits not in (*range(2, 9), 16):
        raise ValueError(f"{name} must be 16 or a whole number from 2 to 8, got {bits!r}")
    return int(bits)


def _group(size: int | dict[str, int | None] | None, layer: Layer) -> int | None:
    return size.get(layer.name) if isinstance(size, dict) else size


def _check_groups(layers: Sequence[Layer], schemes: dict[str, Scheme]) -> None:
    """ValueError for a group size of activations that does not divide the layer's inputs."""
    for layer in layers:
        size = schemes[layer.name].a_group_size
        if size is not None and (not isinstance(size, int) or size < 1 or layer.in_features % size):
            raise ValueError(
                f"layer {layer.name}: group size {size!r} does not divide rows of {layer.in_features} values"
            )
