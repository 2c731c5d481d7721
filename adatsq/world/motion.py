"""Clips of shapes that move, and the captions that say how; shapes, colours and backgrounds are scenes.py's.

Every object moves left, right, up or down at one constant speed, or stands still. It stays inside the frame,
and two objects never touch. A caption is one of six kinds, and a seventh that only training uses:

    still         "a red star stands still"
    direction     "a star moves left"
    colors        "a red star moves left"
    speed         "a red star moves up slowly"
    two_objects   "a red star moves left and a blue ring stands still" (or the other way round)
    two_motions   "a star moves up and a ring moves down"
    two_motions+speed   "a red star moves left quickly and a blue ring moves right slowly"

What the caption leaves open (colours, speeds, places, sizes, the background) is drawn at random.
"""

from dataclasses import dataclass

import torch

from adatsq.world.drawing import render
from adatsq.world.scenes import COLORS, SHAPES, SIZE, Draw, Scenes, article, sample_background

FRAMES = 17
DIRECTIONS = ("left", "right", "up", "down", "still")
_UNIT = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (0.0, 0.0))  # y grows downwards
STILL = DIRECTIONS.index("still")
SPEEDS = {"slowly": (0.7, 1.1), "quickly": (2.0, 2.6)}  # pixels per frame
# pixels, for one and two objects; 13 has room for 2 pixels a frame
RADIUS = ((9.0, 13.0), (8.0, 10.0))
CLIP_KINDS = ("still", "direction", "colors", "speed", "two_objects", "two_motions", "two_motions+speed")
_KIND_SHARES = (0.10, 0.10, 0.12, 0.16, 0.20, 0.20, 0.12)  # harder kinds are drawn more often
FIELDS = {  # what a caption says, for parse_targets: name -> number of classes ("+ 1": not said)
    "count": 2,
    "shape_1": len(SHAPES),
    "color_1": len(COLORS) + 1,
    "direction_1": len(DIRECTIONS),
    "speed_1": len(SPEEDS) + 1,
    "shape_2": len(SHAPES) + 1,
    "color_2": len(COLORS) + 1,
    "direction_2": len(DIRECTIONS) + 1,
    "speed_2": len(SPEEDS) + 1,
}


@dataclass
class Clips:
    """A batch of B clips of up to K = 2 objects; an absent second object has shape -1.

    kind: (B,) int64, index into CLIP_KINDS.  shape, color, direction, speed: (B, K) int64, indices into
    SHAPES, COLORS, DIRECTIONS and SPEEDS (-1: absent, or the speed of what stands still).  start: (B, K, 2)
    float32, x and y of the centre in the first frame, pixels.  velocity: (B, K, 2) float32, pixels per frame.
    radius: (B, K) float32, pixels.  background: (B, 2, 3) float32 and angle: (B,) float32, as in Scenes.
    """

    kind: torch.Tensor
    shape: torch.Tensor
    color: torch.Tensor
    direction: torch.Tensor
    speed: torch.Tensor
    start: torch.Tensor
    velocity: torch.Tensor
    radius: torch.Tensor
    background: torch.Tensor
    angle: torch.Tensor

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, rows) -> "Clips":
        """Some of the clips; rows: a slice, a list of indices, or an index tensor."""
        return Clips(**{name: values[rows] for name, values in vars(self).items()})

    def captions(self) -> list[str]:
        said = (self.kind, self.shape, self.color, self.direction, self.speed)
        return [clip_caption(*row) for row in zip(*(t.tolist() for t in said), strict=True)]

    def centers(self) -> torch.Tensor:
        """x and y of every object in every frame, pixels: (B, FRAMES, K, 2)."""
        time = torch.arange(FRAMES, device=self.start.device)[None, :, None, None]
        return self.start[:, None] + time * self.velocity[:, None]


def clip_caption(
    kind: int, shape: list[int], color: list[int], direction: list[int], speed: list[int]
) -> str:
    """The sentence for one clip, given as lists of int indices (see Clips)."""
    colors, speeds, kind_name = list(COLORS), list(SPEEDS), CLIP_KINDS[kind]
    parts = []
    for s, c, d, v in zip(shape, color, direction, speed, strict=True):
        if s >= 0:
            thing = f"{colors[c]} {SHAPES[s]}" if says_color(kind_name) else SHAPES[s]
            does = "stands still" if d == STILL else f"moves {DIRECTIONS[d]}"
            if says_speed(kind_name) and d != STILL:
                does += f" {speeds[v]}"
            parts.append(f"{article(thing)} {thing} {does}")
    return " and ".join(parts)


def says_color(kind_name: str) -> bool:
    return kind_name not in ("direction", "two_motions")


def says_speed(kind_name: str) -> bool:
    return "speed" in kind_name


def sample_clips(n: int, generator: torch.Generator, kind: int | None = None) -> Clips:
    """Draw n clips on the generator's device; `kind` fixes the kind of caption (an index into CLIP_KINDS)."""
    draw = Draw(generator)
    if kind is None:
        shares = torch.tensor(_KIND_SHARES, device=draw.device)
        kinds = torch.multinomial(shares, n, replacement=True, generator=generator)
    else:
        kinds = torch.full((n,), kind, device=draw.device)
    two = kinds >= CLIP_KINDS.index("two_objects")
    present = torch.stack([torch.ones_like(two), two], 1)

    shape, color = _two_different(draw, len(SHAPES), n), _two_different(draw, len(COLORS), n)
    direction = draw.integers(0, STILL, n, 2)
    resting = draw.integers(0, 2, n)  # which of two_objects stands still
    still = (kinds == CLIP_KINDS.index("two_objects"))[:, None] & (
        resting[:, None] == torch.arange(2, device=draw.device)
    )
    still |= (kinds == CLIP_KINDS.index("still"))[:, None]
    direction = torch.where(still, STILL, direction)
    speed = torch.where(still, -1, draw.integers(0, len(SPEEDS), n, 2))
    low, high = torch.tensor(RADIUS, device=draw.device)[two.long()].unbind(1)
    radius = low[:, None] + draw.uniform(0, 1, n, 2) * (high - low)[:, None]
    start, velocity = _sample_paths(draw, two, direction, speed, radius)
    return Clips(
        kind=kinds,
        shape=torch.where(present, shape, -1),
        color=torch.where(present, color, -1),
        direction=torch.where(present, direction, -1),
        speed=torch.where(present, speed, -1),
        start=start,
        velocity=velocity,
        radius=radius,
        background=sample_background(draw, n),
        angle=draw.uniform(0, 2 * torch.pi, n),
    )


def _two_different(draw: Draw, choices: int, n: int) -> torch.Tensor:
    first = draw.integers(0, choices, n)
    return torch.stack([first, (first + draw.integers(1, choices, n)) % choices], 1)


def _sample_paths(draw, two, direction, speed, radius, rounds: int = 2000):
    """(start, velocity), (n, 2, 2) each, inside the frame throughout; what touches is drawn again."""
    n = len(two)
    start, velocity = (torch.zeros(n, 2, 2, device=draw.device) for _ in range(2))
    unit = torch.tensor(_UNIT, device=draw.device)
    low, high = torch.tensor([*SPEEDS.values(), (0.0, 0.0)], device=draw.device).unbind(1)  # -1: the last
    time = torch.arange(FRAMES, device=draw.device)[:, None]
    todo = torch.arange(n, device=draw.device)
    for _ in range(rounds):
        r, v = radius[todo], speed[todo]
        room = SIZE - 2 * _reach(r)
        fastest = torch.minimum(high[v], room / (FRAMES - 1))
        pace = low[v] + draw.uniform(0, 1, len(todo), 2) * (fastest - low[v])
        velocity[todo] = step = pace[..., None] * unit[direction[todo]]
        path = (FRAMES - 1) * step
        corner = _reach(r)[..., None] - path.clamp(max=0)  # leftmost and topmost start that stays inside
        start[todo] = xy = corner + draw.uniform(0, 1, len(todo), 2, 2) * (room[..., None] - path.abs())
        gap = ((xy[:, 1] - xy[:, 0])[:, None] + time * (step[:, 1] - step[:, 0])[:, None]).norm(dim=-1)
        touch = two[todo] & (gap.min(1).values < _reach(r).sum(1) + 1)
        todo = todo[touch]
        if len(todo) == 0:
            return start, velocity
    raise RuntimeError(
        f"{len(todo)} of {n} clips could not be placed in {rounds} rounds; are the radii or speeds too large?"
    )


def _reach(radius: torch.Tensor) -> torch.Tensor:
    """Pixels from the centre to where every shape has ended: a star's tips are at 1.1, plus its soft edge."""
    return 1.1 * radius + 0.5


def render_clips(clips: Clips) -> torch.Tensor:
    """RGB clips (B, FRAMES, 3, 64, 64), float32 in [0, 1], antialiased, on the clips' device."""

    def each_frame(values):
        return values.repeat_interleave(FRAMES, 0)

    none = torch.full((FRAMES * len(clips),), -1, device=clips.kind.device)
    frames = Scenes(
        kind=none,
        relation=none,
        shape=each_frame(clips.shape),
        color=each_frame(clips.color),
        center=clips.centers().flatten(0, 1),
        radius=each_frame(clips.radius),
        background=each_frame(clips.background),
        angle=each_frame(clips.angle),
    )
    return render(frames).unflatten(0, (len(clips), FRAMES))


def parse_targets(clips: Clips) -> torch.Tensor:
    """What each caption says, (B, fields) int64, as FIELDS; the last class is what it leaves open."""
    kinds, device = clips.kind, clips.kind.device
    colored = torch.tensor([says_color(k) for k in CLIP_KINDS], device=device)[kinds]
    timed = torch.tensor([says_speed(k) for k in CLIP_KINDS], device=device)[kinds]
    columns = [(clips.shape >= 0).sum(1) - 1]
    for shape, color, direction, speed in zip(
        *(t.unbind(1) for t in (clips.shape, clips.color, clips.direction, clips.speed)), strict=True
    ):
        there = shape >= 0
        columns += [
            torch.where(there, shape, len(SHAPES)),
            torch.where(there & colored, color, len(COLORS)),
            torch.where(there, direction, len(DIRECTIONS)),
            torch.where(timed & (speed >= 0), speed, len(SPEEDS)),
        ]
    return torch.stack(columns, 1)
