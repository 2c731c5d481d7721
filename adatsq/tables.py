"""Stored scores as a page shows them: tables with intervals, and sentences built from the numbers alone.

`python -m adatsq.benchmark` writes the files, `data/paper.csv` holds the paper's tables (arXiv:2602.09883).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from adatsq.measurements import COMMITS
from adatsq.results import ORDER, POLICIES

NO_SCORES = "No scores are stored for {}: `python -m adatsq.benchmark --model ...` measures them, on a GPU."
# Rows of the paper, and ours that stand beside each: the first of these that is measured. QuaRot is a
# Hadamard rotation and GPTQ, as hadamard+gptq is.
COUNTERPARTS = {
    "fp": ("fp",),
    "q-dit": ("q-dit",),
    "smoothquant": ("smoothquant",),
    "quarot": ("quarot", "hadamard+gptq"),
    "vidit-q": ("vidit-q",),
    "svdquant": ("svdquant",),
    "adatsq": ("adatsq",),
}


@dataclass(frozen=True)
class Scores:
    """table: NAME.csv, paired: NAME-paired.csv (`benchmark`), both with a column `name`, "adatsq W4A4"."""

    table: pd.DataFrame
    paired: pd.DataFrame

    def show(self, metrics: Sequence[str]) -> pd.DataFrame:
        """A row per method and bits, a column per metric that was measured, values with their intervals."""
        rows = self.table[self.table.metric.isin(metrics) & self.table.method.isin(ORDER)]
        rank = rows.method.map(ORDER.index) + 100 * (rows.w_bits == 3) + 0.01 * rows.a_bits
        cells = rows.assign(cell=[_cell(row) for row in rows.itertuples()], rank=rank)
        table = cells.pivot_table(index=["rank", "name"], columns="metric", values="cell", aggfunc="first")
        table = table.reindex(columns=[m for m in metrics if m in table]).droplevel("rank").fillna("")
        table = table.rename_axis(index=None, columns=None)
        return table.rename(
            columns=lambda m: {"psnr": "PSNR, dB", "ssim": "SSIM"}.get(m, m.replace("_", " "))
        )

    def origin(self) -> str:
        """How many pictures, on which device and by which code; no full stop."""
        first = self.table.iloc[0]
        return (
            f"{first.model}: {self.table.n.max():.0f} pictures per method, 95% intervals (bootstrap over "
            f"prompts), measured on {first.device}, code {', '.join(sorted(set(self.table.commit)))}"
        )

    def value(self, name: str, metric: str = "total") -> float:
        """Of the row of this name, "adatsq W3A3.1" or "fp"; NaN if it was not measured."""
        found = self.table[(self.table.name == name) & (self.table.metric == metric)].value
        return float(found.iloc[0]) if len(found) else float("nan")

    def sentences(self, method: str, by: dict[str, str] | None = None) -> list[str]:
        """What the paired intervals say of a method's rows: a line per bits, without a full stop.

        by: metrics and what to call them, by default the total and PSNR.
        """
        by, lines = by or {"total": "the total", "psnr": "PSNR"}, []
        for name in dict.fromkeys(self.table[self.table.method == method].name):
            line = f"{name} reaches {self.value(name) / self.value('fp'):.1%} of the full-precision total"
            for metric, called in by.items():
                mine = self.paired[(self.paired.name == name) & (self.paired.metric == metric)]
                said = [f"{verdict} {', '.join(rows.other)}" for verdict, rows in mine.groupby("verdict")]
                line += f". By {called}: {'; '.join(said) or 'compared with nothing'}"
            lines.append(line)
        return lines

    def differences(self, method: str, metric: str) -> pd.DataFrame:
        """Rows for `plots.differences`: this method minus each other, on the same pictures."""
        rows = self.paired[(self.paired.method == method) & (self.paired.metric == metric)]
        return rows.assign(row=rows.name + " minus " + rows.other)

    def twins(self, method: str) -> list[str]:
        """Rows of a method that drew the very pictures of another row, a line each, without a full stop."""
        rows, lines = self.paired[(self.paired.method == method) & (self.paired.metric == "psnr")], []
        for row in rows[(rows[["value", "ci_low", "ci_high"]] == 0).all(axis=1)].itertuples():
            spent = self.value(row.name, "average_bits")
            lines.append(
                f"{row.name} is {row.other}: no picture differs. Its policy has {spent:.4g} bits on average"
            )
        return lines

    def fewer_bits(self, method: str) -> list[str]:
        """A line on the rows at fixed bits that have fewer activation bits than a method's budgets."""
        rows = self.paired[(self.paired.method == method) & (self.paired.baseline != "fp")]
        fixed, equal = rows[rows.baseline_a_bits < rows.a_bits], rows[rows.baseline.isin(POLICIES)]
        if fixed.empty:
            return []
        budgets = " and ".join(f"{bits:g}" for bits in sorted(set(fixed.a_bits)))
        return [
            f"Of the rows that {method} at {budgets} bits is compared with, these have fewer activation "
            f"bits: {', '.join(dict.fromkeys(fixed.other))}. These have the same budget: "
            f"{', '.join(dict.fromkeys(equal.baseline)) or 'none'}"
        ]

    def beside(self, paper: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """Our totals next to the paper's of the same model, and in which comparisons the two agree.

        paper: rows of `data/paper.csv`. A comparison is a difference of two rows; ours has a paired interval.
        """
        theirs = {(r.method, int(r.w_bits)): r.value for r in paper.itertuples() if r.metric == "total"}
        rows = {}
        for (method, w_bits), value in theirs.items():
            names = self.counterparts(method, w_bits)
            bits = "" if method == "fp" else f" W{w_bits}A{w_bits}"
            for name in names or ["not measured here"]:
                ours = self.value(name)
                rows[f"{method}{bits}", name] = {
                    "paper": value,
                    "ours": ours,
                    "paper, of its fp": value / theirs["fp", 16],
                    "ours, of our fp": ours / self.value("fp"),
                }
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(index=["the paper's row", "our row"])
        lines = []
        for (method, w_bits), value in theirs.items():
            for other in ("fp", "svdquant", "quarot"):
                base = theirs.get((other, 16 if other == "fp" else w_bits))
                if method == "adatsq" and base is not None:
                    for name in self.counterparts("adatsq", w_bits):
                        lines += self._agreement(name, other, f"{method} minus {other}", value - base)
        return table, lines

    def counterparts(self, method: str, w_bits: int) -> list[str]:
        """Names of our rows beside a row of the paper, one per budget; none if none is measured."""
        total = self.table[(self.table.w_bits == w_bits) & (self.table.metric == "total")]
        for ours in COUNTERPARTS.get(method, ()):
            names = list(dict.fromkeys(total[total.method == ours].name))
            if names:
                return names
        return []

    def _agreement(self, name: str, other: str, what: str, theirs: float) -> list[str]:
        """other: the paper's row; held against the first of its counterparts that ours is paired with."""
        mine, lines = self.paired[(self.paired.name == name) & (self.paired.metric == "total")], []
        known = [ours for ours in COUNTERPARTS[other] if (mine.baseline == ours).any()]
        for row in mine[mine.baseline.isin(known[:1])].itertuples():
            if row.ci_low <= 0 <= row.ci_high:
                agree = "ours cannot be told from no difference"
            else:
                agree = "the same sign" if row.value * theirs > 0 else "the opposite sign"
            lines.append(
                f"{what}: {plus(theirs)} in the paper; {name} minus {row.other}: {plus(row.value)} "
                f"({plus(row.ci_low)} to {plus(row.ci_high)}) here: {agree}"
            )
        return lines


def read(results: str | Path, model: str | Path) -> Scores | None:
    """The stored scores of a model, by the last part of its name; None if there are none."""
    file = Path(results) / f"{Path(model).name}.csv"
    if not file.exists():
        return None
    files = file, file.with_name(f"{file.stem}-paired.csv")
    table, paired = (pd.read_csv(file, dtype=COMMITS) for file in files)
    for rows in (table, paired):
        rows["name"] = [label(row) for row in rows.itertuples()]
    sure = [paired.ci_low > 0, paired.ci_high < 0]
    paired["verdict"] = np.select(sure, ["ahead of", "behind"], "not told apart from")
    paired["other"] = [
        row.baseline + f" A{row.baseline_a_bits:g}" * (row.baseline != "fp") for row in paired.itertuples()
    ]
    return Scores(table, paired)


def label(row: tuple) -> str:
    """ "fp", or a method and its bits, "adatsq W3A3.1", of anything with method, w_bits and a_bits."""
    return row.method if row.method == "fp" else f"{row.method} W{row.w_bits:g}A{row.a_bits:g}"


def narrow(table: pd.DataFrame, size: str = "90%", gap: str = "1em") -> Styler:
    """Small print in one line per row, for a page's width. size: of the print. gap: right of each column.

    Long names of rows may go on in a second line, after a plus sign.
    """
    print_ = [("font-size", size), ("padding", f"0.1em {gap} 0.1em 0")]
    styles = [
        {"selector": "th", "props": print_},
        {"selector": "td", "props": [*print_, ("white-space", "nowrap")]},
    ]
    style = Styler(table, cell_ids=False)  # a name for each cell would be most of a large table
    style = style.set_table_styles(styles).format(precision=3, na_rep="")
    return style.format_index(lambda name: name.replace("+", "+<wbr>") if isinstance(name, str) else name)


def folded(summary: str, lines: Sequence[str]) -> str:
    """Lines without a full stop as a folded list, for the end of what a cell says in Markdown; "" if none."""
    if not lines:
        return ""
    told = "\n".join(f"- {line}." for line in lines)
    return f"\n\n<details><summary>{summary}</summary>\n\n{told}\n\n</details>"


def one_open(styled: dict[str, Styler]) -> str:
    """HTML of a table per name: the first one open, the others folded below their names."""
    return "".join(
        f"<details{' open' * (i == 0)}><summary>{name}</summary>{table.to_html()}</details>"
        for i, (name, table) in enumerate(styled.items())
    )


def short(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers as text: whole ones in full, others in four digits; empty where nothing is known."""

    def text(value) -> str:
        if isinstance(value, str) or pd.isna(value):
            return value if isinstance(value, str) else ""
        return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"

    return table.astype(object).map(text)


def plus(value: float) -> str:
    """A difference, with its sign; what rounds to zero has none."""
    text = f"{value:+.3f}"
    return text if float(text) else text[1:]


def _cell(row: tuple) -> str:
    """A value and its interval, as text."""
    digits = ".1f" if row.metric == "psnr" or row.metric.endswith("_s") else ".3f"
    known = pd.notna(row.ci_low)
    return f"{row.value:{digits}}" + (f" [{row.ci_low:{digits}}, {row.ci_high:{digits}}]" if known else "")
