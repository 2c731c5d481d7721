"""A model on the explorer's bench: weights quantized one way or another, policies on them, what they draw."""

import base64
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from adatsq.evaluate import generate, intervals, psnr
from adatsq.fisher import Fisher, temporal_fisher
from adatsq.judging import Task
from adatsq.models import load_pipeline
from adatsq.policy import Policy, apply
from adatsq.replacement import quantize
from adatsq.trace import Trace, record

FRAMES = 3  # of a clip, shown


@dataclass(frozen=True)
class Bench:
    """A model folder, its recorded run on calibration prompts, and its Fisher scores."""

    model: str
    device: str
    trace: Trace
    fisher: Fisher

    def quantized(self, w_bits: int, tau: float) -> DiffusionPipeline:
        """A fresh pipeline with quantized weights; activations wait for a policy."""
        pipe = load_pipeline(self.model, torch_dtype=torch.float32, device=self.device)
        options = {"blocks_per_pass": None, "batch_size": 16, "progress": False}
        return quantize(pipe, self.trace, w_bits, alpha=self.fisher.alpha(tau), **options)

    def draw(
        self,
        pipe: DiffusionPipeline,
        prompts: Sequence[str],
        seeds: Sequence[int],
        policy: Policy | None = None,
    ) -> np.ndarray:
        """Pictures or clips at the steps, size and guidance of the recorded run, under a policy if given."""
        applied = None if policy is None else apply(pipe, policy)
        try:
            return generate(pipe, prompts, seeds, batch_size=256, progress=False, **self.trace.settings)
        finally:
            if applied is not None:
                applied.remove()


def prepare(
    model: str, calibration: Sequence[str], steps: int | None = None, device: str = "cpu", progress=True
) -> tuple[Bench, DiffusionPipeline]:
    """Record and score the model; also the full-precision pipeline. steps: None for the model's own."""
    pipe = load_pipeline(model, torch_dtype=torch.float32, device=device)
    trace = record(pipe, calibration, steps, seed=1_000_000, batch_size=16, progress=progress)
    return Bench(model, device, trace, temporal_fisher(pipe, trace, batch_size=16, progress=progress)), pipe


@dataclass(frozen=True)
class Exam:
    """What every policy draws: a picture for each of `prompts` (text, seed, category), of which the first
    `shown` are kept and all are judged. reference: the full-precision pictures (N, ...)."""

    task: Task
    prompts: list
    shown: int
    reference: np.ndarray

    def score(self, images: np.ndarray) -> dict | None:
        """The judge's total with its 95% interval over prompts, and their number n. None if some category has
        one prompt alone, which tells nothing of how prompts differ."""
        categories = [prompt.category for prompt in self.prompts]
        if min(Counter(categories).values()) < 2:
            return None
        values = self.task.score(images, self.prompts).mean(axis=1).to_numpy()
        total = intervals(values[:, None], categories).loc["total"]
        numbers = {name: round(float(total[name]), 4) for name in ("value", "ci_low", "ci_high")}
        return {**numbers, "n": len(values)}


def drawn(bench: Bench, pipe: DiffusionPipeline, policy: Policy, exam: Exam) -> dict:
    """A policy's averages, its bits, its pictures of the shown prompts, how near it comes to the
    full-precision ones (dB, each and the mean over all prompts), and its score."""
    images = bench.draw(pipe, [p.text for p in exam.prompts], [p.seed for p in exam.prompts], policy)
    near = psnr(images, exam.reference)
    return {
        "average_bits": round(policy.average, 4),
        "flop_weighted_bits": round(policy.flop_weighted, 4),
        "bits": digits(policy.bits),
        "psnr": [round(float(value), 2) for value in near[: exam.shown]],
        "mean_psnr": round(float(near.mean()), 2),
        "images": [picture(image) for image in images[: exam.shown]],
        "score": exam.score(images),
    }


def digits(bits: np.ndarray) -> list[str]:
    """Bits (T, L) as a string per step with a digit per layer."""
    return ["".join(map(str, row)) for row in bits.tolist()]


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


def finite(tau: float) -> float | None:
    """As JSON has it: no infinity."""
    return None if math.isinf(tau) else tau
