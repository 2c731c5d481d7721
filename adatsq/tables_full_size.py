"""Tables of full-size.csv: the whole method at the real models' size, run by run.

A run is of one model and bits of ours. Full precision is measured once for a model, whatever the bits; its
values are there for each run. Of several devices, a model's is the one that was measured last.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from adatsq.tables_speed import of_one_device, short

# Phases of `adatsq.cuda.full_size`, by method, in their order.
PARTS = {
    ("fp", "load"): "load, 16 bit",
    ("fp", "generate"): "one run, 16 bit",
    ("adatsq", "record"): "record",
    ("adatsq", "fisher"): "Fisher information",
    ("adatsq", "quantize"): "quantize",
    ("adatsq", "search"): "search",
    ("adatsq", "save"): "save",
    ("adatsq", "load"): "load, packed",
    ("adatsq", "generate"): "one run, packed",
    ("adatsq", "generate_compiled"): "one run, compiling",
    ("adatsq", "record_graphs"): "one run, recording CUDA graphs",
    ("adatsq", "generate_graphs"): "one run, with these graphs",
}


@dataclass(frozen=True)
class Run:
    """name: the model's, with the bits if it was run with several. first: of its model. full, ours: values by
    metric, of full precision and of ours. rows: all that they are from."""

    name: str
    first: bool
    full: dict[str, float]
    ours: dict[str, float]
    rows: pd.DataFrame

    def of(self, column: str):
        """Of what was calibrated and searched; other parts may have been run again with other steps."""
        found = [self.rows[self.rows["metric"] == metric] for metric in ("search_s", "fisher_s")]
        return next((rows for rows in found if len(rows)), self.rows)[column].iloc[-1]


def runs(table: pd.DataFrame) -> list[Run]:
    """Those of the table, in its order; one without values of ours for a model that has none. None of an
    empty table."""
    found = []
    if table.empty:
        return found
    for model, rows in of_one_device(table).groupby("model", sort=False):
        full, ours = rows[rows["method"] == "fp"], rows[rows["method"] != "fp"]
        several = [(bits, some) for bits, some in ours.groupby(["w_bits", "a_bits"], sort=False)]
        for i, ((w_bits, a_bits), some) in enumerate(several or [((None, None), ours)]):
            name = short(model) + (f" W{w_bits:g}A{a_bits:g}" if len(several) > 1 else "")
            found.append(Run(name, i == 0, _values(full), _values(some), pd.concat([full, some])))
    return found


def _values(rows: pd.DataFrame) -> dict[str, float]:
    return dict(zip(rows["metric"], rows["value"]))  # the last of a metric


def parts(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """what: "s" or "peak_memory_bytes", of each part of the method, with random weights.

    A row per part, a column per run; full precision stands at a model's first.
    """
    columns = {}
    for run in runs(table):
        values = {"fp": run.full if run.first else {}, "adatsq": run.ours}
        columns[run.name] = {
            says: values[method].get(f"{part}_{what}", np.nan) for (method, part), says in PARTS.items()
        }
    return pd.DataFrame(columns).dropna(how="all").rename_axis("part").reset_index()


def told(table: pd.DataFrame) -> str:
    """What the runs were, in a sentence; "" without any. Names of runs that were alike stand together."""
    said = {}
    for run in runs(table):
        height, width, *frames = run.of("size").split("x")
        shape = f"{height} x {width}" + "".join(f", {count} frames" for count in frames)
        what = (
            f"{shape}, {run.of('steps'):g} steps, {run.of('calibration_steps'):g} of them for Fisher "
            f"information and weights, on {run.of('device')}"
        )
        said.setdefault(what, []).append(run.name)
    return "; ".join(f"{', '.join(names)} at {what}" for what, names in said.items())


def sizes(table: pd.DataFrame) -> pd.DataFrame:
    """GB (10^9 bytes) of the transformer's tensors and of a pipeline's folder, in 16 bit and packed: two rows
    per run."""
    rows = []
    for run in runs(table):
        bits = f"{run.of('w_bits'):g}" if run.ours else ""
        for metric, says in (("transformer_memory_bytes", "on the device"), ("disk_bytes", "folder")):
            full, packed = (values.get(metric, np.nan) / 1e9 for values in (run.full, run.ours))
            row = {"model": run.name, "what": says, "weight bits": bits}
            rows.append(row | {"16 bit": full, "packed": packed, "times smaller": full / packed})
    return pd.DataFrame(rows)
