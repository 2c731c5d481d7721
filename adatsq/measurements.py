"""Rows of a result file that are written as they are measured, and what is already there."""

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from adatsq.files import write_text

# as what tables are read: a hash may be all digits
COMMITS = {"commit": str, "costs_commit": str}


def append(path: Path, rows: pd.DataFrame, key: Sequence[str]) -> None:
    """Add rows to a CSV file, in the place of those with the same values in `key`; others stay to the letter.

    The file is written anew and then renamed, so it is whole at all times.
    """
    text = rows.to_csv(index=False, float_format="%.6g")
    if path.exists():
        old, new = (pd.read_csv(f, dtype=str, keep_default_na=False) for f in (path, io.StringIO(text)))
        same = pd.MultiIndex.from_frame(old[list(key)]).isin(pd.MultiIndex.from_frame(new[list(key)]))
        text = pd.concat([old[~same], new]).fillna("").to_csv(index=False)
    write_text(path, text)


def stored(path: Path, **where: str | float) -> pd.DataFrame:
    """The rows with these values; none, without columns, if there is no file."""
    if not path.exists():
        return pd.DataFrame()
    table = pd.read_csv(path, dtype=COMMITS)
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def same_pictures(rows: pd.DataFrame, search: str) -> pd.DataFrame:
    """Rows, one per policy (column search) and picture, of policies that drew as many pictures as this one.

    A run of more held-out prompts replaces rows one by one: until it is through, picture 3 of one policy may
    be of another prompt than picture 3 of the next.
    """
    drawn = rows.groupby("search").picture.nunique()
    return rows[rows.search.map(drawn) == drawn.get(search, 0)]
