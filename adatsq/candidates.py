"""Candidate configurations C_t of a timestep, from the Fisher scores, and which of them a budget allows."""

import math
from collections.abc import Callable, Sequence
from numbers import Real

import numpy as np
import pandas as pd

from adatsq.fisher import Fisher
from adatsq.policy import act_layers
from adatsq.trace import Trace

# Shares of the layers, most sensitive first, at each of the allowed bits from high to low. With 8, 4 and 3
# bits, base 3 averages 4.2, 3.6 and 3.0 and so reaches budgets such as 3.1 and 3.6 from both sides; base 4
# averages 4.2, 4.0 and 3.8 and brackets 4.0. A finer choice is a longer dictionary.
SHARES = {
    3: {"high": (0.2, 0.2, 0.6), "mid": (0.1, 0.1, 0.8), "low": (0.0, 0.0, 1.0)},
    4: {"high": (0.1, 0.7, 0.2), "mid": (0.05, 0.75, 0.2), "low": (0.0, 0.8, 0.2)},
}

# Rounding noise falls with the square of the step: from 3 to 4 bits it loses 1 - (3/7)^2 = 82%, and
# from 4 to 8 most of the little that is left. So this ladder gives all layers 4 bits before any gets 8.
LADDER = {
    "all 3": (0.0, 0.0, 1.0),
    "a fifth 4": (0.0, 0.2, 0.8),
    "half 4": (0.0, 0.5, 0.5),
    "all 4": (0.0, 1.0, 0.0),
    "a tenth 8": (0.1, 0.9, 0.0),
}

Options = list[dict[str, np.ndarray]]  # per timestep, its named candidates, each bits (L,)


def candidates(
    information: pd.Series, shares: dict[str, Sequence[float]], a_bits: Sequence[int] = (3, 4, 8)
) -> dict[str, np.ndarray]:
    """C_t: named bits (L,) for one timestep, from I[t] over the layers.

    The layers are ranked by information, and a candidate gives the top share the most bits, and so on down.
    """
    if not shares:
        raise ValueError("no candidate is given: shares are empty")
    order = np.argsort(-information.to_numpy(), kind="stable")
    descending, found = sorted(a_bits, reverse=True), {}
    for name, share in shares.items():
        if len(share) != len(descending) or min(share) < 0 or abs(sum(share) - 1) > 1e-6:
            raise ValueError(
                f"shares of candidate {name!r} are {tuple(share)}: one per bit of {tuple(descending)}, sum 1"
            )
        ends = np.rint(np.cumsum(share) * len(order)).astype(int)
        bits = np.empty(len(order), dtype=np.int64)
        bits[order] = np.repeat(descending, np.diff(ends, prepend=0))
        if not any((bits == other).all() for other in found.values()):  # few layers: shares may coincide
            found[name] = bits
    return found


def every_step(
    trace: Trace, fisher: Fisher, shares: dict[str, Sequence[float]], a_bits: Sequence[int] = (3, 4, 8)
) -> Options:
    """C_t of every timestep, for the activation-quantized layers. ValueError for another run's Fisher."""
    if fisher.model != trace.model or len(fisher.timesteps) != len(trace.timesteps):
        raise ValueError(
            f"the Fisher information is of {fisher.model} at {len(fisher.timesteps)} timesteps, the trace of "
            f"{trace.model} at {len(trace.timesteps)}"
        )
    information = fisher.values[[layer.name for layer in act_layers(trace)]]
    return [candidates(information.iloc[t], shares, a_bits) for t in range(len(information))]


def reachable_to(options: Options, budget: float | None) -> Callable[[int, np.ndarray], np.ndarray]:
    """(t, average bits so far (paths,)) -> whether such paths can still end at the budget.

    That is: not above it if they go on as cheaply as can be, and, if as richly, not further below it than the
    widest choice at one timestep, so that some path always can. Without the second half a beam may fill with
    paths that spent too little to use the budget. ValueError for a budget below the cheapest candidates, or
    one that is no finite number.
    """
    averages = [[bits.mean() for bits in option.values()] for option in options]
    low, high = np.array([min(a) for a in averages]), np.array([max(a) for a in averages])
    steps = len(options)
    if budget is None:
        return lambda t, average: np.ones(len(average), dtype=bool)
    if not (isinstance(budget, Real) and math.isfinite(budget)):
        raise ValueError(f"budget is {budget!r}, it must be a finite number of bits, or None for no limit")
    if budget < low.mean() - 1e-9:
        raise ValueError(
            f"budget {budget} is below the cheapest candidates, which average {low.mean():.4g} bits"
        )
    floor = min(budget, high.mean()) - (high - low).max() / steps

    def reachable(t: int, average: np.ndarray) -> np.ndarray:
        spent = average * (t + 1)
        cheapest, richest = (spent + low[t + 1 :].sum()) / steps, (spent + high[t + 1 :].sum()) / steps
        return (cheapest <= budget + 1e-9) & (richest >= floor - 1e-9)

    return reachable
