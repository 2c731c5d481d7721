"""What the bit-budget explorer shows, computed beforehand, one command:

    python -m adatsq.sweep --model data/models/flux-dev-mini --out data/results/flux-dev-mini-explorer.json

For each weight setting (w_bits, tau) the weights are quantised once; on them each method finds policies for
each activation budget, and of all its complete paths the one with the least error within a budget is drawn.
Policies are searched on calibration prompts, pictures (of a clip, some frames) drawn from evaluation prompts.
"""

import argparse
import base64
import io
import itertools
import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from adatsq.benchmark import commit_here
from adatsq.candidates import LADDER, SHARES, every_step
from adatsq.evaluate import generate, psnr
from adatsq.facts import size
from adatsq.files import write_text
from adatsq.fisher import Fisher, temporal_fisher
from adatsq.judging import task_of
from adatsq.lagrangian import lagrangian_search
from adatsq.marginals import marginal_errors
from adatsq.models import load_pipeline
from adatsq.pareto import non_dominated
from adatsq.policy import Policy, act_layers, apply
from adatsq.replacement import quantize
from adatsq.rows import device_name
from adatsq.search import FrontPath, beam_search
from adatsq.trace import Trace, record

FORMAT_VERSION = 2
W_BITS, TAUS, BUDGETS, BEAMS = (4, 3), (1.0, math.inf), (3.1, 3.6, 4.0), (4,)
A_BITS = (3, 4, 8)
# The beam search with a ladder of bits or the default shares, bits by carried error, fixed bits.
METHODS = ("ladder", "paper", "lagrangian", "uniform")
SHOWN, FRAMES = 4, 3  # prompts, each of another category; frames of a clip
CALIBRATION, SEARCH = 16, 4  # pictures for Fisher and Hessians; of these, for the search


@dataclass(frozen=True)
class Bench:
    """A model folder, its recorded run on calibration prompts, and its Fisher scores."""

    model: str
    device: str
    trace: Trace
    fisher: Fisher

    def quantized(self, w_bits: int, tau: float) -> DiffusionPipeline:
        """A fresh pipeline with quantised weights; activations wait for a policy."""
        pipe = load_pipeline(self.model, torch_dtype=torch.float32, device=self.device)
        options = {"blocks_per_pass": None, "batch_size": 16, "progress": False}
        return quantize(pipe, self.trace, w_bits, alpha=self.fisher.alpha(tau), **options)

    def draw(self, pipe: DiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Pictures or clips at the steps, size and guidance of the recorded run."""
        return generate(pipe, prompts, seeds, progress=False, **self.trace.settings)


def prepare(
    model: str, calibration: Sequence[str], steps: int | None = None, device: str = "cpu", progress=True
) -> tuple[Bench, DiffusionPipeline]:
    """Record and score the model; also the full-precision pipeline. steps: None for the model's own."""
    pipe = load_pipeline(model, torch_dtype=torch.float32, device=device)
    trace = record(pipe, calibration, steps, seed=1_000_000, batch_size=16, progress=progress)
    return Bench(model, device, trace, temporal_fisher(pipe, trace, batch_size=16, progress=progress)), pipe


def sweep(
    model: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    calibration: Sequence[str],
    w_bits: Sequence[int] = W_BITS,
    taus: Sequence[float] = TAUS,
    budgets: Sequence[float] = BUDGETS,
    beams: Sequence[int] = BEAMS,
    methods: Sequence[str] = ("ladder", "uniform"),
    steps: int | None = None,
    device: str = "cpu",
    processes: int = 1,
    progress: bool = True,
) -> dict:
    """Everything the explorer needs, as plain lists and numbers (JSON). tau = inf is stored as null.

    processes: weight settings computed at the same time. ValueError for a method not in METHODS, and a
    budget that no candidate reaches.
    """
    if not set(methods) <= set(METHODS):
        raise ValueError(f"methods are {tuple(methods)}: choose of {', '.join(METHODS)}")
    bench, pipe = prepare(model, calibration, steps, device, progress)
    trace, reference = bench.trace, bench.draw(pipe, prompts, seeds)
    pairs = [(bits, tau) for bits in w_bits for tau in taus]
    one = partial(_weights, bench, reference, prompts, seeds, sorted(budgets), beams, methods)
    if processes > 1:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(one, *zip(*pairs)))
    else:
        found = [one(*pair) for pair in pairs]
    layers = act_layers(trace)
    scores = bench.fisher.values[[layer.name for layer in layers]].to_numpy()
    return {
        "format_version": FORMAT_VERSION,
        "name": Path(model).name,
        "model": trace.model,
        "timesteps": [float(t) for t in trace.timesteps],
        "branches": trace.branches,
        "layers": [list(layer) for layer in layers],
        "a_bits": list(A_BITS),
        "calibration": len(trace),
        "search": min(SEARCH, len(trace)),
        "frames": FRAMES if reference.ndim == 5 else 1,  # of a clip, shown
        "fisher": [[float(f"{v:.3g}") for v in row] for row in scores],
        "prompts": [
            {"text": text, "seed": seed, "image": picture(image)}
            for text, seed, image in zip(prompts, seeds, reference)
        ],
        "w_bits": list(w_bits),
        "taus": [_finite(tau) for tau in taus],
        "effective_timesteps": [float(bench.fisher.effective_timesteps(tau).mean()) for tau in taus],
        "budgets": sorted(budgets),
        "weights": [weights for weights, _ in found],
        "settings": [setting for _, settings in found for setting in settings],
    }


def _weights(
    bench: Bench,
    reference: np.ndarray,
    prompts: Sequence[str],
    seeds: Sequence[int],
    budgets: Sequence[float],
    beams: Sequence[int],
    methods: Sequence[str],
    w_bits: int,
    tau: float,
) -> tuple[dict, list[dict]]:
    """One choice of weights: their size and what roundings do to them; a setting per method and beam."""
    pipe = bench.quantized(w_bits, tau)
    images = range(min(SEARCH, len(bench.trace)))
    key = {"w_bits": w_bits, "tau": _finite(tau)}
    errors = marginal_errors(pipe, bench.trace, A_BITS, images, progress=False)
    stored = size(pipe)
    weights = {**key, **{name: stored[name] for name in ("transformer_bytes", "effective_bits")}}
    alone = [{"all": row} for row in np.eye(len(A_BITS))]
    fixed = partial(beam_search, pipe, bench.trace, bench.fisher, 1, a_bits=A_BITS, progress=False)
    uniform = [fixed(shares=alone[i], images=images).front[0] for i in (2, 1)]  # 3 and 4 bits
    drawn: dict[bytes, dict] = {}  # by policy: several budgets, methods and beams may choose the same

    def shown(path: FrontPath) -> dict:
        if (bits := path.policy.bits.tobytes()) not in drawn:
            drawn[bits] = choice(bench, pipe, path.policy, prompts, seeds, reference)
        return drawn[bits]

    settings = []
    for method, beam, paths in _searched(bench, pipe, uniform, budgets, beams, methods, w_bits, images):
        best = non_dominated([(round(path.average_bits, 6), path.error) for path in paths])
        within = {b: _within(paths, b) for b in budgets if paths and b >= min(p.average_bits for p in paths)}
        settings.append(
            {
                "method": method,
                **key,
                "beam": beam,
                "paths": _points(paths),
                "front": sorted(_points(itertools.compress(paths, best))),
                "uniform": _points(uniform),
                "choices": [
                    {"budget": b, "error": float(f"{path.error:.4g}"), **shown(path)}
                    for b, path in within.items()
                ],
            }
        )
    return {**weights, "errors": coded(errors)}, settings


def _searched(
    bench: Bench, pipe, uniform: list[FrontPath], budgets, beams, methods, w_bits: int, images
) -> Iterator[tuple[str, int | None, list[FrontPath]]]:
    """(method, beam or None, complete paths of the searches for all budgets)."""
    given = {"images": images, "progress": False, "a_bits": A_BITS}
    for method in methods:
        if method == "uniform":
            yield method, None, uniform
        elif method == "lagrangian":
            yield method, None, lagrangian_search(pipe, bench.trace, bench.fisher, budgets, **given).front
        else:
            shares = LADDER if method == "ladder" else SHARES[3 if w_bits < 4 else 4]
            options = every_step(bench.trace, bench.fisher, shares, A_BITS)
            low = np.mean([min(bits.mean() for bits in option.values()) for option in options])
            reached = [b for b in budgets if b >= low - 1e-9] or budgets[:1]  # the search names what is wrong
            search = partial(beam_search, pipe, bench.trace, bench.fisher, shares=shares, **given)
            for beam in beams:
                yield method, beam, [path for b in reached for path in search(beam, budget=b).front]


def _within(paths: list[FrontPath], budget: float) -> FrontPath:
    return min((path for path in paths if path.average_bits <= budget + 1e-9), key=lambda path: path.error)


def choice(
    bench: Bench,
    pipe: DiffusionPipeline,
    policy: Policy,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reference: np.ndarray,
) -> dict:
    """A policy's averages, its bits, and its pictures of `prompts`, compared with the full-precision ones."""
    applied = apply(pipe, policy)
    try:
        images = bench.draw(pipe, prompts, seeds)
    finally:
        applied.remove()
    return {
        "average_bits": round(policy.average, 4),
        "flop_weighted_bits": round(policy.flop_weighted, 4),
        "bits": ["".join(map(str, row)) for row in policy.bits.tolist()],  # a digit per layer, a row per step
        "psnr": [round(float(value), 2) for value in psnr(images, reference)],
        "images": [picture(image) for image in images],
    }


def coded(errors: np.ndarray) -> dict:
    """Errors (T, L, B) as bytes: exp(low + code / 255 * (high - low)), each within 2 or so in a hundred."""
    logs = np.log(np.maximum(errors, max(errors.max(), 1e-300) * 1e-6))
    low, high = float(logs.min()), float(logs.max())
    codes = np.rint((logs - low) * (255 / (high - low or 1))).astype(np.uint8)
    return {"low": low, "high": high, "codes": base64.b64encode(codes.tobytes()).decode()}


def picture(image: np.ndarray) -> str:
    """Lossless WebP in base64; of a clip (F, H, W, 3), FRAMES of its frames side by side."""
    if image.ndim == 4:
        image = np.concatenate(image[np.linspace(0, len(image) - 1, FRAMES).round().astype(int)], axis=1)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return base64.b64encode(buffer.getvalue()).decode()


def _points(paths: Sequence[FrontPath]) -> list[list[float]]:
    return [[round(path.average_bits, 4), float(f"{path.error:.4g}")] for path in paths]


def _finite(tau: float) -> float | None:
    return None if math.isinf(tau) else tau


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--model", default="data/models/flux-dev-mini")
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts"))
    parser.add_argument("--out", type=Path, help="by default data/results/NAME-explorer.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=1, help="weight settings computed at the same time")
    parser.add_argument("--steps", type=int, help="denoising steps; by default the model's own")
    parser.add_argument("--w-bits", type=int, nargs="+", default=W_BITS)
    parser.add_argument("--taus", type=float, nargs="+", default=TAUS)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--beams", type=int, nargs="+", default=BEAMS)
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=("ladder", "uniform"))
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="calibration prompts")
    parser.add_argument("--shown", type=int, default=SHOWN, help="evaluation prompts to draw")
    parser.add_argument("--commit", default=commit_here(), help="recorded, as the device is")
    args = parser.parse_args()
    task = task_of(load_pipeline(args.model))
    evaluation, calibration = (task.load(args.prompts / file) for file in task.files)
    first = {p.category: p for p in reversed(evaluation)}  # of each category its first prompt
    shown = sorted(first.values(), key=lambda p: -len(p.text))[: args.shown]  # of these the wordiest
    out = args.out or Path(f"data/results/{Path(args.model).name}-explorer.json")
    started = time.perf_counter()
    names = ("w_bits", "taus", "budgets", "beams", "methods", "steps", "device", "processes")
    texts, seeds = [p.text for p in shown], [p.seed for p in shown]
    given = [p.text for p in calibration[: args.calibration]]
    found = sweep(args.model, texts, seeds, given, **{name: getattr(args, name) for name in names})
    found |= {"commit": args.commit, "device": device_name(args.device)}
    text = json.dumps(found, separators=(",", ":")) + "\n"
    write_text(out, text)
    print(f"{out}: {len(text) / 1e6:.2f} MB in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
