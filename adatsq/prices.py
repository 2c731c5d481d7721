"""A beam along the trajectory whose candidates are allocations at several prices of a bit.

The Lagrangian search knows what a bit saves to first order only, and for each part alone; the beam sees the
true error of a whole path, but of three fixed shapes. Here C_t holds row t of what `allocate` gives for
several budgets around the asked one, which is, for several prices lambda of a bit near the one that meets it,
the bits of step t that minimise error + lambda bits:

    C_t = {b_t(lambda): lambda at budgets lowest + f (budget - lowest), f in FACTORS, for each kind of error}

The layers of a step are ranked to first order; how much a step spends, and with several kinds of error which
it goes by, is decided by the error that the path has really accumulated, with the beam's own rules.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from diffusers import DiffusionPipeline

from adatsq.allocation import allocate
from adatsq.candidates import Options
from adatsq.error_kinds import calls, every_kind
from adatsq.fisher import Fisher
from adatsq.search import SearchResult, beam_rule, chosen_images, search_options
from adatsq.trace import Trace

FACTORS, KINDS = (0.5, 1.0, 2.0), ("carried",)


def price_search(
    pipe: DiffusionPipeline,
    trace: Trace,
    fisher: Fisher,
    budget: float,
    beam: int = 2,
    factors: Sequence[float] = FACTORS,
    kinds: Sequence[str] = KINDS,
    a_bits: Sequence[int] = (3, 4, 8),
    images: Sequence[int] | None = None,
    probes: int = 1,
    batch_size: int = 16,
    progress: bool = True,
) -> SearchResult:
    """The search for one budget. With the defaults a step takes as many transformer calls of an image as the
    beam of 4 over three candidates: at most 2 x 3 forward, and those of the errors (`search_policies`).

    kinds: of `kinds_of_error`. images: of the trace, for the errors and to follow, by default the first four.
    ValueError as from `beam_search`, and for a budget below the fewest bits.
    """
    images, started = chosen_images(trace, images), time.perf_counter()
    scores = every_kind(pipe, trace, fisher, a_bits, images, probes, batch_size, progress)
    options = priced(scores, kinds, a_bits, budget, factors)
    select = beam_rule(options, beam, budget)
    result = search_options(pipe, trace, options, select, images, batch_size, progress)
    all_calls = result.calls + calls(trace, a_bits, images, probes)
    return replace(result, calls=all_calls, seconds=time.perf_counter() - started)


def priced(
    scores: dict[str, np.ndarray],
    kinds: Sequence[str],
    a_bits: Sequence[int],
    budget: float,
    factors: Sequence[float] = FACTORS,
) -> Options:
    """C_t of each step, from errors (T, L, B) by kind: "carried x2" is allocated for twice the bits above the
    fewest. Of equal ones a step has the first."""
    least = min(a_bits)
    tables = {
        f"{kind} x{factor:g}": allocate(scores[kind], a_bits, least + factor * (budget - least))
        for kind in kinds
        for factor in factors
    }
    options: Options = [{} for _ in scores[kinds[0]]]
    for name, table in tables.items():
        for option, bits in zip(options, table):
            if not any((bits == other).all() for other in option.values()):
                option[name] = bits
    return options
