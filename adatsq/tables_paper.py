"""The paper's tables 1, 2 and 4 in miniature: our rows with their intervals, the paper's beside them.

Numbers of the paper are of other models, prompts and judges: only differences and order are compared.
"""

import re

import pandas as pd
from scipy.stats import kendalltau

from adatsq.benchmark import wanted
from adatsq.pareto import non_dominated
from adatsq.results import ORDER
from adatsq.tables import Scores, plus

NOT_MEASURED = "not measured"
COMMAND = "`python -m adatsq.benchmark --model data/models/{}`"
ON_BASES = {  # base: GPTQ with all timesteps alike, then weighted by Fisher information, then with the search
    "rotation": ("hadamard+gptq", "adatsq-weights", "adatsq"),
    "plain": ("gptq", "adatsq+plain", "adatsq+plain+search"),
    "smoothing": ("smoothquant+gptq", "adatsq+smoothquant", "adatsq+smoothquant+search"),
    "low-rank branch": ("svdquant+gptq", "adatsq+svdquant", "adatsq+svdquant+search"),
}
GAINS = ("weighted by time", "searched bits")  # of the method's two parts
UNIFORM = ("fp", "rtn", "hadamard", "hadamard+gptq", "adatsq-weights")  # all activations at the row's bits


def missing(scores: Scores | None, name: str, widths: tuple[int, ...] = (4, 3)) -> str:
    """Which rows are not stored yet, and the command that measures them."""
    command = COMMAND.format(name)
    if scores is None:
        return f"{name}: no rows are stored; {command} measures them, on a GPU."
    lacking: dict[tuple[str, ...], list[str]] = {}
    names, rows = set(scores.table.name), wanted(widths)[1:]
    for method in ORDER[1:]:
        bits = [f"W{w}A{a:g}" for m, w, a in rows if m == method and f"{m} W{w}A{a:g}" not in names]
        lacking.setdefault(tuple(bits), []).append(method)
    absent = [f"{', '.join(methods)} ({' and '.join(bits)})" for bits, methods in lacking.items() if bits]
    if not absent:
        return f"{name}: every method is measured."
    return f"{name}: not measured yet: {'; '.join(absent)}. {command} measures them, on a GPU."


def row_names(widths: tuple[int, ...] = (4, 3)) -> list[str]:
    """Names of all rows that are to be measured, in the order of tables."""
    return [m if m == "fp" else f"{m} W{w}A{a:g}" for m, w, a in wanted(widths)]


def complete(table: pd.DataFrame, widths: tuple[int, ...] = (4, 3)) -> pd.DataFrame:
    """A table of rows by name, with a row for each that belongs there: what is not measured says so."""
    names = row_names(widths)
    full = table.astype(object).reindex([*names, *(name for name in table.index if name not in names)])
    absent = ~full.index.isin(table.index)
    full.loc[absent] = ""
    full.loc[absent, full.columns[0]] = NOT_MEASURED
    return full


def stacked(table: pd.DataFrame) -> pd.DataFrame:
    """Cells "value [low, high]" as HTML with the interval below the value."""
    return table.map(lambda cell: re.sub(r" \[(.*), (.*)\]", r"<br><small>\1–\2</small>", cell))


def difference(scores: Scores, name: str, baseline: str, metric: str = "total") -> pd.Series | None:
    """The paired row "name minus baseline" (a method, at the same weight bits); None if not measured."""
    paired = scores.paired
    rows = paired[(paired.name == name) & (paired.baseline == baseline) & (paired.metric == metric)]
    return rows.iloc[0] if len(rows) else None


def likeness(scores: Scores, baseline: str) -> pd.DataFrame:
    """PSNR of the paper's and our methods minus that of a baseline, as `row`s for figures."""
    rows = scores.paired[(scores.paired.baseline == baseline) & (scores.paired.metric == "psnr")]
    rows = rows[rows.method.isin(ORDER)]
    return rows.assign(row=rows.name)


def gains(scores: Scores, metric: str = "psnr") -> pd.DataFrame:
    """What each part of the method adds on each base: paired differences on the same pictures, with columns
    base, bits (the weights', and the lowest budget of the search) and part (of GAINS). What is not measured
    has no row."""
    found = []
    for base, methods in ON_BASES.items():
        for w_bits in (4, 3):
            for part, baseline, method in zip(GAINS, methods, methods[1:]):
                rows = scores.paired[scores.paired.w_bits == w_bits]
                rows = rows[(rows.method == method) & (rows.baseline == baseline) & (rows.metric == metric)]
                for row in rows.nsmallest(1, "a_bits").to_dict("records"):
                    found.append({"base": base, "bits": f"W{w_bits}A{row['a_bits']:g}", "part": part, **row})
    return pd.DataFrame(found)


def gains_table(rows: pd.DataFrame) -> pd.DataFrame:
    """`gains` as cells: a row per base and weight bits, a column per part."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows.itertuples():
        cells.setdefault(f"{row.base}, W{row.w_bits}", {})[f"{row.part}, dB"] = signed(row)
    return pd.DataFrame.from_dict(cells, orient="index").fillna("")


def gains_said(rows: pd.DataFrame) -> list[str]:
    """A line per part: on which bases it is ahead, on which behind. No full stop."""
    lines = []
    for part, mine in rows.groupby("part", sort=False):
        names = mine.base + " " + mine.bits
        ahead, behind = (", ".join(names[side]) or "none" for side in (mine.ci_low > 0, mine.ci_high < 0))
        lines.append(f"{part}, {len(mine)} differences: above zero on {ahead}; below zero on {behind}")
    return lines


def signed(row: pd.Series | None) -> str:
    """A difference above its interval, bold where that is apart from zero."""
    if row is None:
        return ""
    value = plus(row.value)
    value = f"<b>{value}</b>" if row.ci_low > 0 or row.ci_high < 0 else value
    return f"{value}<br><small>{plus(row.ci_low)} to {plus(row.ci_high)}</small>"


def against(scores: Scores, paper: pd.DataFrame) -> pd.DataFrame:
    """Each row minus SVDQuant and minus FP, with intervals; the paper's total and differences beside ours.

    paper: rows of `data/paper.csv` for this model. A column of which nothing is known is left out.
    """
    theirs = {(r.method, int(r.w_bits)): r.value for r in paper.itertuples() if r.metric == "total"}
    beside = {name: key for key in theirs for name in scores.counterparts(*key)}
    rows = {}
    for name in scores.show(["total"]).index:
        key = beside.get(name)
        row = {
            "ours minus SVDQuant": signed(difference(scores, name, "svdquant")),
            "ours minus FP": signed(difference(scores, name, "fp")),
            "paper's row": "" if key is None else key[0],
            "paper": "" if key is None else f"{theirs[key]:.4f}",
        }
        for called, base in (("SVDQuant", ("svdquant", key and key[1])), ("FP", ("fp", 16))):
            known = key not in (None, base) and base in theirs
            row[f"paper minus {called}"] = f"{theirs[key] - theirs[base]:+.4f}" if known else ""
        rows[name] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.insert(0, "total", stacked(scores.show(["total"]))["total"])
    return table.loc[:, (table != "").any()]


def order(scores: Scores, paper: pd.DataFrame, w_bits: int = 4) -> str:
    """Kendall's tau between the paper's order of methods and ours, by the total and by PSNR."""
    theirs = paper[(paper.w_bits == w_bits) & (paper.metric == "total")].set_index("method").value
    ours = {method: names[0] for method in theirs.index if (names := scores.counterparts(method, w_bits))}
    line = f"at W{w_bits}A{w_bits}, {len(ours)} of the paper's {len(theirs)} methods are measured here"
    if len(ours) < 3:
        return f"{line}, too few for an order"
    said, wanted = [], theirs[list(ours)].to_numpy()
    for metric, called in (("total", "the total"), ("psnr", "PSNR")):
        tau = kendalltau(wanted, [scores.value(name, metric) for name in ours.values()])
        if pd.isna(tau.statistic):
            said.append(f"by {called} all of ours are alike")
        else:
            said.append(f"by {called} Kendall's τ = {tau.statistic:.2f} (p = {tau.pvalue:.2f})")
    other = [f"{name} for {m}" for m, name in ours.items() if name.split()[0] != m]
    return f"{line}{f' ({other[0]})' if other else ''}; likeness to the paper's order: {', '.join(said)}"


def bits(scores: Scores) -> pd.DataFrame:
    """A row per measured row: what its bits really are, and its quality; numbers."""
    facts = ["effective_w_bits", "effective_bits", "average_bits", "flop_weighted_bits", "transformer_bytes"]
    rows = scores.table[
        scores.table.method.isin(ORDER) & scores.table.name.isin(scores.show(["total"]).index)
    ]
    table = rows.pivot_table(index="name", columns="metric", values="value", aggfunc="first")
    table = table.reindex(index=scores.show(["total"]).index, columns=[*facts, "total", "psnr"])
    table = rows.groupby("name", sort=False)[["method", "w_bits", "a_bits"]].first().join(table, how="right")
    same = table.method.isin(UNIFORM)
    table["flop_weighted_bits"] = table.flop_weighted_bits.fillna(table.a_bits.where(same))
    full = table.method == "fp"
    table.loc[full, ["effective_w_bits", "effective_bits"]] = 16.0
    return table


def others(scores: Scores) -> pd.DataFrame:
    """Rows of other libraries (`adatsq.peers`), which are no method of the paper: bits and quality."""
    rows = scores.table[(scores.table.metric == "total") & ~scores.table.method.isin(ORDER)]
    found = {
        name: {
            "bits per weight, as stored": scores.value(name, "effective_w_bits"),
            "with 16-bit scales": scores.value(name, "effective_w_bits_16_bit_scales"),
            "quantized": f"{scores.value(name, 'quantized_share'):.0%}",
            "activation bits": scores.value(name, "average_bits"),
            "pictures": f"{rows.n[rows.name == name].iloc[0]:.0f}",
            "total": scores.value(name),
            "PSNR, dB": scores.value(name, "psnr"),
            "total minus FP": signed(difference(scores, name, "fp")),
        }
        for name in rows.name
    }
    return pd.DataFrame.from_dict(found, orient="index")


def front(table: pd.DataFrame, x: str, y: str) -> list[str]:
    """Rows of `bits` that no other row beats: with no more bits x and no less y, and better in one."""
    known = table[table.method != "fp"].dropna(subset=[x, y])
    return list(known.index[non_dominated(known.assign(worse=-known[y])[[x, "worse"]].to_numpy())])


def dimensions(scores: Scores | None, paper: pd.DataFrame, baselines=("fp", "svdquant")) -> pd.DataFrame:
    """Each dimension of a clip at W4A4, the paper's numbers with ours beside them: AdaTSQ and the others,
    and what AdaTSQ has more than these, with intervals. Empty is what is not judged here."""
    theirs = paper[paper.w_bits.isin([4, 16])].pivot_table(index="metric", columns="method", values="value")
    theirs, table = theirs.reindex(dict.fromkeys(paper.metric)), {}
    for method in (*baselines, "adatsq"):
        table[f"paper: {method}"] = theirs[method].map("{:.4f}".format)
    for method in (*baselines, "adatsq") if scores else ():
        name = "fp" if method == "fp" else f"{method} W4A4"
        values = pd.Series({m: scores.value(name, m) for m in theirs.index})
        if values.notna().any():
            table[f"ours: {method}"] = values.map("{:.3f}".format, na_action="ignore").fillna("")
    for baseline in baselines:
        table[f"paper: AdaTSQ minus {baseline}"] = (theirs.adatsq - theirs[baseline]).map("{:+.4f}".format)
        ours = {m: difference(scores, "adatsq W4A4", baseline, m) if scores else None for m in theirs.index}
        if any(row is not None for row in ours.values()):
            table[f"ours: AdaTSQ minus {baseline}"] = pd.Series({m: signed(row) for m, row in ours.items()})
    return pd.DataFrame(table).rename(index=lambda m: m.replace("_", " "))


def signs(scores: Scores, paper: pd.DataFrame, baseline: str) -> str:
    """In how many dimensions AdaTSQ W4A4 minus a baseline has the paper's sign, of those told from zero."""
    theirs = paper.pivot_table(index="metric", columns="method", values="value")
    rows = {m: difference(scores, "adatsq W4A4", baseline, m) for m in theirs.index}
    rows = {m: row for m, row in rows.items() if row is not None}
    if not rows:
        return f"AdaTSQ minus {baseline} is not measured here"
    clear = {m: row.value for m, row in rows.items() if row.ci_low > 0 or row.ci_high < 0}
    same = [m for m, value in clear.items() if value * (theirs.adatsq - theirs[baseline])[m] > 0]
    return (
        f"of {len(rows)} differences AdaTSQ minus {baseline}, {len(clear)} can be told from zero; of these "
        f"{len(same)} have the sign that they have in the paper"
    )
