"""Read a picture and say whether it shows what the prompt says. Nothing here is learned.

1. The background of every scene is a linear gradient: fit a plane per channel, refit on what it explains.
2. Each pixel is a mix of background b and one palette colour c: p = b + alpha (c - b); take the colour that
fits best. 3. Connected regions with alpha > 1/2 are objects (split by colour where two colours touch). 4. A
region's shape is the one whose own drawing, at the region's area and centroid, overlaps it most.

The rules per category are GenEval's (arXiv:2310.11513): at least one object that fits; an exact number for
counting.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from adatsq.world.drawing import coverage
from adatsq.world.prompts import CATEGORIES, Prompt
from adatsq.world.scenes import COLORS, SHAPES, SIZE

MIN_AREA = 35.0  # pixels; the smallest object of the world covers about 80
MAX_AREA = 1000.0  # the largest covers about 650; a bright frame is no white square
MIN_OVERLAP = 0.72  # intersection over union below which a region is no shape of this world
_PALETTE = np.array(list(COLORS.values()))
_COLUMN, _ROW = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)


@dataclass(frozen=True)
class Object:
    """One thing seen in a picture; center in pixels (x, y), overlap with the ideal shape in [0, 1]."""

    shape: str
    color: str
    center: tuple[float, float]
    area: float
    overlap: float


class Judge:
    """Which pictures pass: `Judge()(images, prompts)` -> (N,) bool. images as for `read_scene`."""

    def __call__(self, images: np.ndarray, prompts: list[Prompt]) -> np.ndarray:
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images for {len(prompts)} prompts: give one prompt per image")
        seen = [objects for i in range(0, len(images), 256) for objects in read_scene(images[i : i + 256])]
        return np.array([satisfies(o, p) for o, p in zip(seen, prompts, strict=True)], dtype=bool)


def satisfies(objects: list[Object], prompt: Prompt) -> bool:
    """GenEval's rule of the prompt's category."""
    fits = [[o for o in objects if o.shape == s and c in (None, o.color)] for s, c in prompt.objects]
    if prompt.category == "counting":
        return len(fits[0]) == prompt.count
    if prompt.category == "position":
        return any(_holds(prompt.relation, a, b) for a in fits[0] for b in fits[1])
    if prompt.category not in CATEGORIES:
        raise ValueError(f"unknown category {prompt.category!r}; known: {', '.join(CATEGORIES)}")
    return all(fits)


def _holds(relation: str, a: Object, b: Object) -> bool:
    """The asked direction must be the larger part of the offset between the two centres."""
    dx, dy = b.center[0] - a.center[0], b.center[1] - a.center[1]
    along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    across = dy if relation.endswith("of") else dx
    return along > abs(across)


def read_scene(images: np.ndarray) -> list[list[Object]]:
    """All objects of each image. images: (N, 64, 64, 3), uint8 or float in [0, 1]."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"the judge reads images of shape (N, {SIZE}, {SIZE}, 3), not {images.shape}")
    if images.dtype == np.uint8:
        images = images / 255.0
    regions = [(i, *region) for i, image in enumerate(images) for region in _regions(image)]
    found: list[list[Object]] = [[] for _ in images]
    if regions:
        shapes = _name_shapes(np.stack([r[2] for r in regions]))
        for (i, color, mask), (shape, overlap) in zip(regions, shapes, strict=True):
            if overlap >= MIN_OVERLAP:
                area = mask.sum()
                center = ((mask * _COLUMN).sum() / area, (mask * _ROW).sum() / area)
                found[i].append(Object(shape, color, center, float(area), overlap))
    return found


def _regions(image: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(colour, soft mask (64, 64)) of every large enough region of one colour."""
    alpha, label = _unmix(image, fit_background(image))
    whole, n = ndimage.label(alpha > 0.5, structure=np.ones((3, 3)))
    out = []
    for index in range(1, n + 1):
        inside = whole == index
        if inside.sum() < MIN_AREA / 2:
            continue
        colors, counts = np.unique(label[inside], return_counts=True)
        if counts.max() >= 0.8 * counts.sum():
            parts = [(colors[counts.argmax()], inside)]
        else:  # two objects touch: take them apart by colour
            parts = []
            for color in colors:
                pieces, m = ndimage.label(inside & (label == color))
                parts += [(color, pieces == j) for j in range(1, m + 1)]
        for color, part in parts:
            if 3 * part.sum() + 6 < MIN_AREA:
                continue  # m pixels grow to at most 3 m + 6: too small in any case, and noise has hundreds
            mask = alpha * ndimage.binary_dilation(part, structure=np.ones((3, 3)))
            mask[inside & ~part] = 0
            if MIN_AREA <= mask.sum() <= MAX_AREA:
                out.append((list(COLORS)[color], mask))
    return out


def fit_background(image: np.ndarray) -> np.ndarray:
    """A plane per channel through the dark pixels, refitted without outliers. (64, 64, 3)."""
    terms = np.stack([np.ones_like(_COLUMN), _COLUMN, _ROW], axis=-1).reshape(-1, 3)
    flat = image.reshape(-1, 3)
    use = flat.max(axis=1) < 0.45
    plane = np.full_like(flat, 0.2)
    for _ in range(3):
        if use.sum() < 64:
            break
        plane = np.clip(terms @ np.linalg.lstsq(terms[use], flat[use], rcond=None)[0], 0, 0.5)
        use = np.abs(flat - plane).max(axis=1) < 0.06
    return plane.reshape(image.shape)


def _unmix(image: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best palette colour of each pixel: its least-squares alpha (64, 64) and its index (64, 64)."""
    offset = image - background
    direction = _PALETTE - background[:, :, None, :]  # (64, 64, colours, 3)
    alpha = (offset[:, :, None, :] * direction).sum(-1) / (direction**2).sum(-1)
    alpha = alpha.clip(0, 1)
    residual = ((offset[:, :, None, :] - alpha[..., None] * direction) ** 2).sum(-1)
    label = residual.argmin(-1)
    return np.take_along_axis(alpha, label[..., None], -1)[..., 0], label


def _unit_shapes() -> tuple[np.ndarray, np.ndarray]:
    """Area (shapes,) and centroid offset (shapes, 2) of each shape at radius 1."""
    radius, n = 24.0, len(SHAPES)
    mask = coverage(torch.arange(n), torch.full((n, 2), SIZE / 2), torch.full((n,), radius)).double().numpy()
    area = mask.sum((1, 2))
    x, y = (mask * _COLUMN).sum((1, 2)) / area, (mask * _ROW).sum((1, 2)) / area
    return area / radius**2, (np.stack([x, y], 1) - SIZE / 2) / radius


UNIT_AREA, UNIT_OFFSET = _unit_shapes()


def _name_shapes(masks: np.ndarray) -> list[tuple[str, float]]:
    """The best shape and its overlap for each soft mask. masks: (R, 64, 64)."""
    area = masks.sum((1, 2))
    centroid = np.stack([(masks * _COLUMN).sum((1, 2)), (masks * _ROW).sum((1, 2))], 1) / area[:, None]
    radius = np.sqrt(area[:, None] / UNIT_AREA)  # (R, shapes)
    center = centroid[:, None] - radius[..., None] * UNIT_OFFSET
    kinds = torch.arange(len(SHAPES)).repeat(len(masks))
    drawn = coverage(
        kinds, torch.tensor(center).reshape(-1, 2).float(), torch.tensor(radius).reshape(-1).float()
    )
    drawn = drawn.reshape(len(masks), len(SHAPES), SIZE, SIZE).numpy()
    overlap = np.minimum(drawn, masks[:, None]).sum((2, 3)) / np.maximum(drawn, masks[:, None]).sum((2, 3))
    best = overlap.argmax(1)
    return [(SHAPES[b], float(o[b])) for b, o in zip(best, overlap, strict=True)]
