"""Pareto-aware search of a timestep-dynamic bit policy (arXiv:2602.09883), along the denoising trajectory.

From the first timestep to the last, each of M kept paths is extended by each candidate of that timestep; of
the M |C_t| new paths, each a point (average bits, accumulated error), the non-dominated ones stay, and of
these the M nearest the origin. A path is a quantized trajectory: its latents carry the error made so far.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from adatsq.candidates import SHARES, Options, every_step, reachable_to
from adatsq.fisher import Fisher
from adatsq.pareto import hypervolume, nearest_origin, non_dominated
from adatsq.policy import Policy, act_layers
from adatsq.trace import Trace, step, velocity

MOST_PATHS = 10_000  # that `brute_force` agrees to enumerate
COLUMNS = ["step", "path", "parent", "candidate", "average_bits", "error", "kept"]  # of `evaluated`


@dataclass(frozen=True)
class FrontPath:
    """A complete path: its policy, its average bits, and its error accumulated over all timesteps."""

    policy: Policy
    average_bits: float
    error: float
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class SearchResult:
    """front: non-dominated complete paths by rising bits. evaluated: a row per extension (step, path, parent,
    candidate, average_bits so far, error so far, kept). lowest: average bits of the cheapest candidates.
    calls: what the search cost, in transformer calls for one image (see `search_policies` for backward ones).
    """

    front: list[FrontPath]
    evaluated: pd.DataFrame
    lowest: float
    seconds: float
    calls: int = 0

    def pick(self, budget: float, judge: Callable[[Policy], float] | None = None) -> Policy:
        """The policy with the least error among those of at most `budget` average bits.

        judge: a final end-to-end check instead, Policy -> score, the highest wins, and of
        equal scores the one with the least error. ValueError if none fits.
        """
        within = [path for path in self.front if path.average_bits <= budget + 1e-9]
        if not within:
            least = min(path.average_bits for path in self.front)
            raise ValueError(
                f"no path within {budget} bits: the cheapest of this front takes {least:.4g}, the cheapest "
                f"candidates average {self.lowest:.4g}. Search with budget={budget}, or with lower shares"
            )
        if judge is None:
            return min(within, key=lambda path: path.error).policy
        return max(within, key=lambda path: (judge(path.policy), -path.error)).policy


def beam_search(
    pipe: DiffusionPipeline,
    trace: Trace,
    fisher: Fisher,
    beam: int = 4,
    shares: dict[str, Sequence[float]] = SHARES[3],
    a_bits: Sequence[int] = (3, 4, 8),
    budget: float | None = None,
    images: Sequence[int] | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> SearchResult:
    """The search on a pipeline with quantized weights, against the full-precision trace. beam = 1 is greedy.

    budget: average bits to end at; then a path must be able to end within one candidate's step below it.
    images: which of the trace's images to follow, by default the first four.
    batch_size: images per call of the transformer, which serves several paths at once; with batch_size =
    len(images) each call is the very call that the pipeline will make, and errors repeat bit for bit (with
    guidance, up to rounding: all branches run in one call).
    ValueError for a budget below the cheapest candidates, images that the trace has not, an unquantized
    pipeline, or another model's.
    """
    if beam < 1:
        raise ValueError(f"beam is {beam}, it must be at least 1")
    options = every_step(trace, fisher, shares, a_bits)
    select = beam_rule(options, beam, budget)
    return search_options(pipe, trace, options, select, images, batch_size, progress)


def beam_rule(options: Options, beam: int, budget: float | None) -> Callable[[int, np.ndarray], np.ndarray]:
    """(step, points) -> which points a beam goes on with."""
    reachable = reachable_to(options, budget)

    def select(t: int, points: np.ndarray) -> np.ndarray:
        kept = np.flatnonzero(reachable(t, points[:, 0]))
        kept = kept[non_dominated(points[kept])]
        return kept if t == len(options) - 1 else kept[nearest_origin(points[kept], beam)]

    return select


def brute_force(
    pipe: DiffusionPipeline,
    trace: Trace,
    fisher: Fisher,
    shares: dict[str, Sequence[float]] = SHARES[3],
    a_bits: Sequence[int] = (3, 4, 8),
    images: Sequence[int] | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> SearchResult:
    """The true frontier, by following every path: |C|^T of them, so for a few steps (3^4 = 81)."""
    options = every_step(trace, fisher, shares, a_bits)
    paths = int(np.prod([float(len(option)) for option in options]))
    if paths > MOST_PATHS:
        raise ValueError(f"{len(options)} steps have {paths:.2g} paths, over {MOST_PATHS}: use beam_search")
    return search_options(pipe, trace, options, lambda t, p: np.arange(len(p)), images, batch_size, progress)


def complete_paths(result: SearchResult) -> pd.DataFrame:
    """Every path that reached the last step: candidates (a tuple, a name per step), average_bits, error."""
    names: dict[int, tuple[str, ...]] = {-1: ()}
    for row in result.evaluated.itertuples():
        names[row.path] = (*names[row.parent], row.candidate)
    paths = result.evaluated[result.evaluated.step == result.evaluated.step.max()]
    return paths[["average_bits", "error"]].assign(candidates=paths["path"].map(names))


def hypervolume_share(result: SearchResult, truth: SearchResult) -> float:
    """Share of the area under the true front (of `brute_force`) that the result's front dominates as well.

    The area ends a tenth of the range beyond the worst complete path on either axis. Paths of the result have
    the errors that they have in truth: those of its own calls, of other batches, may be rounded otherwise.
    ValueError for a path that truth has not, which was searched among other candidates.
    """
    points = complete_paths(truth).set_index("candidates")
    strange = [path.candidates for path in result.front if path.candidates not in points.index]
    if strange:
        raise ValueError(
            f"path {' '.join(strange[0])} is of other candidates than the {len(points)} of truth"
        )
    span = np.ptp(points.to_numpy(), axis=0)
    reference = points.to_numpy().max(0) + 0.1 * np.where(span > 0, span, 1.0)
    fronts = (points.loc[[path.candidates for path in r.front]].to_numpy() for r in (result, truth))
    mine, whole = (hypervolume(front, reference) for front in fronts)
    return mine / whole


@dataclass
class Path:
    """A trajectory under way: the latents it is at, its scheduler, its choices and its error so far."""

    latents: Tensor
    scheduler: object
    chosen: list[str]
    bits: list[np.ndarray]
    error: float
    number: int  # row of `evaluated`

    @property
    def average_bits(self) -> float:
        return float(np.mean(self.bits))


def search_options(
    pipe: DiffusionPipeline,
    trace: Trace,
    options: Options,
    select: Callable[[int, np.ndarray], np.ndarray],
    images: Sequence[int] | None,
    batch_size: int,
    progress: bool,
) -> SearchResult:
    """Extend every path by every candidate, let `select` keep some, and go on to the next timestep."""
    images, rows, started = chosen_images(trace, images), [], time.perf_counter()
    with ready(pipe, trace, images) as (modules, start), torch.inference_mode():
        paths = [start]
        for t in tqdm(range(len(options)), desc="search", unit="step", disable=not progress):
            extensions = extend(pipe.transformer, modules, trace, t, paths, options[t], images, batch_size)
            points = np.array([(path.average_bits, path.error) for path in extensions])
            kept = select(t, points)
            for i, path in enumerate(extensions):
                parent, path.number = path.number, len(rows)
                rows.append([t, path.number, parent, path.chosen[-1], *points[i], False])
            for i in kept:
                rows[extensions[i].number][-1] = True
            paths = [extensions[i] for i in kept]

    front = itertools.compress(paths, non_dominated([(path.average_bits, path.error) for path in paths]))
    return SearchResult(
        front=[
            FrontPath(Policy.of(trace, np.array(p.bits)), p.average_bits, p.error, tuple(p.chosen))
            for p in sorted(front, key=lambda path: path.average_bits)
        ],
        evaluated=pd.DataFrame(rows, columns=COLUMNS),
        lowest=float(np.mean([min(bits.mean() for bits in option.values()) for option in options])),
        seconds=time.perf_counter() - started,
        calls=len(rows) * len(images),
    )


def chosen_images(trace: Trace, images: Sequence[int] | None) -> list[int]:
    """The trace's first four by default. ValueError for images that it has not."""
    images = list(range(min(4, len(trace))) if images is None else images)
    if not images or not set(images) <= set(range(len(trace))):
        raise ValueError(f"images are {images}: give some of 0 to {len(trace) - 1}, the images of the trace")
    return images


@contextmanager
def ready(
    pipe: DiffusionPipeline, trace: Trace, images: list[int]
) -> Iterator[tuple[list[torch.nn.Module], Path]]:
    """The modules that policies are for, and a path of no steps; afterwards they have the bits they had.

    ValueError for another model's trace, an unquantized pipeline, or one that follows a policy.
    """
    transformer = pipe.transformer
    trace.check(pipe)
    Policy.of(trace, 16).check(pipe)
    if hasattr(transformer, "_adatsq_policy"):
        raise ValueError("the policy applied to this pipeline would overrule the search: remove it first")
    modules = [transformer.get_submodule(layer.name) for layer in act_layers(trace)]
    before = [module.a_bits for module in modules]
    start = trace.latents[0][images].to(transformer.device, trace.dtype)
    try:
        yield modules, Path(start, trace.scheduler, [], [], 0.0, -1)
    finally:
        for module, a_bits in zip(modules, before):
            module.a_bits = a_bits


def extend(
    transformer: torch.nn.Module,
    modules: list[torch.nn.Module],
    trace: Trace,
    t: int,
    paths: list[Path],
    option: dict[str, np.ndarray],
    images: list[int],
    batch_size: int,
) -> list[Path]:
    """Every path taken one step further by every candidate; a call serves as many paths as a batch holds."""
    reference = trace.latents[t + 1][images].to(transformer.device, torch.float64)
    together = max(1, batch_size // len(images))
    extensions, errors = [], []
    for name, bits in option.items():
        for module, a_bits in zip(modules, bits.tolist()):
            module.a_bits = a_bits
        for first in range(0, len(paths), together):
            parents = paths[first : first + together]
            latents = torch.cat([path.latents for path in parents])
            v = velocity(transformer, trace, t, latents, images * len(parents))
            for path, v_path in zip(parents, v.split(len(images))):
                scheduler = copy.deepcopy(path.scheduler)
                after = step(scheduler, v_path, t, path.latents)
                errors.append((after.double() - reference).square().mean())
                extensions.append(
                    Path(after, scheduler, [*path.chosen, name], [*path.bits, bits], path.error, path.number)
                )
    errors = torch.stack(errors).tolist()  # the only wait for the device in a step
    for path, error in zip(extensions, errors):
        path.error += error
        if not np.isfinite(path.error):
            raise FloatingPointError(f"candidate {path.chosen[-1]!r} gives NaN or infinity at step {t}")
    return extensions
