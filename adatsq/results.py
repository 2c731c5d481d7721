"""From pictures' scores to the tidy tables that the book shows:

python -m adatsq.results data/results/flux-dev-mini
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from adatsq.evaluate import intervals
from adatsq.files import write_text
from adatsq.measurements import COMMITS

KEY = ["model", "method", "w_bits", "a_bits"]
COLUMNS = [*KEY, "metric", "value", "ci_low", "ci_high", "n", "seed", "commit", "device"]
PAIRED = [*COLUMNS[:2], "baseline", "baseline_a_bits", *COLUMNS[2:]]
# From simple to full.
ORDER = (
    "fp",
    "rtn",
    "rtn+search",
    "gptq",
    "smoothquant",
    "smoothquant+gptq",
    "vidit-q",
    "vidit-q+mixed",
    "quarot",
    "q-dit",
    "svdquant",
    "svdquant+small-rank",
    "svdquant+gptq",
    "hadamard",
    "hadamard+gptq",
    "hadamard+gptq+search",
    "hadamard+gptq+lagrangian",
    "hadamard+gptq+prices",
    "hadamard+gptq+widths",
    "hadamard+gptq+widths-average",
    "adatsq+plain",
    "adatsq+plain+search",
    "adatsq+smoothquant",
    "adatsq+smoothquant+search",
    "adatsq+svdquant",
    "adatsq+svdquant+search",
    "adatsq-weights",
    "adatsq",
    "adatsq+ladder",
    "adatsq+lagrangian",
)
# What a row is compared with, at the same weight bits: these, and what it is built on or differs from in one
# thing (a policy also with a rotation alone). AdaTSQ also with SVDQuant whose branch weighs as little as on a
# full-size model.
EVERY = ("fp", "rtn", "svdquant", "hadamard+gptq")
BASES = {
    "smoothquant+gptq": ("smoothquant", "gptq"),
    "vidit-q+mixed": ("vidit-q",),
    "hadamard+gptq": ("gptq", "hadamard", "quarot"),
    "hadamard+gptq+search": ("hadamard", "rtn+search"),
    "hadamard+gptq+lagrangian": ("hadamard", "hadamard+gptq+search"),
    "hadamard+gptq+prices": ("hadamard", "hadamard+gptq+search", "hadamard+gptq+lagrangian"),
    "hadamard+gptq+widths": ("hadamard", "hadamard+gptq+search", "hadamard+gptq+lagrangian"),
    "hadamard+gptq+widths-average": (
        "hadamard",
        "hadamard+gptq+search",
        "hadamard+gptq+lagrangian",
        "hadamard+gptq+widths",
    ),
    "adatsq+plain": ("gptq",),
    "adatsq+plain+search": ("gptq", "adatsq+plain"),
    "adatsq+smoothquant": ("smoothquant", "smoothquant+gptq"),
    "adatsq+smoothquant+search": ("smoothquant", "smoothquant+gptq", "adatsq+smoothquant"),
    "adatsq+svdquant": ("svdquant+gptq",),
    "adatsq+svdquant+search": ("svdquant+gptq", "adatsq+svdquant"),
    "adatsq-weights": ("hadamard", "quarot", "svdquant+small-rank"),
    "adatsq": (
        "hadamard",
        "quarot",
        "rtn+search",
        "hadamard+gptq+search",
        "adatsq-weights",
        "svdquant+small-rank",
    ),
    "adatsq+ladder": ("hadamard", "rtn+search", "hadamard+gptq+search", "adatsq-weights", "adatsq"),
    "adatsq+lagrangian": (
        "hadamard",
        "rtn+search",
        "hadamard+gptq+search",
        "hadamard+gptq+lagrangian",
        "adatsq-weights",
        "adatsq",
    ),
}
POLICIES = (
    "rtn+search",
    "hadamard+gptq+search",
    "hadamard+gptq+lagrangian",
    "hadamard+gptq+widths",
    "adatsq",
)  # only at the same budget
PLACE = [*KEY, "prompt", "picture", "category"]  # columns of NAME-images.csv that say what a row is of
DISTANCES = ["psnr", "ssim"]  # to the full-precision picture; the columns left are the judge's scores
SEED = 0  # of the bootstrap; the pictures' own seeds are in the prompt file


def tidy_tables(name: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read NAME-images.csv and NAME-facts.csv, write and return NAME.csv and NAME-paired.csv.

    Pictures without facts are left out: their row was ended between the two files, and is measured again.
    """
    images = pd.read_csv(f"{name}-images.csv")
    facts = pd.read_csv(f"{name}-facts.csv", dtype=COMMITS)
    images = _in_order(images)
    origin = facts.set_index(KEY)[["commit", "device"]]
    images = images[pd.MultiIndex.from_frame(images[KEY]).isin(origin.index)]
    scores = [column for column in images if column not in (*PLACE, *DISTANCES)]
    if scores != ["passed"]:  # of clips: the total is the mean of the dimensions
        images["total"] = images[scores].mean(axis=1)
        scores.append("total")
    table = pd.concat([_scores(images, scores, origin), _facts(facts)], ignore_index=True)
    paired = _paired(images, scores, origin)
    write_text(f"{name}.csv", table[COLUMNS].to_csv(index=False, float_format="%.6g"))
    write_text(f"{name}-paired.csv", paired.to_csv(index=False, float_format="%.6g"))
    return table[COLUMNS], paired


def _scores(images: pd.DataFrame, scores: list[str], origin: pd.DataFrame) -> pd.DataFrame:
    """Categories and total from passes; all else as the total of its own. No psnr of fp to itself."""
    rows = []
    for key, group in images.groupby(KEY, sort=False):
        metrics = scores if key[1] == "fp" else [*scores, *DISTANCES]
        rows += [_rows(key, origin.loc[key], *_grid(group, metric), metric=metric) for metric in metrics]
    return pd.concat(rows)


def _paired(images: pd.DataFrame, scores: list[str], origin: pd.DataFrame) -> pd.DataFrame:
    """Every row minus those of EVERY and of its BASES, at the same weight bits. A row that drew fewer
    pictures a prompt drew the first ones: those of the other are taken."""
    groups, rows = dict(list(images.groupby(KEY, sort=False))), []
    for key, group in groups.items():
        for other, baseline in groups.items():
            full_precision = other[1] == "fp"
            if other[1] == key[1] or other[1] not in (*EVERY, *BASES.get(key[1], ())):
                continue
            if other[2] != key[2] and not full_precision:
                continue
            if other[1] in POLICIES and other[3] != key[3]:
                continue
            for metric in scores if full_precision else [*scores, *DISTANCES]:
                (values, categories), (base, _) = _grid(group, metric), _grid(baseline, metric)
                base = base[:, : values.shape[1]]
                found = _rows(key, origin.loc[key], values, categories, base, metric)
                found = found.assign(baseline=other[1], baseline_a_bits=other[3])
                rows.append(found[PAIRED])
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=PAIRED)


def _rows(key, origin, values, categories, baseline=None, metric="passed") -> pd.DataFrame:
    """Tidy rows of one method: all categories for passes, the total over them alone for other metrics."""
    found = intervals(values, categories, baseline, seed=SEED).rename_axis("metric").reset_index()
    if metric != "passed":
        found = found[found.metric == "total"].assign(metric=metric)
    return found.assign(**dict(zip(KEY, key)), seed=SEED, commit=origin["commit"], device=origin["device"])[
        COLUMNS
    ]


def _in_order(images: pd.DataFrame) -> pd.DataFrame:
    """Methods as they come, the rows of each by prompt and picture."""
    groups = images.groupby(KEY, sort=False).ngroup()
    order = np.lexsort([images.picture, images.prompt, groups])
    return images.iloc[order].reset_index(drop=True)


def _grid(group: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(values (prompts, pictures), categories (prompts,)) of rows in the order of prompts and pictures."""
    values = group[metric].to_numpy(dtype=float).reshape(group.prompt.nunique(), -1)
    return values, group[group.picture == 0].category.to_numpy()


def _facts(facts: pd.DataFrame) -> pd.DataFrame:
    """Seconds, bits and bytes, a row each, without intervals. Those that `adatsq.costs` measured anew are of
    its commit and device."""
    origin = [name for name in facts if name.endswith(("commit", "device"))]
    long = facts.melt([*KEY, *origin], var_name="metric").dropna(subset="value")
    anew = long.metric.str.endswith(("_s", "_calls", "_bytes")) & long.metric.ne("transformer_bytes")
    for name in ("commit", "device"):
        if f"costs_{name}" in long:
            long[name] = long[f"costs_{name}"].where(anew).fillna(long[name])
    return long.assign(ci_low=np.nan, ci_high=np.nan, n=1, seed=SEED)


if __name__ == "__main__":
    tidy_tables(sys.argv[1])
