"""What rounding each layer's input at each timestep costs, by several scores: errors E (T, L, bit-widths).

carried       E[t, l, b] = |J d|^2, carried to the last latents (`marginal_errors`)
carried^1/2   J's part of it, the ratio between layers and timesteps, at half its logarithm: where errors
              are large, first order overstates the differences
fisher        I[t, l] |W_l|^2 / (2^(b-1) - 1)^2, of one call alone
both          the geometric mean of carried and fisher, each scaled to sum 1
"""

from collections.abc import Sequence

import numpy as np
from diffusers import DiffusionPipeline

from adatsq.candidates import every_step
from adatsq.fisher import Fisher
from adatsq.marginals import marginal_errors
from adatsq.policy import LayerShape, act_layers
from adatsq.search import ready
from adatsq.trace import Trace


def every_kind(
    pipe: DiffusionPipeline,
    trace: Trace,
    fisher: Fisher,
    a_bits: Sequence[int],
    images: list[int],
    probes: int = 1,
    batch_size: int = 16,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """All kinds of error by name, on a pipeline with quantized weights. ValueError as from `beam_search`."""
    every_step(trace, fisher, {"check": np.eye(len(a_bits))[0]}, a_bits)  # that they are of the same run
    with ready(pipe, trace, images):
        carried = marginal_errors(pipe, trace, a_bits, images, probes, 0, batch_size, progress)
        return kinds_of_error(carried, fisher_errors(pipe, fisher, act_layers(trace), a_bits))


def calls(trace: Trace, a_bits: Sequence[int], images: Sequence[int], probes: int = 1) -> int:
    """What `every_kind` costs: a forward pass counts as one, a backward one as two, and the layers' products
    at other bits as one per bit-width, more than they truly cost."""
    return len(images) * (3 + len(a_bits)) * probes * len(trace.timesteps)


def fisher_errors(
    pipe: DiffusionPipeline, fisher: Fisher, layers: Sequence[LayerShape], a_bits: Sequence[int]
) -> np.ndarray:
    """I[t, l] |W_l|^2 / (2^(b-1) - 1)^2, (T, L, len(a_bits)): noise falls as the square of its step."""
    modules = [pipe.transformer.get_submodule(layer.name) for layer in layers]
    size = [float(module.weight_matrix().double().square().sum()) for module in modules]
    noise = [1 / (2 ** (bits - 1) - 1) ** 2 for bits in a_bits]
    information = fisher.values[[layer.name for layer in layers]].to_numpy()
    return (information * size)[..., None] * noise


def kinds_of_error(carried: np.ndarray, fisher: np.ndarray) -> dict[str, np.ndarray]:
    """The errors (T, L, B) that policies are allocated from, by name, as at the top of this file."""
    worst = np.maximum(carried.max(-1, keepdims=True), 1e-300)
    both = np.sqrt(carried / carried.sum() * (fisher / fisher.sum()))
    return {
        "carried": carried,
        "carried^1/2": carried / worst * np.sqrt(worst),
        "fisher": fisher,
        "both": both,
    }
