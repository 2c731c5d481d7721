"""Draw scenes: a shape is a signed distance in units of its radius; in pixels, it is a pixel's coverage."""

import math

import torch

from adatsq.world.scenes import COLORS, SHAPES, SIZE, Scenes


def render(scenes: Scenes) -> torch.Tensor:
    """RGB images (B, 3, 64, 64), float32 in [0, 1], antialiased, on the scenes' device."""
    image = _background(scenes)
    palette = torch.tensor(list(COLORS.values()), device=image.device)
    for k in range(scenes.shape.shape[1]):
        alpha = coverage(scenes.shape[:, k], scenes.center[:, k], scenes.radius[:, k])[:, None]
        paint = palette[scenes.color[:, k].clamp(min=0)][:, :, None, None]
        image = image + alpha * (paint - image)
    return image


def coverage(shape: torch.Tensor, center: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """How much of each pixel an object covers, (B, 64, 64) in [0, 1]; shape -1 covers nothing.

    shape: (B,) int64.  center: (B, 2), x and y in pixels.  radius: (B,), pixels.
    """
    pixel = torch.arange(SIZE, device=center.device) + 0.5
    x = (pixel[None, None, :] - center[:, 0, None, None]) / radius[:, None, None]
    y = (pixel[None, :, None] - center[:, 1, None, None]) / radius[:, None, None]
    x, y = torch.broadcast_tensors(x, y)
    alpha = torch.zeros_like(x)
    for index, name in enumerate(SHAPES):
        rows = (shape == index).nonzero()[:, 0]
        if len(rows):
            pixels = DISTANCE[name](x[rows], y[rows]) * radius[rows, None, None]
            alpha[rows] = (0.5 - pixels).clamp(0, 1)
    return alpha


def _background(scenes: Scenes) -> torch.Tensor:
    line = (torch.arange(SIZE, device=scenes.angle.device) + 0.5) / SIZE - 0.5
    angle = scenes.angle[:, None, None]
    along = torch.cos(angle) * line[None, None, :] + torch.sin(angle) * line[None, :, None]
    weight = (along / math.sqrt(2) + 0.5)[:, None]
    start, end = scenes.background[:, 0, :, None, None], scenes.background[:, 1, :, None, None]
    return start + weight * (end - start)


# Signed distances (negative inside), exact near the edge, of shapes about as large as the unit circle;
# y grows downwards.


def _circle(x, y):
    return torch.hypot(x, y) - 0.95


def _square(x, y):
    return torch.maximum(x.abs(), y.abs()) - 0.85


def _triangle(x, y):
    """Equilateral, point up: three half-planes at distance 0.55 from the middle, shifted down a little."""
    y = y - 0.2
    slope = 0.8660 * x.abs() - 0.5 * y
    return torch.maximum(slope, y) - 0.58


def _diamond(x, y):
    return (x.abs() + y.abs() - 1.05) / math.sqrt(2)


def _star(x, y):
    """Five points: fold the plane into one of ten wedges; there the edge is one line from tip to notch."""
    radius, wedge = torch.hypot(x, y), 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + wedge / 2, wedge) - wedge / 2
    px, py = radius * torch.sin(angle.abs()), radius * torch.cos(angle)
    tip, notch = 1.1, 0.45
    nx, ny = notch * math.sin(math.pi / 5), notch * math.cos(math.pi / 5)
    length = math.hypot(nx, tip - ny)
    return ((tip - ny) * px + nx * py - nx * tip) / length


def _cross(x, y):
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 0.32, y - 1.0), torch.maximum(x - 1.0, y - 0.32))


def _ring(x, y):
    return (torch.hypot(x, y) - 0.75).abs() - 0.25


def _heart(x, y):
    """A square on its corner with a half circle on each of its two upper edges."""
    x, y, a = x.abs(), y + 0.05, 0.78
    body = (x + (y - 0.15).abs() - a) / math.sqrt(2)
    lobe = torch.hypot(x - a / 2, y - 0.15 + a / 2) - a / math.sqrt(2)
    return torch.minimum(body, lobe)


DISTANCE = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
}
