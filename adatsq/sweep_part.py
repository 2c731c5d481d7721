"""One weight setting of the sweep: its policies searched, drawn and judged, each kept as soon as it is there.

A path is kept as [average bits, error, bits], the last a word of digits per step.
"""

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline

from adatsq.beams import beam_fronts
from adatsq.bench import Bench, Exam, coded, digits, drawn, finite
from adatsq.candidates import LADDER, SHARES, every_step
from adatsq.facts import size
from adatsq.files import write_text
from adatsq.lagrangian import follow, lagrangian_search
from adatsq.marginals import marginal_errors
from adatsq.pareto import non_dominated
from adatsq.policy import Policy, act_layers

A_BITS = (3, 4, 8)
# The beam search with a ladder of bits or the default shares, bits by carried error, fixed bits.
METHODS = ("ladder", "paper", "lagrangian", "uniform")
UNIFORM = (3, 4)  # fixed bits
SEARCH = 4  # of the calibration pictures, those that searches follow


@dataclass(frozen=True)
class Plan:
    """What is wanted of every weight setting. parts: start of the names of the files that keep what is done,
    None: none are written. of: what a file must say that it is of, to be gone on with."""

    methods: Sequence[str]
    beams: Sequence[int]
    budgets: Sequence[float]
    parts: Path | None = None
    of: str = ""
    progress: bool = True

    def file(self, w_bits: int, tau: float) -> Path | None:
        return self.parts and self.parts.with_name(f"{self.parts.name}-part-w{w_bits}-tau{tau:g}.json")


def weights_part(bench: Bench, exam: Exam, plan: Plan, w_bits: int, tau: float) -> tuple[dict, list[dict]]:
    """One choice of weights: their size, what roundings do to them, and the policies drawn on them; and a
    setting per method and beam, whose choices name these policies by their place among them."""
    file, started = plan.file(w_bits, tau), time.perf_counter()
    part = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
    if part.get("of") != plan.of:
        part = {"of": plan.of, "weights": None, "found": {}, "drawn": {}}
    quantized = cache(lambda: bench.quantized(w_bits, tau))  # once, and only if something is to be done

    def keep(what: str) -> None:
        if file:
            write_text(file, json.dumps(part))
        if plan.progress:
            print(f"W{w_bits}, tau {tau:g}: {what}, {time.perf_counter() - started:.0f} s", flush=True)

    if part["weights"] is None:
        part["weights"] = _weights(bench, quantized())
        keep("quantized")
    for method in plan.methods:
        if method not in part["found"]:
            fixed = part["weights"]["uniform"]
            part["found"][method] = list(_searched(bench, quantized(), plan, method, w_bits, fixed))
            keep(f"{method} searched")
    settings = _settings({method: part["found"][method] for method in plan.methods}, plan.budgets)
    wanted = list(dict.fromkeys(path[2] for setting in settings for _, path in setting["choices"]))
    for n, bits in enumerate(wanted):
        if bits not in part["drawn"]:
            part["drawn"][bits] = drawn(bench, quantized(), Policy.of(bench.trace, _array(bits)), exam)
            keep(f"policy {n + 1} of {len(wanted)} drawn")

    key = {"w_bits": w_bits, "tau": finite(tau)}
    uniform = _points(part["weights"].pop("uniform"))
    policies = [part["drawn"][bits] for bits in wanted]
    errors = {path[2]: path[1] for setting in settings for _, path in setting["choices"]}
    for bits, policy in zip(wanted, policies):
        policy["error"] = _short(errors[bits])
    for setting in settings:
        choices = [{"budget": budget, "policy": wanted.index(path[2])} for budget, path in setting["choices"]]
        setting |= {**key, "uniform": uniform, "choices": choices}
    return {**key, **part["weights"], "policies": policies}, settings


def _weights(bench: Bench, pipe: DiffusionPipeline) -> dict:
    """Size, errors of single roundings, and what fixed bits do."""
    images, stored = _images(bench), size(pipe)
    shape = len(bench.trace.timesteps), len(act_layers(bench.trace))
    fixed = {bits: np.full(shape, bits) for bits in UNIFORM}
    _, errors = follow(pipe, bench.trace, fixed, images)
    return {
        **{name: stored[name] for name in ("transformer_bytes", "effective_bits")},
        "errors": coded(marginal_errors(pipe, bench.trace, A_BITS, images, progress=False)),
        "uniform": [_path(bits, float(bits.mean()), errors[b]) for b, bits in fixed.items()],
    }


def _searched(
    bench: Bench, pipe: DiffusionPipeline, plan: Plan, method: str, w_bits: int, fixed: list
) -> Iterator[tuple[int | None, list]]:
    """(beam or None, complete paths of the searches for all budgets)."""
    given = {"images": _images(bench), "a_bits": A_BITS}
    if method == "uniform":
        yield None, fixed
    elif method == "lagrangian":
        found = lagrangian_search(pipe, bench.trace, bench.fisher, plan.budgets, progress=False, **given)
        yield None, [_path(path.policy.bits, path.average_bits, path.error) for path in found.front]
    else:
        shares = shares_of(method, w_bits)
        options = every_step(bench.trace, bench.fisher, shares, A_BITS)
        low, high = (
            np.mean([limit(bits.mean() for bits in option.values()) for option in options])
            for limit in (min, max)
        )
        reached = [b for b in plan.budgets if b >= low - 1e-9] or plan.budgets[
            :1
        ]  # the search names what is wrong
        reached = sorted({min(b, max(high, reached[0])) for b in reached})
        fronts = beam_fronts(pipe, bench.trace, bench.fisher, plan.beams, reached, shares, **given)
        for beam in plan.beams:
            paths = [path for budget in reached for path in fronts[beam, budget]]
            yield beam, [_path(path.policy.bits, path.average_bits, path.error) for path in paths]


def shares_of(method: str, w_bits: int) -> dict[str, Sequence[float]]:
    """The candidates of a beam search, as these methods of the benchmark have them."""
    return LADDER if method == "ladder" else SHARES[3 if w_bits < 4 else 4]


def _settings(found: dict[str, list], budgets: Sequence[float]) -> list[dict]:
    """Per method and beam its paths and front as points, and the (budget, best path within it)."""
    known, settings = {}, []  # a policy that several searches found has the error that the first measured
    for method, searches in found.items():
        for beam, paths in searches:
            paths = [[average, known.setdefault(bits, error), bits] for average, error, bits in paths]
            best = non_dominated([path[:2] for path in paths])
            within = {b: [path for path in paths if path[0] <= b + 1e-6] for b in budgets}
            settings.append(
                {
                    "method": method,
                    "beam": beam,
                    "paths": _points(paths),
                    "front": sorted(_points(itertools.compress(paths, best))),
                    "choices": [
                        (b, min(some, key=lambda path: path[1])) for b, some in within.items() if some
                    ],
                }
            )
    return settings


def _path(bits: np.ndarray, average: float, error: float) -> list:
    return [round(average, 6), error, " ".join(digits(bits))]


def _array(bits: str) -> np.ndarray:
    return np.array([[int(digit) for digit in row] for row in bits.split()])


def _points(paths: Iterable[list]) -> list[list[float]]:
    """Each once: searches for several budgets meet."""
    return list(map(list, dict.fromkeys((round(path[0], 4), _short(path[1])) for path in paths)))


def _images(bench: Bench) -> range:
    return range(min(SEARCH, len(bench.trace)))


def _short(error: float) -> float:
    return float(f"{error:.4g}")
