"""What the bit-budget explorer shows, computed beforehand, one command:

    python -m adatsq.sweep --model data/models/flux-dev-mini

For each weight setting (w_bits, tau) the weights are quantized once; on them each method finds policies for
each activation budget, and of all its complete paths the one with the least error within a budget is drawn.
Policies are searched on calibration prompts; pictures (of a clip, some frames) and scores are of evaluation
prompts, the same with the same seeds for all. What is done is kept beside the file, in NAME-explorer-part-*,
so the command can be ended at any time, and goes on where it was when it is given again.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from adatsq.bench import FRAMES, Exam, finite, picture, prepare
from adatsq.benchmark import commit_here, spread
from adatsq.files import checksum, write_text
from adatsq.judging import CLIPS, start_worker, task_of
from adatsq.models import load_pipeline
from adatsq.policy import act_layers
from adatsq.rows import device_name
from adatsq.sweep_part import A_BITS, METHODS, SEARCH, Plan, weights_part

FORMAT_VERSION = 3
W_BITS, BUDGETS, BEAMS, TAUS = (4, 3), (3.1, 3.3, 3.6, 4.0), (1, 4), (0.25, 1.0, float("inf"))
AXES = {"w_bits": W_BITS, "taus": TAUS, "budgets": BUDGETS, "beams": BEAMS, "methods": METHODS}
CALIBRATION = 32  # prompts for Fisher and Hessians, those of the benchmark
BEAMED = ("ladder", "paper")  # methods with a beam
# Of a model of pictures or of clips: prompts shown, each of another category, and prompts judged.
SIZES = {"pictures": {"shown": 2, "judged": 96}, "clips": {"shown": 1, "judged": 24}}


def sweep(
    model: str,
    prompts: Sequence,
    calibration: Sequence[str],
    w_bits: Sequence[int] = W_BITS,
    taus: Sequence[float] = TAUS,
    budgets: Sequence[float] = BUDGETS,
    beams: Sequence[int] = BEAMS,
    methods: Sequence[str] = METHODS,
    steps: int | None = None,
    shown: int | None = None,
    device: str = "cpu",
    processes: int = 1,
    parts: Path | None = None,
    origin: dict | None = None,
    progress: bool = True,
) -> dict:
    """Everything the explorer needs, as plain lists and numbers (JSON). tau = inf is stored as null.

    prompts: evaluation prompts (text, seed, category; of the model's world), of which the first `shown`, or
    all, are kept as pictures; all are judged. processes: weight settings computed at the same time. parts:
    start of the names of files that keep what is done, to be read again if this was not the whole and deleted
    if it was. origin: more to store with it, commit and device, say. ValueError for a method not in
    METHODS, and a budget that no candidate reaches.
    """
    if not set(methods) <= set(METHODS):
        raise ValueError(f"methods are {tuple(methods)}: choose of {', '.join(METHODS)}")
    bench, pipe = prepare(model, calibration, steps, device, progress=False)
    trace, layers = bench.trace, act_layers(bench.trace)
    shown, budgets, origin = len(prompts) if shown is None else shown, sorted(budgets), origin or {}
    reference = bench.draw(pipe, [p.text for p in prompts], [p.seed for p in prompts])
    exam = Exam(task_of(pipe), list(prompts), shown, reference)
    scores = bench.fisher.values[[layer.name for layer in layers]].to_numpy()
    head = {
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
        "fisher": [[float(f"{value:.3g}") for value in row] for row in scores],
        "prompts": [
            {"text": prompt.text, "seed": prompt.seed, "image": picture(image)}
            for prompt, image in zip(prompts[:shown], reference)
        ],
        "drawn": len(prompts),
        "score": exam.score(reference),  # at full precision
        "w_bits": list(w_bits),
        "taus": [finite(tau) for tau in taus],
        "effective_timesteps": [float(bench.fisher.effective_timesteps(tau).mean()) for tau in taus],
        "budgets": budgets,
        "beams": list(beams),
        **origin,
    }
    asked = [[prompt.text, prompt.seed] for prompt in prompts], list(calibration), shown, list(beams), budgets
    same = {key: head[key] for key in ("format_version", "name", "model", "timesteps", "branches")}
    plan = Plan(methods, beams, budgets, parts, checksum({**same, **origin, "asked": asked}), progress)
    pairs = [(bits, tau) for bits in w_bits for tau in taus]
    one = partial(weights_part, bench, exam, plan)
    if processes > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=start_worker) as pool:
            found = list(pool.map(one, *zip(*pairs)))
    else:
        found = [one(*pair) for pair in pairs]
    return {
        **head,
        "weights": [weights for weights, _ in found],
        "settings": [setting for _, settings in found for setting in settings],
    }


def missing(file: Path, w_bits, taus, budgets, beams, methods, shown: int, judged: int) -> list[str]:
    """Names of what a sweep of these should have stored and has not."""
    if not file.is_file():
        return ["all of it"]
    data = json.loads(file.read_text(encoding="utf-8"))
    if data.get("format_version") != FORMAT_VERSION:
        return [f"all of it: {file} has format {data.get('format_version')}, not {FORMAT_VERSION}"]
    there = {(s["method"], s["w_bits"], s["tau"], s["beam"]) for s in data["settings"]}
    names = [
        f"{method} W{w}, tau {tau:g}" + (f", beam {beam}" if beam else "")
        for w in w_bits
        for tau in taus
        for method in methods
        for beam in (beams if method in BEAMED else [None])
        if (method, w, finite(tau), beam) not in there
    ]
    names += [f"budget {budget:g}" for budget in budgets if budget not in data["budgets"]]
    names += ["pictures"] * (len(data["prompts"]) < shown)
    return names + ["scores"] * (data["drawn"] < judged)


def _arguments() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--model", default="data/models/flux-dev-mini")
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts"))
    parser.add_argument("--out", type=Path, default=Path("data/results"), help="folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--processes", type=int, help="weight settings at the same time; by default 3 on a GPU"
    )
    parser.add_argument("--steps", type=int, help="denoising steps; by default the model's own")
    parser.add_argument("--w-bits", type=int, nargs="+", default=W_BITS)
    parser.add_argument("--taus", type=float, nargs="+", default=TAUS)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--beams", type=int, nargs="+", default=BEAMS)
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=METHODS)
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="calibration prompts")
    parser.add_argument("--shown", type=int, help="evaluation prompts to show; by default 2, of clips 1")
    parser.add_argument("--judged", type=int, help="evaluation prompts to judge; by default 96, of clips 24")
    parser.add_argument("--commit", default=commit_here(), help="recorded, as the device is")
    return parser.parse_args()


def main() -> None:
    args, started = _arguments(), time.perf_counter()
    task = task_of(load_pipeline(args.model))
    sizes = {"shown": args.shown, "judged": args.judged}
    sizes = SIZES["clips" if task is CLIPS else "pictures"] | {
        k: n for k, n in sizes.items() if n is not None
    }
    axes = {name: getattr(args, name) for name in AXES}
    out = args.out / f"{Path(args.model).name}-explorer.json"
    if not missing(out, **axes, **sizes):
        print(f"{out} is whole")
        return
    evaluation, calibration = (task.load(args.prompts / file) for file in task.files)
    found = sweep(
        args.model,
        chosen(evaluation, **sizes),
        [prompt.text for prompt in calibration[: args.calibration]],
        **axes,
        steps=args.steps,
        shown=sizes["shown"],
        device=args.device,
        processes=args.processes or (3 if args.device.startswith("cuda") else 1),
        parts=out.with_suffix(""),
        origin={"commit": args.commit, "device": device_name(args.device)},
    )
    text = json.dumps(found, separators=(",", ":")) + "\n"
    write_text(out, text)
    for part in out.parent.glob(f"{out.stem}-part-*.json"):
        part.unlink()
    print(f"{out}: {len(text) / 1e6:.2f} MB in {time.perf_counter() - started:.0f} s")


def chosen(prompts: list, shown: int, judged: int) -> list:
    """Of each category as many as of the others; the first are to be shown: the wordiest, one of each."""
    first = {prompt.category: prompt for prompt in reversed(prompts)}
    best = sorted(first.values(), key=lambda prompt: -len(prompt.text))[:shown]
    rest = [prompt for prompt in spread(prompts, max(judged, shown)) if prompt not in best]
    return (best + rest)[: max(judged, shown)]


if __name__ == "__main__":
    main()
