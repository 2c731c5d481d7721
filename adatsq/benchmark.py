"""The results table of a mini model, one command:

    python -m adatsq.benchmark --model data/models/flux-dev-mini --out data/results

Every method draws the 553 evaluation prompts x 4 pictures from the same seeds, or the 204 of a video model x
2 clips, and is judged by the same judge. Calibration prompts never meet them: 32 for the Fisher information
and the Hessians, 4 of these for the search, 32 others for its final check. Each method's pictures are scored
and written before the next method starts; rows already written are skipped. With --shared, for a device that
other work is on too, all is as always but seconds, which are left out: what several methods need alike is
then found once for all (`memory` of `quantize`). Of a run of at most 4 steps all paths
of the search are followed as well, and its beams are held against the exact front.

    NAME-images.csv    a row per method and picture: passed (of a clip: each dimension), psnr, ssim
    NAME-facts.csv     a row per method: seconds, bits, bytes, and transformer calls of one row each
    NAME.csv           the tidy table of both, with bootstrap intervals
    NAME-paired.csv    differences between methods on the same pictures (`results.BASES`), with intervals
    NAME-fisher.json, NAME-search.csv, NAME-policy-*.json    what the search saw and chose
    NAME-frontier.csv  all paths of a run of few steps, those on the front, and which beams found them
"""

import argparse
import inspect
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import adatsq
from adatsq.baselines import METHODS
from adatsq.facts import counted_calls, group_search, on_disk, peak_memory, size
from adatsq.judging import task_of
from adatsq.models import fingerprint, sampling
from adatsq.results import ORDER, tidy_tables
from adatsq.rows import (
    BUDGETS,
    EXACT,
    SEARCHED,
    Setting,
    at_fixed_bits,
    at_searched_bits,
    fisher_calls,
    frontier,
    score,
    scored,
    timed,
)

CALIBRATION, CHECK = slice(0, 32), slice(32, 64)
RECIPES = {
    "rtn": adatsq.rtn,
    "hadamard": adatsq.hadamard,
    "hadamard+gptq": adatsq.hadamard_gptq,
    "adatsq-weights": adatsq.adatsq_weights,
    **METHODS,
}
WEIGHTS = {method: RECIPES[method] for method in ORDER if method in RECIPES}


def main(arguments: Sequence[str] | None = None) -> None:
    command(arguments, __doc__, ORDER, run)


def command(
    arguments: Sequence[str] | None, description: str, methods: Sequence[str], run: Callable[..., list[str]]
) -> None:
    """The command line around `run`, which measures rows of these methods and returns those that failed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="data/models/flux-dev-mini")
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts"))
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, help="by default all")
    parser.add_argument("--pictures", type=int, help="per prompt; by default 4, of a video model 2")
    parser.add_argument(
        "--limit", type=int, help="only so many evaluation prompts, spread over the categories"
    )
    parser.add_argument("--steps", type=int, help="denoising steps; by default the model's own")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--shared", action="store_true", help="beside other work: seconds are not recorded")
    parser.add_argument("--commit", default=commit_here(), help="recorded with each row")
    args = parser.parse_args(arguments)
    pipe = adatsq.load_pipeline(args.model, torch_dtype=torch.float32, device=args.device)
    task = task_of(pipe)
    evaluation, calibration = (task.load(args.prompts / file) for file in task.files)
    if args.limit:
        evaluation = spread(evaluation, args.limit)
    setting = Setting(
        model=args.model,
        name=Path(args.model).name,
        out=args.out,
        device=args.device,
        commit=args.commit,
        task=task,
        pictures=args.pictures or task.pictures,
        batch_size=args.batch_size or task.batch_size,
        evaluation=evaluation,
        check=calibration[CHECK],
        steps=args.steps,
        methods=args.methods,
        shared=args.shared,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    failed = run(setting, pipe, [p.text for p in calibration[CALIBRATION]], calibration[0].seed)
    if failed:
        sys.exit(f"{setting.name}: these rows failed, for the reasons above: {', '.join(failed)}")


def run(setting: Setting, pipe: DiffusionPipeline, calibration: list[str], seed: int) -> list[str]:
    """All rows that are wanted and not yet written, then the tables. pipe: the full-precision one.

    Returns the names of rows that failed.
    """
    failed: list[str] = []
    known = stored_fisher(setting, pipe)
    trace, record_s = timed(adatsq.record, pipe, calibration, setting.steps, seed, 32, progress=False)
    todo = {
        (method, w_bits): rows
        for w_bits in BUDGETS
        for method in WEIGHTS
        if (rows := missing(setting, method, w_bits, len(trace.timesteps)))
    }
    fisher, fisher_s = (known, float("nan")) if known is not None else fisher_of(setting, pipe, trace)
    if todo or not scored(setting, "fp", 16, 16.0):
        reference, draw_s = timed(setting.draw, pipe, setting.evaluation, setting.pictures)
        if not scored(setting, "fp", 16, 16.0):
            said = score(setting, reference, reference, "fp", 16, 16.0, {"average_bits": 16.0})
            print(f"fp: {said}, drawn in {draw_s:.1f} s", flush=True)

    found: dict = {}  # smoothing and branches, the same for methods that differ in their solver alone

    def weights(method: str, w_bits: int, rows: list[tuple[str, float]]) -> str:
        """Quantize once, then all rows on these weights. With --shared no seconds are told, which would have
        to be those of all that a method needs."""
        memory = found if setting.shared else None
        pipe, facts = quantized(setting, method, w_bits, trace, fisher, memory)
        facts |= {"record_s": record_s, "fisher_s": fisher_s}
        for name, budget in rows:
            if name == method:
                arguments = at_fixed_bits, setting, pipe, trace, reference, name, w_bits, facts
            elif name == EXACT:
                arguments = frontier, setting, pipe, trace, fisher, w_bits
            else:
                arguments = (
                    at_searched_bits,
                    setting,
                    pipe,
                    trace,
                    fisher,
                    reference,
                    name,
                    w_bits,
                    budget,
                    facts,
                )
            attempt(failed, f"{name} W{w_bits}A{budget:g}", *arguments)
        return f"{len(rows)} rows on these weights"

    for (method, w_bits), rows in todo.items():
        attempt(failed, f"{method} weights W{w_bits}", weights, method, w_bits, rows)
    tidy_tables(setting.path(""))
    return failed


def quantized(
    setting: Setting,
    method: str,
    w_bits: int,
    trace: adatsq.Trace,
    fisher: adatsq.Fisher,
    memory: dict | None = None,
) -> tuple[DiffusionPipeline, dict]:
    """A pipeline with a method's weights, and what they are and took. memory: as in `quantize`."""
    alpha = fisher.alpha(tau=1.0) if method.startswith("adatsq") else None
    pipe, options = setting.load(), {"blocks_per_pass": None, "batch_size": 32, "progress": False}
    if memory is not None:
        options["memory"] = memory
    with peak_memory(setting.device, "quantize") as peak, counted_calls(pipe.transformer) as calls:
        _, quantize_s = timed(WEIGHTS[method], pipe, trace, w_bits, w_bits, alpha, **options)
    return pipe, {
        "quantize_s": quantize_s,
        "calibration_calls": calls.rows,
        **({} if alpha is None else {"fisher_calls": fisher_calls(trace)}),
        **size(pipe),
        **on_disk(pipe),
        **group_search(pipe),
        **peak,
    }


def wanted(widths: Sequence[int] = tuple(BUDGETS)) -> list[tuple[str, int, float]]:
    """(method, w_bits, a_bits) of all rows at these widths, in the order of tables; full precision first."""
    rows = [("fp", 16, 16.0)]
    for w in widths:
        for m in ORDER[1:]:
            rows += [(m, w, float(a)) for a in (SEARCHED[m].budgets[w] if m in SEARCHED else (w,))]
    return rows


def on_weights(method: str, w_bits: int) -> list[tuple[str, float]]:
    """(method, activation bits) of all rows on a method's weights, its own first; searches by budget."""
    found = [(m, b) for m, how in SEARCHED.items() if how.weights == method for b in how.budgets[w_bits]]
    return [(method, float(w_bits)), *sorted(found, key=lambda row: row[1])]


def missing(setting: Setting, weights: str, w_bits: int, steps: int) -> list[tuple[str, float]]:
    """(method, activation bits) of the rows on these weights that are wanted and not yet written."""
    rows = [row for row in on_weights(weights, w_bits) if row[0] in setting.methods]
    if weights == "adatsq-weights" and "adatsq" in setting.methods and steps <= 4:
        rows.append((EXACT, float(w_bits)))
    return [(m, b) for m, b in rows if not scored(setting, m, w_bits, b)]


def attempt(failed: list[str], row: str, function: Callable[..., str], *args) -> None:
    """Print what the function says of the row, and its seconds. A row that fails is named; others go on."""
    start = time.perf_counter()
    try:
        print(f"{row}: {function(*args)}, {time.perf_counter() - start:.1f} s", flush=True)
    except Exception:
        traceback.print_exc()
        failed.append(row)


def stored_fisher(setting: Setting, pipe: DiffusionPipeline) -> adatsq.Fisher | None:
    """That of the rows already written, if there are any.

    Before any work, ValueError if these are of another model or another number of steps.
    """
    file = setting.path("-fisher.json")
    if not file.exists():
        return None
    fisher, model = adatsq.Fisher.load(file), fingerprint(pipe.transformer)
    default = inspect.signature(pipe.__call__).parameters["num_inference_steps"].default
    steps = setting.steps or sampling(pipe).get("num_inference_steps", default)
    if (fisher.model, len(fisher.timesteps)) != (model, steps):
        raise ValueError(
            f"{setting.path('-*')} are results of {fisher.model} at {len(fisher.timesteps)} steps, not of "
            f"{model} at {steps}: delete them, or choose another --out"
        )
    return fisher


def fisher_of(setting: Setting, pipe: DiffusionPipeline, trace: adatsq.Trace) -> tuple[adatsq.Fisher, float]:
    """(Fisher information, seconds), which is kept for rows to come."""
    fisher, seconds = timed(adatsq.temporal_fisher, pipe, trace, batch_size=16, progress=False)
    fisher.save(setting.path("-fisher.json"))
    return fisher, seconds


def spread(prompts: list, n: int) -> list:
    """The first n prompts, taking one of each category in turn."""
    seen: dict[str, int] = {}
    turns = []
    for prompt in prompts:
        seen[prompt.category] = seen.get(prompt.category, 0) + 1
        turns.append(seen[prompt.category])
    return [prompts[i] for i in sorted(range(len(prompts)), key=turns.__getitem__)[:n]]


def commit_here() -> str:
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()
