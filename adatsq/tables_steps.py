"""Does the error grow with the number of steps, and does a search stop it? What `ablation_steps` stored."""

from pathlib import Path

import numpy as np
import pandas as pd

from adatsq.evaluate import RESAMPLES
from adatsq.results import SEED

UNSEARCHED = "uniform 3"  # whose growth a search could stop


def last_errors(steps: pd.DataFrame) -> pd.DataFrame:
    """Relative squared error of the last latents: a row per length of the run, a column per policy."""
    last = steps[steps.step == steps.steps]
    return last.pivot_table(index="steps", columns="method", values="value", sort=False).sort_index()


def along(steps: pd.DataFrame, length: int) -> pd.DataFrame:
    """Relative squared error after each step of a run of this length: a column per policy."""
    rows = steps[steps.steps == length]
    return rows.pivot_table(index="step", columns="method", values="value", sort=False)


def read_ends(results: str | Path, name: str, w_bits: int = 3) -> pd.DataFrame:
    """NAME-ablation-steps-pictures.csv at these weight bits: error of each picture's last latents."""
    file = Path(results) / f"{Path(name).name}-ablation-steps-pictures.csv"
    if not file.exists():
        return pd.DataFrame()
    rows = pd.read_csv(file)
    return rows[rows.w_bits == w_bits]


def growth(ends: pd.DataFrame, method: str, over: str | None = None) -> tuple[float, float, float] | None:
    """Mean error at the end of the longest run as a multiple of that of the shortest, and its 95% interval.

    over: a policy whose own multiple it is divided by. The bootstrap draws pictures, the same for all runs
    and policies: they are of the same prompts and seeds. None if there are fewer than two lengths.
    """
    tables = {}
    for name in dict.fromkeys([method, over or method]):
        rows = ends[ends.method == name]
        tables[name] = rows.pivot_table(index="picture", columns="steps", values="error").dropna()
        if tables[name].shape[1] < 2:
            return None
    n = len(tables[method])
    if any(len(table) != n for table in tables.values()):
        return None
    drawn = np.vstack([np.arange(n), np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n))])
    times = {}
    for name, table in tables.items():
        short, long = table[min(table)].to_numpy(), table[max(table)].to_numpy()
        times[name] = long[drawn].mean(1) / short[drawn].mean(1)
    values = times[method] / times[over] if over else times[method]
    low, high = np.percentile(values[1:], (2.5, 97.5))
    return float(values[0]), float(low), float(high)


def growth_apart(steps: pd.DataFrame, method: str, over: str | None = None) -> tuple | None:
    """`growth` where errors of single pictures are not stored: from the means' own intervals, as if the runs
    were of different pictures. Runs of the same ones differ less, so this interval is too wide if anything.

    steps: NAME-ablation-steps.csv. On the logarithmic scale, where squared half-widths of intervals add up.
    """
    total, spread = 0.0, 0.0
    for sign, name in ((1, method), (-1, over)):
        rows = steps[(steps.step == steps.steps) & (steps.method == name)].sort_values("steps")
        if name is not None and len(rows) < 2:
            return None
        for end, row in zip((-sign, sign), rows.iloc[[0, -1]].itertuples() if name else ()):
            total += end * np.log(row.value)
            spread += (np.log(row.ci_high / row.ci_low) / 2) ** 2
    return tuple(float(np.exp(total + x * np.sqrt(spread))) for x in (0, -1, 1))


def verdict(ends: pd.DataFrame, search: str, steps: pd.DataFrame | None = None) -> str | None:
    """In words: whether the error of 3 bits everywhere grows with the run, and whether a search stops that.

    "Stops" if the search's own error does not grow: its whole interval is at or below one. ends: of
    `read_ends`; if it is empty, what the means in `steps` say (`growth_apart`). None if either policy is not
    measured at two lengths. No full stop.
    """
    table, grown = (ends, growth) if len(ends) or steps is None else (steps, growth_apart)
    if table.empty:
        return None
    base, mine = grown(table, UNSEARCHED), grown(table, search)
    if base is None or mine is None:
        return None
    lengths = table[table.method == search].steps
    line = (
        f"from {lengths.min()} to {lengths.max()} steps the error of 3 bits everywhere becomes {_times(base)}"
    )
    line += f", that of `{search}` {_times(mine)}: "
    if base[1] <= 1:
        shrinks = base[2] < 1
        return line + ("it falls by itself" if shrinks else "whether there is growth to stop cannot be told")
    if mine[2] <= 1:
        return line + "the search stops the growth"
    if mine[1] <= 1:
        return line + "whether the search stops the growth cannot be told"
    less = grown(table, search, UNSEARCHED)
    slower = "but slows it" if less and less[2] < 1 else "and does not slow it, as far as can be told"
    return line + f"the search does not stop the growth, {slower}"


def _times(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} times as large ({found[1]:.2f} to {found[2]:.2f})"
