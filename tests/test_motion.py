"""The moving world: clips show what their captions say, targets are what captions say, prompts never meet."""

import collections
import itertools
from pathlib import Path

import pytest
import torch

from adatsq.world.drawing import coverage
from adatsq.world.motion import (
    CLIP_KINDS,
    DIRECTIONS,
    FIELDS,
    FRAMES,
    SPEEDS,
    parse_targets,
    render_clips,
    sample_clips,
)
from adatsq.world.motion_prompts import (
    VIDEO_CATEGORIES,
    VIDEO_FILES,
    VideoPrompt,
    load_video_prompts,
    main,
    make_video_prompts,
)
from adatsq.world.prompts import load_prompts
from adatsq.world.scenes import COLORS, SHAPES, SIZE

FOLDER = Path(__file__).resolve().parents[1] / "data" / "prompts"


@pytest.fixture(scope="module")
def clips():
    return sample_clips(2000, torch.Generator().manual_seed(0))


def said(sentence: str) -> list[dict]:
    """What a sentence says of each thing, read word by word and not by the code that wrote it."""
    things = []
    for part in sentence.split(" and "):
        words = part.split()
        thing = dict.fromkeys(("shape", "color", "direction", "speed"))
        for word in words:
            kinds = {"shape": SHAPES, "color": COLORS, "direction": DIRECTIONS, "speed": SPEEDS}
            for kind, known in kinds.items():
                if word in known:
                    thing[kind] = word
        vowel = words[1][0] in "aeiou"
        assert words[0] == ("an" if vowel else "a")
        assert words[2 + (thing["color"] is not None)] == (
            "stands" if thing["direction"] == "still" else "moves"
        )
        things.append(thing)
    return things


def test_captions_are_short_and_of_the_kinds_promised(clips):
    captions = clips.captions()
    assert max(len(c.split()) for c in captions) <= 15
    by_kind = {
        k: [c for c, i in zip(captions, clips.kind.tolist()) if CLIP_KINDS[i] == k] for k in CLIP_KINDS
    }
    assert all(len(rows) > 100 for rows in by_kind.values())
    for kind, rows in by_kind.items():
        things = [said(c) for c in rows]
        assert {len(t) for t in things} == {2 if kind.startswith("two") else 1}
        colored = {thing["color"] is not None for t in things for thing in t}
        assert colored == {kind not in ("direction", "two_motions")}
        timed = {x["speed"] is not None for t in things for x in t if x["direction"] != "still"}
        assert timed == (set() if kind == "still" else {"speed" in kind})
        resting = {sum(thing["direction"] == "still" for thing in t) for t in things}
        assert resting == {1 if kind in ("still", "two_objects") else 0}
    assert "moves left quickly" in " ".join(by_kind["two_motions+speed"])


def test_targets_are_what_the_caption_says(clips):
    open_class = {name: size - 1 for name, size in FIELDS.items()}
    names = {
        "shape": list(SHAPES),
        "color": list(COLORS),
        "direction": list(DIRECTIONS),
        "speed": list(SPEEDS),
    }
    targets = parse_targets(clips)
    assert targets.shape == (len(clips), len(FIELDS)) and targets.dtype == torch.int64
    for caption, row in zip(clips.captions()[:500], targets.tolist()):
        things = said(caption)
        want = {**open_class, "count": len(things) - 1}
        for k, thing in enumerate(things, 1):
            for kind, word in thing.items():
                if word is not None:
                    want[f"{kind}_{k}"] = names[kind].index(word)
        assert dict(zip(FIELDS, row)) == want


def test_objects_move_as_said_inside_the_frame_and_apart(clips):
    present = clips.shape >= 0
    centers = clips.centers()
    assert centers.shape == (len(clips), FRAMES, 2, 2)
    way = centers[:, -1] - centers[:, 0]
    length = way.abs().sum(-1)
    for index, (sign, axis) in enumerate([(-1, 0), (1, 0), (-1, 1), (1, 1)]):  # left, right, up, down
        rows = present & (clips.direction == index)
        assert (sign * way[rows][:, axis] > 0).all() and (way[rows][:, 1 - axis] == 0).all()
    assert (length[present & (clips.direction == 4)] == 0).all()
    for index, (low, high) in enumerate([(0.7, 1.1), (2.0, 2.6)]):
        pace = length[present & (clips.speed == index)] / (FRAMES - 1)
        assert low - 1e-4 <= pace.min() < low + 0.05 and high - 0.2 < pace.max() <= high + 1e-4
    rows = clips[
        :300
    ]  # in pixels: nothing is cut off by the border, and no two objects share a neighbourhood
    frame = torch.arange(0, FRAMES, 4)
    drawn = [
        coverage(
            rows.shape[:, k].repeat_interleave(len(frame)),
            rows.centers()[:, frame, k].flatten(0, 1),
            rows.radius[:, k].repeat_interleave(len(frame)),
        )
        for k in (0, 1)
    ]
    for alpha in drawn:
        edges = torch.cat([alpha[:, [0, -1]].flatten(), alpha[:, :, [0, -1]].flatten()])
        assert edges.max() < 0.51  # at most the soft edge of a tip
    near = torch.nn.functional.max_pool2d(drawn[0][:, None], 3, 1, 1)[:, 0]
    assert ((near > 0) & (drawn[1] > 0)).sum() == 0


def test_render_draws_the_objects_where_they_are():
    clips = sample_clips(6, torch.Generator().manual_seed(1), CLIP_KINDS.index("speed"))
    video = render_clips(clips)
    assert video.shape == (6, FRAMES, 3, SIZE, SIZE) and 0 <= video.min() and video.max() <= 1
    palette = torch.tensor(list(COLORS.values()))
    empty = sample_clips(6, torch.Generator().manual_seed(1), CLIP_KINDS.index("speed"))
    empty.shape[:] = -1
    background = render_clips(empty)
    assert torch.equal(background[:, 0], background[:, -1])
    pixel = torch.arange(SIZE) + 0.5
    for i in range(6):
        weight = (video[i] - background[i]).abs().sum(1)
        paint = palette[clips.color[i, 0]]
        hit = (video[i] - paint[:, None, None]).abs().amax(1) < 1e-5
        assert (hit.flatten(1).sum(1) > 60).all()  # the object has its colour in every frame
        x = (weight.sum(1) * pixel).sum(1) / weight.sum((1, 2))
        y = (weight.sum(2) * pixel).sum(1) / weight.sum((1, 2))
        slope = torch.stack([x, y], 1).diff(dim=0).mean(0)
        assert torch.allclose(slope, clips.velocity[i, 0], atol=0.05)


def test_the_same_seed_draws_the_same_clips():
    a, b = (sample_clips(50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))
    assert a.captions() != sample_clips(50, torch.Generator().manual_seed(4)).captions()


def test_evaluation_and_calibration_share_no_part():
    evaluation, calibration = make_video_prompts()
    assert collections.Counter(p.category for p in evaluation) == VIDEO_CATEGORIES
    assert len(evaluation) == len({p.text for p in evaluation}) >= 200
    assert len(calibration) == len({p.text for p in calibration}) == 96
    assert min(collections.Counter(p.category for p in calibration[:48]).values()) == 8

    def parts(prompts):
        pairs = {frozenset(o[0] for o in p.objects) for p in prompts if len(p.objects) == 2}
        tints = {o[:2] for p in prompts for o in p.objects if o[1]}
        moves = {
            (p.objects[0][0], p.objects[0][2])
            for p in prompts
            if len(p.objects) == 1 and p.category != "still"
        }
        return pairs, tints, moves

    for a, b in zip(parts(evaluation), parts(calibration)):
        assert a and b and not a & b
    assert not {p.text for p in evaluation} & {p.text for p in calibration}
    seeds = [p.seed + i for p in evaluation + calibration[:1] for i in (0, 1)]
    assert len(set(seeds)) == len(seeds)


def test_prompts_say_what_their_objects_are():
    for p in itertools.chain(*make_video_prompts()):
        assert [tuple(thing.values()) for thing in said(p.text)] == list(p.objects)


def test_prompt_files_are_those_the_module_writes(tmp_path):
    main(str(tmp_path))
    for name, prompts in zip(VIDEO_FILES, make_video_prompts()):
        assert load_video_prompts(FOLDER / name) == prompts
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text()
        assert isinstance(prompts[0], VideoPrompt)


def test_wrong_prompt_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.json.*python -m adatsq.world.motion_prompts"):
        load_video_prompts(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="evaluation.json has a prompt with .*relation"):
        load_video_prompts(FOLDER / "evaluation.json")
    with pytest.raises(ValueError, match="video-evaluation.json has a prompt"):
        load_prompts(FOLDER / "video-evaluation.json")
    for text in ("[{", "3", "[1]"):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(ValueError, match="broken.json holds no list of prompts"):
            load_video_prompts(tmp_path / "broken.json")
