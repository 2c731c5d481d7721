"""Generate, judge, compare: pictures in, tidy rows with intervals out.

Every method draws the same prompts from the same seeds, so methods are compared picture by picture.
Pictures of one prompt are alike, so the bootstrap draws prompts, not pictures, within each category (a
clustered, stratified, paired bootstrap).
"""

import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torchmetrics.functional.image import structural_similarity_index_measure
from tqdm.auto import tqdm

from adatsq.models import prompt_list
from adatsq.settings import call_settings
from adatsq.trace import OURS

RESAMPLES = 2000


def generate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int = 32,
    progress: bool = True,
    **call,
) -> np.ndarray:
    """One image per prompt and seed, (N, H, W, 3) uint8, or clip, (N, F, H, W, 3), by the pipeline itself
    with the model's settings.

    Noise comes from a CPU generator per image, so an image does not depend on its batch or on the device.
    ValueError, before any work, for no prompt, one that is empty or no string, as many seeds as do not fit,
    a batch size below 1, call settings that are set here, and what `settings.call_settings` refuses.
    """
    prompts, seeds = prompt_list(prompts), list(seeds)
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds: give one seed per prompt")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
    if OURS & call.keys():
        raise ValueError(f"generate sets {sorted(OURS & call.keys())} itself")
    options = {**call_settings(pipe, call), "output_type": "np"}
    pipe.set_progress_bar_config(disable=True)
    images = []
    for i in tqdm(range(0, len(prompts), batch_size), desc="images", disable=not progress):
        generators = [torch.Generator("cpu").manual_seed(int(s)) for s in seeds[i : i + batch_size]]
        images.append(pipe(prompts[i : i + batch_size], generator=generators, **options)[0])
    return (np.concatenate(images) * 255).round().astype(np.uint8)


def psnr(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image to its reference, dB, at most 100; for clips, mean of frames.

    Both (N, H, W, 3) or (N, F, H, W, 3) uint8.
    """
    _same_shape(images, reference)
    error = np.square(images.astype(np.float64) - reference).mean(axis=(-3, -2, -1))
    ratio = np.minimum(10 * np.log10(255.0**2 / np.maximum(error, 1e-12)), 100.0)
    return ratio.reshape(len(images), -1).mean(1)


def ssim(images: np.ndarray, reference: np.ndarray, batch_size: int = 256, device: str = "cpu") -> np.ndarray:
    """Structural similarity of each image to its reference, in [-1, 1]; for clips, mean of frames.

    Both (N, H, W, 3) or (N, F, H, W, 3) uint8. Without TF32, which is too coarse for variances.
    """
    _same_shape(images, reference)
    frames, values = [x.reshape(-1, *x.shape[-3:]) for x in (images, reference)], []
    for i in range(0, len(frames[0]), batch_size):
        a, b = (
            torch.as_tensor(x[i : i + batch_size], device=device).permute(0, 3, 1, 2) / 255 for x in frames
        )
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            found = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        values.append(found.reshape(-1).cpu())
    return torch.cat(values).reshape(len(images), -1).mean(1).numpy()


def category_scores(passed: np.ndarray, categories: Sequence[str]) -> dict[str, float]:
    """Share of passes per category, and their unweighted mean as "total" (as GenEval's overall score).

    passed: (prompts, pictures per prompt) bool.  categories: (prompts,).
    """
    rows = (
        pd.Series(np.asarray(passed, dtype=float).mean(axis=1)).groupby(list(categories), sort=False).mean()
    )
    return {**rows.to_dict(), "total": float(rows.mean())}


def intervals(
    values: np.ndarray,
    categories: Sequence[str],
    baseline: np.ndarray | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Value and interval per category and in total; of the paired difference if there is a baseline.

    values, baseline: (prompts, pictures per prompt), for the same prompts and seeds. The index holds the
    categories and "total"; the columns are value, ci_low, ci_high, n (pictures).
    """
    values = np.asarray(values, dtype=float)
    if baseline is not None:
        _same_shape(values, np.asarray(baseline))
        values = values - np.asarray(baseline, dtype=float)
    means, categories = values.mean(axis=1), np.asarray(categories)
    rows, draws, names = {}, [], list(dict.fromkeys(categories))
    tails = (100 * (1 - level) / 2, 100 * (1 + level) / 2)
    sizes = tuple(int((categories == category).sum()) for category in names)
    for category, drawn in zip(names, _resampled(sizes, RESAMPLES, seed)):
        inside = means[categories == category]
        draw = inside[drawn].mean(axis=1)
        draws.append(draw)
        rows[category] = [inside.mean(), *np.percentile(draw, tails), len(inside) * values.shape[1]]
    total = np.mean(draws, axis=0)
    rows["total"] = [np.mean([r[0] for r in rows.values()]), *np.percentile(total, tails), values.size]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "ci_low", "ci_high", "n"])


@functools.lru_cache(maxsize=4)
def _resampled(sizes: tuple[int, ...], resamples: int, seed: int) -> list[np.ndarray]:
    """Prompts that each resample draws, (resamples, n) of each category: the same for all rows of a table."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, n, (resamples, n)) for n in sizes]


def _same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"cannot compare arrays of shapes {a.shape} and {b.shape}")
