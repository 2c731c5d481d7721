"""Is a searched policy better than one without a search? Both searches and controls, one command a model:

    python -m adatsq.search_compare --model data/models/z-image-mini --out data/results

At each budget: the beam ("paper") and the Lagrangian search, and controls of at most the same average bits:
the Lagrangian policy's bits at random places, 8 bits for the first or the last steps until the budget is
spent, bits that are static over time, or the same for all layers. Weights by Hadamard rotation and GPTQ. All
draw the same held-out pictures, and are compared picture by picture. NAME-search-compare.csv has a row per
policy, and NAME-search-compare-pictures.csv one per policy and picture.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline

from adatsq.allocation import allocate
from adatsq.candidates import LADDER, SHARES
from adatsq.evaluate import generate, psnr
from adatsq.files import write_text
from adatsq.fisher import temporal_fisher
from adatsq.lagrangian import search_policies
from adatsq.marginals import marginal_errors
from adatsq.models import load_pipeline
from adatsq.policy import Policy, apply
from adatsq.recipes import hadamard_gptq
from adatsq.trace import Trace, record
from adatsq.world import load_prompts

A_BITS = (3, 4, 8)
SEARCHED = range(4)  # calibration pictures that both searches follow
PAPER = "paper"  # the policy that all others are compared with


def controls(
    carried: np.ndarray, searched: np.ndarray, budget: float, random: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Named policies (T, L) of at most `budget` average bits, from errors (T, L, B) and a searched policy."""
    steps, layers, _ = carried.shape
    for seed in range(random):
        bits = np.random.default_rng(seed).permutation(searched.ravel()).reshape(steps, layers)
        yield f"random {seed}", bits
    eight = int((budget - 3) / 5 * searched.size + 1e-9)
    first = np.where(np.arange(searched.size) < eight, 8, 3).reshape(steps, layers)
    yield "first steps at 8", first
    yield "last steps at 8", first[::-1]
    static = allocate(carried.sum(0, keepdims=True), A_BITS, budget)
    yield "static over time", np.repeat(static, steps, axis=0)
    over_time = allocate(carried.sum(1, keepdims=True), A_BITS, budget)
    yield "same for all layers", np.repeat(over_time, layers, axis=1)


def compare(
    pipe: DiffusionPipeline,
    trace: Trace,
    held: Trace,
    w_bits: int,
    budgets: Sequence[float],
    random: int = 20,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(policies, pictures): psnr in dB to the full-precision pictures of `held`.

    The pipeline comes in full precision and leaves quantised. gain: mean difference to "paper" at the same
    budget, of the same pictures, with its standard error.
    """
    fisher = temporal_fisher(pipe, trace, batch_size=16, progress=progress)
    hadamard_gptq(pipe, trace, w_bits, blocks_per_pass=None, batch_size=16, progress=progress)
    rows, pictures = [], []

    def add(name: str, bits: np.ndarray | int, budget: float, facts: dict | None = None) -> None:
        policy = Policy.of(trace, bits)
        applied = apply(pipe, policy)
        images = generate(pipe, held.prompts, held.seeds, progress=False, **held.settings)
        applied.remove()
        place = {"search": name, "w_bits": w_bits, "budget": budget}
        values = psnr(images, held.images)
        pictures.extend({**place, "picture": i, "psnr": value} for i, value in enumerate(values))
        averages = {"average_bits": policy.average, "flop_weighted_bits": policy.flop_weighted}
        rows.append({**place, **averages, **(facts or {}), "psnr": values.mean(), "n": len(values)})

    common = {"images": SEARCHED, "progress": progress}
    carried = marginal_errors(pipe, trace, A_BITS, **common)  # the controls' own: static ones need a score
    for budget in budgets:
        for name, search, options in (
            (PAPER, "paper", {"shares": SHARES[3]}),
            ("paper, ladder", "paper", {"shares": LADDER}),
            ("lagrangian", "lagrangian", {}),
            ("lagrangian, flops", "lagrangian", {"weights": "flops"}),
        ):
            result = search_policies(pipe, trace, fisher, search, budget=budget, **options, **common)
            policy = result.pick(budget)
            path = next(path for path in result.front if path.policy is policy)
            facts = {"error": path.error, "calls": result.calls, "search_s": result.seconds}
            facts["candidate"] = path.candidates[0] if search == "lagrangian" else ""
            add(name, policy.bits, budget, facts)
            if name == "lagrangian":
                searched = policy.bits
        for name, bits in controls(carried, searched, budget, random):
            add(name, bits, budget)
        for bits in A_BITS[:2]:
            add(f"uniform {bits}", bits, budget)
    table, pictures = pd.DataFrame(rows), pd.DataFrame(pictures)
    wide = pictures.pivot(index=["budget", "picture"], columns="search", values="psnr")
    gain = wide.sub(wide[PAPER], axis=0).groupby("budget")
    gains = pd.concat({"gain": gain.mean().stack(), "gain_se": gain.sem().stack()}, axis=1).reset_index()
    return table.merge(gains, on=["budget", "search"]), pictures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="data/models/z-image-mini")
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts/calibration.json"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="denoising steps; by default the model's own")
    parser.add_argument("--w-bits", type=int, default=3)
    parser.add_argument("--budgets", type=float, nargs="+", default=(3.1, 3.6))
    parser.add_argument("--calibration", type=int, default=16, help="first prompts of the file")
    parser.add_argument("--held-out", type=int, default=32, help="last prompts of the file")
    parser.add_argument("--random", type=int, default=20, help="random policies a budget")
    args = parser.parse_args()
    prompts = [prompt.text for prompt in load_prompts(args.prompts)]
    if args.calibration + args.held_out > len(prompts):
        parser.error(f"{args.prompts} has {len(prompts)} prompts: calibration and held-out ones overlap")
    pipe = load_pipeline(args.model, torch_dtype=torch.float32, device=args.device)
    trace = record(pipe, prompts[: args.calibration], args.steps, seed=1_000_000, batch_size=16)
    held = record(pipe, prompts[-args.held_out :], args.steps, seed=2_000_000, batch_size=32)
    tables = compare(pipe, trace, held, args.w_bits, args.budgets, args.random)
    for suffix, table in zip(("", "-pictures"), tables):
        table.insert(0, "model", Path(args.model).name)
        path = args.out / f"{Path(args.model).name}-search-compare{suffix}.csv"
        write_text(path, table.to_csv(index=False, float_format="%.5g"))
    print(tables[0].to_string())


if __name__ == "__main__":
    main()
