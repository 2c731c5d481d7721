"""Beam searches of several widths and budgets in one run: what several of them keep is followed once."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline

from adatsq.candidates import SHARES, every_step
from adatsq.fisher import Fisher
from adatsq.policy import Policy
from adatsq.search import FrontPath, beam_rule, chosen_images, extend, ready
from adatsq.trace import Trace


def beam_fronts(
    pipe: DiffusionPipeline,
    trace: Trace,
    fisher: Fisher,
    beams: Sequence[int],
    budgets: Sequence[float],
    shares: dict[str, Sequence[float]] = SHARES[3],
    a_bits: Sequence[int] = (3, 4, 8),
    images: Sequence[int] | None = None,
    batch_size: int = 128,
) -> dict[tuple[int, float], list[FrontPath]]:
    """{(beam, budget): the front that `beam_search` finds}, up to the rounding of larger batches.

    Each search has its own rule of what to keep, and paths that it keeps; at each step the union of these is
    extended, in calls that hold batch_size images. ValueError as from `beam_search`.
    """
    options, images = every_step(trace, fisher, shares, a_bits), chosen_images(trace, images)
    rules = {(beam, budget): beam_rule(options, beam, budget) for beam in beams for budget in budgets}
    with ready(pipe, trace, images) as (modules, start), torch.inference_mode():
        paths, held = [start], {search: [0] for search in rules}  # held: places in `paths`, of each search
        for t, option in enumerate(options):
            extended = extend(pipe.transformer, modules, trace, t, paths, option, images, batch_size)
            points = np.array([(path.average_bits, path.error) for path in extended])
            kept = {}
            for search, rule in rules.items():  # extensions come candidate by candidate, in each by path
                own = np.array([c * len(paths) + p for c in range(len(option)) for p in held[search]])
                kept[search] = own[rule(t, points[own])].tolist()
            union = sorted(set().union(*kept.values()))
            held = {search: [union.index(i) for i in found] for search, found in kept.items()}
            paths = [extended[i] for i in union]

    def complete(i: int) -> FrontPath:
        path = paths[i]
        return FrontPath(
            Policy.of(trace, np.array(path.bits)), path.average_bits, path.error, tuple(path.chosen)
        )

    return {
        search: sorted(map(complete, found), key=lambda path: path.average_bits)
        for search, found in held.items()
    }
