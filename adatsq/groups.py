"""Q-DiT's search (arXiv:2406.17343): which group size suits which layer, by evolution.

A small group rounds better, but needs more scales and breaks up the product; the mean over layers must be at
least `mean`. Read here: an assignment is scored by the squared error of the velocity over all timesteps, with
weights rounded to nearest, where the paper generates pictures and takes their FID.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from diffusers import DiffusionPipeline

from adatsq.models import quantizable
from adatsq.trace import Trace
from adatsq.trial import quantized_layers, velocity_error

SIZES = (32, 64, 128, 192, 288)


@dataclass(frozen=True)
class GroupSearch:
    """sizes: {layer: group size, or None for the whole row}. error: of the velocity. tried: assignments.
    calls: of the transformer for one picture and branch, seconds: in all; what the search cost.
    possible: {size: layers whose inputs it divides}. mean: group size over layers, a whole row as its length.
    """

    sizes: dict[str, int | None]
    error: float
    tried: int
    calls: int
    seconds: float
    possible: dict[int, int]
    mean: float


def search_groups(
    pipe: DiffusionPipeline,
    trace: Trace,
    w_bits: int,
    a_bits: int,
    sizes: Sequence[int] = SIZES,
    mean: float = 128,
    population: int = 8,
    generations: int = 5,
    images: Sequence[int] = (0,),
    seed: int = 0,
    **options,
) -> GroupSearch:
    """The best assignment found, whose mean group size is at least `mean`.

    A layer chooses among the sizes that divide its inputs; where none does, its rows stay whole, and count as
    groups of their length. If not even the largest choices reach `mean`, they are taken, and nothing is
    searched. options: of `quantize`, as the layers will be made.
    """
    start, random = time.perf_counter(), np.random.default_rng(seed)
    layers = [layer for layer in quantizable(pipe.transformer) if layer.role == "act"]
    choices = [[s for s in sizes if layer.in_features % s == 0] or [layer.in_features] for layer in layers]
    top = np.array([max(choice) for choice in choices])
    modules = {}
    for size in sorted({size for choice in choices for size in choice}):
        given = {layer.name: size for layer, choice in zip(layers, choices) if size in choice}
        made = quantized_layers(
            pipe, trace, w_bits, a_bits, solver="rtn", group_size=given, a_group_size=given, **options
        )
        modules.update({(name, size): made[name] for name in given})

    tried: dict[tuple, float] = {}

    def error(genes: np.ndarray) -> float:
        key = tuple(int(g) for g in genes)
        if key not in tried:
            chosen = {layer.name: modules[layer.name, g] for layer, g in zip(layers, key)}
            tried[key] = velocity_error(pipe, trace, chosen, images)
        return tried[key]

    def repaired(genes: np.ndarray) -> np.ndarray:
        """Random layers get the next larger size until the mean is reached."""
        while genes.mean() < min(mean, top.mean()):
            i = random.choice(np.flatnonzero(genes < top))
            genes[i] = min(size for size in choices[i] if size > genes[i])
        return genes

    def random_genes() -> np.ndarray:
        return repaired(np.array([random.choice(choice) for choice in choices]))

    def child(parents: list[np.ndarray]) -> np.ndarray:
        mother, father = (parents[i] for i in random.integers(len(parents), size=2))
        genes = np.where(random.random(len(layers)) < 0.5, mother, father)
        mutant = random.random(len(layers)) < 0.1
        return repaired(np.where(mutant, random_genes(), genes))

    pool = [top.copy(), *(random_genes() for _ in range(population - 1))]
    for generation in range(generations + 1):
        pool = sorted(pool, key=error)[: max(2, population // 2)]
        if generation < generations:
            pool += [child(pool) for _ in range(population - len(pool))]
    best = min(tried, key=tried.get)
    whole = {layer.name: layer.in_features for layer in layers}
    found = {name: None if g == whole[name] and g not in sizes else g for name, g in zip(whole, best)}
    calls = len(tried) * len(trace.timesteps) * len(images) * trace.branches
    possible = {size: sum(size in choice for choice in choices) for size in sizes}
    seconds = time.perf_counter() - start
    return GroupSearch(found, tried[best], len(tried), calls, seconds, possible, float(np.mean(best)))
