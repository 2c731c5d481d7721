"""How much of the distance to full precision a better search closes: is it the half that was aimed at?"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from adatsq.evaluate import RESAMPLES
from adatsq.measurements import same_pictures
from adatsq.results import SEED
from adatsq.rows import SEARCHED
from adatsq.tables import Scores, plus
from adatsq.tables_paper import difference, signed

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


def percent(share: float, sign: str = "+") -> str:
    """A share, with its sign or, by sign="", with a minus alone; what rounds to zero has none."""
    text = f"{share:{sign}.0%}"
    return text if float(text[:-1]) else "0%"


def share_cell(row: tuple) -> str:
    """A share above its interval, as HTML."""
    return f"{percent(row.value)}<br><small>{percent(row.ci_low)} to {percent(row.ci_high)}</small>"


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
    line = f"{name}: 8 bits everywhere close {percent(share, '')} of the gap of 3 bits ({percent(low)} to "
    line += f"{percent(high)}), the other {percent(1 - share, '')} are the weights'"
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


def by_model(found: dict[str, pd.DataFrame], cell: Callable[[tuple], str] = share_cell) -> pd.DataFrame:
    """Of `of_all_prompts` or `totals` by model: a row per start and search, a column per model with what
    `cell` makes of a row, by default the share of the gap that is closed. Empty if nothing is stored."""
    columns = {}
    for name, rows in found.items():
        for row in rows.itertuples():
            columns.setdefault(name, {})[f"from {row[1]}", row.search] = cell(row)
    table = pd.DataFrame(columns)
    order = [(f"from {start}", search) for start, search in PAIRS]
    return table.reindex([pair for pair in order if pair in table.index]).fillna("")


def all_sentence(name: str, rows: pd.DataFrame, budget: float = 3.1) -> str:
    """Of `of_all_prompts` of a model: by which searches the aim is met. No full stop."""
    if rows.empty:
        return f"{name}: not measured at {budget:g} bits"
    return f"{name}, {rows.n.iloc[0]} prompts: {against_aim(rows)}"


def against_aim(rows: pd.DataFrame) -> str:
    """In words: which shares of rows (from, search, value, ci_low, ci_high) reach the aim and which do not,
    of the most common case only how many; and the largest share of each start."""
    reached = pd.Series([verdict(row.ci_low, row.ci_high) for row in rows.itertuples()], rows.index)
    *few, (most, rest) = sorted(rows.groupby(reached, sort=False), key=lambda group: len(group[1]))
    words = "".join(f"{what}: {pairs(part)}; " for what, part in few)
    words += f"{most}: {'the other' if few else 'all'} {len(rest)}"
    best = [part.iloc[part.value.to_numpy().argmax()] for _, part in rows.groupby("from", sort=False)]
    farthest = [
        f"from `{row['from']}` by `{row.search}`, {percent(row.value, '')} ({percent(row.ci_low)} to "
        f"{percent(row.ci_high)})"
        for row in best
    ]
    return f"{words}. Most is closed {'; '.join(farthest)}"


def pairs(rows: pd.DataFrame, said: Callable[[tuple], str] = lambda row: "") -> str:
    """The searches of each start in words, and what is said of each of them."""
    return ", and ".join(
        f"from `{start}` by {', '.join(f'`{row.search}`{said(row)}' for row in part.itertuples())}"
        for start, part in rows.groupby("from", sort=False)
    )


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
            row[f"{start}, {gap.psnr_before:.2f} dB"] = share_cell(gap)
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
            said.setdefault(verdict(row.ci_low, row.ci_high), []).append(
                f"`{row.search}` ({percent(row.value)})"
            )
        words = "; ".join(f"{what} by {', '.join(searches)}" for what, searches in said.items())
        yield f"{name}, of the gap of {start}: {words}"


def totals(scores: Scores, w_bits: int = 3, budget: float = 3.1) -> pd.DataFrame:
    """A row per pair of PAIRS that is judged: by how many points the search raises the total, and the paired
    interval (points, low, high); the start's gap to full precision, and what share of it is closed (value,
    ci_low, ci_high, the gap taken as known), NaN where that gap cannot be told from none.
    """
    found = []
    for start, better in PAIRS:
        bits = budget if start in SEARCHED else w_bits
        row = difference(scores, f"{better} W{w_bits}A{budget:g}", start)
        full = difference(scores, f"{start} W{w_bits}A{bits:g}", "fp")
        if row is not None:
            gap = -full.value if full is not None and full.ci_high < 0 else np.nan
            points = dict(zip(("points", "low", "high"), row[["value", "ci_low", "ci_high"]]))
            share = {name: row[name] / gap for name in ("value", "ci_low", "ci_high")}
            found.append({"from": start, "search": better, **points, "gap": gap, **share})
    return pd.DataFrame(found)


def total_cell(row: tuple) -> str:
    """Points above their interval, bold where that is apart from zero, and below the share that is closed."""
    points = signed(pd.Series({"value": row.points, "ci_low": row.low, "ci_high": row.high}))
    if np.isnan(row.gap):
        return points
    share = f"closes {percent(row.value, '')}<br>({percent(row.ci_low)} to {percent(row.ci_high)})"
    return f"{points}<br><small>{share}</small>"


def total_sentences(name: str, rows: pd.DataFrame, budget: float = 3.1) -> Iterator[str]:
    """Of `totals` of a model: which searches raise the total and which lower it, and a line on the shares of
    the gaps. No full stop."""
    if rows.empty:
        yield f"{name}: no search is judged at {budget:g} bits"
        return
    line, rest = f"{name}, {len(rows)} differences:", (rows.low <= 0) & (rows.high >= 0)
    for word, told in (("raised", rows.low > 0), ("lowered", rows.high < 0)):
        if told.any():
            line += f" the total is {word} {pairs(rows[told], lambda row: f' ({plus(row.points)})')};"
    yield f"{line} {rest.sum()} cannot be told from zero"
    known = rows.dropna(subset="gap")
    if known.empty:
        yield f"{name}: no start's gap can be told from none, so there is no share of it"
        return
    starts = [f"{part.gap.iloc[0]:.3f} from `{start}`" for start, part in known.groupby("from", sort=False)]
    yield f"{name}, the gap is {', '.join(starts)}; {against_aim(known)}"


def disagreement(name: str, judged: pd.DataFrame, shares: pd.DataFrame) -> str:
    """Where the total (`totals`) and the squared error (`of_all_prompts`) say different things of a search:
    only pairs whose change of the total can be told from zero. No full stop."""
    if judged.empty or shares.empty:
        return f"{name}: not both are measured"
    rows = judged[["from", "search", "low", "high"]].merge(shares, on=["from", "search"])
    up, down, less, more = rows.low > 0, rows.high < 0, rows.ci_low > 0, rows.ci_high < 0
    kinds = {
        "the error falls, and so does the total": less & down,
        "the error grows, and so does the total": more & up,
        "the total rises, but whether the error falls cannot be told": up & ~less & ~more,
        "the total falls, but whether the error grows cannot be told": down & ~less & ~more,
    }
    said = [f"{kind}: {pairs(rows[mask])}" for kind, mask in kinds.items() if mask.any()]
    return f"{name}, {'; '.join(said) or 'nowhere'}"
