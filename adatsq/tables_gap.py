"""How much of the distance to full precision a better search closes: is it the half that was aimed at?"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from adatsq.evaluate import RESAMPLES
from adatsq.measurements import same_pictures
from adatsq.results import SEED
from adatsq.rows import SEARCHED
from adatsq.tables import Scores

AIM = 0.5  # share of the remaining gap to full precision
BETTER = (  # of `search_compare`
    "lagrangian",
    "prices",
    "paper, ladder",
    "lagrangian, 2 to 8",
    "lagrangian, flops",
    "lagrangian, 2 to 8, flops",
)
LEFT_TO_WEIGHTS = "uniform 8"
# Rows of the benchmark: from where, and to which. The same weights, then the full method against the beam's.
PAIRS = (
    ("hadamard+gptq", "hadamard+gptq+search"),
    ("hadamard+gptq", "hadamard+gptq+lagrangian"),
    ("hadamard+gptq", "hadamard+gptq+prices"),
    ("hadamard+gptq", "hadamard+gptq+widths"),
    ("hadamard+gptq", "hadamard+gptq+widths-average"),
    ("hadamard+gptq", "adatsq+lagrangian"),
    ("hadamard+gptq+search", "hadamard+gptq+lagrangian"),
    ("hadamard+gptq+search", "hadamard+gptq+prices"),
    ("hadamard+gptq+search", "hadamard+gptq+widths"),
    ("hadamard+gptq+search", "hadamard+gptq+widths-average"),
    ("adatsq", "adatsq+lagrangian"),
)
FROM = {"uniform 3": "fixed 3 bits", "paper": "the paper's search"}  # whose gap it is


def share_closed(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float] | None:
    """Share of a gap that is closed, 1 - mean(after) / mean(before), and its 95% bootstrap interval.

    before, after: distances to full precision of the same pictures, (N,). One picture each of its own prompt
    is drawn at a time, for both. None if there are none, or if the gap before is none that can be told from
    zero: a share of it would mean nothing.
    """
    if len(before) == 0:
        return None
    drawn = np.random.default_rng(SEED).integers(0, len(before), (RESAMPLES, len(before)))
    gaps = before[drawn].mean(1)
    if np.percentile(gaps, 2.5) <= 0:
        return None
    low, high = np.percentile(1 - after[drawn].mean(1) / gaps, (2.5, 97.5))
    return float(1 - after.mean() / before.mean()), float(low), float(high)


def squared_error(psnr: pd.Series) -> pd.Series:
    """Mean squared distance of 8-bit pictures from their PSNR in dB: zero is the full-precision picture."""
    return 255.0**2 / 10 ** (psnr / 10)


def gaps(pictures: pd.DataFrame, budget: float = 3.1) -> pd.DataFrame:
    """A row per better search and start that are both stored: share of the squared error closed, interval.

    pictures: NAME-search-compare-pictures.csv (`tables_ablation.read(...).pictures`), empty if there is none.
    """
    if pictures.empty:
        return pd.DataFrame()
    pictures, found = pictures[pictures.budget == budget], []
    for start, called in FROM.items():
        for search in BETTER:
            rows = same_pictures(pictures, search)
            table = rows.pivot_table(index="picture", columns="search", values="psnr")
            if start in table and search in table:
                both = squared_error(table[[start, search]])
                closed = share_closed(both[start].to_numpy(), both[search].to_numpy())
                if closed is not None:
                    share, low, high = closed
                    row = {"from": called, "search": search, "value": share, "ci_low": low, "ci_high": high}
                    found.append({**row, "psnr": table[search].mean(), "psnr_before": table[start].mean()})
    return pd.DataFrame(found)


def reachable(pictures: pd.DataFrame, budget: float = 3.1) -> tuple[float, float, float] | None:
    """Share of the gap of 3 bits everywhere that 8 bits everywhere close, and its interval: what is left is
    the weights' part, which no policy of activations removes. None if either is not stored."""
    rows = pictures if pictures.empty else pictures[pictures.budget == budget]
    if rows.empty or not {"uniform 3", LEFT_TO_WEIGHTS} <= set(rows.search):
        return None
    table = same_pictures(rows, LEFT_TO_WEIGHTS).pivot_table(index="picture", columns="search", values="psnr")
    if "uniform 3" not in table:
        return None
    errors = squared_error(table[["uniform 3", LEFT_TO_WEIGHTS]])
    return share_closed(errors["uniform 3"].to_numpy(), errors[LEFT_TO_WEIGHTS].to_numpy())


def floor_sentence(name: str, pictures: pd.DataFrame, budget: float = 3.1, aim: float = AIM) -> str:
    """What activations at 8 bits would close of the gap, and whether the aim could be met at all."""
    found = reachable(pictures, budget)
    if found is None:
        return f"{name}: 8 bits everywhere are not measured"
    share, low, high = found
    line = f"{name}: 8 bits everywhere close {share:.0%} of the gap of 3 bits ({low:+.0%} to {high:+.0%}), "
    line += f"the other {1 - share:.0%} are the weights'"
    if high < aim:
        return f"{line}: no policy of activation bits can be expected to meet the aim"
    if low < aim:
        return f"{line}: whether any policy of activation bits can meet the aim cannot be told"
    return f"{line}: the aim takes {aim / share:.0%} of all that activation bits can give"


def of_all_prompts(images: pd.DataFrame, w_bits: int = 3, budget: float = 3.1) -> pd.DataFrame:
    """`gaps` of the benchmark's rows, on all evaluation prompts: a row per pair of PAIRS that is measured.

    images: NAME-images.csv. A prompt's pictures count as one, their mean: it is prompts that are drawn. Of
    clips, whose PSNR is the mean over frames, the squared error is that of a frame with such a PSNR.
    """
    rows = images[images.w_bits == w_bits]
    found = []
    for start, better in PAIRS:
        two = {}
        for name in (start, better):
            bits = budget if name in SEARCHED else w_bits
            mine = rows[(rows.method == name) & (rows.a_bits == bits)]
            two[name] = squared_error(mine.psnr).groupby(mine.prompt).mean()
        if two[start].index.equals(two[better].index):
            closed = share_closed(two[start].to_numpy(), two[better].to_numpy())
            if closed is not None:
                row = dict(zip(("value", "ci_low", "ci_high"), closed))
                found.append({"from": start, "search": better, **row, "n": len(two[start])})
    return pd.DataFrame(found)


def all_prompts(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Of `of_all_prompts` by model: a row per start and search, a column per model with the share of the gap
    that is closed and its interval, as HTML. Empty if nothing is stored."""
    columns = {}
    for name, rows in found.items():
        for row in rows.itertuples():
            share = f"{row.value:+.0%}<br><small>{row.ci_low:+.0%} to {row.ci_high:+.0%}</small>"
            columns.setdefault(name, {})[f"from {row[1]}", row.search] = share
    table = pd.DataFrame(columns)
    order = [(f"from {start}", search) for start, search in PAIRS]
    return table.reindex([pair for pair in order if pair in table.index]).fillna("")


def all_sentence(name: str, rows: pd.DataFrame, budget: float = 3.1) -> str:
    """Of `of_all_prompts` of a model: by which searches the aim is met. No full stop."""
    if rows.empty:
        return f"{name}: not measured at {budget:g} bits"
    said: dict[str, list[str]] = {}
    for row in rows.itertuples():
        said.setdefault(verdict(row.ci_low, row.ci_high), []).append(f"`{row.search}` from `{row[1]}`")
    words = "; ".join(
        f"{what} by {', '.join(pairs) if len(pairs) < len(rows) else f'any of the {len(pairs)}'}"
        for what, pairs in said.items()
    )
    line = f"{name}, {rows.n.iloc[0]} prompts: {words}. Most is closed"
    for i, (start, group) in enumerate(rows.groupby("from", sort=False)):
        best = group.iloc[group.value.to_numpy().argmax()]
        line += f"{';' * (i > 0)} from `{start}` by `{best.search}`, {best.value:.0%}"
        line += f" ({best.ci_low:+.0%} to {best.ci_high:+.0%})"
    return line


def verdict(low: float, high: float, aim: float = AIM) -> str:
    """In words: whether a share with this interval reaches the aim."""
    if low >= aim:
        return "the aim is met"
    if high < aim:
        return "the aim is not met"
    return "whether the aim is met cannot be told"


def table(pictures: pd.DataFrame, compared: pd.DataFrame, budget: float = 3.1) -> pd.DataFrame:
    """A row per better search: bits, of layers alike and by multiplications, PSNR, and per start the share of
    its gap that is closed, with interval and verdict, as HTML. Empty if nothing is stored.

    compared: NAME-search-compare.csv (`tables_ablation.read(...).compared`).
    """
    rows = gaps(pictures, budget)
    if rows.empty:
        return rows
    facts = compared[compared.budget == budget].set_index("search")
    found = {}
    for search, group in rows.groupby("search", sort=False):
        row = {
            "bits": f"{facts.average_bits[search]:.3f}",
            "weighted": f"{facts.flop_weighted_bits[search]:.3f}",
            "PSNR, dB": f"{group.psnr.iloc[0]:.2f}",
        }
        for start, gap in zip(group["from"], group.itertuples()):
            share = f"{gap.value:+.0%}<br><small>{gap.ci_low:+.0%} to {gap.ci_high:+.0%}</small>"
            row[f"{start}, {gap.psnr_before:.2f} dB"] = share
        found[search] = row
    return pd.DataFrame.from_dict(found, orient="index").fillna("")


def sentences(name: str, pictures: pd.DataFrame, budget: float = 3.1) -> Iterator[str]:
    """A line per start: by which searches the aim is met; or that nothing is stored. No full stop."""
    rows = gaps(pictures, budget)
    if rows.empty:
        yield f"{name}: not measured at {budget:g} bits"
        return
    for start, group in rows.groupby("from", sort=False):
        said: dict[str, list[str]] = {}
        for row in group.itertuples():
            said.setdefault(verdict(row.ci_low, row.ci_high), []).append(f"`{row.search}` ({row.value:+.0%})")
        words = "; ".join(f"{what} by {', '.join(searches)}" for what, searches in said.items())
        yield f"{name}, of the gap of {start}: {words}"


def judged(
    scores: Scores, w_bits: int = 3, budget: float = 3.1, better: str = "adatsq+lagrangian"
) -> Iterator[str]:
    """The same of the judged total, from the benchmark's rows: points still missing to full precision.

    A line per start that is stored. The difference of the two rows has a paired interval if they are paired.
    """
    target, mine = scores.value("fp"), scores.value(f"{better} W{w_bits}A{budget:g}")
    if np.isnan(mine):
        yield f"`{better}` at {budget:g} bits is not scored yet"
        return
    for start in (f"hadamard+gptq W{w_bits}A{w_bits}", f"adatsq W{w_bits}A{budget:g}"):
        gap = target - scores.value(start)
        if np.isnan(gap):
            continue
        method, known = start.split()[0], scores.paired[scores.paired.name == start]
        known = known[(known.baseline == "fp") & (known.metric == "total")]
        if gap <= 0 or (known.ci_high >= 0).any():
            yield f"the gap of {start} to full precision ({gap:+.3f}) cannot be told from none"
            continue
        paired = scores.paired[
            (scores.paired.name == f"{better} W{w_bits}A{budget:g}")
            & (scores.paired.baseline == method)
            & (scores.paired.metric == "total")
        ]
        line = f"from {start}, {gap:.3f} below full precision, "
        share = (mine - target + gap) / gap
        line += f"`{better}` {'closes' if share >= 0 else 'widens it by'} {abs(share):.0%}"
        for row in paired.head(1).itertuples():
            low, high = row.ci_low / gap, row.ci_high / gap
            line += f" ({low:+.0%} to {high:+.0%}, the gap taken as known): {verdict(low, high)}"
        yield line
