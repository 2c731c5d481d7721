"""Does the error grow along the run, and with the number of steps, and does a search stop it?

The relative squared error |x_t - x_t^FP|^2 / |x_t^FP|^2 of held-out latents after each step, in runs of
several lengths: at fixed bits, with searched policies, and with the `controls` at the same
budget. Weights by Hadamard rotation and GPTQ, calibrated on a run of that length.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline

from adatsq.ablation_plan import BUDGETS, CANDIDATES
from adatsq.controls import A_BITS, controls
from adatsq.evaluate import intervals
from adatsq.fisher import Fisher, temporal_fisher
from adatsq.lagrangian import search_policies
from adatsq.marginals import marginal_errors
from adatsq.measurements import append, stored
from adatsq.policy import act_layers
from adatsq.recipes import hadamard_gptq
from adatsq.results import COLUMNS, SEED
from adatsq.search import ready
from adatsq.search_compare import SEARCHED
from adatsq.trace import Trace, record, step, velocity

STEPS = (4, 10, 25, 50)  # lengths of a run; none longer than the model's own
CALIBRATION = 8  # pictures: for each length a new Fisher information and new Hessians
FIXED = ("uniform 3", "uniform 4")
SEARCHES = ("paper", "lagrangian")
CONTROLS = (
    "random 0",
    "first steps at 8",
    "last steps at 8",
    "static over time",
    "same for all layers",
)


def trajectory_errors(
    pipe: DiffusionPipeline, trace: Trace, bits: np.ndarray, batch_size: int = 64
) -> np.ndarray:
    """Relative squared error of the latents after each step, (T, N), of a run with activation bits (T, L)."""
    found = []
    for first in range(0, len(trace), batch_size):
        index = list(range(len(trace)))[first : first + batch_size]
        with ready(pipe, trace, index) as (modules, start), torch.inference_mode():
            x, scheduler, errors = start.latents, copy.deepcopy(start.scheduler), []
            for t, row in enumerate(bits.tolist()):
                for module, a_bits in zip(modules, row):
                    module.a_bits = a_bits
                x = step(scheduler, velocity(pipe.transformer, trace, t, x, index), t, x)
                exact = trace.latents[t + 1][index].to(x.device, torch.float64)
                error = (x.double() - exact).square().flatten(1).sum(1)
                errors.append(error / exact.square().flatten(1).sum(1))
            found.append(torch.stack(errors).cpu().numpy())
    return np.concatenate(found, axis=1)


def policies(
    pipe: DiffusionPipeline, trace: Trace, fisher: Fisher, w_bits: int, budget: float
) -> Iterator[tuple[str, float, np.ndarray]]:
    """(name, bits or budget, activation bits (T, L)): fixed, searched and controls."""
    shape = len(trace.timesteps), len(act_layers(trace))
    for name in FIXED:
        bits = int(name.split()[1])
        yield name, bits, np.full(shape, bits)
    common, searched = {"images": list(SEARCHED)[: len(trace)], "progress": False}, {}
    for name in SEARCHES:
        options = {"shares": CANDIDATES[w_bits]["paper"]} if name == "paper" else {}
        result = search_policies(pipe, trace, fisher, name, budget=budget, **options, **common)
        searched[name] = result.pick(budget).bits
        yield name, budget, searched[name]
    carried = marginal_errors(pipe, trace, A_BITS, **common)
    for name, bits in controls(carried, searched, budget, random=1):
        if name in CONTROLS:
            yield name, budget, bits


def measured(path: Path, w_bits: int, steps: int, held_out: int | None = None) -> set[str]:
    """Policies of which a run length is stored, of so many pictures, with the error of each picture."""
    found = [
        stored(path, w_bits=w_bits, steps=steps),
        stored(path.with_name(f"{path.stem}-pictures.csv"), w_bits=w_bits, steps=steps),
    ]
    if any(table.empty for table in found):
        return set()
    rows, pictures = found
    rows = rows if held_out is None else rows[rows.n == held_out]
    return set(rows.method) & set(pictures.method)


def measure_steps(
    pipe: DiffusionPipeline,
    calibration: Sequence[str],
    held_out: Sequence[str],
    lengths: Sequence[int],
    w_bits: int,
    path: Path,
    origin: dict,
) -> None:
    """Write a row per run length, policy and step; a length that is there is skipped. Beside it, in
    NAME-ablation-steps-pictures.csv, the error at the end of each picture's run, for paired intervals.

    origin: columns model, commit and device. The pipeline comes, and stays, in full precision.
    """
    names = {*FIXED, *SEARCHES, *CONTROLS}
    for steps in lengths:
        if names <= measured(path, w_bits, steps, len(held_out)):
            continue
        start = time.perf_counter()
        trace = record(pipe, calibration[:CALIBRATION], steps, seed=1_000_000, progress=False)
        held = record(pipe, held_out, steps, seed=2_000_000, batch_size=32, progress=False)
        fisher = temporal_fisher(pipe, trace, batch_size=8, progress=False)
        quantized = copy.copy(pipe)
        quantized.transformer = copy.deepcopy(pipe.transformer)
        hadamard_gptq(quantized, trace, w_bits, blocks_per_pass=None, progress=False)
        last = {}
        for name, a_bits, bits in policies(quantized, trace, fisher, w_bits, BUDGETS[w_bits][-1]):
            errors = trajectory_errors(quantized, held, bits)
            place = {"method": name, "w_bits": w_bits, "a_bits": float(a_bits), "steps": steps}
            rows = [
                {"step": t + 1, **intervals(row[:, None], ["all"] * len(row), seed=SEED).loc["total"]}
                for t, row in enumerate(errors)
            ]
            table = pd.DataFrame(rows).assign(
                metric="latent_error", average_bits=bits.mean(), seed=SEED, **place, **origin
            )
            table = table.astype({"n": int})[[*COLUMNS, "steps", "step", "average_bits"]]
            ends = pd.DataFrame({**place, "picture": range(len(held)), "error": errors[-1], **origin})
            append(path.with_name(f"{path.stem}-pictures.csv"), ends, [*place])
            append(path, table, [*place])
            last[name] = errors[-1].mean()
        said = ", ".join(f"{name} {error:.4f}" for name, error in last.items())
        print(f"{steps} steps, error of the last latents: {said}; {time.perf_counter() - start:.1f} s")
