"""The beam's search among paths that were all followed already: it takes no call of a model, and no rounding
of other batches comes between the two.
"""

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from adatsq.candidates import SHARES, every_step
from adatsq.fisher import Fisher
from adatsq.policy import Policy
from adatsq.search import COLUMNS, FrontPath, SearchResult, beam_rule
from adatsq.trace import Trace


def beam_among(
    truth: SearchResult,
    trace: Trace,
    fisher: Fisher,
    beam: int = 4,
    shares: dict[str, Sequence[float]] = SHARES[3],
    a_bits: Sequence[int] = (3, 4, 8),
    budget: float | None = None,
) -> SearchResult:
    """What `beam_search` finds, read off the paths that `brute_force` ran, by the same rules.

    truth: of the same trace, Fisher information, shares and bits. ValueError if it tried other candidates.
    """
    options, started = every_step(trace, fisher, shares, a_bits), time.perf_counter()
    tried, select, ends = truth.evaluated.set_index("path"), beam_rule(options, beam, budget), []
    if tried.groupby("step").candidate.unique().map(list).tolist() != [list(option) for option in options]:
        raise ValueError("the enumerated paths have other candidates: give the shares that brute_force had")
    seen, kept = [], [-1]
    for t in range(len(options)):
        rows = tried[(tried.step == t) & tried.parent.isin(kept)]
        chosen = select(t, rows[["average_bits", "error"]].to_numpy())
        kept = rows.index[chosen]
        seen.append(rows.assign(kept=rows.index.isin(kept)))
    for path in kept:
        names, bits, error = [], tried.average_bits[path], tried.error[path]
        while path >= 0:
            names.insert(0, tried.candidate[path])
            path = tried.parent[path]
        policy = Policy.of(trace, np.array([option[name] for option, name in zip(options, names)]))
        ends.append(FrontPath(policy, bits, error, tuple(names)))
    return SearchResult(
        front=sorted(ends, key=lambda end: end.average_bits),
        evaluated=pd.concat(seen).reset_index()[COLUMNS],
        lowest=truth.lowest,
        seconds=time.perf_counter() - started,
    )
