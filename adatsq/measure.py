"""Every measurement of the book that needs no training, one command:

    python -m adatsq.measure --seconds 540

For each model in data/models: the benchmark, other libraries (those that are installed), the searches against
controls, the ablation at 3 and 4 bits. The benchmark, which takes times, has the device to itself, a model
after the other; all else runs one after the other for each model, the models side by side. Each of these
commands writes a row when it is measured and skips rows that are there; so this one can be ended at any time,
by the clock or by hand, and goes on where it was when it is given again. Sizes, prompts and seeds are in the
commands' own help.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adatsq.benchmark import commit_here

JOBS = {  # name: module and arguments; in the order in which they are wanted
    "benchmark": ("adatsq.benchmark",),
    "peers": ("adatsq.peers",),
    "search": ("adatsq.search_compare",),
    "ablation-w3": ("adatsq.ablation", "--w-bits", "3"),
    "ablation-w4": ("adatsq.ablation", "--w-bits", "4"),
}
ALONE = ("benchmark",)  # its rows tell seconds


def commands(model: Path, out: Path, jobs: Sequence[str], commit: str) -> Iterator[tuple[str, list[str]]]:
    """(name, command line) of a model's jobs."""
    for job in jobs:
        module, *arguments = JOBS[job]
        common = ["--model", str(model), "--out", str(out), "--commit", commit]
        yield f"{model.name} {job}", [sys.executable, "-m", module, *arguments, *common]


def run(
    chains: Sequence[Sequence[tuple[str, list[str]]]],
    logs: Path,
    seconds: float = float("inf"),
    say: Callable[[str], None] = print,
) -> list[str]:
    """Run each chain's commands one after the other, all chains at once; what each prints goes to a log.

    Returns the names of commands that failed, or that the clock ended or kept from starting.
    """
    logs.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def left() -> float:
        return seconds - (time.monotonic() - start)

    def one(name: str, command: list[str]) -> bool:
        if left() <= 0:
            say(f"{name}: not started")
            return False
        began, file = time.monotonic(), logs / f"{name.replace(' ', '-')}.log"
        with open(file, "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                code = process.wait(None if seconds == float("inf") else left())
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
                say(f"{name}: ended by the clock after {time.monotonic() - began:.0f} s")
                return False
        took = f"{time.monotonic() - began:.0f} s"
        say(
            f"{name}: done in {took}"
            if code == 0
            else f"{name}: failed after {took}, for the reason in {file}"
        )
        return code == 0

    def chain(steps: Sequence[tuple[str, list[str]]]) -> list[str]:
        return [name for name, command in steps if not one(name, command)]

    with ThreadPoolExecutor(len(chains)) as pool:
        return [name for unfinished in pool.map(chain, chains) for name in unfinished]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, nargs="+", help="by default all in data/models")
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=tuple(JOBS))
    parser.add_argument("--logs", type=Path, default=Path("_build/measure"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long")
    parser.add_argument("--commit", default=commit_here(), help="recorded with each row")
    args = parser.parse_args()
    models = args.models or sorted(f.parent for f in Path("data/models").glob("*/model_index.json"))
    if not models:
        parser.error("no models: data/models has none, and --models names none")
    os.environ.setdefault("OMP_NUM_THREADS", "2")  # processes share the cores
    alone = [job for job in args.jobs if job in ALONE]
    rest = [job for job in args.jobs if job not in ALONE]
    first = [step for model in models for step in commands(model, args.out, alone, args.commit)]
    chains = [list(commands(model, args.out, rest, args.commit)) for model in models]
    start = time.monotonic()
    unfinished = run([first], args.logs, args.seconds)
    unfinished += run(chains, args.logs, args.seconds - (time.monotonic() - start))
    if unfinished:
        sys.exit(f"not complete: {', '.join(unfinished)}. Give the same command again to go on")


if __name__ == "__main__":
    main()
