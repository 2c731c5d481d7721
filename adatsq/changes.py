"""What changes a model's profile of sensitivity: the experiments of the notebook, with more pictures.

python -m adatsq.changes data/models/* --out data/results/profiles.csv
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from adatsq.benchmark import commit_here
from adatsq.files import write_text
from adatsq.judging import task_of
from adatsq.models import load_pipeline
from adatsq.profiles import Run, bootstrap, correlation, shared_levels, what_changes_it
from adatsq.rows import device_name

CHANGES = ("twice the steps", "other shift", "other captions", "new weights")  # the rest is chance


def kinds_of(prompts: list, images: int) -> tuple[str, str, dict[str, list[str]]]:
    """The first and the last kind of prompt that have texts for two measurements, and all texts by kind.

    ValueError if no two kinds have as many.
    """
    texts: dict[str, list[str]] = {}
    for prompt in prompts:
        texts.setdefault(prompt.category, []).append(prompt.text)
    enough = [kind for kind, found in texts.items() if len(found) >= 2 * images]
    if len(enough) < 2:
        raise ValueError(f"two kinds with {2 * images} prompts are needed, there are {len(enough)}")
    return enough[0], enough[-1], texts


def table(runs: dict[str, Run], resamples: int = 1000) -> pd.DataFrame:
    """A row per setting but the base: rho, rank correlation of its profile with the base's.

    ci_low, ci_high: 95% of draws of the images. lowest: share of the draws in which no other of CHANGES has a
    lower rho. height: the largest over the least value of the median layer's profile.
    """
    grid = shared_levels(list(runs.values()))
    base, draws = runs["base"].profile(grid), bootstrap(runs, "base", resamples)
    least = np.min([draws[name] for name in CHANGES], axis=0)
    rows = []
    for name, run in runs.items():
        profile = run.profile(grid)
        median = np.median(profile, axis=1)
        low, high = np.percentile(draws.get(name, 1.0), [2.5, 97.5])
        rows.append(
            {
                "change": name,
                "rho": correlation(base, profile),
                "ci_low": low,
                "ci_high": high,
                "lowest": np.mean(draws[name] <= least) if name in CHANGES else np.nan,
                "height": median.max() / median.min(),
            }
        )
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts"))
    parser.add_argument("--out", type=Path, default=Path("data/results/profiles.csv"))
    parser.add_argument("--images", type=int, default=6, help="per measurement")
    parser.add_argument("--steps", type=int, default=8, help="of the sampler; twice in one experiment")
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tables = []
    for model in args.models:
        start, pipe = time.perf_counter(), load_pipeline(model, device=device)
        task, count = task_of(pipe), args.images
        kind, other, texts = kinds_of(task.load(args.prompts / task.files[1]), count)
        a, b = texts[kind], texts[other]
        found = table(what_changes_it(pipe, a[:count], a[count : 2 * count], b[:count], args.steps))
        facts = {"images": count, "steps": args.steps, "kind": kind, "other_kind": other}
        facts |= {"commit": commit_here(), "device": device_name(device)}
        tables.append(found.assign(model=Path(model).name, **facts))
        write_text(args.out, pd.concat(tables).to_csv(index=False, float_format="%.6g"))
        print(f"{Path(model).name}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
