"""Read a clip frame by frame, follow what it shows, and score six dimensions of VBench. Nothing is learned.

Each dimension is named after the one of VBench (arXiv:2311.17982) that it stands for, and differs in this:

    subject_consistency     the name (shape, colour) of what is followed stays, not a network's features
    background_consistency  the plane of the background stays as in the first frame, not a network's features
    motion_smoothness       second differences of the centres, not the error of a frame interpolator
    dynamic_degree          moves throughout if told to, and never if told not to; VBench counts large motion
    imaging_quality         PSNR to the clean render of what was read, not a learned quality score
    overall_consistency     right or wrong by the caption's facts, not the similarity to a video-text model

Left out are ten. object_class, multiple_objects and color are facts of the caption: overall_consistency has
them. temporal_flickering is about clips of still scenes; here it shows in subject_, background_consistency
and imaging_quality. spatial_relationship: captions of clips name no places. scene and human_action: the world
has neither rooms nor people. appearance_style and temporal_style: it has one way to draw and no camera.
aesthetic_quality: flat shapes have no beauty that could be defined exactly.

Where no object is read in any frame, a clip scores 0, save in background_consistency, which needs none.
"""

import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.optimize import linear_sum_assignment

from adatsq.world.drawing import coverage
from adatsq.world.judge import UNIT_AREA, UNIT_OFFSET, Object, fit_background, read_scene
from adatsq.world.motion_prompts import VideoPrompt
from adatsq.world.scenes import COLORS, SHAPES, SIZE

DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "imaging_quality",
    "overall_consistency",
)
MOVES_FROM = 0.35  # pixels per frame: half of the slowest motion of the world
QUICK_FROM = 1.5  # pixels per frame: between slowly (up to 1.1) and quickly (from 2.0)
OFF_LINE = 1.5  # pixels; what is further from its fitted line does not move at one constant speed
MIN_SIGHTINGS = 5  # frames; what is seen more rarely is no object of the clip, and has no velocity


@dataclass
class Track:
    """One thing followed through a clip: where it was seen, frame numbers and objects."""

    frames: list[int] = field(default_factory=list)
    objects: list[Object] = field(default_factory=list)

    @property
    def looks(self) -> tuple[str, str]:
        """Its most frequent (shape, colour)."""
        return self.names.most_common(1)[0][0]

    @property
    def names(self) -> Counter:
        return Counter((o.shape, o.color) for o in self.objects)

    @property
    def centers(self) -> np.ndarray:
        return np.array([o.center for o in self.objects])

    @property
    def velocity(self) -> tuple[float, float]:
        """Least-squares slope of the centre over time, pixels per frame."""
        dx, dy = np.polyfit(self.frames, self.centers, 1)[0]
        return float(dx), float(dy)

    @property
    def paces(self) -> np.ndarray:
        """Way covered in each stretch of the clip, pixels per frame; three sightings are needed at least.

        The way is the diagonal of the box around five successive centres (all, where there are fewer): to and
        fro counts, and jitter hardly adds up. The sighting furthest from the median centre is left out, so
        that one misread frame is no motion.
        """
        far = np.linalg.norm(self.centers - np.median(self.centers, axis=0), axis=1).argmax()
        frames, centers = (np.delete(values, far, axis=0) for values in (self.frames, self.centers))
        width = min(5, len(frames))
        boxes = np.ptp(sliding_window_view(centers, width, axis=0), axis=-1)
        return np.hypot(*boxes.T) / np.ptp(sliding_window_view(frames, width), axis=-1)

    @property
    def moves(self) -> bool:
        """In at least half of the stretches of the clip; neither `moves` nor `stands`: in fewer."""
        return bool(np.median(self.paces) >= MOVES_FROM)

    @property
    def stands(self) -> bool:
        """In every stretch of the clip."""
        return bool(self.paces.max() < MOVES_FROM)

    @property
    def off_line(self) -> float:
        """Pixels from the centres to where the least-squares line has them; a tenth of them is further."""
        line = np.polyfit(self.frames, self.centers, 1)
        away = self.centers - (np.outer(self.frames, line[0]) + line[1])
        return float(np.quantile(np.hypot(*away.T), 0.9))


def judge_clips(clips: np.ndarray, prompts: list[VideoPrompt]) -> pd.DataFrame:
    """Scores in [0, 1], higher is better: one row per clip, one column per dimension.

    clips: (N, F, 64, 64, 3), uint8 or float in [0, 1], at least five frames. ValueError: other shapes,
    another number of prompts, or a clip with pixels that are not finite or out of range.
    """
    clips = np.asarray(clips)
    if clips.ndim != 5 or clips.shape[1] < MIN_SIGHTINGS or clips.shape[2:] != (SIZE, SIZE, 3):
        raise ValueError(
            f"the judge reads clips of shape (N, {MIN_SIGHTINGS} or more frames, {SIZE}, {SIZE}, 3), "
            f"not {clips.shape}"
        )
    if len(clips) != len(prompts):
        raise ValueError(f"{len(clips)} clips for {len(prompts)} prompts: give one prompt per clip")
    rows = []
    for i, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
        if not np.isfinite(clip).all():
            raise ValueError(f"clip {i} ({prompt.text!r}) has NaN or infinite pixels: nothing to judge")
        far = clip.flat[np.abs(clip - 0.5).argmax()]
        if clip.dtype != np.uint8 and not -0.001 <= far <= 1.001:
            raise ValueError(
                f"clip {i} ({prompt.text!r}) has the value {far:g}, but {clip.dtype} pixels must be in "
                "[0, 1]: divide by 255, or give uint8"
            )
        rows.append(_scores(clip / 255.0 if clip.dtype == np.uint8 else clip, prompt))
    return pd.DataFrame(rows, columns=list(DIMENSIONS), dtype=float)


def _scores(clip: np.ndarray, prompt: VideoPrompt) -> tuple[float, ...]:
    """The scores of one clip (F, 64, 64, 3) in the order of DIMENSIONS."""
    seen = read_scene(clip)
    planes = np.stack([fit_background(frame) for frame in clip])
    background = background_consistency(clip, planes)
    if not any(seen):
        return 0.0, background, 0.0, 0.0, 0.0, 0.0
    tracks = follow(seen)
    lasting = [t for t in tracks if len(t.frames) >= MIN_SIGHTINGS]
    return (
        subject_consistency(tracks, len(clip)),
        background,
        motion_smoothness(tracks),
        dynamic_degree(lasting, prompt),
        imaging_quality(clip, redraw(seen, planes)),
        overall_consistency(lasting, prompt),
    )


def follow(seen: list[list[Object]]) -> list[Track]:
    """Link the objects of each frame to those before, in the way that takes the shortest steps altogether.

    A changed shape or colour counts as 8 pixels each, so that two objects that pass do not swap names.
    """
    tracks: list[Track] = []
    for frame, objects in enumerate(seen):
        cost = np.array([[_step(t.objects[-1], o) for o in objects] for t in tracks])
        pairs = zip(*linear_sum_assignment(cost), strict=True) if cost.size else ()
        linked = {o: tracks[t] for t, o in pairs}
        for index, thing in enumerate(objects):
            track = linked.get(index)
            if track is None:
                tracks.append(track := Track())
            track.frames.append(frame)
            track.objects.append(thing)
    return tracks


def _step(a: Object, b: Object) -> float:
    return (
        float(np.hypot(*np.subtract(a.center, b.center)))
        + 8 * (a.shape != b.shape)
        + 8 * (a.color != b.color)
    )


def subject_consistency(tracks: list[Track], frames: int) -> float:
    """Share of all frames in which a thing is seen under its most frequent name; mean over all sightings."""
    shares = [t.names[t.looks] / frames for t in tracks]
    return float(np.average(shares, weights=[len(t.frames) for t in tracks]))


def background_consistency(clip: np.ndarray, planes: np.ndarray) -> float:
    """1 - d / 0.1, at least 0: d is the RMS distance of a frame's plane to the first frame's.

    Mean over the later frames. Where more than half of the pixels are further than 0.1 from their plane, in
    any channel, there is no background to read, and the frame (or, if it is the first, the clip) scores 0.
    """
    readable = (np.abs(clip - planes).max(-1) <= 0.1).mean((1, 2)) >= 0.5
    drift = np.sqrt(((planes[1:] - planes[0]) ** 2).mean((1, 2, 3)))
    return float(((1 - drift / 0.1).clip(0) * (readable[1:] & readable[0])).mean())


def motion_smoothness(tracks: list[Track]) -> float:
    """1 / (1 + a^2): a is the mean length of c[t+1] - 2 c[t] + c[t-1], pixels, over centres c of all tracks.

    0 where nothing is seen in three successive frames.
    """
    bends = []
    for track in tracks:
        steps, centers = np.diff(track.frames), track.centers
        runs = (steps[1:] == 1) & (steps[:-1] == 1)
        bends += list(np.linalg.norm(np.diff(centers, n=2, axis=0)[runs], axis=1))
    return float(1 / (1 + np.mean(bends) ** 2)) if bends else 0.0


def dynamic_degree(tracks: list[Track], prompt: VideoPrompt) -> float:
    """Share of the caption's objects that move if told to move, and stand if told to stand still.

    One that moves for less than half of the clip, as with a late jump, does neither. Where to is not asked.
    Whatever looks most like an object is taken for it, so that a wrong shape can still move rightly; of an
    object that has no track, neither motion nor rest is seen.
    """
    best = (0, 0)
    for cast in _casts(tracks, len(prompt.objects)):
        looks = moves = 0
        for track, (shape, color, direction, _) in zip(cast, prompt.objects, strict=True):
            if track is not None:
                looks += (track.looks[0] == shape) + (color in (None, track.looks[1]))
                moves += track.stands if direction == "still" else track.moves
        best = max(best, (looks, moves))
    return best[1] / len(prompt.objects)


def overall_consistency(tracks: list[Track], prompt: VideoPrompt) -> float:
    """1 if every object of the caption is there and moves as said, else 0; more objects do no harm.

    The asked direction must be the larger part of the velocity, and the centres of what moves must stay near
    the line of that velocity. A speed counts only where it is said.
    """
    return float(
        any(
            all(t is not None and _fits(t, *said) for t, said in zip(cast, prompt.objects, strict=True))
            for cast in _casts(tracks, len(prompt.objects))
        )
    )


def _casts(tracks: list[Track], roles: int):
    """Every way to give each role a track of its own, or none where there are too few."""
    return itertools.permutations(tracks + [None] * max(0, roles - len(tracks)), roles)


def _fits(track: Track, shape: str, color: str | None, direction: str, speed: str | None) -> bool:
    if track.looks[0] != shape or color not in (None, track.looks[1]):
        return False
    if direction == "still":
        return track.stands
    if not track.moves or track.off_line > OFF_LINE:
        return False
    dx, dy = track.velocity
    pace = np.hypot(dx, dy)
    along = {"left": -dx, "right": dx, "up": -dy, "down": dy}[direction]
    across = abs(dy if direction in ("left", "right") else dx)
    quick = {"slowly": False, "quickly": True, None: pace >= QUICK_FROM}[speed]
    return pace >= MOVES_FROM and along > across and (pace >= QUICK_FROM) == quick


def imaging_quality(clip: np.ndarray, clean: np.ndarray) -> float:
    """(PSNR - 15) / 25, cut to [0, 1], mean over frames: PSNR in dB of a frame to its clean render."""
    mse = ((clip - clean) ** 2).mean((1, 2, 3))
    psnr = -10 * np.log10(np.maximum(mse, 1e-10))
    return float(((psnr - 15) / 25).clip(0, 1).mean())


def redraw(seen: list[list[Object]], planes: np.ndarray) -> np.ndarray:
    """Clean frames with what was read: each frame's plane (F, 64, 64, 3) and its objects, drawn anew."""
    frames, flat = planes.copy(), [(i, o) for i, objects in enumerate(seen) for o in objects]
    kinds = np.array([SHAPES.index(o.shape) for _, o in flat])
    radius = np.sqrt(np.array([o.area for _, o in flat]) / UNIT_AREA[kinds])
    center = np.array([o.center for _, o in flat]) - radius[:, None] * UNIT_OFFSET[kinds]
    drawn = coverage(torch.tensor(kinds), torch.tensor(center).float(), torch.tensor(radius).float()).numpy()
    for (i, thing), alpha in zip(flat, drawn[..., None], strict=True):
        frames[i] += alpha * (np.array(COLORS[thing.color]) - frames[i])
    return frames
