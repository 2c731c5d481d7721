"""Policies that no search of theirs found: a searched one must beat them on held-out pictures."""

from collections.abc import Iterator, Sequence

import numpy as np

from adatsq.allocation import allocate

A_BITS = (3, 4, 8)
MORE_BITS = (2, 3, 4, 5, 6, 8)  # of a search that may choose among more widths
QUARTER = "quarter at 8"  # these spend 4.25 bits, whatever the budget
# Controls that are made of a searched policy's own bits.
PERMUTED = {"random": "lagrangian", "random beam": "paper"}
COLLAPSED = {
    "collapsed": ("lagrangian", A_BITS),
    "collapsed beam": ("paper", A_BITS),
    "collapsed, 2 to 8": ("lagrangian, 2 to 8", MORE_BITS),
}


def controls(
    carried: np.ndarray, searched: dict[str, np.ndarray], budget: float, random: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Named policies (T, L), from errors (T, L, B) and the policies of searches, by the searches' names. What
    is made of a search that is not given is left out.

    random, random beam: the bits of one of them at random places, `random` times. first, last steps at 8: the
    others at 3, as the budget allows; first, last quarter at 8: for a quarter of the run, 4.25 bits on
    average. static over time: bits per layer from its errors summed over time, `allocate`d, which solves the
    linear program up to one step of one layer. same for all layers: that of the timesteps. collapsed,
    collapsed beam; 2 to 8: a searched policy without time (`over_time`), of the widths that the search had.
    All but the quarters keep within the budget.
    """
    (steps, layers, _), size = carried.shape, carried.shape[0] * carried.shape[1]
    for name, source in PERMUTED.items():
        for seed in range(random if source in searched else 0):
            bits = np.random.default_rng(seed).permutation(searched[source].ravel())
            yield f"{name} {seed}", bits.reshape(steps, layers)
    for name, eight in (("steps at 8", int((budget - 3) / 5 * size + 1e-9)), (QUARTER, size // 4)):
        first = np.where(np.arange(size) < eight, 8, 3).reshape(steps, layers)
        yield f"first {name}", first
        yield f"last {name}", first[::-1]
    static = allocate(carried.sum(0, keepdims=True), A_BITS, budget)
    yield "static over time", np.repeat(static, steps, axis=0)
    per_step = allocate(carried.sum(1, keepdims=True), A_BITS, budget)
    yield "same for all layers", np.repeat(per_step, layers, axis=1)
    for name, (source, a_bits) in COLLAPSED.items():
        if source in searched:
            yield name, over_time(searched[source], a_bits)


def over_time(bits: np.ndarray, a_bits: Sequence[int] = A_BITS) -> np.ndarray:
    """A policy (T, L) collapsed over time: of the policies that are the same at all timesteps and of at most
    its average bits, the one nearest to each layer's mean over time, by squared distance summed over layers.

    Where the average leaves room, all means are thought as much higher, so that no bit of it is left over.
    """
    aim = bits.mean(0) + max(a_bits)  # above all bits: more are always nearer, and the average decides
    errors = np.square(aim[:, None] - np.asarray(a_bits))
    return np.repeat(allocate(errors[None], a_bits, bits.mean()), len(bits), axis=0)
