"""What each part of the method is worth, one command a model (the paper's table 3, arXiv:2602.09883):

    python -m adatsq.ablation --model data/models/flux-dev-mini --out data/results

Uniform or Fisher calibration with fixed or searched bits, tau, beam width, candidates, number of calibration
prompts, the loss of the Fisher information, the shares of bits that searches pick (`ablation_plan`), and the
error along runs of several lengths (`ablation_steps`). All settings paint the same held-out calibration
prompts from the same seeds, and are compared with the full-precision pictures, and with each other picture by
picture. Each row is written as soon as it is measured; rows already written are skipped.

    NAME-ablation.csv           psnr (dB) and what the search cost and found, a row each. With a baseline: the
                                mean difference to it on the same pictures. 95% bootstrap intervals
    NAME-ablation-pictures.csv  psnr of each picture
    NAME-ablation-steps.csv     relative squared error of the latents after each step; -steps-pictures.csv has
                                that of each picture after the last one
"""

import argparse
import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline

from adatsq.ablation_plan import CANDIDATES, LOSSES, PARTS, Row, Search, Weights, cost, plan
from adatsq.ablation_steps import STEPS, measure_steps
from adatsq.benchmark import commit_here
from adatsq.controls import A_BITS
from adatsq.evaluate import generate, intervals, psnr
from adatsq.fisher import Fisher, temporal_fisher
from adatsq.judging import task_of
from adatsq.lagrangian import search_policies
from adatsq.measurements import append, stored
from adatsq.models import load_pipeline, sampling
from adatsq.policy import Policy, apply
from adatsq.recipes import adatsq_weights, hadamard_gptq
from adatsq.results import COLUMNS, SEED
from adatsq.rows import device_name
from adatsq.search import SearchResult
from adatsq.search_compare import SEARCHED, front_share, worst_error
from adatsq.trace import Trace, record

ROW = ["part", "setting", "baseline", "baseline_a_bits", *COLUMNS]
KEY = ["part", "setting", "w_bits", "a_bits"]


@dataclass
class Run:
    """What all rows share. trace: of the calibration prompts, held: of the held-out ones, full precision.

    origin: columns that are the same in all rows (model, commit, device).
    """

    pipe: DiffusionPipeline
    trace: Trace
    held: Trace
    w_bits: int
    out: Path
    origin: dict
    batch_size: int = 64
    fishers: dict[str, Fisher] = field(default_factory=dict)

    def path(self, suffix: str = "") -> Path:
        return self.out / f"{self.origin['model']}-ablation{suffix}.csv"

    @property
    def searched(self) -> list[int]:
        return list(SEARCHED)[: len(self.trace)]

    def fisher(self, loss: str | None, prompts: int) -> Fisher:
        """Of the first prompts, computed once per loss. None: as searches on uniform weights use it."""
        loss = loss or LOSSES[0]
        if loss not in self.fishers:
            self.fishers[loss] = temporal_fisher(
                self.pipe, self.trace, loss=loss, batch_size=16, progress=False
            )
        whole = self.fishers[loss]
        return replace(whole, per_image=whole.per_image[:, :prompts], seeds=whole.seeds[:prompts])

    def check(self) -> None:
        """ValueError if the file is of another model or of other sizes. The first run says what it is of."""
        sizes = f"{len(self.trace.timesteps)} steps, {len(self.trace)} calibration, {len(self.held)} held out"
        what = f"{self.trace.model}: {sizes}"
        known = stored(self.path(), part="run")
        if known.empty:
            place = {"part": "run", "setting": what, "method": "fp", "w_bits": 16, "a_bits": 16.0}
            self.write([{**place, "metric": "steps", "value": len(self.trace.timesteps)}])
        elif known.setting.iloc[0] != what:
            raise ValueError(
                f"{self.path()} holds results of {known.setting.iloc[0]}, this run is {what}: delete the "
                "file, or choose another --out"
            )

    def write(self, rows: list[dict]) -> None:
        """Rows of NAME-ablation.csv, all of one setting, at once."""
        table = pd.DataFrame([{"n": 1, "seed": SEED, **row, **self.origin} for row in rows])
        append(self.path(), table.reindex(columns=ROW), KEY)


class Quantized:
    """A pipeline with the weights of some rows, and what was already searched and painted with it."""

    def __init__(self, run: Run, weights: Weights) -> None:
        self.run, self.weights = run, weights
        self.pipe = copy.copy(run.pipe)
        self.pipe.transformer = copy.deepcopy(run.pipe.transformer)
        self.fisher = run.fisher(weights.loss, weights.prompts)
        trace, options = run.trace.subset(range(weights.prompts)), {"blocks_per_pass": None, "batch_size": 32}
        if weights.loss is None:
            hadamard_gptq(self.pipe, trace, run.w_bits, progress=False, **options)
        else:
            alpha = self.fisher.alpha(weights.tau)
            adatsq_weights(self.pipe, trace, run.w_bits, alpha=alpha, progress=False, **options)
        self.results: dict[tuple, SearchResult] = {}
        self.scores: dict[bytes, np.ndarray] = {}
        self.worst = None

    def search(self, search: Search, budget: float | None) -> SearchResult:
        if (search, budget) not in self.results:
            options = {"budget": budget, "images": self.run.searched, "batch_size": self.run.batch_size}
            if search.kind == "paper":
                options |= {"beam": search.beam, "shares": CANDIDATES[self.run.w_bits][search.shares]}
            else:
                options["weights"] = search.cost
            arguments = self.pipe, self.run.trace, self.fisher, search.kind
            self.results[search, budget] = search_policies(*arguments, progress=False, **options)
        return self.results[search, budget]

    def psnr(self, policy: Policy) -> np.ndarray:
        """Of each held-out picture to that of full precision, (N,)."""
        key = policy.bits.tobytes()
        if key not in self.scores:
            held, applied = self.run.held, apply(self.pipe, policy)
            images = generate(
                self.pipe, held.prompts, held.seeds, self.run.batch_size, progress=False, **held.settings
            )
            applied.remove()
            self.scores[key] = psnr(images, held.images).round(3)  # as stored: equal pictures differ by 0
        return self.scores[key]

    def facts(self, search: Search, budget: float | None) -> dict[str, float]:
        """What a search cost, and its front's share of a box that is the same for all on these weights."""
        result, run = self.search(search, budget), self.run
        if self.worst is None:
            self.worst = worst_error(self.pipe, run.trace, run.searched)
        share = front_share(result, self.worst)
        return {"hypervolume": share, "search_s": result.seconds, "calls": result.calls}


def measure(quantized: Quantized, row: Row) -> str:
    """Paint, compare and write one setting. Returns what it found."""
    run, facts = quantized.run, {}
    if row.search is None:
        policy = Policy.of(run.trace, int(row.a_bits))
    else:
        result = quantized.search(row.search, row.a_bits)
        policy = result.pick(row.a_bits)
        error = next(path.error for path in result.front if path.policy is policy)
        facts = {"error": error, **quantized.facts(row.search, row.a_bits)}
        facts |= {f"share_{bits}": float((policy.bits == bits).mean()) for bits in A_BITS}
    if row.part == "beam":  # the whole front as well, which no budget cuts
        facts |= {f"front_{name}": v for name, v in quantized.facts(row.search, None).items()}
    tau = row.weights.tau if row.weights.loss else math.inf
    facts["effective_timesteps"] = quantized.fisher.effective_timesteps(tau).mean()
    facts |= {"flop_weighted_bits": policy.flop_weighted, "average_bits": policy.average}
    place = {"part": row.part, "setting": row.setting, "method": row.method}
    place |= {"w_bits": run.w_bits, "a_bits": float(row.a_bits)}
    rows = [{**place, "metric": metric, "value": value} for metric, value in facts.items()]
    scores = paint(quantized, row, policy, place) if row.draw else []
    run.write([*rows, *({**place, "metric": "psnr", **score} for score in scores)])
    said = [
        f"{s['value']:+.2f} to {s['baseline']}" if "baseline" in s else f"{s['value']:.2f} dB" for s in scores
    ]
    return ", ".join([f"{policy.average:.3f} bits", *said])


def paint(quantized: Quantized, row: Row, policy: Policy, place: dict) -> list[dict]:
    """Write psnr of each held-out picture; the mean with its interval, and differences to baselines."""
    run, values = quantized.run, quantized.psnr(policy)
    pictures = {"model": run.origin["model"], **place, "picture": range(len(values)), "psnr": values}
    append(run.path("-pictures"), pd.DataFrame(pictures), KEY)
    scores = [summary(values)]
    for name, a_bits in row.baselines:
        known = stored(run.path("-pictures"), part=row.part, setting=name, w_bits=run.w_bits, a_bits=a_bits)
        if len(known) != len(values):
            raise ValueError(
                f"{run.path('-pictures')} has {len(known)} pictures of {name!r} at {a_bits:g} bits, not "
                f"{len(values)}: delete {run.path()} and measure again"
            )
        difference = values - known.sort_values("picture").psnr.to_numpy()
        scores.append({**summary(difference), "baseline": name, "baseline_a_bits": a_bits})
    return scores


def summary(values: np.ndarray) -> dict[str, float]:
    """Mean of a value per picture (N,), each of its own prompt, and its interval."""
    found = intervals(values[:, None], ["all"] * len(values), seed=SEED).loc["total"]
    return {**found, "n": int(found.n)}


def done(run: Run, row: Row) -> bool:
    place = {"part": row.part, "setting": row.setting, "w_bits": run.w_bits, "a_bits": row.a_bits}
    return not stored(run.path(), **place).empty


def measure_all(run: Run, rows: Sequence[Row]) -> None:
    """All rows that are not yet written; weights are quantized once for all rows that share them."""
    run.check()
    todo = [row for row in rows if not done(run, row)]
    for weights in dict.fromkeys(row.weights for row in todo):
        start, quantized = time.perf_counter(), Quantized(run, weights)
        print(f"{weights}: {time.perf_counter() - start:.1f} s", flush=True)
        for row in todo:
            if row.weights == weights:
                start, said = time.perf_counter(), measure(quantized, row)
                seconds = time.perf_counter() - start
                print(f"  {row.part}: {row.setting} A{row.a_bits:g}: {said}, {seconds:.1f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="data/models/flux-dev-mini")
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts"))
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--w-bits", type=int, choices=tuple(CANDIDATES), default=3)
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "steps"), default=(*PARTS, "steps"))
    parser.add_argument("--calibration", type=int, default=32 if gpu else 8, help="first prompts of the file")
    parser.add_argument("--held-out", type=int, default=64 if gpu else 8, help="last prompts of the file")
    parser.add_argument("--steps", type=int, help="denoising steps; by default the model's own")
    parser.add_argument("--run-lengths", type=int, nargs="+", default=STEPS, help="of the part `steps`")
    parser.add_argument("--commit", default=commit_here(), help="recorded with each row")
    args = parser.parse_args(arguments)
    pipe = load_pipeline(args.model, torch_dtype=torch.float32, device=args.device)
    task, start = task_of(pipe), time.perf_counter()
    file = args.prompts / task.files[1]
    prompts = task.load(file)
    if args.calibration + args.held_out > len(prompts):
        parser.error(f"{file} has {len(prompts)} prompts: calibration and held-out ones overlap")
    texts, seed = [p.text for p in prompts], prompts[0].seed
    first, last = texts[: args.calibration], texts[-args.held_out :]
    origin = {
        "model": Path(args.model).name,
        "commit": args.commit,
        "device": device_name(args.device),
    }
    rows = plan(args.w_bits, args.calibration, args.parts)
    if rows:
        trace = record(pipe, first, args.steps, seed, 32, progress=False)
        held = record(pipe, last, args.steps, 2_000_000, 32, progress=False)
        calls = cost(rows, args.w_bits, len(trace.timesteps), len(held), len(SEARCHED))
        print(f"{len(rows)} rows, about {sum(calls.values())} transformer calls for one picture: {calls}")
        measure_all(Run(pipe, trace, held, args.w_bits, args.out, origin), rows)
    if "steps" in args.parts:
        own = args.steps or sampling(pipe).get("num_inference_steps", max(args.run_lengths))
        lengths = sorted({n for n in args.run_lengths if n <= own} | {own})
        path = args.out / f"{origin['model']}-ablation-steps.csv"
        measure_steps(pipe, first, last, lengths, args.w_bits, path, origin)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
