"""What the rows of a results table cost, measured once more, alone on the device and without their pictures:

    python -m adatsq.costs --model data/models/flux-dev-mini --out data/results

Rows of `adatsq.benchmark` that were measured with --shared have no seconds, and older ones lack other costs.
For each of them the weights are made again, and the policy is searched again and picked: seconds, transformer
calls, the most memory, and the bytes of the saved transformer go into the row in NAME-facts.csv. Scores, bits
and policies stay as they are. Columns costs_commit and costs_device say which code measured them, and where.
Each row is written as it is measured; rows that lack nothing are skipped, and with --shared none is measured.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from diffusers import DiffusionPipeline

import adatsq
from adatsq.benchmark import BUDGETS, WEIGHTS, attempt, command, on_weights, quantized
from adatsq.files import write_text
from adatsq.measurements import stored
from adatsq.results import ORDER, tidy_tables
from adatsq.rows import SEARCHED, Setting, device_name, searched, timed

KEPT = ("average_bits", "parameter_weighted_bits", "flop_weighted_bits", "front_paths")  # of the row's policy


def main(arguments: Sequence[str] | None = None) -> None:
    command(arguments, __doc__, ORDER, run)


def run(setting: Setting, pipe: DiffusionPipeline, calibration: list[str], seed: int) -> list[str]:
    """Costs of all stored rows that lack some. pipe: the full-precision one. Returns names of failed rows."""
    failed: list[str] = []
    if setting.shared:
        raise ValueError("costs are measured alone on the device, not with --shared")
    todo = {
        (method, w_bits): rows
        for w_bits in BUDGETS
        for method in WEIGHTS
        if (rows := lacking(setting, method, w_bits))
    }
    if not todo:
        return failed
    adatsq.record(pipe, calibration[:1], setting.steps, seed, progress=False)  # the first run waits longest
    trace, record_s = timed(adatsq.record, pipe, calibration, setting.steps, seed, 32, progress=False)
    fisher, fisher_s = timed(adatsq.temporal_fisher, pipe, trace, batch_size=16, progress=False)

    def weights(method: str, w_bits: int, rows: list[tuple[str, float]]) -> str:
        pipe, facts = quantized(setting, method, w_bits, trace, fisher)
        facts |= {"record_s": record_s, "fisher_s": fisher_s}
        for name, a_bits in rows:
            attempt(failed, f"{name} W{w_bits}A{a_bits:g}", row, pipe, name, w_bits, a_bits, facts)
        return f"{facts['quantize_s']:.1f} s for the weights"

    def row(pipe: DiffusionPipeline, name: str, w_bits: int, a_bits: float, facts: dict) -> str:
        if name in SEARCHED:
            _, _, found = searched(setting, pipe, trace, fisher, name, w_bits, a_bits)
            facts = {**facts, **{fact: value for fact, value in found.items() if fact not in KEPT}}
        write(setting, name, w_bits, a_bits, facts)
        return ", ".join(f"{what} {facts[what]:.1f}" for what in ("search_s", "judge_s") if what in facts)

    for (method, w_bits), rows in todo.items():
        attempt(failed, f"{method} weights W{w_bits}", weights, method, w_bits, rows)
    tidy_tables(setting.path(""))
    return failed


def lacking(setting: Setting, method: str, w_bits: int) -> list[tuple[str, float]]:
    """(method, activation bits) of the stored rows on these weights that lack a cost."""
    facts = stored(setting.path("-facts.csv"))
    rows = [(name, a_bits) for name, a_bits in on_weights(method, w_bits) if name in setting.methods]
    memory = "peak" if torch.device(setting.device).type == "cuda" else "process"
    return [(name, a_bits) for name, a_bits in rows if lacks(facts, name, w_bits, a_bits, memory)]


def lacks(facts: pd.DataFrame, method: str, w_bits: int, a_bits: float, memory: str = "") -> bool:
    """Whether a row of NAME-facts.csv is there and lacks a cost. memory: the kind that is wanted, "peak" or
    "process"; by default either will do."""
    if facts.empty:
        return False
    row = facts[(facts.method == method) & (facts.w_bits == w_bits) & (facts.a_bits == a_bits)]
    wanted, tasks = ["record_s", "quantize_s", "calibration_calls", "disk_bytes"], ["quantize"]
    if method in SEARCHED:
        wanted += ["search_s", "judge_s", "search_calls"]
        tasks.append("search")
    if row.reindex(columns=wanted).isna().any(axis=None):
        return True
    kinds = [memory] if memory else ["peak", "process"]
    known = [row.reindex(columns=[f"{task}_{kind}_bytes" for task in tasks]).notna() for kind in kinds]
    return not row.empty and not any(bool(kind.all(axis=None)) for kind in known)


def write(setting: Setting, method: str, w_bits: int, a_bits: float, facts: dict) -> None:
    """Put facts into a stored row; all else in the file stays to the letter."""
    file = setting.path("-facts.csv")
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    bits = table[["w_bits", "a_bits"]].astype(float)
    row = (table.method == method) & (bits.w_bits == w_bits) & (bits.a_bits == a_bits)
    origin = {"costs_commit": setting.commit, "costs_device": device_name(setting.device)}
    for name, value in {**facts, **origin}.items():
        if name not in table:
            table[name] = ""
        table.loc[row, name] = str(value)
    write_text(file, table.to_csv(index=False))


if __name__ == "__main__":
    main()
