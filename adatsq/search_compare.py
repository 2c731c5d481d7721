"""Is a searched policy better than one without a search? Both searches and controls, one command a model:

    python -m adatsq.search_compare --model data/models/z-image-mini --out data/results

At each budget: the beam ("paper"), the Lagrangian search, also with more widths to choose from, and the beam
over its prices, the first once more, made wider until it makes as many transformer calls as the second or has
no more paths to follow ("equal calls", `at_equal_calls`), and `controls`: the bits of these policies at
random places or without time, 8 bits for the first or the last steps, bits that are static over time, or the
same for all layers. What each spends is in average_bits; the beam often spends less. Activations at 8 bits
show what is left to the weights, which are made by Hadamard rotation and GPTQ.
All draw the same held-out pictures, and are compared picture by picture.
NAME-search-compare.csv has a row per policy, and NAME-search-compare-pictures.csv one per policy and picture.
Both are written as soon as a policy has been drawn; policies that are there are skipped. Rows of fewer
pictures, of a smaller run, are measured again and replaced.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline

from adatsq.benchmark import commit_here
from adatsq.candidates import LADDER, SHARES
from adatsq.controls import A_BITS, COLLAPSED, MORE_BITS, PERMUTED, controls
from adatsq.evaluate import generate, psnr
from adatsq.fisher import temporal_fisher
from adatsq.judging import task_of
from adatsq.lagrangian import follow, search_policies
from adatsq.marginals import marginal_errors
from adatsq.measurements import append, stored
from adatsq.models import load_pipeline
from adatsq.pareto import share_of_box
from adatsq.policy import Policy, apply
from adatsq.recipes import hadamard_gptq
from adatsq.rows import device_name
from adatsq.search import SearchResult
from adatsq.trace import Trace, record

SEARCHED = range(4)  # calibration pictures that both searches follow
MOST_BITS, WORST = 4.5, 1.1  # corner of the box of a front's hypervolume; WORST: times the error at 3 bits
WIDEST = 64  # beam
PAPER = "paper"  # the policy that all others are compared with
WIDER = {"a_bits": MORE_BITS, "at_end": True}
SEARCHES = {
    PAPER: ("paper", {"shares": SHARES[3]}),
    "paper, ladder": ("paper", {"shares": LADDER}),
    "lagrangian": ("lagrangian", {}),
    "lagrangian, flops": ("lagrangian", {"weights": "flops"}),
    "prices": ("prices", {}),
    "lagrangian, 2 to 8": ("lagrangian", WIDER),
    "lagrangian, 2 to 8, flops": ("lagrangian", {**WIDER, "weights": "flops"}),
}
EQUAL = {f"{name}, equal calls": name for name in SEARCHES if name.startswith(PAPER)}
UNIFORM = {f"uniform {bits}": bits for bits in A_BITS}
KEY = ["search", "w_bits", "budget"]
COLUMNS = (
    "model search w_bits budget average_bits flop_weighted_bits error calls search_s candidate psnr n gain "
    "gain_se hypervolume beam commit device steps calibration"
).split()
BUDGETS, RANDOM, HELD_OUT = (3.1, 3.6), 20, 32  # of the command, unless it is told others


def missing(path: Path, w_bits: int, budget: float, random: int, pictures: int) -> list[str]:
    """Policies of this budget that the file at `path` lacks, or has of other pictures, in their order."""
    place = {"w_bits": w_bits, "budget": budget, "n": pictures}
    return [name for name in policy_names(random) if stored(path, search=name, **place).empty]


def policy_names(random: int = RANDOM) -> list[str]:
    """All policies of a budget, in the order in which they are measured."""
    some = dict.fromkeys(sources(), np.full((1, 1), 3))
    others = [name for name, _ in controls(np.ones((1, 1, len(A_BITS))), some, 3, random)]
    return [*SEARCHES, *EQUAL, *others, *UNIFORM]


def sources(names: Sequence[str] | None = None, random: int = RANDOM) -> set[str]:
    """Searches whose policies the controls of these names, by default all, are made of."""
    found = {f"{name} {seed}": source for name, source in PERMUTED.items() for seed in range(random)}
    found |= {name: source for name, (source, _) in COLLAPSED.items()}
    return {found[name] for name in (found if names is None else names) if name in found}


def worst_error(pipe: DiffusionPipeline, trace: Trace, images: Sequence[int]) -> float:
    """The error that a front's hypervolume is measured from: a tenth more than with the fewest bits."""
    low = {"low": Policy.of(trace, min(A_BITS)).bits}
    return WORST * follow(pipe, trace, low, images)[1]["low"]


def front_share(result: SearchResult, worst: float) -> float:
    """Hypervolume of a front in (average bits, error), as a share of the box up to MOST_BITS and `worst`. An
    average below the box, which only searches with narrower widths reach, counts as at its edge."""
    low = min(A_BITS)
    points = [(max(low, path.policy.average), path.error) for path in result.front]
    return share_of_box(points, (low, 0.0), (MOST_BITS, worst))


def at_equal_calls(search: Callable[[int], SearchResult], calls: int) -> tuple[int, SearchResult]:
    """(beam, result): doubled from 4 until it makes `calls` calls, or a wider one makes no more."""
    beam, result = 4, search(4)
    while result.calls < calls and beam < WIDEST:
        wider = search(2 * beam)
        if wider.calls == result.calls:  # there are no more paths within the budget
            break
        beam, result = 2 * beam, wider
    return beam, result


def compare(
    pipe: DiffusionPipeline,
    trace: Trace,
    held: Trace,
    w_bits: int,
    budgets: Sequence[float],
    name: str | Path,
    random: int = 20,
    progress: bool = True,
    origin: dict | None = None,
) -> pd.DataFrame:
    """Measure what NAME-search-compare.csv lacks, and return it: psnr in dB to `held`'s pictures, and more.

    The pipeline comes in full precision and leaves quantized, if there is anything to measure. gain: mean
    difference to "paper" at the same budget, of the same pictures, with its standard error over prompts.
    hypervolume: of the search's front (`front_share`). origin: commit and device of the rows; steps and
    calibration are the run's length and its calibration pictures. ValueError if the file has rows of more
    pictures; those of fewer count as not measured.
    """
    path, of_pictures = (Path(f"{name}-search-compare{suffix}.csv") for suffix in ("", "-pictures"))
    images = list(SEARCHED)[: len(trace)]
    uniform = {name: Policy.of(trace, bits).bits for name, bits in UNIFORM.items()}
    before = stored(path, w_bits=w_bits)
    if len(before) and (before.n > len(held)).any():
        raise ValueError(
            f"{path} has rows of {sorted(set(before.n))} pictures, this run has {len(held)}: delete it, or "
            "choose another --out"
        )
    lacking = {budget: missing(path, w_bits, budget, random, len(held)) for budget in budgets}
    if not any(lacking.values()):
        return stored(path)
    origin = {**(origin or {}), "steps": len(trace.timesteps), "calibration": len(trace)}
    fisher = temporal_fisher(pipe, trace, batch_size=16, progress=progress)
    hadamard_gptq(pipe, trace, w_bits, blocks_per_pass=None, batch_size=16, progress=progress)
    common = {"images": images, "progress": progress}
    worst = worst_error(pipe, trace, images)

    @cache
    def search(label: str, budget: float, beam: int | None) -> SearchResult:
        kind, options = SEARCHES[label]
        options = options if beam is None else {**options, "beam": beam}
        return search_policies(pipe, trace, fisher, kind, budget=budget, **options, **common)

    def add(label: str, policy: Policy, budget: float, facts: dict) -> None:
        applied = apply(pipe, policy)
        drawn = generate(pipe, held.prompts, held.seeds, progress=False, **held.settings)
        applied.remove()
        values = psnr(drawn, held.images).round(3)  # as stored, so that equal pictures gain exactly nothing
        place = {"model": Path(name).name, "search": label, "w_bits": w_bits, "budget": budget}
        append(of_pictures, pd.DataFrame({**place, "picture": range(len(values)), "psnr": values}), KEY)
        base = stored(of_pictures, search=PAPER, w_bits=w_bits, budget=budget).sort_values("picture").psnr
        gains = pd.Series(values - base.to_numpy()).groupby(held.prompts).mean() if label != PAPER else None
        row = {
            **place,
            **facts,
            "average_bits": policy.average,
            "flop_weighted_bits": policy.flop_weighted,
            "psnr": values.mean(),
            "n": len(values),
            "gain": 0.0 if gains is None else gains.mean(),
            "gain_se": 0.0 if gains is None else gains.sem(),
            **origin,
        }
        append(path, pd.DataFrame([row]).reindex(columns=COLUMNS), KEY)

    def add_found(label: str, result: SearchResult, budget: float, beam: int | None) -> None:
        policy = result.pick(budget)
        chosen = next(path for path in result.front if path.policy is policy)
        facts = {"error": chosen.error, "calls": result.calls, "search_s": result.seconds, "beam": beam}
        facts["candidate"] = chosen.candidates[0] if len(chosen.candidates) == 1 else ""
        add(label, policy, budget, {**facts, "hypervolume": front_share(result, worst)})

    carried = marginal_errors(pipe, trace, A_BITS, **common)  # the controls' own: static ones need a score
    for budget, todo in lacking.items():
        for label in SEARCHES:
            if label in todo:
                beam = 4 if label.startswith(PAPER) else None
                add_found(label, search(label, budget, beam), budget, beam)
        for label, narrow in EQUAL.items():
            if label in todo:
                calls = search("lagrangian", budget, None).calls
                beam, result = at_equal_calls(lambda m, n=narrow, b=budget: search(n, b, m), calls)
                add_found(label, result, budget, beam)
        if set(todo) - {*SEARCHES, *EQUAL}:
            searched = {
                name: search(name, budget, 4 if name == PAPER else None).pick(budget).bits
                for name in sources(todo, random)
            }
            for label, bits in [*controls(carried, searched, budget, random), *uniform.items()]:
                if label in todo:
                    add(label, Policy.of(trace, bits), budget, {})
    return stored(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="data/models/z-image-mini")
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="denoising steps; by default the model's own")
    parser.add_argument("--w-bits", type=int, default=3)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--calibration", type=int, default=16, help="first prompts of the file")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="last prompts of the file")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each held-out prompt")
    parser.add_argument("--random", type=int, default=RANDOM, help="random policies a budget")
    parser.add_argument("--commit", default=commit_here(), help="recorded with each row")
    args = parser.parse_args()
    pipe = load_pipeline(args.model, torch_dtype=torch.float32, device=args.device)
    task = task_of(pipe)
    prompts = [prompt.text for prompt in task.load(args.prompts / task.files[1])]
    if args.calibration + args.held_out > len(prompts):
        parser.error(f"there are {len(prompts)} prompts: calibration and held-out ones overlap")
    trace = record(pipe, prompts[: args.calibration], args.steps, seed=1_000_000, batch_size=16)
    held = record(pipe, prompts[-args.held_out :] * args.seeds, args.steps, seed=2_000_000, batch_size=32)
    name = args.out / Path(args.model).name
    origin = {"commit": args.commit, "device": device_name(args.device)}
    table = compare(pipe, trace, held, args.w_bits, args.budgets, name, args.random, origin=origin)
    print(table.to_string())


if __name__ == "__main__":
    main()
