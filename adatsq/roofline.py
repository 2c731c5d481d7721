"""The least time that work can take on a card: its bytes over the bandwidth, or its operations over the peak.

    floor = max(bytes / bandwidth, operations / peak)

No kernel is faster, and most are slower: what they reach is measured (`adatsq.cuda.benchmark`). Work is
counted by `step_cost`; the card's numbers and their sources are in data/hardware.csv.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from adatsq.cuda.full_size_models import transformer
from adatsq.cuda.sharing import GROUPS
from adatsq.cuda.steps import inputs
from adatsq.replacement import MODULATION_GROUP
from adatsq.step_cost import KINDS, count

SHORT = 2  # bytes of a bfloat16
BLOCK, MODULATION, _ = KINDS.values()


@dataclass(frozen=True)
class Card:
    """Operations per second in bfloat16 and in FP8, bytes per second."""

    bf16: float
    fp8: float
    bandwidth: float


def card(file: str | Path) -> Card:
    """Of data/hardware.csv. ValueError if a quantity is missing."""
    peaks = pd.read_csv(file).set_index("quantity")["value"]
    if missing := {"bf16 peak", "fp8 peak", "bandwidth"} - set(peaks.index):
        raise ValueError(f"{file} has no {', '.join(sorted(missing))}")
    return Card(peaks["bf16 peak"], peaks["fp8 peak"], peaks["bandwidth"])


def floor_ms(operations, moved, peak: float, bandwidth: float):
    """Milliseconds, of numbers or Series."""
    computing, moving = 1000 * operations / peak, 1000 * moved / bandwidth
    return (
        computing.where(computing > moving, moving) if hasattr(computing, "where") else max(computing, moving)
    )


def gain(whole: float, part: float, factor: float) -> float:
    """Amdahl: how many times as fast the whole becomes if a part of it becomes `factor` times as fast."""
    return whole / (whole - part + part / factor)


def step(model: str) -> pd.DataFrame:
    """`step_cost.count` of one step of a model of `cuda.full_size` at its true configuration, in bfloat16.

    At 1024 x 1024 pixels, or 81 frames of 480 x 832, and 512 tokens of text. KeyError for another name.
    """
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            module = transformer(model)
    finally:
        torch.set_default_dtype(usual)
    return count(module, inputs(model, module, torch.device("meta"), False))


def shapes(counted: pd.DataFrame) -> pd.DataFrame:
    """Quantized linears of a step by shape: calls, and operations and bytes (in bfloat16) of one call."""
    linears = counted[counted["kind"].isin([BLOCK, MODULATION])]
    groups = linears.groupby(["kind", "tokens", "inputs", "outputs"], sort=False)
    found = groups.agg(calls=("bytes", "size"), operations=("operations", "first"), bytes=("bytes", "first"))
    return found.reset_index().astype({"tokens": int, "inputs": int, "outputs": int})


def floors(shapes: pd.DataFrame, card: Card, w_bits: int) -> pd.DataFrame:
    """Floors in ms of one call of each shape, before and after, with what the way through FP8 adds.

    bf16: the plain linear. fp8: one-byte codes in, bfloat16 out. unpack: planes read, a byte per weight
    written. activations: bfloat16 read, a byte per value written. A modulation linear has 4 bits or more and
    scales in groups; it has no product worth FP8, only bytes.
    """
    weights, rows = shapes["inputs"] * shapes["outputs"], shapes["tokens"]
    modulation = shapes["kind"] == MODULATION
    bits = pd.Series(float(w_bits), shapes.index).where(
        ~modulation, max(4, w_bits) + 8 * SHORT / MODULATION_GROUP
    )
    nothing = 0 * weights
    codes = weights + rows * shapes["inputs"] + SHORT * rows * shapes["outputs"]
    product = floor_ms(shapes["operations"], codes, card.fp8, card.bandwidth)
    unpack = floor_ms(nothing, weights * (bits / 8 + 1), card.fp8, card.bandwidth)
    activations = floor_ms(nothing, (SHORT + 1) * rows * shapes["inputs"], card.fp8, card.bandwidth)
    return shapes.assign(
        bf16=floor_ms(shapes["operations"], shapes["bytes"], card.bf16, card.bandwidth),
        fp8=product,
        unpack=unpack,
        activations=activations.where(~modulation, 0.0),
    )


def rounds(linears: pd.DataFrame) -> pd.Series:
    """Which linears round their activations: all but those that share a rounding (`cuda.sharing`) with one
    before. linears: rows of `step`; those of a group with another number of rows have another input."""
    keys = []
    for number, (name, tokens) in enumerate(zip(linears["name"], linears["tokens"])):
        ends = [(group, f".{part}") for group in GROUPS for part in group if name.endswith(f".{part}")]
        group, end = ends[0] if ends else (number, "")
        keys.append((group, name.removesuffix(end), tokens))
    return ~pd.Series(keys, linears.index).duplicated()


def before_after(counted: pd.DataFrame, card: Card, w_bits: int) -> pd.DataFrame:
    """Floors of a whole step in ms: index "bf16" and "W{w_bits}A4", a column per kind of work.

    rest: norms, activations of the feed-forward layers, rotary embeddings and so on, each operator reading
    and writing memory on its own, as in eager mode; torch.compile fuses them.
    """
    found = floors(shapes(counted), card, w_bits)
    sums = {name: (found[name] * found["calls"]).sum() for name in ("bf16", "fp8", "unpack")}
    linears = counted[counted["kind"] == BLOCK]
    once = floors(shapes(linears[rounds(linears)]), card, w_bits)
    sums["activations"] = (once["activations"] * once["calls"]).sum()
    others = counted[~counted["kind"].isin([BLOCK, MODULATION])]
    others = others.assign(ms=floor_ms(others["operations"], others["bytes"], card.bf16, card.bandwidth))
    attention = others.loc[others["kind"] == "attention", "ms"].sum()
    rest = others["ms"].sum() - attention
    table = {
        "bf16": {"products": sums["bf16"], "attention": attention, "rest": rest},
        f"W{w_bits}A4": {
            "products": sums["fp8"],
            "attention": attention,
            "rest": rest,
            "unpacking weights": sums["unpack"],
            "rounding activations": sums["activations"],
        },
    }
    return pd.DataFrame(table).T.fillna(0.0)


def held(counted: pd.DataFrame, parameters: int, w_bits: int) -> dict[str, float]:
    """Bytes of a transformer on the device with packed weights, part by part.

    Planes as `adatsq.packing` has them, float32 scales per channel, 16-bit scales of modulation's groups.
    """
    linears = counted[counted["kind"].isin([BLOCK, MODULATION])].drop_duplicates("name")
    weights, modulation = linears["inputs"] * linears["outputs"], linears["kind"] == MODULATION
    planes = ((weights + 31) // 32 * 4) * modulation.map({True: max(4, w_bits), False: w_bits})
    in_groups = modulation & (linears["inputs"] % MODULATION_GROUP == 0)
    scales = (4 * linears["outputs"]).where(~in_groups, SHORT * weights / MODULATION_GROUP)
    parts = {
        "block weights": planes[~modulation].sum(),
        "modulation weights": planes[modulation].sum(),
        "scales": scales.sum(),
        "the rest in bfloat16": SHORT * (parameters - weights.sum()),
    }
    return {name: float(value) for name, value in parts.items()}
