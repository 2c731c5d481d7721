"""The shapes world: scenes keep their promises, the judge is right and not fooled, prompts never meet."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from adatsq.world import CATEGORIES, COLORS, SHAPES, Judge, Prompt, load_prompts, read_scene, render
from adatsq.world.drawing import DISTANCE, coverage
from adatsq.world.prompts import make_prompts
from adatsq.world.scenes import KINDS, RELATIONS, caption, sample_scenes


def pictures(kind: int, n: int, seed: int = 0):
    """n renders of one kind of caption, as uint8, and what each must show."""
    scenes = sample_scenes(n, torch.Generator().manual_seed(seed), kind)
    images = (render(scenes) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    names, prompts = list(COLORS), []
    for i in range(n):
        present = [s for s in scenes.shape[i].tolist() if s >= 0]
        told = "color" in KINDS[kind]
        objects = [(SHAPES[s], names[c] if told else None) for s, c in zip(present, scenes.color[i].tolist())]
        counting, relation = KINDS[kind] == "counting", int(scenes.relation[i])
        prompts.append(
            Prompt(
                text=scenes.captions()[i],
                category=KINDS[kind],
                objects=tuple(objects[:1] if counting else objects),
                count=len(present) if counting else 1,
                relation=RELATIONS[relation] if relation >= 0 else None,
                seed=0,
            )
        )
    return images, prompts


@pytest.mark.parametrize("kind", range(6), ids=lambda k: KINDS[k])
def test_judge_reads_renders(kind):
    images, prompts = pictures(kind, 200)
    assert Judge()(images, prompts).mean() >= 0.99


@pytest.mark.parametrize("kind", range(6), ids=lambda k: KINDS[k])
def test_judge_reads_soft_and_noisy_renders(kind):
    """As a decoder may leave them: blurred over half a pixel, with noise of 2% of the range."""
    images, prompts = pictures(kind, 60, seed=1)
    soft = torch.nn.functional.avg_pool2d(torch.tensor(images / 255.0).permute(0, 3, 1, 2), 3, 1, 1)
    mixed = 0.5 * images / 255 + 0.5 * soft.permute(0, 2, 3, 1).numpy()
    noise = np.random.default_rng(0).normal(0, 0.02, images.shape)
    assert Judge()((mixed + noise).clip(0, 1), prompts).mean() >= 0.95


@pytest.mark.parametrize("kind", range(6), ids=lambda k: KINDS[k])
def test_judge_is_not_fooled(kind):
    """Empty, noisy and inverted pictures never pass, pictures of another prompt (of its kind) hardly ever."""
    images, prompts = pictures(kind, 20, seed=2)
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    for wrong in (np.zeros_like(images), np.full_like(images, 255), noise, 255 - images):
        assert not Judge()(wrong[:8], prompts[:8]).any()
    others = [(a, b) for a, b in itertools.permutations(range(20), 2) if prompts[a] != prompts[b]][::4]
    passed = Judge()(images[[a for a, _ in others]], [prompts[b] for _, b in others])
    assert passed.mean() <= 0.02


@pytest.mark.parametrize(
    ("change", "category"),
    [("count", "counting"), ("color", "colors"), ("relation", "position"), ("swap", "color_attribution")],
)
def test_judge_sees_a_single_wrong_fact(change, category):
    images, prompts = pictures(KINDS.index(category), 50, seed=3)
    wrong = []
    for p in prompts:
        facts = vars(p).copy()
        if change == "count":
            facts["count"] = {2: 3, 3: 4, 4: 2}[p.count]
        elif change == "color":
            facts["objects"] = ((p.objects[0][0], next(c for c in COLORS if c != p.objects[0][1])),)
        elif change == "relation":
            opposite = {"left of": "right of", "above": "below"}
            opposite |= {v: k for k, v in opposite.items()}
            facts["relation"] = opposite[p.relation]
        else:
            (a, x), (b, y) = p.objects
            facts["objects"] = ((a, y), (b, x))
        wrong.append(Prompt(**facts))
    assert Judge()(images, wrong).mean() <= 0.02


def test_judge_finds_places_and_colours():
    scenes = sample_scenes(50, torch.Generator().manual_seed(4), KINDS.index("color_attribution"))
    images = render(scenes).permute(0, 2, 3, 1).numpy()
    for i, objects in enumerate(read_scene(images)):
        truth = {(SHAPES[s], list(COLORS)[c]): xy for s, c, xy in zip(
            scenes.shape[i, :2].tolist(), scenes.color[i, :2].tolist(), scenes.center[i, :2].tolist()
        )}  # fmt: skip
        assert {(o.shape, o.color) for o in objects} == set(truth)
        for o in objects:
            assert np.hypot(*np.subtract(o.center, truth[o.shape, o.color])) < 3.0  # centroid, not centre


def test_judge_refuses_what_it_cannot_read():
    _, prompts = pictures(0, 2)
    with pytest.raises(ValueError, match=r"\(2, 32, 32, 3\)"):
        read_scene(np.zeros((2, 32, 32, 3)))
    with pytest.raises(ValueError, match="1 images for 2 prompts"):
        Judge()(np.zeros((1, 64, 64, 3)), prompts)


@pytest.mark.parametrize("name", SHAPES)
def test_distances_are_distances(name):
    """|grad d| = 1 nearly everywhere around the edge, so coverage is antialiased over one pixel."""
    y, x = torch.meshgrid(torch.linspace(-1.3, 1.3, 521), torch.linspace(-1.3, 1.3, 521), indexing="ij")
    d = DISTANCE[name](x.double(), y.double())
    gy, gx = torch.gradient(d, spacing=2.6 / 520)
    near = d.abs() < 0.03
    assert near.any() and (torch.hypot(gx, gy)[near] - 1).abs().median() < 0.02


def test_coverage_of_a_circle_is_its_area():
    radius = torch.tensor([8.0, 12.5])
    area = coverage(torch.zeros(2, dtype=torch.long), torch.full((2, 2), 31.3), radius).sum((1, 2))
    assert torch.allclose(area, torch.pi * (0.95 * radius) ** 2, rtol=5e-3)


def test_scenes_are_seeded_and_apart():
    a, b = (sample_scenes(300, torch.Generator().manual_seed(5)) for _ in range(2))
    assert a.captions() == b.captions() and torch.equal(render(a), render(b))
    for i in range(len(a)):
        n = int((a.shape[i] >= 0).sum())
        center, radius = a.center[i, :n], a.radius[i, :n]
        assert (center - radius[:, None] > 0).all() and (center + radius[:, None] < 64).all()
        gaps = torch.cdist(center, center) - radius[:, None] - radius[None, :]
        assert n == 1 or gaps[~torch.eye(n, dtype=torch.bool)].min() > 1.9


def test_captions_read_like_sentences():
    names = list(COLORS)
    assert caption(KINDS.index("counting"), -1, [5, 5, 5, -1], [0, 0, 0, -1]) == "three crosses"
    orange = names.index("orange")
    assert caption(KINDS.index("position+colors"), 0, [0, 1, -1, -1], [orange, 0, -1, -1]) == (
        "an orange circle left of a red square"
    )


def test_prompts_keep_genevals_proportions_and_never_meet():
    evaluation, calibration = make_prompts()
    counts = {c: sum(p.category == c for p in evaluation) for c in CATEGORIES}
    assert counts == dict(zip(CATEGORIES, (80, 99, 80, 94, 100, 100))) and len(evaluation) == 553
    assert {p.category for p in calibration} == set(CATEGORIES) - {"single_object"}

    def pairs(ps):
        return {frozenset(s for s, _ in p.objects) for p in ps if len(p.objects) == 2}

    def tints(ps):
        return {o for p in ps for o in p.objects if o[1]}

    def numbers(ps):
        return {(p.objects[0][0], p.count) for p in ps if p.category == "counting"}

    for parts in (pairs, tints, numbers):
        assert parts(evaluation) and not parts(evaluation) & parts(calibration)
    assert not {p.text for p in evaluation} & {p.text for p in calibration}
    seeds = [p.seed + i for p in evaluation for i in range(4)]
    assert len(set(seeds)) == len(seeds) and not set(seeds) & {p.seed for p in calibration}


def test_prompt_files_are_what_the_module_makes():
    folder = Path(__file__).parents[1] / "data" / "prompts"
    evaluation, calibration = make_prompts()
    assert load_prompts(folder / "evaluation.json") == evaluation
    assert load_prompts(folder / "calibration.json") == calibration
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        load_prompts(folder / "nothing.json")
