"""Every measurement of the book that needs no training, one command:

    python -m adatsq.measure --seconds 540

For each model in data/models: the benchmark, other libraries (those that are installed), the searches against
controls, the ablation at 3 and 4 bits, the sweep for the explorer, and at last, alone again, costs that rows
lack. The benchmark, which takes times, has the device to itself, a model after the other; all else runs one
after the other for each model, the models side by side. With --side-by-side the benchmark does so too, which
is faster and leaves seconds to the costs. Each of these
commands writes a row when it is measured and skips rows that are there; so this one can be ended at any time,
by the clock or by hand, and goes on where it was when it is given again. With --missing it runs nothing, and
says which rows are not there yet. Sizes, prompts and seeds are in the
commands' own help.
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

from adatsq.benchmark import commit_here
from adatsq.lacking import said

JOBS = {  # name: module and arguments; in the order in which they are wanted
    "benchmark": ("adatsq.benchmark",),
    "peers": ("adatsq.peers",),
    "search": ("adatsq.search_compare",),
    "ablation-w3": ("adatsq.ablation", "--w-bits", "3"),
    "ablation-w4": ("adatsq.ablation", "--w-bits", "4"),
    "sweep": ("adatsq.sweep",),
    "costs": ("adatsq.costs",),
}
ALONE = ("benchmark",)  # its rows tell seconds
LAST = ("costs",)  # alone too, after all else: seconds of rows that were measured beside others
TIMED = ("benchmark", "peers")  # can leave them out


def commands(
    model: Path, out: Path, jobs: Sequence[str], commit: str, shared: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """(name, command line) of a model's jobs. shared: they run beside others."""
    for job in jobs:
        module, *arguments = JOBS[job]
        arguments += ["--shared"] * (shared and job in TIMED)
        common = ["--model", str(model), "--out", str(out), "--commit", commit]
        yield f"{model.name} {job}", [sys.executable, "-m", module, *arguments, *common]


def run(
    chains: Sequence[Sequence[tuple[str, list[str]]]],
    logs: Path,
    seconds: float = float("inf"),
    say: Callable[[str], None] = print,
) -> list[str]:
    """Run each chain's commands one after the other, all chains at once; what each prints goes to a log.

    Returns the names of commands that failed, or that the clock ended or kept from starting. If this process
    is interrupted or told to end, it ends them first.
    """
    logs.mkdir(parents=True, exist_ok=True)
    start, running, ended = time.monotonic(), set(), threading.Event()

    def left() -> float:
        return 0.0 if ended.is_set() else seconds - (time.monotonic() - start)

    def one(name: str, command: list[str]) -> bool:
        if left() <= 0:
            say(f"{name}: not started")
            return False
        began, file = time.monotonic(), logs / f"{name.replace(' ', '-')}.log"
        with open(file, "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
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
        return [name for name, command in steps if not one(name, command)]

    with ThreadPoolExecutor(max(1, len(chains))) as pool:
        try:
            return [name for unfinished in pool.map(chain, chains) for name in unfinished]
        except (KeyboardInterrupt, SystemExit):
            ended.set()
            for process in list(running):
                process.terminate()
            raise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, nargs="+", help="by default all in data/models")
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=tuple(JOBS), help="in this order")
    parser.add_argument("--logs", type=Path, default=Path("_build/measure"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long")
    parser.add_argument(
        "--side-by-side", action="store_true", help="the models' benchmarks too; they record no seconds"
    )
    parser.add_argument("--missing", action="store_true", help="only say which rows are not measured yet")
    parser.add_argument("--commit", default=commit_here(), help="recorded with each row")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end. Give the same command again to go on"))
    models = args.models or sorted(f.parent for f in Path("data/models").glob("*/model_index.json"))
    if not models:
        parser.error("no models: data/models has none, and --models names none")
    if args.missing:
        for model in models:
            print(*said(model, args.out, args.jobs), sep="\n")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "2")  # processes share the cores
    alone = [job for job in args.jobs if job in ALONE and not args.side_by_side]
    rest = [job for job in args.jobs if job not in (*alone, *LAST)]
    first = [step for model in models for step in commands(model, args.out, alone, args.commit)]
    chains = [list(commands(model, args.out, rest, args.commit, shared=True)) for model in models]
    costs = [job for job in args.jobs if job in LAST]
    last = [step for model in models for step in commands(model, args.out, costs, args.commit)]
    start = time.monotonic()
    unfinished = run([first], args.logs, args.seconds)
    unfinished += run(chains, args.logs, args.seconds - (time.monotonic() - start))
    unfinished += run([last], args.logs, args.seconds - (time.monotonic() - start))
    if unfinished:
        sys.exit(f"not complete: {', '.join(unfinished)}. Give the same command again to go on")


if __name__ == "__main__":
    main()
