"""The prompts of the evaluation and of the calibration, which share no pair and no coloured shape.

`python -m adatsq.world.prompts data/prompts` writes both files. The 553 evaluation prompts keep GenEval's
proportions (80 / 99 / 80 / 94 / 100 / 100); where the world has fewer distinct ones, a prompt repeats and
only its seed differs.

The split is made on what prompts are built from: 6 of the 28 pairs of shapes, 16 of the 64 (colour, shape)
and 6 of the 24 (number, shape) belong to calibration, the others to evaluation, in every category that uses
them.
"""

import itertools
import json
import random
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from adatsq.world.scenes import COLORS, KINDS, NUMBERS, RELATIONS, SHAPES, caption

CATEGORIES = {  # prompts per category in the evaluation
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attribution": 100,
}
FILES = ("evaluation.json", "calibration.json")


@dataclass(frozen=True)
class Prompt:
    """A prompt and what a picture must show. objects: (shape, colour or None), as in the sentence."""

    text: str
    category: str
    objects: tuple[tuple[str, str | None], ...]
    count: int
    relation: str | None
    seed: int  # of the first picture; the i-th picture of the prompt adds i


def load_prompts(path: str | Path) -> list[Prompt]:
    """Read one of the files that this module writes."""
    rows = read_prompts(path, Prompt, "adatsq.world.prompts")
    return [Prompt(**{**row, "objects": tuple((s, c) for s, c in row["objects"])}) for row in rows]


def read_prompts(path: str | Path, kind: type, writer: str) -> list[dict]:
    """The rows of a prompt file, each with exactly the fields of the dataclass `kind`.

    FileNotFoundError: no such file. ValueError: it holds something else, say prompts of another world.
    """
    path = Path(path)
    advice = f"write it with: python -m {writer} {path.parent}"
    if not path.is_file():
        raise FileNotFoundError(f"no prompt file {path}; {advice}")
    wanted = [field.name for field in fields(kind)]
    try:
        rows = json.loads(path.read_text())
        wrong = [row for row in rows if sorted(row) != sorted(wanted)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no list of prompts ({error}); {advice}") from None
    if wrong:
        raise ValueError(f"{path} has a prompt with {sorted(wrong[0])} instead of {sorted(wanted)}; {advice}")
    return rows


def write_prompts(path: Path, prompts: list) -> None:
    """One prompt per line, so that a change shows; through a temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(" " + json.dumps(asdict(p)) for p in prompts)
    path.with_suffix(".tmp").write_text(f"[\n{rows}\n]\n")
    path.with_suffix(".tmp").replace(path)
    print(f"{len(prompts)} prompts in {path}")


def make_prompts(seed: int = 0) -> tuple[list[Prompt], list[Prompt]]:
    """(evaluation, calibration). Seeds of pictures: evaluation 0, 4, 8, ...; calibration from 1,000,000."""
    rng = random.Random(seed)
    mine, theirs = _split(rng)
    evaluation, calibration = [], []
    for category, wanted in CATEGORIES.items():
        pool = shuffled(rng, _specs(category, *theirs))
        evaluation += [pool[i % len(pool)] for i in range(wanted)]
        if category != "single_object":  # has nothing to tell apart: every shape is in the evaluation
            calibration += [shuffled(rng, _specs(category, *mine))]
    turns = itertools.zip_longest(
        *calibration
    )  # one of each category in turn, so that any prefix is balanced
    calibration = [spec for turn in turns for spec in turn if spec is not None]
    return (
        [_prompt(spec, seed=4 * i) for i, spec in enumerate(evaluation)],
        [_prompt(spec, seed=1_000_000 + i) for i, spec in enumerate(calibration)],
    )


def _split(rng):
    """(calibration, evaluation) halves of the pairs, the coloured shapes and the counted shapes."""
    kept, tinted = split_looks(rng)
    counted = set(shuffled(rng, itertools.product(SHAPES, NUMBERS))[:6])
    mine = (lambda p: p in kept), (lambda t: t in tinted), (lambda n: n in counted)
    theirs = (lambda p: p not in kept), (lambda t: t not in tinted), (lambda n: n not in counted)
    return mine, theirs


def split_looks(rng):
    """The pairs of shapes (6 of 28, frozensets) and the (shape, colour) (16 of 64) kept for calibration."""
    # a cycle through six shapes: each of them is in two of the pairs
    order = shuffled(rng, SHAPES)
    kept = {frozenset((order[i], order[(i + 1) % 6])) for i in range(6)}
    hues, shift = list(COLORS), 3
    tinted = {(s, hues[(i + k) % len(hues)]) for i, s in enumerate(SHAPES) for k in (0, shift)}
    return kept, tinted


def _specs(category, pair_ok, tint_ok, count_ok):
    """Every (category, objects, count, relation) that uses only the allowed parts."""
    ordered = [p for p in itertools.permutations(SHAPES, 2) if pair_ok(frozenset(p))]
    tinted = [t for t in itertools.product(SHAPES, COLORS) if tint_ok(t)]
    if category == "single_object":
        return [(category, ((s, None),), 1, None) for s in SHAPES]
    if category == "two_object":
        return [(category, ((a, None), (b, None)), 1, None) for a, b in ordered]
    if category == "counting":
        return [
            (category, ((s, None),), n, None)
            for s, n in itertools.product(SHAPES, NUMBERS)
            if count_ok((s, n))
        ]
    if category == "colors":
        return [(category, (t,), 1, None) for t in tinted]
    if category == "position":
        return [
            (category, ((a, None), (b, None)), 1, r) for (a, b), r in itertools.product(ordered, RELATIONS)
        ]
    return [
        (category, (t, u), 1, None)
        for t, u in itertools.permutations(tinted, 2)
        if t[1] != u[1] and t[0] != u[0] and pair_ok(frozenset((t[0], u[0])))
    ]


def _prompt(spec, seed):
    category, objects, count, relation = spec
    shapes = [SHAPES.index(s) for s, _ in objects] * count
    colors = [list(COLORS).index(c) if c else 0 for _, c in objects] * count
    text = caption(KINDS.index(category), RELATIONS.index(relation) if relation else -1, shapes, colors)
    return Prompt(text, category, objects, count, relation, seed)


def shuffled(rng, items):
    items = list(items)
    rng.shuffle(items)
    return items


def main(folder: str) -> None:
    for name, prompts in zip(FILES, make_prompts(), strict=True):
        write_prompts(Path(folder) / name, prompts)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "data/prompts")
