"""What the bit-budget explorer shows, computed beforehand, one command:

    python -m adatsq.sweep --model data/models/flux-dev-mini --out data/results/flux-dev-mini-explorer.json

For each weight setting (w_bits, tau) the weights are quantised once; for each activation budget a beam search
finds policies, and of all complete paths of all budgets the one with the least error within the budget is
drawn. Policies are searched on calibration prompts, pictures drawn from evaluation prompts.
"""

import argparse
import base64
import io
import json
import math
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from adatsq.candidates import LADDER
from adatsq.evaluate import generate, psnr
from adatsq.files import write_text
from adatsq.fisher import Fisher, temporal_fisher
from adatsq.models import load_pipeline
from adatsq.pareto import non_dominated
from adatsq.policy import Policy, act_layers, apply
from adatsq.replacement import quantize
from adatsq.search import FrontPath, beam_search
from adatsq.trace import Trace, record
from adatsq.world import load_prompts

FORMAT_VERSION = 1
W_BITS = (4, 3)
TAUS = (1.0, math.inf)
BUDGETS = (3.1, 3.6, 4.0)
A_BITS = (3, 4, 8)
SHOWN = ("counting", "colors", "position", "color_attribution")  # a prompt of each
BEAM, CALIBRATION, SEARCH = 4, 16, 4  # paths kept; pictures for Fisher and Hessians; of these, for the search


def sweep(
    model: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    calibration: Sequence[str],
    w_bits: Sequence[int] = W_BITS,
    taus: Sequence[float] = TAUS,
    budgets: Sequence[float] = BUDGETS,
    steps: int | None = None,
    device: str = "cpu",
    processes: int = 1,
    progress: bool = True,
) -> dict:
    """Everything the explorer needs, as plain lists and numbers (JSON). tau = inf is stored as null.

    steps: None for the model's own number. processes: weight settings computed at the same time.
    """
    pipe = load_pipeline(model, torch_dtype=torch.float32, device=device)
    trace = record(pipe, calibration, steps, seed=1_000_000, batch_size=16, progress=progress)
    fisher = temporal_fisher(pipe, trace, batch_size=16, progress=progress)
    reference = _draw(pipe, trace, prompts, seeds)
    settings = [(bits, tau) for bits in w_bits for tau in taus]
    one = partial(_setting, model, device, trace, fisher, reference, prompts, seeds, budgets)
    if processes > 1:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(one, *zip(*settings)))
    else:
        found = [one(*setting) for setting in settings]
    layers = [layer.name for layer in act_layers(trace)]
    return {
        "format_version": FORMAT_VERSION,
        "name": Path(model).name,
        "model": trace.model,
        "timesteps": [float(f"{t:.4g}") for t in trace.timesteps],
        "layers": layers,
        "fisher": [[float(f"{v:.3g}") for v in row] for row in fisher.values[layers].to_numpy()],
        "prompts": [
            {"text": text, "seed": seed, "image": _png(image)}
            for text, seed, image in zip(prompts, seeds, reference)
        ],
        "w_bits": list(w_bits),
        "taus": [_finite(tau) for tau in taus],
        "effective_timesteps": [float(fisher.effective_timesteps(tau).mean()) for tau in taus],
        "budgets": list(budgets),
        "settings": found,
    }


def _setting(
    model: str,
    device: str,
    trace: Trace,
    fisher: Fisher,
    reference: np.ndarray,
    prompts: Sequence[str],
    seeds: Sequence[int],
    budgets: Sequence[float],
    w_bits: int,
    tau: float,
) -> dict:
    """One choice of weights: a search per budget, and what the policies found there paint."""
    pipe = load_pipeline(model, torch_dtype=torch.float32, device=device)
    quantize(
        pipe, trace, w_bits, alpha=fisher.alpha(tau), blocks_per_pass=None, batch_size=16, progress=False
    )
    images = range(min(SEARCH, len(trace)))
    search = partial(beam_search, pipe, trace, fisher, a_bits=A_BITS, images=images, progress=False)
    paths = [path for b in budgets for path in search(beam=BEAM, shares=LADDER, budget=b).front]
    uniform = [
        search(beam=1, shares={"all": np.eye(len(A_BITS))[i]}).front[0] for i in (2, 1)
    ]  # 3 and 4 bits
    points = np.array([(path.average_bits, path.error) for path in paths])
    return {
        "w_bits": w_bits,
        "tau": _finite(tau),
        "paths": _points(paths),
        "front": sorted(_points([path for path, best in zip(paths, non_dominated(points)) if best])),
        "uniform": _points(uniform),
        "choices": [
            {"budget": budget, **_choice(pipe, trace, _within(paths, budget), prompts, seeds, reference)}
            for budget in budgets
        ],
    }


def _within(paths: list[FrontPath], budget: float) -> FrontPath:
    return min((path for path in paths if path.average_bits <= budget + 1e-9), key=lambda path: path.error)


def _choice(
    pipe: DiffusionPipeline,
    trace: Trace,
    path: FrontPath,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reference: np.ndarray,
) -> dict:
    """A policy, its averages, its error on the calibration prompts, and its pictures of `prompts`."""
    applied = apply(pipe, path.policy)
    images = _draw(pipe, trace, prompts, seeds)
    applied.remove()
    policy: Policy = path.policy
    return {
        "average_bits": round(policy.average, 4),
        "flop_weighted_bits": round(policy.flop_weighted, 4),
        "error": float(f"{path.error:.4g}"),
        "bits": ["".join(map(str, row)) for row in policy.bits.tolist()],  # a digit per layer, a row per step
        "psnr": [round(float(value), 2) for value in psnr(images, reference)],
        "images": [_png(image) for image in images],
    }


def _draw(pipe: DiffusionPipeline, trace: Trace, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
    """Pictures at the steps, size and guidance of the trace."""
    return generate(pipe, prompts, seeds, progress=False, **trace.settings)


def _points(paths: Sequence[FrontPath]) -> list[list[float]]:
    return [[round(path.average_bits, 4), float(f"{path.error:.4g}")] for path in paths]


def _finite(tau: float) -> float | None:
    return None if math.isinf(tau) else tau


def _png(image: np.ndarray) -> str:
    """PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="data/models/flux-dev-mini")
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts"))
    parser.add_argument("--out", type=Path, default=Path("data/results/flux-dev-mini-explorer.json"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=1, help="weight settings computed at the same time")
    parser.add_argument("--steps", type=int, help="denoising steps; by default the model's own")
    parser.add_argument("--w-bits", type=int, nargs="+", default=W_BITS)
    parser.add_argument("--taus", type=float, nargs="+", default=TAUS)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="calibration prompts")
    args = parser.parse_args()
    evaluation, calibration = (
        load_prompts(args.prompts / f"{n}.json") for n in ("evaluation", "calibration")
    )
    shown = [next(p for p in evaluation if p.category == category) for category in SHOWN]
    started = time.perf_counter()
    found = sweep(
        args.model,
        [p.text for p in shown],
        [p.seed for p in shown],
        [p.text for p in calibration[: args.calibration]],
        args.w_bits,
        args.taus,
        args.budgets,
        args.steps,
        args.device,
        args.processes,
    )
    text = json.dumps(found, separators=(",", ":")) + "\n"
    write_text(args.out, text)
    print(f"{args.out}: {len(text) / 1e6:.2f} MB in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
