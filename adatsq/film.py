"""Clips that play in a page: all frames are one picture in the HTML itself, and a style sheet moves it along.

No script and no other file. A box below the clips, for a pointer or the keyboard, stops them where they are.
"""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

GAP = 2  # pixels between two clips, white
LIMIT = 300_000  # characters of a film in the page
HOLD = 5  # frames for which the last one stays before the film starts again
TALLEST = 16383  # pixels of a WebP

# The frames stand below each other, and one of them fits the window: from the first to the last in steps.
STYLE = """
@keyframes adatsq-film-%(frames)d {
  from { object-position: 0 0; } %(end).4f%%, to { object-position: 0 100%%; } }
.adatsq-film { margin: 0 0 1em; overflow-x: auto; }
.adatsq-film img { background: none !important; border-radius: 0 !important; image-rendering: pixelated;
  height: auto; margin: 0; max-width: 100%%; object-fit: cover; padding: 0 !important; }
.adatsq-film label { display: inline-flex; align-items: center; gap: 6px; min-height: 32px; }
.adatsq-film:has(:checked) img { animation-play-state: paused !important; }
@media (prefers-reduced-motion: reduce), print {
  .adatsq-film img { animation: none !important; object-position: 0 100%%; }
  .adatsq-film label { display: none; } }
html[data-theme=dark] .cell_output .text_html:has(.adatsq-film) { background: none !important;
  color: inherit !important; padding: 0 !important; }
"""


def film(
    clips: Sequence[np.ndarray],
    labels: Sequence[str],
    alt: str,
    title: str = "",
    fps: float = 8,
    width: int = 180,
) -> str:
    """HTML of the clips side by side, each (F, H, W, 3) uint8, in step with each other and over again.

    alt: what is seen, for who cannot see it. width: of a clip on the page, pixels, less on a narrow page;
    pixels of the clip stay pixels, to the bit if that fits in LIMIT. Who asked their system for less motion,
    and who prints, gets the last frame, still.
    ValueError: other shapes than the first clip's, another number of labels, or more pixels than one picture
    can hold below each other.
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
    if (height := len(frames) * frames.shape[1]) > TALLEST:
        raise ValueError(f"frames of {height} pixels in all, a film holds {TALLEST}: fewer, or smaller ones")
    scale = width / clips[0].shape[2]
    total = scale * frames.shape[2]
    cells = "".join(
        f'<span style="flex: 1; margin-right: {scale * GAP}px; text-align: center">'
        f"{html.escape(label)}</span>"
        for label in labels
    )
    shown, last = len(frames) - 1 + HOLD, max(1, len(frames) - 1)
    look = (
        f"width: {total}px; aspect-ratio: {frames.shape[2]} / {frames.shape[1]}; "
        f"animation: adatsq-film-{len(frames)} {shown / fps:.3f}s steps({last}) infinite"
    )
    style = STYLE % {"frames": len(frames), "end": 100 * last / shown}
    box = '<input type="checkbox" autocomplete="off" data-lm-suppress-shortcuts="true">'  # keys in JupyterLab
    left = "text-align: left; font-weight: bold; margin: 0"  # whatever a page's theme does with captions
    heading = f'<figcaption style="{left}">{html.escape(title)}</figcaption>' if title else ""
    return (
        f'<figure class="adatsq-film"><style>{style}</style>{heading}'
        f'<div style="display: flex; width: {total}px; max-width: 100%; font-size: 85%">{cells}</div>'
        f'<picture><source media="(prefers-reduced-motion: reduce), print" srcset="{still(frames[-1])}">'
        f'<img alt="{html.escape(alt)}" style="{look}" src="{strip(frames)}"></picture>'
        f"<div><label>{box} pause</label></div></figure>"
    )


def side_by_side(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Clips (F, H, W, 3) as one, with a white gap between two."""
    gap = np.full((*clips[0].shape[:2], GAP, 3), 255, dtype=np.uint8)
    parts = [part for clip in clips for part in (clip, gap)]
    return np.concatenate(parts[:-1], axis=2)


def strip(frames: np.ndarray) -> str:
    """Frames (F, H, W, 3) uint8 below each other, as the address of a WebP.

    Lossless, unless that takes more than LIMIT: then of the best quality that fits (or the least there is).
    """
    whole = Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
    for quality in (None, 95, 90, 80, 60, 40):
        file, how = io.BytesIO(), {"lossless": True} if quality is None else {"quality": quality}
        whole.save(file, "WEBP", **how)
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
