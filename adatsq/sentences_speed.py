"""What the measured tables of speed say, in words: of one model each, without its name. No full stops."""

import pandas as pd

from adatsq import tables_speed
from adatsq.tables_full_size import Run
from adatsq.tables_speed import AIMS, LINEARS_AIM, SEARCH_AIM, SEARCH_STEPS, SMALLER_AIM

ADDED = ["unpacking weights", "rounding activations"]  # what a quantized linear does besides its product


def verdict(reached: float, aim: float) -> str:
    return f"the aim of {aim:g} is {'reached' if reached >= aim else 'not reached'}"


def steps(table: pd.DataFrame, aims: bool) -> list[str]:
    """Of rows of cuda-steps.csv, with all gains: ours as it is by default, the size of its weights, and the
    fastest of other libraries. aims: hold ours against AIMS. Nothing where ours is not measured."""
    gains = tables_speed.gains(table)
    fastest, other = tables_speed.best(gains), tables_speed.best_other(gains)
    if fastest is None:
        return []
    which, row = fastest
    said = []
    for mode, aim in AIMS.items():
        gain = row[f"bf16 {mode} / this"]
        reached = f" ({verdict(gain, aim)})" if aims else ""
        said.append(f"{gain:.2f} times as fast as {mode} bfloat16{reached}")
    lines = [f"ours at its fastest by default, {which}, is {' and '.join(said)}", *others(gains)]
    commits = tables_speed.commits(table)
    if len(set(commits.values())) > 1:
        with_code = ", ".join(f"{name} {commit}" for name, commit in commits.items())
        lines.append(f"these rows are of several runs, by commit: {with_code}")
    three = gains[[" W3" in name for name in gains.index.get_level_values(0)]]
    if len(three):
        smaller = three["times smaller"].iloc[0]
        lines.append(
            f"weights at three bits, those of modulation too, are {smaller:.2f} times smaller in the GPU's "
            f"memory than bfloat16, scales included: {verdict(smaller, SMALLER_AIM)}"
        )
    if other is not None:
        name, best = other
        lines.append(
            f"the fastest of other libraries, {name}, is {best['bf16 compiled / this']:.2f} times as fast as "
            f"compiled bfloat16, {best['times smaller']:.2f} times smaller, and its answer is off by "
            f"{best['error']:.3f}; ours, {which}, by {row['error']:.3f}"
        )
    ours = {mode for name, mode in gains.index if name.startswith("adatsq")}
    lacking = sorted({*gains.index.get_level_values(1)} - ours)
    return [*lines, *([f"ours is not measured as {' or '.join(lacking)}"] if lacking else [])]


def others(found: pd.DataFrame) -> list[str]:
    """Of `gains`: rows of ours by default as graphs, but for the fastest of all, in words. No full stops."""
    first, lines = tables_speed.best(found), []
    for (name, mode), row in found.iterrows():
        if mode == "graph" and name.startswith("adatsq W") and f"{name} {mode}" != first[0]:
            gains = [f"{row[f'bf16 {of} / this']:.2f} times as fast as {of} bfloat16" for of in AIMS]
            lines.append(f"{name} {mode} is {' and '.join(gains)}")
    return lines


def linears(before: pd.Series, after: pd.Series, floor: pd.Series, aim: bool) -> str:
    """How much faster linears are, and how near their parts are to their floors. before, after, floor: ms by
    kind of work, of bfloat16, of ours, and the least that ours could take. aim: hold it against LINEARS_AIM.
    """
    unpacking, rounding = after[ADDED]
    whole = before.products / (after.products + unpacking + rounding)
    line = (
        f"products alone are {before.products / after.products:.2f} times as fast; with unpacking "
        f"({unpacking:.1f} ms) and rounding ({rounding:.1f} ms) the linears are {whole:.2f} times as fast"
    )
    if aim:
        least = before.products / (after.products + floor[ADDED].sum())
        line += f": {verdict(whole, LINEARS_AIM)}; with both at their floors it would be {least:.2f} times"
    share = floor / after
    return (
        f"{line}. Attention and the rest take {(after.attention + after.rest) / after.sum():.0%} of what is "
        f"left. The products' floor is {share.products:.0%} of their measured time, that of unpacking "
        f"{share[ADDED[0]]:.0%}, and that of rounding {share[ADDED[1]]:.0%}"
    )


def at_rest(before: pd.Series, eager: pd.DataFrame, after: pd.Series) -> list[str]:
    """If bfloat16's products take less when they are called eagerly (`tables_speed.kernels`): what that makes
    of the gain."""
    if "bf16" not in eager.index or eager.products["bf16"] > 0.95 * before.products:
        return []
    ms, whole = eager.products["bf16"], after.products + after[ADDED].sum()
    return [
        f"bfloat16's products take {ms:.0f} ms eagerly, not {before.products:.0f}: there the card has pauses "
        "and work that waits for memory in between, and under full load it is likely to lower its clock. "
        f"Held against those, ours are {ms / after.products:.2f} times as fast, {ms / whole:.2f} with "
        "unpacking and rounding"
    ]


def beyond(before: pd.Series, after: pd.Series, gain: float, allowed: float) -> list[str]:
    """If a step is faster than linears in half the time allow: by what."""
    if round(gain, 2) <= round(allowed, 2):  # as they are shown
        return []
    faster = before.products / after.products
    why = [f"products are {faster:.2f} times as fast, more than twice"] if faster > 2 else []
    why += [
        f"{what} {after[part]:.1f} ms, not {before[part]:.1f}"
        for part, what in {"rest": "with fusing, the rest takes", "attention": "attention takes"}.items()
        if before[part] > 1.05 * after[part]  # less may be noise
    ]
    return [
        f"the step is {gain:.2f} times as fast as compiled bfloat16, more than the {allowed:.2f} of linears "
        "in half the time with the added floors" + (f": {'; '.join(why)}" if why else "")
    ]


VARIANTS = {  # of ours, by the method's name in the table
    "adatsq": "what `adatsq.accelerate` makes by default",
    "adatsq fast sums": "the products' faster mode everywhere, also where it is not known to be exact",
    "adatsq unfused": "activation functions of feed-forwards are kernels of their own, where the default "
    "computes them while the next linear's input is rounded, and norms and products of Flux's blocks "
    "are separate too",
    "adatsq separate norm": "query and key in Flux's blocks are normed and rotated by kernels of "
    "their own, where the default has one for both",
    "adatsq separate products": "the linears of Flux's blocks that read the same tokens are products "
    "of their own, where the default has one for all that share an input",
}


def variants(table: pd.DataFrame) -> list[str]:
    """What is there of ours, and how each variant's time as a graph compares with the default's, where both
    were measured with the same code. No full stops."""
    rows = table[(table["mode"] == "graph") & table["ms"].notna()]
    keys = ["model", "w_bits", "a_bits", "device", "commit"]
    default = rows[rows["method"] == "adatsq"].set_index(keys)["ms"]
    lines = []
    for method in [method for method in VARIANTS if method in set(table["method"])]:
        line, mine = f"*{method}*: {VARIANTS[method]}", rows[rows["method"] == method].set_index(keys)["ms"]
        for key in mine.index.intersection(default.index) if method != "adatsq" else ():
            name = f"{tables_speed.short(key[0])} W{key[1]:g}A{key[2]:g}"
            line += f"; {name} {mine[key]:.1f} ms, {default[key]:.1f} ms by default"
        lines.append(line)
    return lines


def full_size(run: Run) -> list[str]:
    """What a run of full-size.csv took. Nothing of phases that are not there."""
    full, ours, lines = run.full, run.ours, []
    steps = run.of("steps")
    if "parameters" in full:
        lines.append(f"{full['parameters'] / 1e9:.1f} · 10⁹ weights")
    if "calibration_s" in ours:
        lines.append(
            f"recording {steps:g} timesteps of one run, and Fisher information and weights on "
            f"{run.of('calibration_steps'):g} of them, take {ours['calibration_s']:.0f} s"
        )
    if "search_s" in ours:
        reached = steps >= SEARCH_STEPS and ours["search_s"] <= SEARCH_AIM
        lines.append(
            f"the search over {steps:g} steps takes {ours['search_s']:.0f} s, "
            f"{ours['search_calls']:.0f} calls of the transformer: the aim of {SEARCH_AIM} s for "
            f"{SEARCH_STEPS} steps is {'reached' if reached else 'not reached'}"
        )
    end = "_peak_memory_bytes"
    peaks = {metric.removesuffix(end): value for metric, value in ours.items() if metric.endswith(end)}
    if peaks:
        worst = max(peaks, key=peaks.get)
        lines.append(
            f"most memory, {peaks[worst] / 1e9:.0f} GB of tensors, is taken by the phase "
            f"*{worst.replace('_', ' ')}*"
        )
    sizes = [values.get("transformer_memory_bytes") for values in (full, ours)]
    if all(sizes):
        lines.append(
            f"the transformer is {sizes[0] / 1e9:.1f} GB in bfloat16 and {sizes[1] / 1e9:.1f} GB packed"
        )
    if "quantize" in peaks and sizes[0]:
        times = peaks["quantize"] / sizes[0]
        lines.append(
            f"the phase *quantize*, which takes one layer after the other, has {times:.1f} times the "
            "transformer in bfloat16"
        )
    whole = {
        "in bfloat16 (eager)": full.get("generate_s"),
        "packed (eager)": ours.get("generate_s"),
        "packed with graphs": ours.get("generate_graphs_s"),
    }
    said = [f"{seconds:.1f} s {how}" for how, seconds in whole.items() if seconds]
    if said:
        lines.append(f"a whole run takes {', '.join(said)}")
    if "record_graphs_s" in ours:
        line = f"the run that records the graphs takes {ours['record_graphs_s']:.1f} s"
        if {"generate_compiled", "generate_graphs"} <= set(peaks):
            more = (peaks["generate_graphs"] - peaks["generate_compiled"]) / 1e9
            line += f", and with them a run takes {more:.1f} GB more than compiled without"
        lines.append(line)
    return lines
