"""The results table of a mini model, one command:

    python -m adatsq.benchmark --model data/models/flux-dev-mini --out data/results

Every method draws the 553 evaluation prompts x 4 pictures from the same seeds and is judged by the same
judge. Calibration prompts never meet them: 32 for the Fisher information and the Hessians, 4 of these for
the search, 32 others for its final check. Each method's pictures are scored and written before the next
method starts; rows already written are skipped.

    NAME-images.csv    a row per method and picture: passed, psnr, ssim
    NAME-facts.csv     a row per method: seconds, bits, bytes
    NAME.csv           the tidy table of both, with bootstrap intervals
    NAME-paired.csv    differences between methods on the same pictures, with paired intervals
    NAME-fisher.json, NAME-search.csv, NAME-policy-*.json    what the search saw and chose
"""

import argparse
import functools
import os
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import adatsq
from adatsq.candidates import LADDER, SHARES
from adatsq.evaluate import generate, psnr, ssim
from adatsq.files import write_text
from adatsq.results import tidy_tables
from adatsq.world import Judge, load_prompts

CALIBRATION, SEARCH, CHECK = slice(0, 32), range(4), slice(32, 64)
BUDGETS = {4: (4.0,), 3: (3.1, 3.6)}  # w_bits: average activation bits of the searched policies
# Candidates of the search: the paper's shares, and a finer ladder that spends on the fourth bit first.
CANDIDATES = {"adatsq": {4: SHARES[4], 3: SHARES[3]}, "adatsq+ladder": {4: LADDER, 3: LADDER}}


@dataclass
class Setting:
    """What every method shares."""

    model: str
    name: str
    out: Path
    device: str
    commit: str
    pictures: int
    batch_size: int
    evaluation: list
    check: list
    steps: int | None

    def load(self):
        return adatsq.load_pipeline(self.model, torch_dtype=torch.float32, device=self.device)

    def draw(self, pipe, prompts, pictures) -> np.ndarray:
        """Pictures (prompts * pictures, H, W, 3), those of one prompt next to each other."""
        texts = [p.text for p in prompts for _ in range(pictures)]
        seeds = [p.seed + i for p in prompts for i in range(pictures)]
        steps = {} if self.steps is None else {"num_inference_steps": self.steps}
        return generate(pipe, texts, seeds, self.batch_size, **steps)

    def path(self, suffix: str) -> Path:
        return self.out / f"{self.name}{suffix}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="data/models/flux-dev-mini")
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts"))
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pictures", type=int, default=4, help="per prompt")
    parser.add_argument(
        "--limit", type=int, help="only so many evaluation prompts, spread over the categories"
    )
    parser.add_argument("--steps", type=int, help="denoising steps; by default the model's own")
    parser.add_argument("--batch-size", type=int, default=553)
    parser.add_argument("--commit", default=_commit(), help="recorded with each row")
    args = parser.parse_args()
    evaluation, calibration = (
        load_prompts(args.prompts / f"{n}.json") for n in ("evaluation", "calibration")
    )
    if args.limit:
        evaluation = evaluation[:: max(1, len(evaluation) // args.limit)][: args.limit]
    setting = Setting(
        model=args.model,
        name=Path(args.model).name,
        out=args.out,
        device=args.device,
        commit=args.commit,
        pictures=args.pictures,
        batch_size=args.batch_size,
        evaluation=evaluation,
        check=calibration[CHECK],
        steps=args.steps,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    run(setting, [p.text for p in calibration[CALIBRATION]], calibration[0].seed)


def run(setting: Setting, calibration: list[str], seed: int) -> None:
    """All methods at all bits; then the tables."""
    pipe = setting.load()
    reference = setting.draw(pipe, setting.evaluation, setting.pictures)
    score(setting, reference, reference, "fp", 16, 16.0, {"average_bits": 16.0})

    trace, record_s = timed(adatsq.record, pipe, calibration, setting.steps, seed, batch_size=32)
    fisher, fisher_s = timed(adatsq.temporal_fisher, pipe, trace, batch_size=16)
    fisher.save(setting.path("-fisher.json"))
    alpha = fisher.alpha(tau=1.0)
    methods = {
        "rtn": adatsq.rtn,
        "hadamard": adatsq.hadamard,
        "hadamard+gptq": adatsq.hadamard_gptq,
        "adatsq-weights": adatsq.adatsq_weights,
    }
    for w_bits, budgets in BUDGETS.items():
        for method, recipe in methods.items():
            searches = [(m, b) for b in budgets for m in CANDIDATES] if method == "adatsq-weights" else []
            todo = [(m, b) for m, b in [(method, w_bits), *searches] if not scored(setting, m, w_bits, b)]
            if not todo:
                continue
            weighted = alpha if searches else None
            pipe, quantize_s = timed(
                recipe, setting.load(), trace, w_bits, w_bits, weighted, blocks_per_pass=None, batch_size=32
            )
            facts = {"quantize_s": quantize_s, "record_s": record_s, "fisher_s": fisher_s, **_size(pipe)}
            for name, budget in todo:
                if name == method:
                    images = setting.draw(pipe, setting.evaluation, setting.pictures)
                    score(setting, images, reference, name, w_bits, budget, {**facts, "average_bits": budget})
                else:
                    search_and_score(setting, pipe, trace, fisher, reference, name, w_bits, budget, facts)
    tidy_tables(setting.path(""))


def search_and_score(setting, pipe, trace, fisher, reference, method, w_bits, budget, facts) -> None:
    """The full method: the policy that the search finds on these weights for this budget."""
    options = {"beam": 4, "shares": CANDIDATES[method][w_bits], "budget": budget, "images": list(SEARCH)}
    result = adatsq.beam_search(pipe, trace, fisher, **options)
    policy, judge_s = timed(result.pick, budget, lambda policy: check(setting, pipe, policy))
    key = {"method": method, "w_bits": w_bits, "budget": budget}
    file, paths = setting.path("-search.csv"), result.evaluated.assign(**key)
    if file.exists():
        old = pd.read_csv(file)
        paths = pd.concat([old[~(old[list(key)] == pd.Series(key)).all(axis=1)], paths])
    write_text(file, paths.to_csv(index=False, float_format="%.6g"))
    policy.save(setting.path(f"-policy-{method}-w{w_bits}a{budget:g}.json"))
    applied = adatsq.apply(pipe, policy)
    images = setting.draw(pipe, setting.evaluation, setting.pictures)
    found = {
        "average_bits": policy.average,
        "parameter_weighted_bits": policy.parameter_weighted,
        "flop_weighted_bits": policy.flop_weighted,
        "search_s": result.seconds,
        "judge_s": judge_s,
        "front_paths": len(result.front),
    }
    score(setting, images, reference, method, w_bits, budget, {**facts, **found})
    applied.remove()


def check(setting: Setting, pipe, policy) -> float:
    """The final end-to-end check of a policy: passes on prompts that nothing else has seen."""
    applied = adatsq.apply(pipe, policy)
    images = setting.draw(pipe, setting.check, 1)
    applied.remove()
    return float(Judge()(images, setting.check).mean())


def score(setting: Setting, images, reference, method: str, w_bits: int, a_bits: float, facts: dict) -> None:
    """Judge the pictures, compare them with the full-precision ones, write both files."""
    prompts = [p for p in setting.evaluation for _ in range(setting.pictures)]
    key = {"model": setting.name, "method": method, "w_bits": w_bits, "a_bits": float(a_bits)}
    rows = pd.DataFrame(
        {
            **key,
            "prompt": np.repeat(np.arange(len(setting.evaluation)), setting.pictures),
            "picture": np.tile(np.arange(setting.pictures), len(setting.evaluation)),
            "category": [p.category for p in prompts],
            "passed": judge(images, prompts).astype(int),
            "psnr": psnr(images, reference).round(2),
            "ssim": ssim(images, reference).round(4),
        }
    )
    facts = {**key, **facts, "commit": setting.commit, "device": _device(setting.device)}
    _append(setting.path("-images.csv"), rows)
    _append(setting.path("-facts.csv"), pd.DataFrame([facts]))
    print(
        f"{method} W{w_bits}A{a_bits}: {rows.passed.mean():.4f} pass, {rows.psnr.mean():.2f} dB", flush=True
    )


def judge(images: np.ndarray, prompts: list) -> np.ndarray:
    """The judge; for many pictures on all cores."""
    if len(images) < 512:
        return Judge()(images, prompts)
    chunks = np.array_split(np.arange(len(images)), 4 * (os.cpu_count() or 1))
    passed = _workers().map(Judge(), [images[c] for c in chunks], [[prompts[i] for i in c] for c in chunks])
    return np.concatenate(list(passed))


@functools.cache
def _workers() -> ProcessPoolExecutor:
    """Fresh processes: a fork of one that has used torch's threads can hang."""
    return ProcessPoolExecutor(
        mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )


def scored(setting: Setting, method: str, w_bits: int, a_bits: float) -> bool:
    file = setting.path("-facts.csv")
    if not file.exists():
        return False
    table = pd.read_csv(file)
    return bool(((table.method == method) & (table.w_bits == w_bits) & (table.a_bits == a_bits)).any())


def timed(function, *args, **kwargs):
    """(result, seconds)."""
    start = time.perf_counter()
    result = function(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def _append(file: Path, rows: pd.DataFrame) -> None:
    """Replace the rows of the same method and bits, add the new ones."""
    if file.exists():
        key = ["model", "method", "w_bits", "a_bits"]
        old = pd.read_csv(file)
        same = (old[key] == rows[key].iloc[0]).all(axis=1)
        rows = pd.concat([old[~same], rows], ignore_index=True)
    write_text(file, rows.to_csv(index=False))


def _size(pipe) -> dict:
    """Bytes and bits of the transformer as saved, and the share of its parameters that is quantised."""
    table = adatsq.summary(pipe)
    return {
        "transformer_bytes": int(table.at["transformer", "bytes"]),
        "effective_bits": float(table.at["transformer", "effective_bits"]),
        "effective_w_bits": float(table.at["weights and activations", "effective_bits"]),
        "quantized_share": 1 - float(table.at["kept", "share"]),
    }


def _device(name: str) -> str:
    return torch.cuda.get_device_name() if name.startswith("cuda") else f"cpu ({os.cpu_count()} cores)"


def _commit() -> str:
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()
