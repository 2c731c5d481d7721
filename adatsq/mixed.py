"""ViDiT-Q's mixed precision (arXiv:2406.02540): the layers that suffer most from few bits get eight.

The paper ranks layers apart by what they are for, since errors in text, structure and texture do not compare
("metric-decoupled"). Read here: a layer's sensitivity is the error of the velocity when it alone is
quantized, and the ranking is within text, attention and feed-forward layers.
"""

import re
from collections.abc import Sequence

import pandas as pd
from diffusers import DiffusionPipeline

from adatsq.trace import Trace
from adatsq.trial import quantized_layers, velocity_error

KINDS = (("text", r"add_|context|attn2"), ("attention", "att"), ("feed-forward", ""))


def sensitivity(
    pipe: DiffusionPipeline, trace: Trace, w_bits: int, a_bits: int, images: Sequence[int] = (0,), **options
) -> pd.DataFrame:
    """Index layer, columns kind and error: of the velocity, with this layer alone quantized as `options` say.

    It takes a transformer call per layer and timestep.
    """
    modules = quantized_layers(pipe, trace, w_bits, a_bits, **options)
    rows = [
        (name, _kind(name), velocity_error(pipe, trace, {name: module}, images))
        for name, module in modules.items()
    ]
    return pd.DataFrame(rows, columns=["layer", "kind", "error"]).set_index("layer")


def most_sensitive(table: pd.DataFrame, share: float) -> list[str]:
    """The `share` of the layers of each kind, rounded, with the largest error."""
    chosen = []
    for _, rows in table.groupby("kind"):
        chosen += list(rows.error.nlargest(round(share * len(rows))).index)
    return chosen


def _kind(name: str) -> str:
    return next(kind for kind, pattern in KINDS if re.search(pattern, name.split(".", 2)[2]))
