"""How much of the distance to full precision a better search closes: is it the half that was aimed at?"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from adatsq.evaluate import RESAMPLES
from adatsq.measurements import same_pictures
from adatsq.results import SEED
from adatsq.tables import Scores

AIM = 0.5  # share of the remaining gap to full precision
BETTER = (
    "lagrangian",
    "prices",
    "paper, ladder",
)  # of `search_compare`, with the same kind of budget
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


def verdict(low: float, high: float, aim: float = AIM) -> str:
    """In words: whether a share with this interval reaches the aim."""
    if low >= aim:
        return "the aim is met"
    if high < aim:
        return "the aim is not met"
    return "whether the aim is met cannot be told"


def sentences(name: str, pictures: pd.DataFrame, budget: float = 3.1) -> Iterator[str]:
    """A line per start and search: what it closes of the gap; or that nothing is stored."""
    rows = gaps(pictures, budget)
    if rows.empty:
        yield f"{name}: not measured at {budget:g} bits"
        return
    for start, group in rows.groupby("from", sort=False):
        for row in group.itertuples():
            did = "closes" if row.value >= 0 else "widens"
            yield (
                f"{name}, from {start} ({row.psnr_before:.2f} dB): `{row.search}` {did} the gap by "
                f"{abs(row.value):.0%} ({row.ci_low:+.0%} to {row.ci_high:+.0%}; {row.psnr:.2f} dB): "
                f"{verdict(row.ci_low, row.ci_high)}"
            )


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
        line += f"`{better}` closes {(mine - target + gap) / gap:.0%}"
        for row in paired.head(1).itertuples():
            low, high = row.ci_low / gap, row.ci_high / gap
            line += f" ({low:+.0%} to {high:+.0%}, the gap taken as known): {verdict(low, high)}"
        yield line
