"""A search that allocates bits to all timesteps and layers at once, and then looks which policy does best.

The beam of `search` chooses among a few shapes per timestep, and drops paths before it knows what their bits
would have bought later. Here each (timestep, layer) has an error at each bit-width, `allocate` solves for the
budget exactly, and trajectories serve only to compare the few policies that come of different kinds of error
(`error_kinds`).
"""

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from adatsq.allocation import allocate
from adatsq.error_kinds import calls, every_kind
from adatsq.fisher import Fisher
from adatsq.pareto import non_dominated
from adatsq.policy import Policy, act_layers
from adatsq.prices import price_search
from adatsq.search import COLUMNS, FrontPath, SearchResult, beam_search, chosen_images, extend, ready
from adatsq.trace import Trace

WEIGHTS = {
    "layers": lambda layer: 1,
    "parameters": lambda layer: layer.in_features * layer.out_features,
    "flops": lambda layer: layer.tokens * layer.in_features * layer.out_features,
}


def search_policies(
    pipe: DiffusionPipeline, trace: Trace, fisher: Fisher, search: str = "lagrangian", **options
) -> SearchResult:
    """search: "paper" (`beam_search`), "lagrangian" (`lagrangian_search`) or "prices" (`price_search`), with
    the options of that one.

    All record their cost as `calls`: one for each image of each call of the transformer, and what the errors
    of the last two take (`error_kinds.calls`).
    """
    searches = {"paper": beam_search, "lagrangian": lagrangian_search, "prices": price_search}
    if search not in searches:
        raise ValueError(f"search is {search!r}: choose one of {', '.join(map(repr, searches))}")
    return searches[search](pipe, trace, fisher, **options)


def lagrangian_search(
    pipe: DiffusionPipeline,
    trace: Trace,
    fisher: Fisher,
    budget: float | Sequence[float],
    a_bits: Sequence[int] = (3, 4, 8),
    weights: str = "layers",
    images: Sequence[int] | None = None,
    probes: int = 1,
    at_end: bool = False,
    batch_size: int = 16,
    progress: bool = True,
) -> SearchResult:
    """Policies for one budget or for several, from each kind of error, each followed along its trajectory.

    weights: what the budget, and average_bits of the result, are an average over: "layers", as the paper,
    "parameters" or "flops" (multiplications). images: of the trace, for the carried errors and to follow, by
    default the first four. at_end: the front has one policy per budget, that of the least error at the last
    latents, which are the picture, and not of all that is non-dominated by the error summed over steps.
    ValueError as from `beam_search`, and for other weights.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}: choose one of {', '.join(map(repr, WEIGHTS))}")
    budgets = [float(value) for value in np.atleast_1d(budget)]
    images, started = chosen_images(trace, images), time.perf_counter()
    cost = [WEIGHTS[weights](layer) for layer in act_layers(trace)]
    scores = every_kind(pipe, trace, fisher, a_bits, images, probes, batch_size, progress)
    policies = {}
    for value in budgets:
        for name, errors in scores.items():
            bits = allocate(errors, a_bits, value, cost)
            if not any((bits == other).all() for other in policies.values()):
                policies[f"{name} {value:g}"] = bits
    rows, errors = follow(pipe, trace, policies, images, batch_size, progress, cost)
    averages = {name: float(np.average(bits.mean(0), weights=cost)) for name, bits in policies.items()}
    if at_end:
        ends = errors_at_end(rows)
        within = [[name for name in policies if averages[name] <= value + 1e-9] for value in budgets]
        kept = {min(names, key=ends.get) for names in within}
        best = [name in kept for name in policies]
    else:
        best = non_dominated([(averages[name], errors[name]) for name in policies])
    front = [
        FrontPath(Policy.of(trace, policies[name]), averages[name], errors[name], (name,))
        for name, keep in zip(policies, best)
        if keep
    ]
    for row in rows:
        row[-1] = row[3] in {path.candidates[0] for path in front}
    return SearchResult(
        front=sorted(front, key=lambda path: path.average_bits),
        evaluated=pd.DataFrame(rows, columns=COLUMNS),
        lowest=float(min(a_bits)),
        seconds=time.perf_counter() - started,
        calls=len(images) * len(rows) + calls(trace, a_bits, images, probes),
    )


def errors_at_end(rows: list[list]) -> dict[str, float]:
    """Mean squared distance of the last latents to the recorded ones by policy, from the rows of `follow`:
    what the last step added to the sum."""
    sums: dict[str, list[float]] = {}
    for _, _, _, name, _, error, _ in rows:
        sums.setdefault(name, [0.0]).append(error)
    return {name: found[-1] - found[-2] for name, found in sums.items()}


def follow(
    pipe: DiffusionPipeline,
    trace: Trace,
    policies: dict[str, np.ndarray],
    images: Sequence[int],
    batch_size: int = 16,
    progress: bool = False,
    weights: Sequence[float] | None = None,
) -> tuple[list[list], dict[str, float]]:
    """Run each policy, bits (T, L), along its own trajectory: rows of `evaluated`, and each one's error.

    The error is that of the beam search: mean squared distance to the recorded latents, summed over steps.
    """
    rows, errors, images = [], {}, list(images)
    with ready(pipe, trace, images) as (modules, start), torch.inference_mode():
        for name, bits in tqdm(policies.items(), desc="trajectories", disable=not progress):
            path, parent = start, -1
            for t in range(len(bits)):
                [path] = extend(
                    pipe.transformer, modules, trace, t, [path], {name: bits[t]}, images, batch_size
                )
                average = float(np.average(bits[: t + 1].mean(0), weights=weights))
                rows.append([t, len(rows), parent, name, average, path.error, False])
                parent = len(rows) - 1
            errors[name] = path.error
    return rows, errors
