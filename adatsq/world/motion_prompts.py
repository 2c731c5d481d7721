"""The video prompts of the evaluation and of the calibration: no sentence is in both.

`python -m adatsq.world.motion_prompts data/prompts` writes both files: 204 evaluation prompts, 36 of each
category but 24 of `direction`, which has no more, and 96 calibration prompts. No sentence repeats.

The split is made on what prompts are built from: 6 of the 28 pairs of shapes, 16 of the 64 (colour, shape)
and 8 of the 32 (shape, direction of a single mover) belong to calibration, the others to evaluation, in every
category that uses them.
"""

import itertools
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from adatsq.world.motion import CLIP_KINDS, DIRECTIONS, SPEEDS, clip_caption
from adatsq.world.prompts import read_prompts, shuffled, split_looks, write_prompts
from adatsq.world.scenes import COLORS, SHAPES

VIDEO_CATEGORIES = {  # prompts per category in the evaluation
    "still": 36,
    "direction": 24,
    "colors": 36,
    "speed": 36,
    "two_objects": 36,
    "two_motions": 36,
}
VIDEO_FILES = ("video-evaluation.json", "video-calibration.json")
_CALIBRATION = 96
_MOVES = tuple(d for d in DIRECTIONS if d != "still")


@dataclass(frozen=True)
class VideoPrompt:
    """A prompt and what a clip must show. objects: (shape, colour, direction, speed), as in the sentence.

    Colour and speed are None where the sentence leaves them open; the direction may be "still".
    """

    text: str
    category: str
    objects: tuple[tuple[str, str | None, str, str | None], ...]
    seed: int  # of the first clip; the i-th clip of the prompt adds i


def load_video_prompts(path: str | Path) -> list[VideoPrompt]:
    """Read one of the files that this module writes. FileNotFoundError, ValueError: as `load_prompts`."""
    rows = read_prompts(path, VideoPrompt, "adatsq.world.motion_prompts")
    return [VideoPrompt(**{**row, "objects": tuple(map(tuple, row["objects"]))}) for row in rows]


def make_video_prompts(seed: int = 0) -> tuple[list[VideoPrompt], list[VideoPrompt]]:
    """(evaluation, calibration). Seeds of clips: evaluation 0, 4, 8, ...; calibration from 1,000,000."""
    rng = random.Random(seed)
    mine, theirs = _split(rng)
    evaluation, calibration = [], []
    for category, wanted in VIDEO_CATEGORIES.items():
        evaluation += shuffled(rng, _specs(category, *theirs))[:wanted]
        calibration += [shuffled(rng, _specs(category, *mine))]
    # one of each category in turn, so that any prefix is balanced while the smallest category lasts
    turns = itertools.zip_longest(*calibration)
    calibration = [spec for turn in turns for spec in turn if spec is not None][:_CALIBRATION]
    return (
        [_prompt(*spec, seed=4 * i) for i, spec in enumerate(evaluation)],
        [_prompt(*spec, seed=1_000_000 + i) for i, spec in enumerate(calibration)],
    )


def _split(rng):
    """(calibration, evaluation) halves of the pairs, the coloured shapes and the single movers."""
    kept, tinted = split_looks(rng)
    moved = {(s, _MOVES[(i + i // 4) % 4]) for i, s in enumerate(SHAPES)}
    mine = (lambda p: p in kept), (lambda t: t in tinted), (lambda m: m in moved)
    theirs = (lambda p: p not in kept), (lambda t: t not in tinted), (lambda m: m not in moved)
    return mine, theirs


def _specs(category, pair_ok, tint_ok, move_ok):
    """Every (category, objects) that uses only the allowed parts."""
    tinted = [t for t in itertools.product(SHAPES, COLORS) if tint_ok(t)]
    moving = [m for m in itertools.product(SHAPES, _MOVES) if move_ok(m)]
    if category == "still":
        return [(category, ((s, c, "still", None),)) for s, c in tinted]
    if category == "direction":
        return [(category, ((s, None, d, None),)) for s, d in moving]
    if category in ("colors", "speed"):
        paces = SPEEDS if category == "speed" else (None,)
        parts = itertools.product(tinted, moving, paces)
        return [(category, ((s, c, d, v),)) for (s, c), (mover, d), v in parts if s == mover]
    pairs = [p for p in itertools.permutations(SHAPES, 2) if pair_ok(frozenset(p))]
    if category == "two_motions":
        ways = itertools.product(_MOVES, repeat=2)
        return [
            (category, ((a, None, d, None), (b, None, e, None)))
            for (a, b), (d, e) in itertools.product(pairs, ways)
        ]
    ways = [(d, "still") for d in _MOVES] + [("still", d) for d in _MOVES]  # two_objects
    looks = [(t, u) for t, u in itertools.permutations(tinted, 2) if t[1] != u[1] and (t[0], u[0]) in pairs]
    return [(category, ((*t, d, None), (*u, e, None))) for (t, u), (d, e) in itertools.product(looks, ways)]


def _prompt(category, objects, seed):
    shape, color, direction, speed = (list(part) for part in zip(*objects, strict=True))
    text = clip_caption(
        CLIP_KINDS.index(category),
        [SHAPES.index(s) for s in shape],
        [list(COLORS).index(c) if c else -1 for c in color],
        [DIRECTIONS.index(d) for d in direction],
        [list(SPEEDS).index(v) if v else -1 for v in speed],
    )
    return VideoPrompt(text, category, objects, seed)


def main(folder: str) -> None:
    for name, prompts in zip(VIDEO_FILES, make_video_prompts(), strict=True):
        write_prompts(Path(folder) / name, prompts)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "data/prompts")
