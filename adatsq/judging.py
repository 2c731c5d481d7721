"""How the benchmark draws and judges: pictures pass or fail, clips have a score per dimension."""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context, parent_process
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline

from adatsq.models import sampling
from adatsq.world import Judge, load_prompts
from adatsq.world.motion_judge import judge_clips
from adatsq.world.motion_prompts import VIDEO_FILES, load_video_prompts
from adatsq.world.prompts import FILES


def judge_pictures(images: np.ndarray, prompts: list) -> pd.DataFrame:
    """Column `passed`, 0 or 1, a row per picture."""
    return pd.DataFrame({"passed": Judge()(images, prompts).astype(int)})


FEW = 512  # pictures or frames that are judged where they are


@dataclass(frozen=True)
class Task:
    """What differs between models of images and of video.

    files: of the evaluation and the calibration prompts. judge: (images, prompts) -> a row per image, columns
    of scores in [0, 1], higher is better. pictures: per prompt. batch_size: of a draw.
    """

    files: tuple[str, str]
    load: Callable[[Path], list]
    judge: Callable[[np.ndarray, list], pd.DataFrame]
    pictures: int
    batch_size: int

    def score(self, images: np.ndarray, prompts: list) -> pd.DataFrame:
        """The judge; for many pictures or frames on all cores."""
        if np.prod(images.shape[:-3]) < FEW:
            return self.judge(images, prompts)
        chunks = np.array_split(np.arange(len(images)), min(len(images), 4 * (os.cpu_count() or 1)))
        parts = [images[c] for c in chunks], [[prompts[i] for i in c] for c in chunks]
        return pd.concat(_workers().map(self.judge, *parts), ignore_index=True)


PICTURES = Task(FILES, load_prompts, judge_pictures, pictures=4, batch_size=553)
CLIPS = Task(VIDEO_FILES, load_video_prompts, judge_clips, pictures=2, batch_size=204)


def task_of(pipe: DiffusionPipeline) -> Task:
    """Clips for a model whose own settings have a number of frames, else pictures."""
    return CLIPS if "num_frames" in sampling(pipe) else PICTURES


@functools.cache
def _workers() -> ProcessPoolExecutor:
    """Forks of a fresh process that has imported all: a fork of one that has used torch's threads can hang,
    and fresh processes for all cores would each import for seconds. Where there are no forks, they do."""
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(mp_context=context, initializer=start_worker)


def start_worker() -> None:
    """One thread, and an end when the process that started it ends: workers would wait for it for ever."""
    torch.set_num_threads(1)

    def follow() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
