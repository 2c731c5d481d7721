"""When is a model sensitive? Profiles of Fisher information over the noise level, and what changes them.

    J[s, l] = I[s, l] / mean_s I[s, l]        at noise levels s that two runs share, for each layer l

I is that of `fisher`. Runs of other models, or with other steps, meet at the noise level sigma (1: only
noise, 0: the image), which each scheduler knows; between a run's own levels log I is interpolated linearly.
J has no unit and a mean of 1 in each layer, so that only *when* counts, not how much.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import DiffusionPipeline
from scipy.stats import spearmanr
from torch import nn

from adatsq.fisher import Fisher, temporal_fisher
from adatsq.models import fingerprint
from adatsq.trace import Trace, record

TINY = 1e-30  # instead of zero, under a logarithm
PULLED = 3.0  # the shift that evenly spaced steps are compared with, as the paper's larger models have it


@dataclass(frozen=True, eq=False)
class Run:
    """Fisher information (T, N, L) of N images and the T noise levels it belongs to, falling."""

    fisher: Fisher
    levels: np.ndarray

    def profile(self, grid: np.ndarray, images: Sequence[int] | None = None) -> np.ndarray:
        """J at the levels of `grid`, (len(grid), L), of the mean over some of the images (all)."""
        chosen = self.fisher.per_image if images is None else self.fisher.per_image[:, images]
        known = np.log(np.maximum(chosen.mean(1), TINY))[::-1]  # np.interp wants rising levels
        at = np.array([np.interp(grid, self.levels[::-1], layer) for layer in known.T]).T
        at = np.exp(at - at.max(0))
        return at / at.mean(0)


def noise_levels(trace: Trace, timesteps: Sequence[float] | None = None) -> np.ndarray:
    """Noise level of each step of a recorded run; of other timesteps of the same model, if given.

    What a transformer is called with is sigma, 1 - sigma, 1000 sigma ... by its family: the straight line
    through the recorded run tells. ValueError if the run does not lie on one, or has a single step.
    """
    steps = np.asarray(trace.timesteps, dtype=float)
    levels = np.asarray(trace.scheduler.sigmas[: len(steps)], dtype=float)
    if timesteps is None:
        return levels
    if len(steps) < 2:
        raise ValueError("a run of one step does not tell which noise level another timestep has")
    slope, offset = np.polyfit(steps, levels, 1)
    missed = np.abs(slope * steps + offset - levels).max()
    if missed > 2e-3:  # a timestep in thousandths may be cut to a whole number
        raise ValueError(f"noise levels are no straight line over timesteps: {missed:.2g} off")
    return slope * np.asarray(timesteps, dtype=float) + offset


def measure(pipe: DiffusionPipeline, trace: Trace, seed: int = 0, batch_size: int = 4) -> Run:
    """The Fisher information of a recorded run, over its noise levels."""
    fisher = temporal_fisher(pipe, trace, seed=seed, batch_size=batch_size, progress=False)
    return Run(fisher, noise_levels(trace))


def shared_levels(runs: Sequence[Run]) -> np.ndarray:
    """The levels of the first run that lie inside the range of all."""
    low = max(run.levels.min() for run in runs) - 1e-6
    high = min(run.levels.max() for run in runs) + 1e-6
    return runs[0].levels[(runs[0].levels >= low) & (runs[0].levels <= high)]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two profiles over all their levels and layers; 0 if one is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a.ravel(), b.ravel()).statistic)


def bootstrap(runs: dict[str, Run], base: str, resamples: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    """Correlation of each run's profile with that of `base`, (resamples,), over draws of the images.

    Runs of the same images (equal seeds) are drawn alike; the others are drawn on their own.
    """
    rng, grid = np.random.default_rng(seed), shared_levels(list(runs.values()))
    found = {name: np.empty(resamples) for name in runs if name != base}
    for i in range(resamples):
        drawn: dict[tuple, np.ndarray] = {}
        for run in runs.values():
            seeds = tuple(run.fisher.seeds)
            if seeds not in drawn:
                drawn[seeds] = rng.integers(0, len(seeds), len(seeds))
        profiles = {n: run.profile(grid, drawn[tuple(run.fisher.seeds)]) for n, run in runs.items()}
        for name, values in found.items():
            values[i] = correlation(profiles[base], profiles[name])
    return found


def what_changes_it(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    others: Sequence[str],
    captions: Sequence[str],
    steps: int,
    seed: int = 0,
    batch_size: int = 4,
    **call,
) -> dict[str, Run]:
    """One profile, and the same with one thing changed at a time.

    base: `prompts`, `steps`. other probes: the same again, so that all that differs is chance.
    other pictures: `others`, prompts of the same kind, from other noise. twice the steps, other shift: the
    schedule. other captions: `captions`, of another kind, from the same noise: the data. new weights: the
    architecture with fresh weights, asked about the very inputs of the base run; while it runs there are two
    transformers on the device. Each run has random probes of its own. call: as in `record`.
    """

    def run(texts: Sequence[str], count: int = steps, first: int = seed) -> Trace:
        return record(pipe, texts, count, first, batch_size, progress=False, **call)

    def add(name: str, trace: Trace) -> None:
        found[name] = measure(pipe, trace, seed=len(found), batch_size=batch_size)

    found: dict[str, Run] = {}
    trace = run(prompts)
    add("base", trace)
    add("other probes", trace)
    add("other pictures", run(others, first=seed + 1000))
    add("twice the steps", run(prompts, 2 * steps))
    with swapped(pipe, scheduler=other_shift(pipe.scheduler)):
        add("other shift", run(prompts))
    add("other captions", run(captions))
    with swapped(pipe, transformer=fresh(pipe.transformer)):
        add("new weights", replace(trace, model=fingerprint(pipe.transformer)))
    return found


def other_shift(scheduler):
    """The same scheduler with evenly spaced noise levels; if they are that already, pulled towards noise."""
    config = dict(scheduler.config)
    names = [name for name in ("shift", "flow_shift", "base_shift", "max_shift") if name in config]
    if not names:
        raise ValueError(f"{type(scheduler).__name__} has no shift in its configuration")
    if config.get("use_dynamic_shifting"):  # base_shift and max_shift are logarithms of the shift
        even = config["base_shift"] == config["max_shift"] == 0
        change = dict.fromkeys(("base_shift", "max_shift"), float(np.log(PULLED)) if even else 0.0)
    else:
        name = names[0]
        change = {name: PULLED if config[name] == 1 else 1.0}
    return type(scheduler).from_config({**config, **change})


def fresh(transformer: nn.Module, seed: int = 0) -> nn.Module:
    """The same architecture with the weights that it has before any training."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(transformer.dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            new = type(transformer).from_config(transformer.config)
    finally:
        torch.set_default_dtype(usual)
    return new.to(transformer.device).eval()


@contextmanager
def swapped(pipe: DiffusionPipeline, **parts) -> Iterator[None]:
    """While open, the pipeline has these parts in place of its own."""
    own = {name: getattr(pipe, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(pipe, name, part)
        yield
    finally:
        for name, part in own.items():
            setattr(pipe, name, part)
