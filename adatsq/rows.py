"""The rows of the benchmark, one function each: draw, judge, compare, write."""

import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline

import adatsq
from adatsq.candidates import LADDER, SHARES
from adatsq.controls import MORE_BITS
from adatsq.evaluate import generate, psnr, ssim
from adatsq.facts import activation_bits, counted_calls, peak_memory
from adatsq.files import write_text
from adatsq.judging import Task
from adatsq.lagrangian import search_policies
from adatsq.policy import Policy
from adatsq.results import KEY, ORDER
from adatsq.search import complete_paths

SEARCH = range(4)  # calibration images that the search follows
BUDGETS = {4: (4.0,), 3: (3.1, 3.6)}  # w_bits: average activation bits of searched policies
LOWEST = {4: (4.0,), 3: (3.1,)}
LADDERS = {4: LADDER, 3: LADDER}


class Searched(NamedTuple):
    """A method with a search: the method whose weights it runs on, which search (of `search_policies`), a
    beam's candidates per w_bits (the default shares, or a finer ladder that spends on the fourth bit first),
    the budgets per w_bits, and further options of the search."""

    weights: str
    search: str = "paper"
    shares: dict = SHARES
    budgets: dict = BUDGETS
    options: dict = {}


SEARCHED = {
    "rtn+search": Searched("rtn"),
    "hadamard+gptq+search": Searched("hadamard+gptq"),
    "hadamard+gptq+lagrangian": Searched("hadamard+gptq", "lagrangian"),
    "hadamard+gptq+prices": Searched("hadamard+gptq", "prices"),
    "hadamard+gptq+widths": Searched(
        "hadamard+gptq",
        "lagrangian",
        budgets=LOWEST,
        options={"a_bits": MORE_BITS, "weights": "flops", "at_end": True},
    ),
    "hadamard+gptq+widths-average": Searched(
        "hadamard+gptq", "lagrangian", budgets=LOWEST, options={"a_bits": MORE_BITS, "at_end": True}
    ),
    "adatsq+plain+search": Searched("adatsq+plain", budgets=LOWEST),
    "adatsq+smoothquant+search": Searched("adatsq+smoothquant", budgets=LOWEST),
    "adatsq+svdquant+search": Searched("adatsq+svdquant", budgets=LOWEST),
    "adatsq": Searched("adatsq-weights"),
    "adatsq+ladder": Searched("adatsq-weights", shares=LADDERS),
    "adatsq+lagrangian": Searched("adatsq-weights", "lagrangian"),
}
BEAMS = (1, 2, 4)  # held against the exact front of `adatsq`'s weights and candidates
EXACT = "adatsq all-paths"


@dataclass
class Setting:
    """What every method shares."""

    model: str
    name: str
    out: Path
    device: str
    commit: str
    task: Task
    pictures: int
    batch_size: int
    evaluation: list
    check: list
    steps: int | None = None
    methods: Sequence[str] = ORDER
    shared: bool = False  # with other work on the device: how long something took there says nothing

    def load(self) -> DiffusionPipeline:
        return adatsq.load_pipeline(self.model, torch_dtype=torch.float32, device=self.device)

    def draw(self, pipe, prompts, pictures, policy=None) -> np.ndarray:
        """Pictures (prompts * pictures, H, W, 3), or clips, those of one prompt next to each other."""
        texts = [p.text for p in prompts for _ in range(pictures)]
        seeds = [p.seed + i for p in prompts for i in range(pictures)]
        steps = {} if self.steps is None else {"num_inference_steps": self.steps}
        applied = None if policy is None else adatsq.apply(pipe, policy)
        try:
            return generate(pipe, texts, seeds, self.batch_size, progress=False, **steps)
        finally:
            if applied is not None:
                applied.remove()

    def path(self, suffix: str) -> Path:
        return self.out / f"{self.name}{suffix}"


def at_fixed_bits(setting, pipe, trace, reference, method: str, w_bits: int, facts: dict) -> str:
    """Activations at the bits of the weights, or as a mixed precision has them, at all timesteps."""
    images = setting.draw(pipe, setting.evaluation, setting.pictures)
    facts = {**facts, **activation_bits(pipe, trace)}
    return score(setting, images, reference, method, w_bits, w_bits, facts)


def at_searched_bits(
    setting, pipe, trace, fisher, reference, method: str, w_bits: int, budget: float, facts
) -> str:
    """The policy that the search finds on these weights for this budget, and its pictures."""
    policy, evaluated, found = searched(setting, pipe, trace, fisher, method, w_bits, budget)
    key = {"method": method, "w_bits": w_bits, "budget": budget}
    _append(setting.path("-search.csv"), evaluated.assign(**key), list(key), float_format="%.6g")
    policy.save(setting.path(f"-policy-{method}-w{w_bits}a{budget:g}.json"))
    images = setting.draw(pipe, setting.evaluation, setting.pictures, policy)
    return score(setting, images, reference, method, w_bits, budget, {**facts, **found})


def searched(
    setting, pipe, trace, fisher, method: str, w_bits: int, budget: float
) -> tuple[Policy, pd.DataFrame, dict]:
    """(the policy picked, all that the search evaluated, facts of the policy and of what finding it took)."""
    how = SEARCHED[method]
    options = {"shares": how.shares[w_bits], "beam": 4} if how.search == "paper" else {}
    options |= {"budget": budget, "images": list(SEARCH), "progress": False, **how.options}
    with peak_memory(setting.device, "search") as peak, counted_calls(pipe.transformer) as calls:
        result = search_policies(pipe, trace, fisher, how.search, **options)
    policy, judge_s = timed(result.pick, budget, lambda policy: check(setting, pipe, policy))
    found = {
        **activation_bits(pipe, trace, policy),
        "parameter_weighted_bits": policy.parameter_weighted,
        "fisher_calls": fisher_calls(trace),  # of candidates or errors, whatever the weights are made with
        "search_s": result.seconds,
        # Backward passes and products at other bits are no calls that a hook sees, but work all the same.
        "search_calls": calls.rows if how.search == "paper" else result.calls * trace.branches,
        "judge_s": judge_s,
        "front_paths": len(result.front),
        **peak,
    }
    return policy, result.evaluated, found


def fisher_calls(trace) -> int:
    """Transformer calls of one row each, forward and backward, that a trace's Fisher information takes."""
    return trace.branches * len(trace) * len(trace.timesteps)


def check(setting: Setting, pipe, policy) -> float:
    """The final end-to-end check of a policy: mean score on prompts that nothing else has seen."""
    images = setting.draw(pipe, setting.check, 1, policy)
    return float(setting.task.score(images, setting.check).mean(axis=1).mean())


def frontier(setting, pipe, trace, fisher, w_bits: int) -> str:
    """All complete paths of `adatsq`'s search, and the share of their front that each beam finds."""
    options = {"shares": SEARCHED["adatsq"].shares[w_bits], "images": list(SEARCH), "progress": False}
    truth = adatsq.brute_force(pipe, trace, fisher, **options)
    paths = complete_paths(truth)
    chosen = paths.pop("candidates")
    paths.insert(0, "candidates", chosen.map(" ".join))
    paths.insert(0, "w_bits", w_bits)
    paths.insert(0, "model", setting.name)
    facts = []
    for label, result in [
        *((f"beam={m}", adatsq.beam_search(pipe, trace, fisher, beam=m, **options)) for m in BEAMS),
        ("all-paths", truth),
    ]:
        paths["on_front" if result is truth else label] = chosen.isin({p.candidates for p in result.front})
        found = {
            "search_s": result.seconds,
            "front_paths": len(result.front),
            "hypervolume_share": adatsq.hypervolume_share(result, truth),
        }
        # A front has no budget: a_bits are those of the weights.
        facts.append({"method": f"adatsq {label}", "w_bits": w_bits, "a_bits": float(w_bits), **found})
    _append(setting.path("-frontier.csv"), paths, ["model", "w_bits"])
    for fact in facts:
        _append_facts(setting, fact)
    shares = ", ".join(f"{f['method'].split()[1]} {f['hypervolume_share']:.4f}" for f in facts)
    return f"{len(paths)} paths, {len(truth.front)} on the front, share of it: {shares}"


def score(setting: Setting, images, reference, method: str, w_bits: int, a_bits: float, facts: dict) -> str:
    """Judge the pictures, compare them with the full-precision ones, write both files; say the scores."""
    prompts = [p for p in setting.evaluation for _ in range(setting.pictures)]
    key = {"method": method, "w_bits": w_bits, "a_bits": float(a_bits)}
    places = pd.DataFrame(
        {
            "model": setting.name,
            **key,
            "prompt": np.repeat(np.arange(len(setting.evaluation)), setting.pictures),
            "picture": np.tile(np.arange(setting.pictures), len(setting.evaluation)),
            "category": [p.category for p in prompts],
        }
    )
    scores = setting.task.score(images, prompts).round(4)
    distances = {
        "psnr": psnr(images, reference).round(2),
        "ssim": ssim(images, reference, device=setting.device).astype(np.float64).round(4),
    }
    rows = pd.concat([places, scores], axis=1).assign(**distances)
    _append(setting.path("-images.csv"), rows, KEY)
    _append_facts(setting, {**key, **facts})
    return f"{scores.mean(axis=1).mean():.4f} on average, {rows.psnr.mean():.2f} dB"


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


def _append_facts(setting: Setting, facts: dict) -> None:
    if setting.shared:
        facts = {name: None if name.endswith("_s") else value for name, value in facts.items()}
    facts = {"model": setting.name, **facts, "commit": setting.commit, "device": device_name(setting.device)}
    _append(setting.path("-facts.csv"), pd.DataFrame([facts]), KEY)


def _append(file: Path, rows: pd.DataFrame, key: list[str], float_format: str | None = None) -> None:
    """Replace the rows of the same key (method and bits), add the new ones; the others stay to the letter."""
    text = rows.to_csv(index=False, float_format=float_format)
    if file.exists():
        same = (pd.read_csv(file, usecols=key)[key] == rows[key].iloc[0]).all(axis=1)
        old, new = (pd.read_csv(f, dtype=str, keep_default_na=False) for f in (file, io.StringIO(text)))
        text = pd.concat([old[~same], new]).fillna("").to_csv(index=False)
    write_text(file, text)


def device_name(name: str) -> str:
    return torch.cuda.get_device_name() if name.startswith("cuda") else f"cpu ({os.cpu_count()} cores)"
