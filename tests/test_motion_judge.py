"""The judge of clips: clean clips score 1; each kind of damage costs its own dimension, not the others."""

import itertools
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from adatsq.world.judge import read_scene
from adatsq.world.motion import CLIP_KINDS, DIRECTIONS, FRAMES, SPEEDS, Clips, render_clips, sample_clips
from adatsq.world.motion_judge import DIMENSIONS, Track, follow, judge_clips, motion_smoothness
from adatsq.world.motion_prompts import VideoPrompt
from adatsq.world.scenes import COLORS, SHAPES


def prompts_of(clips: Clips) -> list[VideoPrompt]:
    """What each clip must show: all that its kind of caption says, or everything for training's own kind."""
    names = (SHAPES, list(COLORS), DIRECTIONS, list(SPEEDS))
    out = []
    for i, text in enumerate(clips.captions()):
        facts = zip(*(t[i].tolist() for t in (clips.shape, clips.color, clips.direction, clips.speed)))
        things = [[n[x] if x >= 0 else None for n, x in zip(names, f)] for f in facts if f[0] >= 0]
        open_color = CLIP_KINDS[clips.kind[i]] in ("direction", "two_motions")
        things = [
            (s, None if open_color else c, d, v if v in text.split() else None) for s, c, d, v in things
        ]
        out.append(VideoPrompt(text, CLIP_KINDS[clips.kind[i]], tuple(things), 0))
    return out


def pixels(video: torch.Tensor) -> np.ndarray:
    return (video.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()


def movers(n: int, kind: str = "speed", seed: int = 0):
    clips = sample_clips(n, torch.Generator().manual_seed(seed), CLIP_KINDS.index(kind))
    return clips, prompts_of(clips), render_clips(clips)


def score(video, prompts):
    return dict(judge_clips(pixels(video), prompts).mean())


def others_high(scores: dict, *fallen: str, least: float = 0.93):
    assert {k: round(v, 3) for k, v in scores.items() if k not in fallen and v < least} == {}


def test_clean_clips_score_one():
    clips = sample_clips(80, torch.Generator().manual_seed(0))
    table = judge_clips(pixels(render_clips(clips)[:, :5]), prompts_of(clips))
    assert list(table.columns) == list(DIMENSIONS) and len(table) == 80
    assert (table[["subject_consistency", "dynamic_degree", "overall_consistency"]] == 1).all().all()
    assert table["imaging_quality"].min() > 0.97 and table["background_consistency"].min() > 0.98
    assert table["motion_smoothness"].min() > 0.9 and table["motion_smoothness"].mean() > 0.99


@pytest.mark.parametrize("kind", ["still", "two_objects", "two_motions", "two_motions+speed"])
def test_clean_clips_of_all_frames_score_one(kind):
    _, prompts, video = movers(2, kind, seed=1)
    others_high(score(video, prompts), least=0.97)


def test_float_and_uint8_clips_score_alike():
    _, prompts, video = movers(2)
    video = video[:, :5]
    a, b = judge_clips(pixels(video), prompts), judge_clips(video.permute(0, 1, 3, 4, 2).numpy(), prompts)
    assert np.allclose(a, b, atol=0.02)


def test_a_colour_change_costs_subject_consistency():
    clips, prompts, video = movers(2)
    other = render_clips(replace(clips, color=(clips.color + 3) % len(COLORS)))
    scores = score(torch.cat([video[:, :10], other[:, 10:]], 1), prompts)
    assert scores["subject_consistency"] == pytest.approx(10 / 17)
    others_high(scores, "subject_consistency")


def test_a_vanished_object_costs_subject_consistency():
    clips, prompts, video = movers(2)
    gone = render_clips(replace(clips, shape=torch.full_like(clips.shape, -1)))
    scores = score(torch.cat([video[:, :10], gone[:, 10:]], 1), prompts)
    assert scores["subject_consistency"] == pytest.approx(10 / 17)
    others_high(scores, "subject_consistency")


def test_a_missing_object_costs_what_is_said_of_it():
    clips, prompts, _ = movers(2, "two_objects")
    alone = replace(clips, shape=torch.stack([clips.shape[:, 0], torch.full((2,), -1)], 1))
    scores = score(render_clips(alone), prompts)
    assert scores["dynamic_degree"] == 0.5 and scores["overall_consistency"] == 0
    others_high(scores, "dynamic_degree", "overall_consistency")


def test_a_jump_costs_smoothness():
    clips, prompts, video = movers(2)
    inward = 12 * torch.sign(32 - clips.centers()[:, 8])
    video[:, 8] = render_clips(replace(clips, start=clips.start + inward))[:, 8]
    scores = score(video, prompts)
    a = 12 * math.sqrt(2) * (1 + 2 + 1) / 15  # second differences d, -2 d, d among 15
    assert scores["motion_smoothness"] == pytest.approx(1 / (1 + a**2), rel=0.1)
    others_high(scores, "motion_smoothness")


def test_a_frozen_clip_costs_dynamic_degree():
    _, prompts, video = movers(2)
    scores = score(video[:, :1].expand_as(video), prompts)
    assert scores["dynamic_degree"] == 0 and scores["overall_consistency"] == 0
    others_high(scores, "dynamic_degree", "overall_consistency")


def test_motion_where_rest_is_asked_costs_dynamic_degree():
    _, prompts, video = movers(2, "colors")
    still = [replace(p, objects=tuple((s, c, "still", None) for s, c, _, _ in p.objects)) for p in prompts]
    scores = score(video, still)
    assert scores["dynamic_degree"] == 0 and scores["overall_consistency"] == 0
    others_high(scores, "dynamic_degree", "overall_consistency")


def path(x: list[float], direction: str, noise: float = 0.0):
    """A star that is x[t] pixels right of the middle in frame t, and what is said of it."""
    base, _, _ = movers(len(x), "colors")
    noise = noise * torch.randn(len(x), 2, generator=torch.Generator().manual_seed(0))
    start = base.start.clone()
    start[:, 0] = 32 + noise
    start[:, 0, 0] += torch.tensor(x)
    one = {name: values[:1].expand_as(values) for name, values in vars(base).items()}
    star = torch.full_like(base.shape, SHAPES.index("star")).where(base.shape >= 0, -1)
    still = torch.zeros_like(base.velocity)
    frames = render_clips(Clips(**{**one, "shape": star, "start": start, "velocity": still}))[:, 0]
    color = list(COLORS)[one["color"][0, 0]]
    return frames[None], [VideoPrompt("a star", "colors", (("star", color, direction, None),), 0)]


TO_AND_FRO = {
    "8 px out and back": [8.0 - abs(t - 8) for t in range(FRAMES)],
    "4 px out and back": [4 - abs(t - 8) / 2 for t in range(FRAMES)],
    "one swing": [8 * math.cos(2 * math.pi * t / 16) for t in range(FRAMES)],
    "quick swings": [8 * math.cos(2 * math.pi * t / 4) for t in range(FRAMES)],
}


@pytest.mark.parametrize("x", TO_AND_FRO.values(), ids=TO_AND_FRO)
def test_to_and_fro_is_motion_but_in_no_direction(x):
    told = {d: score(*path(x, d)) for d in ("still", "left", "right")}
    assert [told[d]["dynamic_degree"] for d in told] == [0, 1, 1]
    assert all(scores["overall_consistency"] == 0 for scores in told.values())


@pytest.mark.parametrize("rest", [8, 12, 15])
def test_a_late_jump_is_neither_motion_nor_rest(rest):
    for direction in ("left", "still"):
        scores = score(*path([0.0] * rest + [-16.0] * (FRAMES - rest), direction))
        assert scores["dynamic_degree"] == scores["overall_consistency"] == 0


def test_a_bend_is_not_one_speed():
    x = [0.0] * 6 + [-2.0 * t for t in range(11)]  # moves in most of the clip, but only after six frames
    scores = score(*path(x, "left"))
    assert scores["dynamic_degree"] == 1 and scores["overall_consistency"] == 0


@pytest.mark.parametrize(
    "x, direction", [([0.0] * FRAMES, "still"), ([-0.7 * t for t in range(FRAMES)], "left")]
)
def test_jitter_is_no_motion(x, direction):
    jittered = score(*path(x, direction, noise=0.25))
    assert jittered["dynamic_degree"] == jittered["overall_consistency"] == 1
    x[6] += 5  # one misread frame neither
    scores = score(*path(x, direction))
    assert scores["dynamic_degree"] == scores["overall_consistency"] == 1


def test_a_drifting_background_costs_its_consistency():
    clips, prompts, _ = movers(2)
    steps = torch.linspace(0, 0.08, FRAMES)
    frames = [
        render_clips(replace(clips, background=clips.background + s))[:, t] for t, s in enumerate(steps)
    ]
    scores = score(torch.stack(frames, 1), prompts)
    assert scores["background_consistency"] == pytest.approx(1 - steps[1:].mean().item() / 0.1, abs=0.02)
    others_high(scores, "background_consistency")


def test_blur_and_noise_cost_imaging_quality():
    _, prompts, video = movers(4)
    blurred = torch.nn.functional.avg_pool2d(video.flatten(0, 1), 3, 1, 1, count_include_pad=False)
    noisy = video + 0.05 * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    soft, grainy = score(blurred.view_as(video), prompts), score(noisy, prompts)
    assert soft["imaging_quality"] < 0.85
    assert grainy["imaging_quality"] == pytest.approx((-20 * math.log10(0.05) - 15) / 25, abs=0.02)
    others_high(soft, "imaging_quality")
    others_high(grainy, "imaging_quality")


def test_one_wrong_fact_costs_overall_consistency():
    _, prompts, video = movers(2, "two_motions+speed", seed=2)
    clips = pixels(video)
    for prompt, clip in zip(prompts, clips):
        wrong = []
        for field, known in zip(range(4), (SHAPES, COLORS, DIRECTIONS[:4], SPEEDS)):
            thing = list(prompt.objects[1])
            thing[field] = (
                next(x for x in known if x not in [o[field] for o in prompt.objects])
                if len(known) > 2
                else next(x for x in known if x != thing[field])
            )
            wrong.append(replace(prompt, objects=(prompt.objects[0], tuple(thing))))
        table = judge_clips(np.repeat(clip[None, :6], 4, 0), wrong)
        assert (table["overall_consistency"] == 0).all()
        assert (table.drop(columns="overall_consistency") > 0.9).all().all()


def test_clips_of_other_prompts_hardly_pass():
    clips = sample_clips(10, torch.Generator().manual_seed(5))
    prompts, video = prompts_of(clips), pixels(render_clips(clips)[:, :5])
    pairs = [(i, j) for i, j in itertools.permutations(range(10), 2)][::5]
    table = judge_clips(video[[i for i, _ in pairs]], [prompts[j] for _, j in pairs])
    assert table["overall_consistency"].mean() < 0.1


def test_nothing_readable_scores_nothing():
    _, prompts, video = movers(1)
    noise = torch.rand(video[:, :5].shape, generator=torch.Generator().manual_seed(0))
    for wrong in (noise, torch.ones_like(noise), 1 - video[:, :5]):
        assert (judge_clips(pixels(wrong), prompts) == 0).all().all()
    black = judge_clips(pixels(0 * noise), prompts)
    assert black.drop(columns="background_consistency").eq(0).all().all()
    assert black["background_consistency"].item() == 1  # which needs no object, and is there


def test_tracks_follow_the_objects():
    clips, _, video = movers(3, "two_motions")
    for i in range(3):
        seen = read_scene(pixels(video[i : i + 1])[0])
        seen[4] = seen[4][::-1]  # the order within a frame says nothing
        seen[9] = seen[9][:1]  # and one may be missed
        tracks = follow(seen)
        assert sorted(len(t.frames) for t in tracks) == [FRAMES - 1, FRAMES]
        for track in tracks:
            k = clips.shape[i].tolist().index(SHAPES.index(track.looks[0]))
            assert track.velocity == pytest.approx(clips.velocity[i, k].tolist(), abs=0.02)
    assert motion_smoothness([Track([0, 2, 3], tracks[0].objects[:3])]) == 0  # no three successive frames


def test_wrong_input_is_named():
    clips, prompts = np.zeros((2, 5, 64, 64, 3)), movers(2)[1]
    with pytest.raises(ValueError, match=r"not \(2, 64, 64, 3\)"):
        judge_clips(clips[:, 0], prompts)
    with pytest.raises(ValueError, match="5 or more frames"):
        judge_clips(clips[:, :4], prompts)
    with pytest.raises(ValueError, match="2 clips for 1 prompts"):
        judge_clips(clips, prompts[:1])
    for value in (200.0, -0.5):
        clips[1, 2, 5, 5] = value
        with pytest.raises(ValueError, match=f"clip 1 .*value {value:g}, .*float64 .*divide by 255"):
            judge_clips(clips, prompts)
    clips[1, 2, 5, 5] = np.nan
    with pytest.raises(ValueError, match="clip 1 .*NaN"):
        judge_clips(clips, prompts)


def test_the_judge_can_be_sent_to_other_processes():
    assert pickle.loads(pickle.dumps(judge_clips)) is judge_clips
