"""Running a transformer block by block: each block once per call, for a trace of any length.

A call is ended when the block in question has run, and its answer is kept. For the next block the call
starts anew, but the blocks before it answer from what was kept, at once: only the embedders run again. So
Hessians of one block exist at a time, as with one pass per block, and the trace costs one forward pass in all
instead of half as many passes as there are blocks. What is kept is one answer per call and list of blocks
(Flux-dev at 1024 x 1024: 28 MB in bfloat16).

All blocks of a list that are done answer what the last of them did, which is right if each block's answer
goes to the next one and nowhere else. That is checked in the first call, against a plain run.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Left(Exception):
    """The forward pass has gone far enough."""


class BlockByBlock:
    """A transformer whose blocks are run one after the other, each in all calls, by `run`.

    blocks: names of all blocks in order (`models.block_names`). calls: each runs the transformer. A block
    that has run is not run again, and may be replaced. A context manager: at its end, the blocks have their
    own forward again.
    """

    def __init__(
        self, transformer: nn.Module, blocks: Sequence[str], calls: Sequence[Callable[[], object]]
    ) -> None:
        self.transformer, self.calls = transformer, calls
        self.expected = _seen(transformer, blocks, calls[0])
        self.kept: dict[tuple[int, str], object] = {}  # answers by call and list of blocks
        self.done: list[str] = []
        self.call = 0

    def __enter__(self) -> "BlockByBlock":
        return self

    def __exit__(self, *_) -> None:
        self.kept.clear()
        for block in self.done:
            self.transformer.get_submodule(block).__dict__.pop("forward", None)

    def run(self, block: str, before: Callable[[int], None]) -> None:
        """The next block in all calls; before(i) comes before call i. ValueError if it is not given just the
        answer of the block before."""
        module, seen, of = self.transformer.get_submodule(block), [], block.split(".")[0]
        hooks = [
            module.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append(_size((args, kwargs))) if self.call == 0 else None,
                with_kwargs=True,
            ),
            module.register_forward_hook(_leave),
        ]
        try:
            for i, call in enumerate(self.calls):
                self.call = i
                before(i)
                try:
                    call()
                except Left as left:
                    self.kept[i, of] = left.args[0]
        finally:
            for hook in hooks:
                hook.remove()
        if len(seen) != 1 or not _alike(seen[0], self.expected[block]):
            raise ValueError(
                f"block {block} of {type(self.transformer).__name__} is given something else than the answer "
                "of the block before it: with stream=False the blocks run as they are"
            )
        module.forward = lambda *args, **kwargs: self.kept[self.call, of]
        self.done.append(block)


def _leave(module: nn.Module, args: tuple, output: object) -> None:
    raise Left(output)


def _seen(transformer: nn.Module, blocks: Sequence[str], call: Callable[[], object]) -> dict[str, list]:
    """{block: `_size` of what it is given} in a plain run."""
    found, hooks = {}, []
    for name in blocks:
        hook = lambda module, args, kwargs, name=name: found.__setitem__(name, _size((args, kwargs)))  # noqa: E731
        hooks.append(transformer.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _alike(sizes: list, others: list) -> bool:
    """Equal shapes and, but for what a GPU may round in another order, equal sums."""
    return len(sizes) == len(others) and all(
        shape == other and math.isclose(total, expected, rel_tol=1e-5)
        for (shape, total), (other, expected) in zip(sizes, others)
    )


def _size(value: object) -> list:
    """Shapes and sums of sizes of all tensors in it: equal if they are, and hardly else."""
    if isinstance(value, Tensor):
        return [(tuple(value.shape), float(torch.nan_to_num(value.detach()).abs().double().sum()))]
    if isinstance(value, dict):
        return [size for part in value.values() for size in _size(part)]
    if isinstance(value, (list, tuple)):
        return [size for part in value for size in _size(part)]
    return []
