"""Every measurement of the book that needs no training, one command:

    python -m adatsq.measure --for-tables --seconds 540

For each model in data/models: the benchmark, searches against controls, other libraries (those that are
installed), costs that rows lack, the ablation at 3 and 4 bits, and the explorer's sweep. --for-tables leaves
out what the paper's four tables do not need. --missing runs nothing, and says which rows are not there yet
and about how long they take.

The benchmark, which takes times, has a device to itself; then all else runs side by side, spread over the
devices that CUDA shows, jobs that write the same files one after the other; the costs come last, alone again.
With --side-by-side the benchmark does not wait for its turn either, and leaves seconds to the costs. Each of
these commands writes a row when it is measured and skips rows that are there, and one that lacks none is not
started; so this one can be ended at any time, by the clock or by hand, and goes on where it was when it is
given again. At its end it makes the tables of all new rows. With --quick a few rows of each job run at tiny
sizes, to see that they do: into another --out. Sizes, prompts and seeds are in the commands' own help.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from adatsq.benchmark import commit_here
from adatsq.lacking import OTHERS, for_tables, lacking, said

JOBS = {  # name: module and arguments; in the order in which they are wanted
    "benchmark": ("adatsq.benchmark",),
    "search": ("adatsq.search_compare",),
    # one picture of each prompt, for they are many and slow
    "peers": ("adatsq.peers", "--pictures", "1", "--methods", *OTHERS),
    "modelopt": ("adatsq.peers", "--pictures", "1", "--methods", "modelopt"),  # compiles code for minutes
    "costs": ("adatsq.costs",),
    "ablation-w3": ("adatsq.ablation", "--w-bits", "3"),
    "ablation-w4": ("adatsq.ablation", "--w-bits", "4"),
    "sweep": ("adatsq.sweep",),
}
QUICK = {  # the same, tiny: a few rows of each
    "benchmark": ("--limit", "6", "--pictures", "1", "--methods", "rtn", "hadamard+gptq", "adatsq"),
    "search": ("--calibration", "4", "--held-out", "4", "--random", "1", "--budgets", "3.1"),
    "peers": ("--limit", "6"),
    "modelopt": ("--limit", "6"),
    "costs": ("--limit", "6"),
    "ablation-w3": ("--calibration", "4", "--held-out", "4", "--parts", "2x2", "steps", "--run-lengths", "4"),
    "ablation-w4": ("--calibration", "4", "--held-out", "4", "--parts", "2x2"),
    "sweep": ("--calibration", "4", "--judged", "6", "--taus", "1", "--budgets", "4", "--beams", "1"),
}
ALONE = ("benchmark",)  # its rows tell seconds
LAST = ("costs",)  # alone too, after all else: seconds of rows that were measured beside others
TIMED = ("benchmark", "peers", "modelopt")  # can leave them out
SAME_FILES = (TIMED, ("search",), ("ablation-w3", "ablation-w4"), ("sweep",))
AT_ONCE = 4  # commands on one device: each is one thread of Python, which fills no GPU


def commands(
    model: Path, out: Path, jobs: Sequence[str], commit: str, shared: bool = False, quick: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """(name, command line) of a model's jobs. shared: they run beside others."""
    for job in jobs:
        module, *arguments = JOBS[job]
        arguments += ["--shared"] * (shared and job in TIMED)
        arguments += QUICK[job] if quick else ()
        common = ["--model", str(model), "--out", str(out), "--commit", commit]
        yield f"{model.name} {job}", [sys.executable, "-m", module, *arguments, *common]


def run(
    chains: Sequence[Sequence[tuple[str, list[str]]]],
    logs: Path,
    seconds: float = float("inf"),
    say: Callable[[str], None] = print,
    devices: Sequence[str] = (),
    at_once: int | None = None,
) -> list[str]:
    """Run each chain's commands one after the other, chains side by side; what each prints goes to a log.

    devices: values of CUDA_VISIBLE_DEVICES; a chain gets the one with the fewest chains on it. at_once: most
    chains, by default all. Returns the names of commands that failed, or that the clock ended or kept from
    starting. If this process is interrupted or told to end, it ends them first.
    """
    logs.mkdir(parents=True, exist_ok=True)
    start, running, ended = time.monotonic(), set(), threading.Event()
    busy, lock = dict.fromkeys(devices, 0), threading.Lock()

    def left() -> float:
        return 0.0 if ended.is_set() else seconds - (time.monotonic() - start)

    def one(name: str, command: list[str], environment: dict[str, str]) -> bool:
        if left() <= 0:
            say(f"{name}: not started")
            return False
        began, file = time.monotonic(), logs / f"{name.replace(' ', '-')}.log"
        with open(file, "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            running.add(process)
            try:
                code = process.wait(None if seconds == float("inf") else left())
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
                say(f"{name}: ended by the clock after {time.monotonic() - began:.0f} s")
                return False
            finally:
                running.discard(process)
        took = f"{time.monotonic() - began:.0f} s"
        say(
            f"{name}: done in {took}"
            if code == 0
            else f"{name}: failed after {took}, for the reason in {file}"
        )
        return code == 0

    def chain(steps: Sequence[tuple[str, list[str]]]) -> list[str]:
        with lock:
            device = min(busy, key=busy.get, default=None)
            if device is not None:
                busy[device] += 1
        place = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        try:
            return [name for name, command in steps if not one(name, command, {**os.environ, **place})]
        finally:
            with lock:
                if device is not None:
                    busy[device] -= 1

    with ThreadPoolExecutor(max(1, len(chains) if at_once is None else at_once)) as pool:
        try:
            return [name for unfinished in pool.map(chain, chains) for name in unfinished]
        except (KeyboardInterrupt, SystemExit):
            ended.set()
            for process in list(running):
                process.terminate()
            raise


def cuda_devices() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them, those that this process may use; none without CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def make_tables(models: Sequence[Path], out: Path, logs: Path) -> list[str]:
    """NAME.csv and NAME-paired.csv of models with rows that are newer. Returns the names that failed."""
    stale = []
    for name in (out / model.name for model in models):
        facts, table = (name.with_name(f"{name.name}{suffix}.csv") for suffix in ("-facts", ""))
        if facts.exists() and not (table.exists() and table.stat().st_mtime >= facts.stat().st_mtime):
            stale.append([(f"{name.name} tables", [sys.executable, "-m", "adatsq.results", str(name)])])
    return run(stale, logs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, nargs="+", help="by default all in data/models")
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=tuple(JOBS), help="in this order")
    parser.add_argument("--for-tables", action="store_true", help="leave out what the tables do not need")
    parser.add_argument("--logs", type=Path, default=Path("_build/measure"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long")
    parser.add_argument(
        "--side-by-side", action="store_true", help="the models' benchmarks too; they record no seconds"
    )
    parser.add_argument("--at-once", type=int, help=f"commands side by side; by default {AT_ONCE} a device")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that all of it runs")
    parser.add_argument("--missing", action="store_true", help="only say which rows are not measured yet")
    parser.add_argument("--commit", default=commit_here(), help="recorded with each row")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end. Give the same command again to go on"))
    models = args.models or sorted(f.parent for f in Path("data/models").glob("*/model_index.json"))
    if not models:
        parser.error("no models: data/models has none, and --models names none")
    if args.quick and args.out == parser.get_default("out"):
        parser.error("--quick measures nothing worth keeping: choose another --out")
    todo = [
        (model, job)
        for job in args.jobs
        for model in models
        if not args.for_tables or for_tables(model.name, job)
    ]
    if args.missing:
        print(
            *(said(model, args.out, job) for model, job in sorted(todo, key=lambda m: models.index(m[0]))),
            sep="\n",
        )
        return
    if not args.quick:
        todo = [(model, job) for model, job in todo if job in LAST or lacking(model, args.out, job)]
    os.environ.setdefault("OMP_NUM_THREADS", "2")  # processes share the cores
    devices = cuda_devices()

    def lines(jobs: Sequence[str], shared: bool) -> list[list[tuple[str, list[str]]]]:
        """A chain per model that has some of these jobs to do, in the order of --jobs."""
        wanted = {model: [job for m, job in todo if m == model and job in jobs] for model in models}
        return [
            list(commands(model, args.out, wanted[model], args.commit, shared, args.quick))
            for model in models
            if wanted[model]
        ]

    alone = [job for job in ALONE if not args.side_by_side]
    beside = [[job for job in jobs if job not in alone] for jobs in SAME_FILES]
    at_once, start, unfinished = args.at_once or AT_ONCE * max(1, len(devices)), time.monotonic(), []
    for chains, most in (
        (lines(alone, False), max(1, len(devices))),
        ([chain for jobs in beside for chain in lines(jobs, True)], at_once),
        (lines(LAST, False), max(1, len(devices))),
    ):
        left = args.seconds - (time.monotonic() - start)
        unfinished += run(chains, args.logs, left, devices=devices, at_once=most)
    unfinished += make_tables(models, args.out, args.logs)
    if unfinished:
        sys.exit(f"not complete: {', '.join(unfinished)}. Give the same command again to go on")


if __name__ == "__main__":
    main()
