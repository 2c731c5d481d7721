"""Clips that play in a page: one animated picture inside the HTML itself, with nothing to load or click."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

GAP = 2  # pixels between two clips, white
LIMIT = 300_000  # characters of an animation in the page
HOLD = 5  # frames for which the last one stays before the film starts again


def film(
    clips: Sequence[np.ndarray],
    labels: Sequence[str],
    alt: str,
    title: str = "",
    fps: float = 8,
    width: int = 180,
) -> str:
    """HTML of the clips side by side, each (F, H, W, 3) uint8, in step with each other and over again.

    alt: what is seen, for who cannot see it. width: of a clip on the page, pixels; pixels of the clip stay
    pixels, to the bit if that fits in LIMIT. Who asked their system for less motion, and who prints, gets
    the last frame, still.
    ValueError: other shapes than the first clip's, or another number of labels.
    """
    clips = [np.asarray(clip) for clip in clips]
    if len(labels) != len(clips):
        raise ValueError(f"{len(labels)} labels for {len(clips)} clips: give each clip one")
    for clip in clips:
        if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8 or clip.shape != clips[0].shape:
            raise ValueError(
                f"clips must be uint8 of shape (frames, height, width, 3), all alike, not {clip.dtype} "
                f"{clip.shape} beside {clips[0].shape}"
            )
    frames = side_by_side(clips)
    scale = width / clips[0].shape[2]
    total = scale * frames.shape[2]
    cells = "".join(
        f'<span style="width: {width}px; margin-right: {scale * GAP}px; text-align: center">'
        f"{html.escape(label)}</span>"
        for label in labels
    )
    look = f"width: {total:.0f}px; max-width: none; image-rendering: pixelated; margin: 0"
    left = "text-align: left; font-weight: bold; margin: 0"  # whatever a page's theme does with captions
    heading = f'<figcaption style="{left}">{html.escape(title)}</figcaption>' if title else ""
    return (
        f'<figure style="margin: 0 0 1em 0; overflow-x: auto">{heading}'
        f'<div style="display: flex; width: {total:.0f}px; font-size: 85%">{cells}</div>'
        f'<picture><source media="(prefers-reduced-motion: reduce), print" srcset="{still(frames[-1])}">'
        f'<img alt="{html.escape(alt)}" style="{look}" src="{animated(frames, fps)}"></picture></figure>'
    )


def side_by_side(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Clips (F, H, W, 3) as one, with a white gap between two."""
    gap = np.full((*clips[0].shape[:2], GAP, 3), 255, dtype=np.uint8)
    parts = [part for clip in clips for part in (clip, gap)]
    return np.concatenate(parts[:-1], axis=2)


def animated(frames: np.ndarray, fps: float) -> str:
    """Frames (F, H, W, 3) uint8 as the address of an animated WebP that repeats for ever.

    Lossless, unless that takes more than LIMIT: then of the best quality that fits (or the least there is).
    """
    durations = [round(1000 / fps)] * (len(frames) - 1) + [round(1000 * HOLD / fps)]
    first, *rest = (Image.fromarray(frame) for frame in frames)
    for quality in (None, 95, 90, 80, 60, 40):
        file, how = io.BytesIO(), {"lossless": True} if quality is None else {"quality": quality}
        first.save(file, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, **how)
        address = _address("webp", file)
        if len(address) <= LIMIT:
            break
    return address


def still(frame: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as the address of a PNG."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return _address("png", file)


def _address(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
