"""The paper's table 4 in miniature: what a method costs, and what it saves."""

import re

import pandas as pd

from adatsq.results import ORDER
from adatsq.rows import SEARCHED
from adatsq.tables import Scores
from adatsq.tables_paper import bits

FIRST = (  # methods whose costs the page shows first: those that search, weigh timesteps, or add a branch
    "rtn+search",
    "q-dit",
    "svdquant",
    "svdquant+small-rank",
    "hadamard+gptq",
    "hadamard+gptq+search",
    "hadamard+gptq+lagrangian",
    "hadamard+gptq+prices",
    "hadamard+gptq+widths",
    "hadamard+gptq+widths-average",
    "adatsq-weights",
    "adatsq",
    "adatsq+ladder",
    "adatsq+lagrangian",
)
OTHERS = tuple(method for method in ORDER[1:] if method not in FIRST)
COSTS = {
    "record_s": "record, s",
    "fisher_s": "Fisher, s",
    "quantize_s": "weights, s",
    "group_s": "group sizes, s",
    "search_s": "search, s",
    "judge_s": "pick, s",
    "calibration_calls": "weights, calls",
    "fisher_calls": "Fisher, calls",
    "group_calls": "group sizes, calls",
    "search_calls": "search, calls",
    "quantize_peak_bytes": "weights, peak MB",
    "search_peak_bytes": "search, peak MB",
    "quantize_process_bytes": "weights, process MB",
    "search_process_bytes": "search, process MB",
}


def costs(scores: Scores, methods: tuple[str, ...]) -> pd.DataFrame:
    """What the rows of these methods took: seconds, transformer calls for one picture, memory.

    Only what a row really needs: recording and Fisher information are made once for all rows of a model.
    """
    rows = scores.table[scores.table.method.isin(methods) & scores.table.metric.isin(COSTS)]
    plain = ~rows.method.str.startswith("adatsq") & ~rows.method.isin(SEARCHED)
    rows = rows[~(plain & (rows.metric == "fisher_s"))]
    table = rows.pivot_table(index="name", columns="metric", values="value", aggfunc="first")
    names = [name for name in scores.show(["total"]).index if name in table.index]
    table = table.reindex(index=names, columns=[column for column in COSTS if column in table])
    memory = [column for column in table if column.endswith("_bytes")]
    table[memory] /= 1e6
    return table.rename(columns=COSTS)


def group_search(scores: Scores, name: str) -> str | None:
    """What the search of group sizes of a row such as "q-dit W4A4" had to choose from, tried and cost.

    None if the row, or its search, is not stored. No full stop.
    """
    tried, calls, mean = (scores.value(name, f"group_{fact}") for fact in ("tried", "calls", "mean"))
    if pd.isna(tried):
        return None
    metrics = scores.table[scores.table.name == name].set_index("metric").value
    sizes = {m.split("_")[1]: int(n) for m, n in metrics.items() if re.fullmatch(r"group_\d+_layers", m)}
    possible = ", ".join(f"{size} ({n} layers)" for size, n in sizes.items() if n) or "none"
    never = ", ".join(size for size, n in sizes.items() if not n)
    took = scores.value(name, "group_s")
    line = f"sizes that divide a layer's inputs: {possible}" + (f"; of no layer: {never}" if never else "")
    many = "assignment" if tried == 1 else "assignments"
    cost = f"{tried:.0f} {many}, {calls:.0f} calls" + ("" if pd.isna(took) else f", {took:.1f} s")
    what = "the largest that divide, without a search" if tried == 1 else "the best of those tried"
    return f"{line}. Taken: {what}, {mean:.0f} on average; {cost}"


def calls(scores: Scores, w_bits: int = 4) -> pd.Series:
    """Transformer calls for one picture that a method's row takes in all, by method, at its lowest budget:
    those of the weights (its own searches for groups or layers among them), of the Fisher information, whose
    backward passes count as two more, and of the search. Recording the trace is the same for all, and left
    out. NaN where the row, or a count, is not stored.
    """
    found = {}
    for method in ORDER[1:]:
        a_bits = min(SEARCHED[method].budgets[w_bits]) if method in SEARCHED else w_bits
        name = f"{method} W{w_bits}A{a_bits:g}"
        fisher = method.startswith("adatsq") or method in SEARCHED
        parts = [scores.value(name, "calibration_calls")]
        parts += [3 * scores.value(name, "fisher_calls")] * fisher
        parts += [scores.value(name, "search_calls")] * (method in SEARCHED)
        found[method] = sum(parts)
    return pd.Series(found, name="calls")


def equal_calls(found: pd.Series) -> str:
    """Which methods take as many calls as most do, and how many times that the others take. No full stop."""
    known = found.dropna()
    if known.empty:
        return "no calls are stored"
    usual = known.mode().max()
    same = list(known.index[known == usual])
    others = [f"{method} {value / usual:.3g}" for method, value in known.items() if value != usual]
    line = f"{usual:.0f} calls: {', '.join(same)}"
    line += f". Not equal, times as many: {', '.join(others)}" * bool(others)
    unknown = list(found.index[found.isna()])
    return line + f". Not recorded: {', '.join(unknown)}" * bool(unknown)


def weights(scores: Scores) -> pd.DataFrame:
    """A row per method that makes weights, columns per width: MB of the transformer counted (`summary`), and
    as its files lie on disk, effective bits per parameter, scales and all else included, and the ratio of 16
    bits to these. What is stored of no method is left out."""
    facts = {"transformer_bytes": "MB", "disk_bytes": "MB on disk", "effective_bits": "bits"}
    rows = {}
    for method in (method for method in ORDER[1:] if method not in SEARCHED):
        rows[method] = {}
        for w_bits in (4, 3):
            for fact, called in facts.items():
                value = scores.value(f"{method} W{w_bits}A{w_bits}", fact)
                rows[method][f"W{w_bits}, {called}"] = value / 1e6 if fact.endswith("bytes") else value
            rows[method][f"W{w_bits}, smaller by"] = 16 / rows[method][f"W{w_bits}, bits"]
    return pd.DataFrame.from_dict(rows, orient="index").dropna(axis=1, how="all").dropna(how="all")


def saved(scores: Scores) -> pd.DataFrame:
    """Size of the full method's rows as files: bytes, the same in 16 bit, and the ratios of bits to 16."""
    table = bits(scores)
    table = table[table.method == "adatsq"]
    parameters = 8 * table.transformer_bytes / table.effective_bits
    return pd.DataFrame(
        {
            "parameters, M": parameters / 1e6,
            "16 bit, MB": 2 * parameters / 1e6,
            "saved, MB": table.transformer_bytes / 1e6,
            "smaller by": 16 / table.effective_bits,
            "bits, all": table.effective_bits,
            "bits, quantized layers": table.effective_w_bits,
            "average a bits": table.average_bits,
            "by multiplications": table.flop_weighted_bits,
            "16 / that": 16 / table.flop_weighted_bits,
        }
    )
