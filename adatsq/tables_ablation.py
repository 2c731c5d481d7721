"""The paper's table 3 in miniature: what `ablation` and `search_compare` stored, as tables."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from adatsq.evaluate import intervals
from adatsq.measurements import same_pictures
from adatsq.policy import Policy
from adatsq.results import ORDER, SEED
from adatsq.search_compare import EQUAL, RANDOM, WIDEST, policy_names

ABLATION = "`python -m adatsq.ablation --model data/models/{}`"
COMPARE = "`python -m adatsq.search_compare --model data/models/{}`"
PAPER_SHARES = {3: 0.8, 4: 0.1, 8: 0.1}  # of bits in the paper's policies, as it reports them
PAPER_AVERAGE = sum(bits * share for bits, share in PAPER_SHARES.items())
LIKE = 0.05  # of all entries: shares of bits that differ by no more are called alike
CONTROLS = {  # in NAME-search-compare.csv, from none to one kind of freedom
    "uniform 3": "3 bits everywhere",
    "random": "random places",
    "random beam": "random places, the beam's bits",
    "first steps at 8": "8 bits for the first steps",
    "last steps at 8": "8 bits for the last steps",
    "first quarter at 8": "8 bits for the first quarter, 4.25 in all",
    "last quarter at 8": "8 bits for the last quarter, 4.25 in all",
    "same for all layers": "per timestep only",
    "static over time": "per layer only",
    "collapsed beam": "the beam's, without time",
    "collapsed": "Lagrangian, without time",
    "collapsed, 2 to 8": "Lagrangian, 2 to 8 bits, without time",
    "paper": "the beam",
    "paper, equal calls": "the beam, at equal calls",
    "paper, ladder": "the beam, finer candidates",
    "paper, ladder, equal calls": "the same, at equal calls",
    "lagrangian": "Lagrangian",
    "lagrangian, 2 to 8": "Lagrangian, 2 to 8 bits",
}
SEARCHES = ("paper", "lagrangian", "prices")  # held against them
NUMBERED = r"^(random( beam)?) \d+$"  # policies of one kind, which count as one


@dataclass(frozen=True)
class Ablation:
    """What is stored of a model at one width of weights; a table that is not stored is empty.

    rows: NAME-ablation.csv. steps: NAME-ablation-steps.csv. compared: NAME-search-compare.csv, pictures: its
    psnr of each picture.
    """

    name: str
    w_bits: int
    rows: pd.DataFrame
    steps: pd.DataFrame
    compared: pd.DataFrame
    pictures: pd.DataFrame

    def values(self, part: str, metric: str) -> pd.Series:
        """A metric of each setting of a part, index (setting, a_bits)."""
        if self.rows.empty:
            return pd.Series(dtype=float)
        rows = self.rows[(self.rows.part == part) & (self.rows.metric == metric) & self.rows.baseline.isna()]
        return rows.set_index(["setting", "a_bits"]).value

    def differences(self, part: str) -> pd.DataFrame:
        """PSNR of each setting of a part minus that of its baselines, on the same pictures, as `row`s.

        Rows with one and the same baseline do not name it; those named by numbers are in their order.
        """
        if self.rows.empty:
            return self.rows
        rows = self.rows[(self.rows.part == part) & (self.rows.metric == "psnr") & self.rows.baseline.notna()]
        if len(rows) and part in ("tau", "beam", "prompts"):  # "uniform 8": by kind, activation bits, number
            words = rows.setting.str.split(" ", n=1, expand=True)
            order = rows.assign(kind=words[0], number=words[1].astype(float))
            rows = order.sort_values(["kind", "a_bits", "number"], ascending=[False, True, True])
        same = rows.baseline.nunique() == 1
        names = [
            f"{r.setting}, A{r.a_bits:g}" + f" minus {r.baseline}" * (not same) for r in rows.itertuples()
        ]
        return rows.assign(row=names)

    def settings(self, part: str) -> pd.DataFrame:
        """A row per setting of a part: PSNR with its interval and what the search found and cost."""
        if self.rows.empty:
            return self.rows
        rows = self.rows[(self.rows.part == part) & self.rows.baseline.isna()]
        table = rows.pivot_table(index=["setting", "a_bits"], columns="metric", values="value", sort=False)
        psnr = rows[rows.metric == "psnr"].set_index(["setting", "a_bits"])
        cells = [f"{r.value:.1f} [{r.ci_low:.1f}, {r.ci_high:.1f}]" for r in psnr.itertuples()]
        table["psnr"] = pd.Series(cells, index=psnr.index)
        return table

    def budgets(self) -> list[float]:
        return [] if self.compared.empty else sorted(self.compared.budget.unique())

    def policies(self, budget: float) -> pd.DataFrame:
        """A row per policy of this budget, the random ones as one: bits, PSNR, cost."""
        rows = self.compared[self.compared.budget == budget].copy()
        rows["policy"] = rows.search.str.replace(NUMBERED, r"\1", regex=True)
        columns = ["average_bits", "flop_weighted_bits", "psnr", "calls", "search_s", "hypervolume"]
        columns = [c for c in columns if c in rows]
        table = rows.groupby("policy", sort=False)[columns].mean()
        table.insert(0, "policies", rows.groupby("policy").size())
        return table

    def over_controls(self, search: str, budget: float) -> pd.DataFrame:
        """PSNR of a searched policy minus that of each control, on the same pictures, with 95% intervals.

        Of the random ones, the mean over all of them for each picture. Controls that drew others have no row.
        """
        rows = same_pictures(self.pictures[self.pictures.budget == budget], search)
        table = rows.assign(search=rows.search.str.replace(NUMBERED, r"\1", regex=True))
        table = table.pivot_table(index="picture", columns="search", values="psnr")
        found = []
        for control, called in CONTROLS.items():
            if search != control and search in table and control in table:
                values = (table[search] - table[control]).to_numpy()[:, None]
                row = intervals(values, ["all"] * len(values), seed=SEED).loc["total"]
                found.append({"control": control, "row": called, "search": search, **row})
        return pd.DataFrame(found)


def in_order(policies: pd.DataFrame) -> pd.DataFrame:
    """`Ablation.policies`: the searches by their names, then controls, called and ordered as in figures."""
    called = {**{f"uniform {bits}": f"{bits} bits everywhere" for bits in (3, 4, 8)}, **CONTROLS}
    searched = sorted(policies.index[policies.calls.notna()])
    others = {name: called[name] for name in called if name in policies.index and name not in searched}
    return policies.loc[[*searched, *others]].rename(index=others)


def read(results: str | Path, name: str, w_bits: int = 3) -> Ablation:
    """What is stored of a model at these weight bits, by the last part of its name."""
    tables = []
    for suffix in ("ablation", "ablation-steps", "search-compare", "search-compare-pictures"):
        file = Path(results) / f"{Path(name).name}-{suffix}.csv"
        table = pd.read_csv(file) if file.exists() else pd.DataFrame()
        rows = table if table.empty else table[table.w_bits == w_bits]
        tables.append(pd.DataFrame() if rows.empty else rows)
    return Ablation(name, w_bits, *tables)


def missing(found: list[Ablation]) -> str:
    """Which files are not stored, and the commands that measure them."""
    lines = []
    for command, tables in ((ABLATION, ("rows", "steps")), (COMPARE, ("compared",))):
        names = [a.name for a in found if any(getattr(a, table).empty for table in tables)]
        if names:
            lines.append(f"{command.format('NAME')} is still to run, or to end, for {', '.join(names)}")
    return "; ".join(lines) + "." if lines else "All files are stored."


def absent(ablation: Ablation, budget: float) -> str:
    """What the searches and controls of this budget are of, and which are not measured. No full stop."""
    rows = ablation.compared[ablation.compared.budget == budget]
    device = f", measured on {', '.join(sorted(set(rows.device)))}" if "device" in rows else ""
    names = [name for name in policy_names() if name not in set(rows.search)]
    named = [f"`{name}`" for name in names if not re.match(NUMBERED, name)]
    left = len(names) - len(named)
    named += [f"{left} of {2 * RANDOM} random policies"] * (left > 0)
    line = f"{', '.join(f'{n:g}' for n in sorted(set(rows.n)))} held-out pictures{device}"
    return f"{line}; not measured: {', '.join(named)}" if named else line


def equal_calls(ablation: Ablation, budget: float) -> str:
    """How many transformer calls each search makes, as a multiple of `lagrangian`'s, and how wide the beams
    of EQUAL came to be for as many. No full stop.

    A beam stops below WIDEST with fewer calls only if a wider one makes no more (`at_equal_calls`).
    """
    rows, line = ablation.compared, f"{ablation.name}, {budget:g} bits"
    known = rows[rows.budget == budget].set_index("search").reindex(columns=["calls", "beam"])
    known = known.dropna(subset="calls")
    if "lagrangian" not in known.index:
        return f"{line}: the calls of `lagrangian` are not stored"
    base = known.calls["lagrangian"]
    times = known.calls / base
    said = [f"`{name}` {ratio:.2f}" for name, ratio in times.items() if name not in ("lagrangian", *EQUAL)]
    line += f": {base:.0f} calls by `lagrangian`; as multiples of these {', '.join(said)}"
    for name in (name for name in EQUAL if name in times):
        beam = known.beam[name]
        line += f"; `{name}` {times[name]:.2f} with a beam of {beam:.0f}"
        if times[name] < 1:
            wider = f", since one of {2 * beam:.0f} has no more paths to follow"
            line += wider if beam < WIDEST else ", the widest that is tried"
    return line


def fronts(ablation: Ablation, budgets: list[float]) -> str:
    """The hypervolume of the front of each of SEARCHES, the largest first, and whether PSNR has that order.
    No full stop."""
    said = []
    for budget in budgets:
        rows = ablation.policies(budget).reindex(index=SEARCHES, columns=["hypervolume", "psnr"]).dropna()
        area, psnr = (rows[metric].sort_values(ascending=False) for metric in rows)
        if len(rows) > 1:
            line = f"at {budget:g} bits {', '.join(f'`{name}` {share:.3f}' for name, share in area.items())}"
            order = "the same" if list(area.index) == list(psnr.index) else "another"
            other = ", ".join(f"`{name}` {value:.2f} dB" for name, value in psnr.items())
            said.append(f"{line} (PSNR has {order} order: {other})")
    return f"{ablation.name}, {'; '.join(said) or 'not measured'}"


def unspent(ablation: Ablation, budget: float) -> list[str]:
    """A line for the searches that spend nothing of a budget, if there are any: their policy is 3 bits
    everywhere, and so are their pictures. No full stop."""
    rows = ablation.compared[ablation.compared.budget == budget].set_index("search")
    if "calls" not in rows or "uniform 3" not in rows.index:
        return []
    same = rows.calls.notna() & (rows.average_bits == 3) & (rows.psnr == rows.psnr["uniform 3"])
    names = " and ".join(f"`{name}`" for name in rows.index[same])
    line = f"{ablation.name}, {budget:g} bits: the policy of {names} is 3 bits everywhere, with the same PSNR"
    return [line] * bool(names)


def verdict(rows: pd.DataFrame, most: int = 4) -> str:
    """Which rows (row, value, ci_low, ci_high) are above zero, which below, and how many are neither.

    Of more than `most` on a side, how many they are and the farthest of them. Rows are differences of PSNR:
    if one is zero together with its interval, the pictures are the same. No full stop.
    """
    said = []
    for word, mask in (("Above zero", rows.ci_low > 0), ("Below zero", rows.ci_high < 0)):
        part = rows[mask]
        if len(part) > most:
            far = part.iloc[part.value.abs().to_numpy().argmax()]
            said.append(f"{word}: {len(part)}, the farthest {far.row} ({far.value:+.2f})")
        elif len(part):
            said.append(f"{word}: {'; '.join(f'{r.row} ({r.value:+.2f})' for r in part.itertuples())}")
    same = rows[(rows[["value", "ci_low", "ci_high"]].abs() < 1e-9).all(axis=1)]
    if len(same):
        said.append(f"Zero, since no picture differs: {'; '.join(same.row)}")
    rest = len(rows) - sum((rows.ci_low > 0) | (rows.ci_high < 0))
    return ". ".join([f"of {len(rows)} differences, {rest} cannot be told from zero", *said])


def picked(ablation: Ablation) -> pd.DataFrame:
    """Shares of 3, 4 and 8 bits in the policies that searches pick, index "search, budget"."""
    columns = {bits: ablation.values("picked", f"share_{bits}") for bits in PAPER_SHARES}
    table = pd.DataFrame(columns)
    table.index = [f"{name}, {budget:g} bits" for name, budget in table.index]
    return table


def policy_bits(results: str | Path, name: str) -> dict[str, np.ndarray]:
    """Bits of the policies of the benchmark's searched rows, NAME-policy-*.json, in the order of methods: by
    method, widths and budget, "adatsq W3, 3.1 bits"."""
    start, found = f"{Path(name).name}-policy-", {}
    for file in sorted(Path(results).glob(f"{start}*.json")):
        method, w_bits, budget = re.fullmatch(r"(.*)-w(\d)a([\d.]+)", file.stem[len(start) :]).groups()
        found[ORDER.index(method), w_bits, f"{method} W{w_bits}, {budget} bits"] = Policy.load(file).bits
    return {key[-1]: found[key] for key in sorted(found)}


def policies(bits: dict[str, np.ndarray]) -> tuple[pd.DataFrame, list[str]]:
    """(as `picked` of `policy_bits`, names of those that are left out since they have other widths too)."""
    known = {name: each for name, each in bits.items() if np.isin(each, list(PAPER_SHARES)).all()}
    shares = {name: {b: float((each == b).mean()) for b in PAPER_SHARES} for name, each in known.items()}
    table = pd.DataFrame.from_dict(shares, orient="index").reindex(columns=PAPER_SHARES)
    return table, [name for name in bits if name not in known]


def of_like_budget(shares: pd.DataFrame) -> tuple[float, pd.DataFrame]:
    """(budget, rows): the one of all budgets that is nearest to PAPER_AVERAGE, and its policies."""
    budgets = {name: float(name.split(", ")[-1].split()[0]) for name in shares.index}
    nearest = min(budgets.values(), key=lambda budget: abs(budget - PAPER_AVERAGE))
    return nearest, shares[[budgets[name] == nearest for name in shares.index]]


def alike(shares: pd.DataFrame) -> str:
    """Which policies have the paper's shares, each within LIKE of all entries. No full stop.

    A policy whose average is far from theirs cannot: only those of the budget nearest to it are looked at.
    """
    nearest, rows = of_like_budget(shares)
    same = rows[((rows - pd.Series(PAPER_SHARES)).abs() <= LIKE + 1e-9).all(axis=1)]
    said = ", ".join(f"`{name}`" for name in same.index) or "none"
    return (
        f"the paper's shares average {PAPER_AVERAGE:.1f} bits; of the {len(rows)} policies picked for "
        f"{nearest:g}, {len(same)} have each share within {100 * LIKE:.0f} points of the paper's: {said}"
    )


def lagrangian_shares(shares: pd.DataFrame) -> str:
    """The shares of 3, 4 and 8 bits that the Lagrangian search picks at that budget. No full stop."""
    nearest, rows = of_like_budget(shares)
    found = [
        f"{' / '.join(f'{share:.0%}' for share in row)} (`{name}`)"
        for name, row in rows.iterrows()
        if "lagrangian" in name
    ]
    if not found:
        return f"no policy of the Lagrangian search is stored at {nearest:g} bits"
    return f"the Lagrangian search picks shares of 3 / 4 / 8 bits of {', '.join(found)}"


def distances(shares: pd.DataFrame) -> Iterator[tuple[str, float]]:
    """(policy, share of its entries that would have to change to have the paper's shares)."""
    for name, row in shares.iterrows():
        yield name, float(np.abs(row - pd.Series(PAPER_SHARES)).sum() / 2)
