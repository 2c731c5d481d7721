"""Risk-aware Hessians: what a GPTQ solver needs to know of a layer's inputs, weighted over time.

    H'_l = sum_t alpha[t, l] E[x x^T],    x: the rows of X_{t,l}, over all images and tokens at timestep t

which is X^T X with X scaled by sqrt(alpha): an unmodified solver then minimises the error where it matters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from adatsq.models import block_names
from adatsq.streaming import BlockByBlock, Left
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
    stream: bool = False,
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (block, {layer: H' (in, in)}) for the transformer's blocks in order.

    alpha: index timestep, columns layer, as `Fisher.alpha` makes it; None is uniform. layers: names, or all.
    At most the Hessians of `blocks_per_pass` blocks exist at once (None: of all); each pass runs the whole
    trace, each call up to the last block of the pass. Recorded latents go in, but the blocks before run as
    they are at that moment: a caller who quantizes each block when it comes gives the next ones quantized
    inputs, as GPTQ does.
    stream: each block runs once for the whole trace and never again, on the full-precision answers of the
    block before (`streaming`): one forward pass of the trace in all, and a caller may replace a block as soon
    as it comes. blocks_per_pass is then 1.
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
    if stream:
        return _streamed(pipe, trace, weights, blocks, batch_size, dtype, progress)
    return _passes(pipe, trace, weights, blocks, blocks_per_pass or len(blocks), batch_size, dtype, progress)


def _weights(trace: Trace, alpha: pd.DataFrame | None, names: list[str]) -> pd.DataFrame:
    """alpha[t, l] by step t and layer name, for the layers in question."""
    steps = range(len(trace.timesteps))
    if alpha is None:
        return pd.DataFrame(1 / len(steps), index=steps, columns=names)
    if len(alpha) != len(steps):
        raise ValueError(
            f"alpha has {len(alpha)} timesteps, the trace has {len(steps)}: compute the Fisher information "
            "of this trace"
        )
    lacking = sorted(set(names) - set(alpha.columns))
    if lacking:
        raise ValueError(
            f"alpha lacks {len(lacking)} of the trace's {len(names)} layers, such as {lacking[0]}: compute "
            "the Fisher information of this trace"
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
    sums = _Sums(trace, weights, dtype)

    def leave(name: str) -> None:
        ran.add(name)
        if len(ran) == len(group):
            raise Left

    ran: set[str] = set()
    modules = {name: pipe.transformer.get_submodule(name) for name in group}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: leave(name)) for name, module in modules.items()
    ]
    try:
        with layer_inputs(pipe.transformer, names, sums.add), torch.no_grad(), _exact_products():
            for sums.t, index in _calls(trace, batch_size):
                ran.clear()
                try:
                    velocity(pipe.transformer, trace, sums.t, index=index)
                except Left:
                    pass
    finally:
        for hook in hooks:
            hook.remove()
    return sums.found


def _streamed(
    pipe: DiffusionPipeline,
    trace: Trace,
    weights: pd.DataFrame,
    blocks: dict[str, list[str]],
    batch_size: int,
    dtype: torch.dtype,
    progress: bool,
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """As `_passes`, each block once: `stream` of `hessians`."""
    transformer, index = pipe.transformer, _calls(trace, batch_size)
    calls = [partial(velocity, transformer, trace, t, index=images) for t, images in index]
    order = block_names(transformer)
    with torch.no_grad():
        run = BlockByBlock(transformer, order, calls)
    with run, tqdm(order, desc="hessians", unit="block", disable=not progress) as bar:
        for block in bar:
            sums, names = _Sums(trace, weights, dtype), blocks.get(block, [])
            with layer_inputs(transformer, names, sums.add), torch.no_grad(), _exact_products():
                run.run(block, lambda call, sums=sums: setattr(sums, "t", index[call][0]))
            if names:
                yield block, sums.found


class _Sums:
    """H' of layers whose inputs come in by `add`, at step t."""

    def __init__(self, trace: Trace, weights: pd.DataFrame, dtype: torch.dtype) -> None:
        self.trace, self.weights, self.dtype = trace, weights, dtype
        self.t, self.found = 0, {}
        self.x = self.product = None

    def add(self, name: str, x: Tensor) -> None:
        if x is not self.x:  # query, key and value read the same tensor: one product serves all three
            self.x, self.product = x, _product(x.reshape(-1, x.shape[-1]), self.dtype)
        rows_at_t = len(self.trace) * self.trace.tokens[name]
        if name not in self.found:
            self.found[name] = torch.zeros_like(self.product)
        self.found[name].add_(self.product, alpha=self.weights.at[self.t, name] / rows_at_t)


def _product(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """X^T X. Products of 16-bit numbers are exact in float32: tensor cores may take them as they are."""
    short = rows.dtype in (torch.bfloat16, torch.float16)
    if rows.is_cuda and dtype is torch.float32 and short and len(rows) >= 16:
        return torch.mm(rows.T, rows, out_dtype=torch.float32)
    rows = rows.to(dtype)
    return rows.T @ rows


def _calls(trace: Trace, batch_size: int) -> list[tuple[int, range]]:
    """(step, images) of each call of a run over the trace."""
    batches = [range(len(trace))[i : i + batch_size] for i in range(0, len(trace), batch_size)]
    return [(t, index) for t in range(len(trace.timesteps)) for index in batches]


@contextmanager
def _exact_products() -> Iterator[None]:
    """Without TF32, whose ten mantissa bits can leave X^T X indefinite."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
