"""What is not measured yet, by the stored files alone: `python -m adatsq.measure --missing` prints it."""

import json
import re
from collections.abc import Iterable
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
FOR_TABLES = ("benchmark", "search", "peers", "modelopt", "costs")  # of every model
OTHERS = tuple(peer for peer in PEERS if peer != "modelopt")  # of the job "peers"
PAPERS_ABLATION = ("flux-dev-mini", "ablation-w3")  # the one model and width of the paper's table 3
# Seconds on one H200: to begin, for a row of four steps, and for each step more of a row, where a step with
# guidance counts twice. Read off runs that shared the device, so good to a factor of two.
SECONDS = {
    "benchmark": (20, 5.0, 0.45),
    "peers": (15, 4.0, 0.15),
    "modelopt": (120, 8.0, 0.3),
    "search": (30, 0.5, 0.04),
    "ablation-w3": (30, 1.5, 0.06),
    "ablation-w4": (30, 1.5, 0.06),
    "sweep": (30, 5.0, 0.15),
    "costs": (20, 5.0, 0.15),
}


def for_tables(name: str, job: str) -> bool:
    """Whether a job of this model is one of those that the paper's four tables need; the others are extra:
    the ablation of more models and widths, and what the explorer shows."""
    return job in FOR_TABLES or (name, job) == PAPERS_ABLATION


def lacking(model: Path, out: Path, job: str) -> list[str]:
    """Names of the rows of a job of `measure` that the files of this model do not hold."""
    name = Path(out) / Path(model).name
    if job == "benchmark":
        return _scored(name, wanted())
    if job == "costs":
        facts = stored(Path(f"{name}-facts.csv"))
        return [f"{m} W{w}A{a:g}" for m, w, a in wanted() if m != "fp" and lacks(facts, m, w, a)]
    if job in ("peers", "modelopt"):
        methods = OTHERS if job == "peers" else (job,)
        return _scored(name, [(peer, *bits) for peer in methods for bits in PEERS[peer].bits])
    if job == "search":
        path = Path(f"{name}-search-compare.csv")
        return [f"{n} at {b:g}" for b in BUDGETS for n in policies(path, 3, b, RANDOM, HELD_OUT)]
    settings = _settings(model)
    if job == "sweep":
        sizes = sweep.SIZES["clips" if "num_frames" in settings else "pictures"]
        return sweep.missing(Path(f"{name}-explorer.json"), **sweep.AXES, **sizes)
    return _ablation(name, int(job[-1]), settings["num_inference_steps"])


def said(model: Path, out: Path, job: str) -> str:
    """How many rows of a job are missing, about how long they take, and which they are."""
    rows, kind = lacking(model, out, job), "" if for_tables(Path(model).name, job) else ", extra"
    about = f", about {estimate(model, job, len(rows)):.0f} s on one H200"
    whole = "whole" if job != "costs" else "whole, of the rows that are there"  # others may come with theirs
    return f"{Path(model).name} {job}: " + (
        f"{len(rows)} missing{kind}{about}: {'; '.join(rows)}" if rows else whole
    )


def estimate(model: Path, job: str, rows: int) -> float:
    """Seconds that so many rows take, roughly: `SECONDS`."""
    settings, (begin, least, more) = _settings(model), SECONDS[job]
    steps = settings["num_inference_steps"] * (2 if "num_frames" in settings else 1)
    return (begin + rows * (least + more * max(0, steps - 4))) * (rows > 0)


def _settings(model: Path) -> dict:
    return json.loads((Path(model) / SAMPLING_FILE).read_text())


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
