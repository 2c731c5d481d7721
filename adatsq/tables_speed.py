"""Tables of cuda-steps.csv: what a step gains, where its milliseconds go, and what waits for the CPU."""

import pandas as pd

AIMS = {"compiled": 1.4, "eager": 1.9}  # of a step of Flux-dev and Z-Image, over bfloat16 in that mode
LINEARS_AIM = 1.8  # of Wan's linears
SEARCH_AIM = 60  # seconds of a search over
SEARCH_STEPS = 50
SMALLER_AIM = 4.8  # of the weights at three bits
KINDS = {  # column: what `plots_speed.work` calls it
    "linear_ms": "products",
    "attention_ms": "attention",
    "rest_ms": "rest",
    "unpack_ms": "unpacking weights",
    "round_ms": "rounding activations",
}


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """bfloat16 first, then ours, as it is made by default before its variants, then other libraries by name;
    ours by weight bits too, the more the earlier, and else as they were measured."""
    ours = table["method"].str.startswith("adatsq")
    place = (2 - ours).where(table["method"] != "bf16", 0)
    keys = [
        place,
        (table["method"] != "adatsq") & ours,
        table["method"],
        -table["w_bits"].where(ours),
    ]
    names = [f"key {i}" for i in range(len(keys))]
    keyed = table.assign(**dict(zip(names, keys)))
    return keyed.sort_values(names, kind="stable").drop(columns=names)


def of_one_device(table: pd.DataFrame) -> pd.DataFrame:
    """For each model, the rows of the device that it was measured on last."""
    if "device" not in table:
        return table
    return table[table["device"] == table.groupby("model")["device"].transform("last")]


def short(model: str) -> str:
    """ "flux-dev" of "flux-dev, random weights"."""
    return model.partition(",")[0]


def label(row) -> str:
    """A method; ours with its bits, the others' names say theirs."""
    return f"{row.method} W{row.w_bits:g}A{row.a_bits:g}" if row.method.startswith("adatsq") else row.method


def plain(table: pd.DataFrame, mode: str, column: str = "ms") -> float:
    """Of bfloat16 in this mode; NaN if it was not measured. table: rows of one model."""
    found = table.loc[(table["method"] == "bf16") & (table["mode"] == mode), column].dropna()
    return float(found.iloc[-1]) if len(found) else float("nan")


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Of one model, a row per method and mode that ran, a method's together: ms, gain over compiled and eager
    bfloat16 (their times over its own), how many times smaller its weights are, and its answer's error."""
    rows = table.dropna(subset=["ms"])
    rows = rows.assign(of=[label(row) for row in rows.itertuples()])
    places = {name: i for i, name in enumerate(dict.fromkeys(rows["of"]))}
    rows = rows.sort_values("of", key=lambda names: names.map(places), kind="stable")
    index = pd.MultiIndex.from_arrays([rows["of"], rows["mode"]])
    found = {"ms": rows["ms"]}
    for mode in AIMS:
        found[f"bf16 {mode} / this"] = plain(table, mode) / rows["ms"]
    found["times smaller"] = plain(table, "eager", "weight_bytes") / rows["weight_bytes"]
    found["error"] = rows["error"]
    return pd.DataFrame(found).set_index(index).rename_axis([None, None])


def kernels(table: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Of one model in one mode, ms of its kernels by kind, a row per method; empty if none was profiled."""
    rows = (
        table[table["mode"] == mode].dropna(subset=["kernel_ms"]) if "kernel_ms" in table else table.head(0)
    )
    if rows.empty:
        return pd.DataFrame(columns=list(KINDS.values()))
    return rows.set_index(pd.Index([label(row) for row in rows.itertuples()]))[[*KINDS]].rename(columns=KINDS)


def profiled(table: pd.DataFrame) -> tuple[str, pd.DataFrame] | None:
    """Of one model, the mode in which bfloat16 and others were profiled, and its `kernels`: graphs where they
    were, for they wait for nothing. None if there is no such mode."""
    for mode in ("graph", "compiled", "eager"):
        found = kernels(table, mode)
        if "bf16" in found.index and len(found) > 1:
            return mode, found
    return None


def launching(table: pd.DataFrame) -> pd.DataFrame:
    """Of one model, a row per method: for each mode the time of a step over that of its kernels. Far above
    one, the GPU waits for the CPU. Below one is noise: the two are measured in different calls."""
    rows = table.dropna(subset=["kernel_ms"])
    rows = rows.assign(of=[label(row) for row in rows.itertuples()], ratio=rows["ms"] / rows["kernel_ms"])
    found = rows.pivot_table(index="of", columns="mode", values="ratio", sort=False)
    return found.rename_axis(None).rename_axis(None, axis=1)


def best(found: pd.DataFrame) -> tuple[str, pd.Series] | None:
    """Of `gains`: the fastest row of ours as it is by default, with its name; None without any."""
    return _fastest(found, [name.startswith("adatsq W") for name in found.index.get_level_values(0)])


def best_other(found: pd.DataFrame) -> tuple[str, pd.Series] | None:
    """Of `gains`: the fastest row of another library, with its name; None without any."""
    return _fastest(
        found, [not name.startswith(("adatsq", "bf16")) for name in found.index.get_level_values(0)]
    )


def _fastest(found: pd.DataFrame, chosen: list[bool]) -> tuple[str, pd.Series] | None:
    rows = found[chosen]
    if rows.empty:
        return None
    at = rows["ms"].idxmin()
    return " ".join(at), rows.loc[at]


def commits(table: pd.DataFrame) -> dict[str, str]:
    """Of one model: the code that bfloat16 was measured with in each mode of AIMS, and ours at its fastest by
    default. If they differ, the rows are not of one run."""
    rows, fastest = table.dropna(subset=["ms"]), best(gains(table))
    names = pd.Series([f"{label(row)} {row.mode}" for row in rows.itertuples()], index=rows.index, dtype=str)
    wanted = [f"bf16 {mode}" for mode in AIMS] + ([fastest[0]] if fastest else [])
    return {name: str(rows.loc[names == name, "commit"].iloc[-1]) for name in wanted if (names == name).any()}
