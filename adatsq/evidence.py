"""What is measured, by which command, on what: read from the stored files themselves.

python -m adatsq.evidence data/results        prints the first table, as the book shows it
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from adatsq.measurements import COMMITS
from adatsq.sizes import REAL, hessian_bytes, memory

# End of a file's name -> the command that writes it; the first that fits. The model's name stands before it.
COMMANDS = {
    r"-policy-.+\.json": "adatsq.benchmark",
    r"-(images|facts|paired|search|frontier)\.csv|-fisher\.json": "adatsq.benchmark",
    r"-search-compare(-pictures)?\.csv": "adatsq.search_compare",
    r"-ablation.*\.csv": "adatsq.ablation",
    r"-explorer.*\.json": "adatsq.sweep",
}
# Files that are of no one model.
OF_ALL = {
    "profiles.csv": "adatsq.changes",
    "cuda-shapes.csv": "adatsq.cuda.benchmark --shapes",
    "cuda-steps.csv": "adatsq.cuda.benchmark --steps",
    "cuda-agreement.csv": "adatsq.cuda.agreement",
    "full-size.csv": "adatsq.cuda.full_size",
}
UNKNOWN = "not recorded"
# Rows of NAME-facts.csv that tell how long the whole method took on a model.
TIMED = {"method": "adatsq", "w_bits": 4}


@dataclass(frozen=True)
class Origin:
    """A stored file: of which model ("" for all together), and which command writes it."""

    model: str
    command: str


def origin(file: Path) -> Origin:
    """Read from the file's name. ValueError for a file that no command here writes."""
    if file.name in OF_ALL:
        return Origin("", OF_ALL[file.name])
    for ending, command in COMMANDS.items():
        if found := re.fullmatch(rf"(.+?)(?:{ending})", file.name):
            return Origin(found[1], command)
    if file.suffix == ".csv" and file.with_name(f"{file.stem}-facts.csv").exists():
        return Origin(file.stem, "adatsq.benchmark")
    raise ValueError(f"{file} is no result of a command in adatsq.evidence: add its name there")


def stored(results: str | Path) -> pd.DataFrame:
    """A row per model and command: files, rows of its tables, and the devices and commits that they name, or
    that a sweep's file names."""
    found: dict[Origin, list[Path]] = {}
    for file in sorted(file for file in Path(results).iterdir() if file.suffix in (".csv", ".json")):
        found.setdefault(origin(file), []).append(file)
    rows = []
    for of, files in found.items():
        csv = [file for file in files if file.suffix == ".csv"]
        tables = [pd.read_csv(file, dtype=COMMITS, low_memory=False) for file in csv]
        swept = [json.loads(file.read_text("utf-8")) for file in files if of.command == "adatsq.sweep"]
        rows.append(
            {
                "model": of.model or "all",
                "command": f"python -m {of.command}",
                "files": len(files),
                "table rows": sum(map(len, tables)),
                "device": _named(tables, swept, "device"),
                "commit": _named(tables, swept, "commit"),
            }
        )
    return pd.DataFrame(rows).sort_values(["model", "command"], ignore_index=True)


def _named(tables: Sequence[pd.DataFrame], swept: Sequence[dict], name: str) -> str:
    values = [table[name].dropna().astype(str).unique() for table in tables if name in table]
    values.append([one[name] for one in swept if name in one])
    return ", ".join(sorted({value for some in values for value in some})) or UNKNOWN


def not_mini(results: str | Path, models: str | Path) -> list[str]:
    """Models with results that are not among the small ones in `models` (data/models)."""
    small = {folder.name for folder in Path(models).iterdir()}
    return [name for name in stored(results)["model"].unique() if name != "all" and name not in small]


def seconds(results: str | Path) -> pd.DataFrame:
    """A row per model: seconds of each part of the method at W4A4, with the device and commit of that row.

    Device and commit are those of the seconds: where `adatsq.costs` measured these, its own. A part that this
    row does not time (its result was read from a file then) is taken from another row of the same model,
    device and commit, or missing.
    """
    rows = []
    for file in sorted(Path(results).glob("*-facts.csv")):
        facts = pd.read_csv(file, dtype=COMMITS)
        for name in ("device", "commit"):
            if f"costs_{name}" in facts:
                facts[name] = facts[f"costs_{name}"].fillna(facts[name])
        chosen = facts[(facts[list(TIMED)] == pd.Series(TIMED)).all(axis=1)]
        if chosen.empty:
            continue
        row, known = chosen.iloc[0], {"model": chosen.iloc[0].model}
        alike = facts[(facts.device == row.device) & (facts.commit == row.commit)]
        for part in ("record_s", "fisher_s", "quantize_s", "search_s"):
            values = [row[part], *alike[part].dropna()]
            known[part.replace("_s", ", s")] = next((float(v) for v in values if pd.notna(v)), float("nan"))
        rows.append({**known, "device": row.device, "commit": row.commit})
    return pd.DataFrame(rows)


def memories() -> pd.DataFrame:
    """A row per real model: parameters (10^9) and GB (10^9 bytes) of its parts, and what is quantized of it.

    "as run here": the package keeps each weight's integer in a byte, whatever its bits. "Hessians of a
    block": of the one that needs most, in float32.
    """
    rows = []
    for model in REAL:
        table = memory(model, w_bits=(8, 4, 3))
        all16, transformer = table["16 bit, GB"], table.iloc[0]
        rows.append(
            {
                "model": model,
                "transformer, 10⁹ weights": transformer["parameters"] / 1e9,
                "all, 16 bit": all16["all"],
                "transformer, 16 bit": transformer["16 bit, GB"],
                "as run here": transformer["W8, GB"],
                "saved, W4": transformer["W4, GB"],
                "saved, W3": transformer["W3, GB"],
                "Hessians of a block": 1e-9 * hessian_bytes(model),
            }
        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame, digits: int = 1) -> str:
    """The table in Markdown; numbers to the right, with so many digits."""
    left = [table[column].dtype.kind not in "if" for column in table]
    lines = ["| " + " | ".join(table.columns) + " |"]
    lines.append("|" + "|".join("---" if is_text else "---:" for is_text in left) + "|")
    for row in table.itertuples(index=False):
        lines.append("| " + " | ".join(_cell(value, digits) for value in row) + " |")
    return "\n".join(lines)


def _cell(value: object, digits: int) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.{digits}f}"
    return f"{value}".replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(stored(sys.argv[1] if len(sys.argv) > 1 else "data/results")))
