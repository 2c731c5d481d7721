"""What can be in a picture: shapes, colours, and random scenes that show what a caption says.

A caption is one of six kinds, the categories of GenEval (arXiv:2310.11513), plus two richer kinds that only
training uses:

    single_object      "a star"                        color_attribution   "a red star and a blue ring"
    two_object         "a star and a ring"             counting+colors     "three red stars"
    counting           "three stars"                   position+colors     "a red star above a blue ring"
    colors             "a red star"
    position           "a star above a ring"

What the caption leaves open (colours, places, sizes, the background) is drawn at random.
"""

from dataclasses import dataclass

import torch

SIZE = 64  # pixels, both sides
MAX_OBJECTS = 4
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
COLORS = {
    "red": (0.86, 0.14, 0.14),
    "orange": (0.98, 0.55, 0.10),
    "yellow": (0.97, 0.90, 0.20),
    "green": (0.15, 0.66, 0.25),
    "cyan": (0.20, 0.82, 0.86),
    "blue": (0.18, 0.30, 0.90),
    "purple": (0.62, 0.22, 0.78),
    "white": (0.97, 0.97, 0.97),
}
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
KINDS = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attribution",
    "counting+colors",
    "position+colors",
)
_KIND_SHARES = (0.08, 0.14, 0.16, 0.10, 0.16, 0.16, 0.06, 0.14)  # harder kinds are drawn more often


@dataclass
class Scenes:
    """A batch of B scenes of up to K = 4 objects; absent objects have shape -1.

    kind, relation: (B,) int64, indices into KINDS and RELATIONS (-1: none).  shape, color: (B, K) int64,
    indices into SHAPES and COLORS.  center: (B, K, 2) float32, x and y in pixels.  radius: (B, K) float32,
    pixels. background: (B, 2, 3) float32 RGB in [0, 1], the two ends of a gradient.  angle: (B,) float32,
    its direction.
    """

    kind: torch.Tensor
    relation: torch.Tensor
    shape: torch.Tensor
    color: torch.Tensor
    center: torch.Tensor
    radius: torch.Tensor
    background: torch.Tensor
    angle: torch.Tensor

    def __len__(self) -> int:
        return len(self.kind)

    def captions(self) -> list[str]:
        rows = zip(*(t.tolist() for t in (self.kind, self.relation, self.shape, self.color)), strict=True)
        return [caption(*row) for row in rows]


def caption(kind: int, relation: int, shape: list[int], color: list[int]) -> str:
    """The sentence for one scene, given as indices (see Scenes)."""
    kind_name, names, count = KINDS[kind], list(COLORS), sum(s >= 0 for s in shape)
    colored = "colo" in kind_name
    words = [
        f"{names[c]} {SHAPES[s]}" if colored else SHAPES[s]
        for s, c in zip(shape, color, strict=True)
        if s >= 0
    ]
    if kind_name.startswith("counting"):
        return f"{NUMBERS[count]} {words[0]}" + ("es" if SHAPES[shape[0]] == "cross" else "s")
    if count == 1:
        return f"{article(words[0])} {words[0]}"
    link = RELATIONS[relation] if kind_name.startswith("position") else "and"
    return f"{article(words[0])} {words[0]} {link} {article(words[1])} {words[1]}"


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def sample_scenes(n: int, generator: torch.Generator, kind: int | None = None) -> Scenes:
    """Draw n scenes on the generator's device; `kind` fixes the kind of caption (an index into KINDS)."""
    draw = Draw(generator)
    if kind is None:
        kinds = torch.multinomial(
            torch.tensor(_KIND_SHARES, device=draw.device), n, replacement=True, generator=generator
        )
    else:
        kinds = torch.full((n,), kind, device=draw.device)
    is_kind = {name: kinds == i for i, name in enumerate(KINDS)}
    counting = is_kind["counting"] | is_kind["counting+colors"]
    position = is_kind["position"] | is_kind["position+colors"]
    single = is_kind["single_object"] | is_kind["colors"]

    count = torch.where(single, 1, 2)
    count = torch.where(counting, draw.integers(2, MAX_OBJECTS + 1, n), count)
    first = draw.integers(0, len(SHAPES), n)
    second = (first + draw.integers(1, len(SHAPES), n)) % len(SHAPES)  # never the first one again
    shape = torch.stack([first, torch.where(counting, first, second), first, first], dim=1)
    hue = draw.integers(0, len(COLORS), n)
    other = (hue + draw.integers(1, len(COLORS), n)) % len(COLORS)
    color = torch.stack([hue, torch.where(counting, hue, other), hue, hue], dim=1)
    present = torch.arange(MAX_OBJECTS, device=draw.device) < count[:, None]
    relation = torch.where(position, draw.integers(0, len(RELATIONS), n), -1)
    radius = _sample_radius(draw, count)
    return Scenes(
        kind=kinds,
        relation=relation,
        shape=torch.where(present, shape, -1),
        color=torch.where(present, color, -1),
        center=_sample_centers(draw, present, radius, relation),
        radius=radius,
        background=sample_background(draw, n),
        angle=draw.uniform(0, 2 * torch.pi, n),
    )


class Draw:
    """Uniform draws from one generator, on its device."""

    def __init__(self, generator: torch.Generator):
        self.generator, self.device = generator, generator.device

    def uniform(self, low: float, high: float, *size: int) -> torch.Tensor:
        return torch.rand(size, generator=self.generator, device=self.device) * (high - low) + low

    def integers(self, low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=self.generator, device=self.device)


def _sample_radius(draw: Draw, count: torch.Tensor) -> torch.Tensor:
    """Pixels; the more objects, the smaller."""
    low = torch.tensor([9.0, 8.0, 7.0, 7.0], device=draw.device)[count - 1]
    high = torch.tensor([15.0, 11.0, 9.0, 8.5], device=draw.device)[count - 1]
    return low[:, None] + draw.uniform(0, 1, len(count), MAX_OBJECTS) * (high - low)[:, None]


def _sample_centers(draw, present, radius, relation, rounds: int = 2000):
    """Places in the frame, apart from each other, in the asked relation; what fails is drawn again."""
    n = len(present)
    center = torch.zeros(n, MAX_OBJECTS, 2, device=draw.device)
    todo = torch.arange(n, device=draw.device)
    for _ in range(rounds):
        r = radius[todo]
        room = SIZE - 2 * r - 2
        xy = draw.uniform(0, 1, len(todo), MAX_OBJECTS, 2) * room[..., None] + r[..., None] + 1
        center[todo] = xy
        todo = todo[~_well_placed(xy, r, present[todo], relation[todo])]
        if len(todo) == 0:
            return center
    raise RuntimeError(
        f"{len(todo)} of {n} scenes could not be placed in {rounds} rounds; are the radii too large?"
    )


def _well_placed(xy, radius, present, relation):
    apart = torch.cdist(xy, xy) > radius[:, :, None] + radius[:, None, :] + 2
    pair = present[:, :, None] & present[:, None, :]
    pair &= ~torch.eye(MAX_OBJECTS, dtype=torch.bool, device=xy.device)
    dx, dy = (xy[:, 1] - xy[:, 0]).unbind(-1)  # y grows downwards
    along = torch.stack([dx, -dx, dy, -dy], dim=1)  # left of, right of, above, below
    across = torch.stack([dy, dy, dx, dx], dim=1).abs()
    holds = along > 1.5 * across
    asked = holds.gather(1, relation.clamp(min=0)[:, None])[:, 0] | (relation < 0)
    return (apart | ~pair).all(dim=(1, 2)) & asked


def sample_background(draw: Draw, n: int) -> torch.Tensor:
    """Dark and muted, so that every object colour stands out; half of them plain, half graded."""
    grey = draw.uniform(0.08, 0.32, n, 2, 1)
    ends = (grey + draw.uniform(-0.05, 0.05, n, 2, 3)).clamp(0.03, 0.37)
    plain = draw.uniform(0, 1, n) < 0.5
    ends[:, 1] = torch.where(plain[:, None], ends[:, 0], ends[:, 1])
    return ends
