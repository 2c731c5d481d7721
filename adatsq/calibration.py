"""Risk-aware Hessians: what a GPTQ solver needs to know of a layer's inputs, weighted over time.

    H'_l = sum_t alpha[t, l] E[x x^T],    x: the rows of X_{t,l}, over all images and tokens at timestep t

which is X^T X with X scaled by sqrt(alpha): an unmodified solver then minimises the error where it matters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from adatsq.models import block_names
from adatsq.trace import Trace, layer_inputs, velocity


def hessians(
    pipe: DiffusionPipeline,
    trace: Trace,
    alpha: pd.DataFrame | None = None,
    layers: Sequence[str] | None = None,
    blocks_per_pass: int | None = 1,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (block, {layer: H' (in, in)}) for the transformer's blocks in order.

    alpha: index timestep, columns layer, as `Fisher.alpha` makes it; None is uniform. layers: names, or all.
    At most the Hessians of `blocks_per_pass` blocks exist at once (None: of all); each pass runs the whole
    trace, each call up to the last block of the pass. Recorded latents go in, but the blocks before run as
    they are at that moment: a caller who quantizes each block when it comes gives the next ones quantised
    inputs, as GPTQ does.
    Raises ValueError if alpha lacks a layer, has other timesteps than the trace, or a negative or NaN weight.
    """
    trace.check(pipe)
    names = [layer.name for layer in trace.layers] if layers is None else list(layers)
    weights = _weights(trace, alpha, names)
    blocks = {
        block: [n for n in names if n.startswith(f"{block}.")] for block in block_names(pipe.transformer)
    }
    missing = set(names) - {name for inside in blocks.values() for name in inside}
    if missing:
        raise ValueError(f"{type(pipe.transformer).__name__} has no block with layer {sorted(missing)[0]!r}")
    blocks = {block: inside for block, inside in blocks.items() if inside}
    return _passes(pipe, trace, weights, blocks, blocks_per_pass or len(blocks), batch_size, dtype, progress)


def _weights(trace: Trace, alpha: pd.DataFrame | None, names: list[str]) -> pd.DataFrame:
    """alpha[t, l] by step t and layer name, for the layers in question."""
    steps = range(len(trace.timesteps))
    if alpha is None:
        return pd.DataFrame(1 / len(steps), index=steps, columns=names)
    if len(alpha) != len(steps) or not set(names) <= set(alpha.columns):
        lacking = sorted(set(names) - set(alpha.columns))
        raise ValueError(
            f"alpha has {len(alpha)} timesteps and lacks {len(lacking)} layers {lacking[:1]}; the trace has "
            f"{len(steps)} timesteps: compute the Fisher information of this trace"
        )
    timesteps = np.asarray(alpha.index)
    # A Fisher information of a float32 run serves a bfloat16 one, whose timesteps are rounded.
    if timesteps.dtype.kind not in "fiu" or not np.allclose(timesteps, trace.timesteps, rtol=2**-8, atol=0):
        raise ValueError(
            f"alpha is for timesteps {timesteps.tolist()}, the trace has {trace.timesteps}: compute the "
            "Fisher information of this trace"
        )
    values = alpha[names]
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.to_numpy().any():
        t, name = wrong.stack().idxmax()
        raise ValueError(
            f"alpha of layer {name} at timestep {t:.6g} is {values.at[t, name]}: it must be finite and at "
            "least 0"
        )
    return values.set_axis(steps)


def _passes(
    pipe: DiffusionPipeline,
    trace: Trace,
    weights: pd.DataFrame,
    blocks: dict[str, list[str]],
    blocks_per_pass: int,
    batch_size: int,
    dtype: torch.dtype,
    progress: bool,
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    order = list(blocks)
    for first in tqdm(
        range(0, len(order), blocks_per_pass), desc="hessians", unit="pass", disable=not progress
    ):
        group = order[first : first + blocks_per_pass]
        names = [name for block in group for name in blocks[block]]
        found = _one_pass(pipe, trace, weights, names, group, batch_size, dtype)
        for block in group:
            yield block, {name: found.pop(name) for name in blocks[block]}


def _one_pass(
    pipe: DiffusionPipeline,
    trace: Trace,
    weights: pd.DataFrame,
    names: list[str],
    group: list[str],
    batch_size: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """H' of the named layers, from one run over the trace whose calls end when all blocks in `group` ran."""
    found: dict[str, Tensor] = {}
    x_before, product = None, None

    def add(name: str, x: Tensor) -> None:
        nonlocal x_before, product
        if x is not x_before:  # query, key and value read the same tensor: one product serves all three
            rows = x.reshape(-1, x.shape[-1]).to(dtype)
            x_before, product = x, rows.T @ rows
        rows_at_t = len(trace) * trace.tokens[name]
        if name not in found:
            found[name] = torch.zeros_like(product)
        found[name].add_(product, alpha=weights.at[t, name] / rows_at_t)

    def leave(name: str) -> None:
        ran.add(name)
        if len(ran) == len(group):
            raise _Left

    batches = [range(len(trace))[i : i + batch_size] for i in range(0, len(trace), batch_size)]
    ran: set[str] = set()
    modules = {name: pipe.transformer.get_submodule(name) for name in group}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: leave(name)) for name, module in modules.items()
    ]
    try:
        with layer_inputs(pipe.transformer, names, add), torch.no_grad(), _exact_products():
            for t in range(len(trace.timesteps)):
                for index in batches:
                    ran.clear()
                    try:
                        velocity(pipe.transformer, trace, t, index=index)
                    except _Left:
                        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Left(Exception):
    """The forward pass has gone far enough."""


@contextmanager
def _exact_products() -> Iterator[None]:
    """Without TF32, whose ten mantissa bits can leave X^T X indefinite."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
