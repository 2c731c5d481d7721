"""What is not measured yet, by the stored files alone: `python -m adatsq.measure --missing` prints it."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from adatsq import sweep
from adatsq.ablation_plan import plan
from adatsq.ablation_steps import CONTROLS, FIXED, SEARCHES, STEPS, measured
from adatsq.benchmark import wanted
from adatsq.costs import lacks
from adatsq.measurements import stored
from adatsq.models import SAMPLING_FILE
from adatsq.peers import PEERS
from adatsq.search_compare import BUDGETS, HELD_OUT, RANDOM
from adatsq.search_compare import missing as policies

CALIBRATION = 32  # pictures of the ablation on a GPU


def lacking(model: Path, out: Path, job: str) -> list[str]:
    """Names of the rows of a job of `measure` that the files of this model do not hold."""
    name = Path(out) / Path(model).name
    if job == "benchmark":
        return _scored(name, wanted())
    if job == "costs":
        facts = stored(Path(f"{name}-facts.csv"))
        return [f"{m} W{w}A{a:g}" for m, w, a in wanted()[1:] if lacks(facts, m, w, a)]
    if job == "peers":
        return _scored(name, [(peer, *bits) for peer, p in PEERS.items() for bits in p.bits])
    if job == "search":
        path = Path(f"{name}-search-compare.csv")
        return [f"{n} at {b:g}" for b in BUDGETS for n in policies(path, 3, b, RANDOM, HELD_OUT)]
    settings = json.loads((Path(model) / SAMPLING_FILE).read_text())
    if job == "sweep":
        sizes = sweep.SIZES["clips" if "num_frames" in settings else "pictures"]
        return sweep.missing(Path(f"{name}-explorer.json"), **sweep.AXES, **sizes)
    return _ablation(name, int(job[-1]), settings["num_inference_steps"])


def said(model: Path, out: Path, jobs: Sequence[str]) -> Iterable[str]:
    """A line per job: how many rows are missing, and which."""
    for job in jobs:
        rows = lacking(model, out, job)
        yield f"{Path(model).name} {job}: " + (f"{len(rows)} missing: {'; '.join(rows)}" if rows else "whole")


def _scored(name: Path, rows: Iterable[tuple[str, int, float]]) -> list[str]:
    facts = stored(Path(f"{name}-facts.csv"))
    there = set() if facts.empty else set(zip(facts.method, facts.w_bits, facts.a_bits))
    return [f"{m} W{w}A{a:g}" if m != "fp" else m for m, w, a in rows if (m, w, a) not in there]


def _ablation(name: Path, w_bits: int, steps: int) -> list[str]:
    path = Path(f"{name}-ablation.csv")
    run = stored(path, part="run")
    if len(run) and not re.search(rf"\b{CALIBRATION} calibration", run.setting.iloc[0]):
        return [f"all of it: {path} is of {run.setting.iloc[0]}, and to be deleted before a larger run"]
    rows = [(row.part, row.setting, float(row.a_bits)) for row in plan(w_bits, CALIBRATION)]
    table = stored(path, w_bits=w_bits)
    there = set() if table.empty else set(zip(table.part, table.setting, table.a_bits))
    found = [f"{part}: {setting} A{a:g}" for part, setting, a in rows if (part, setting, a) not in there]
    names = {*FIXED, *SEARCHES, *CONTROLS}
    for length in sorted({n for n in STEPS if n <= steps} | {steps}):
        there = measured(Path(f"{name}-ablation-steps.csv"), w_bits, length)
        found += [f"runs of {length} steps"] * (not names <= there)
    return found
