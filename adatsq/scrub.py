"""A slider over frames, for a page that has no kernel: every frame is in the HTML, and one of them is shown.

With no script (an untrusted notebook, print) the first frame to show stays, still, and the controls are gone.
Nothing moves by itself; who asked their system for less motion has the slider and no play button.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from adatsq.film import still

MOST = 128  # pixels of a picture's longer side, a larger one is made smaller

# Colours are those of the page around; the theme of the book would give pictures a white ground in the dark.
STYLE = """
.adatsq-scrub { color: inherit; font: 14px/1.4 system-ui, sans-serif; margin: 0 0 1em; max-width: 760px; }
.adatsq-scrub [hidden] { display: none; }
.adatsq-scrub > figcaption { color: inherit; font-weight: bold; margin: 0; text-align: left; }
.adatsq-scrub .controls, .adatsq-scrub label { align-items: center; display: flex; gap: 12px; margin: 4px 0; }
.adatsq-scrub label { flex: 1; min-width: 0; }
.adatsq-scrub input { accent-color: #D55E00; flex: 1; min-height: 32px; min-width: 0; }
.adatsq-scrub button { background: none; border: 1px solid; border-radius: 4px; color: inherit; font: inherit;
  min-height: 32px; min-width: 5em; }
.adatsq-scrub :focus-visible { outline: 2px solid; outline-offset: 2px; }
.adatsq-scrub p { color: inherit; margin: 4px 0; }
.adatsq-scrub .row { display: flex; flex-wrap: wrap; gap: 12px; }
.adatsq-scrub .row > * { flex: 1 1 280px; max-width: 480px; min-width: 0; }
.adatsq-scrub .pictures { display: grid; gap: 2px 8px; max-width: 480px; }
.adatsq-scrub .pictures > span { font-size: 12px; overflow-wrap: anywhere; }
.adatsq-scrub img { background: none !important; border-radius: 0 !important; display: block;
  filter: none !important; image-rendering: pixelated; padding: 0 !important; width: 100%; }
.adatsq-scrub svg { display: block; overflow: visible; width: 100%; }
.adatsq-scrub svg text { fill: currentColor; font-size: 11px; }
html[data-theme=dark] .cell_output .text_html:has(.adatsq-scrub) { background: none !important;
  color: inherit !important; padding: 0 !important; }
@media print { .adatsq-scrub .controls { display: none; } }
@media (prefers-reduced-motion: reduce) { .adatsq-scrub button { display: none; } }
"""

# JupyterLab leaves keys alone there, so that arrows move the slider and not the notebook. It asks the element
# that has the focus, not those around it.
OWN_KEYS = 'data-lm-suppress-shortcuts="true"'

SCRIPT = """
for (const figure of document.querySelectorAll("figure.adatsq-scrub:not([data-ready])")) {
  const frames = [...figure.querySelectorAll(":scope > section")];
  const slider = figure.querySelector("input"), button = figure.querySelector("button");
  let timer = 0;
  const show = (i) => {
    slider.value = i;
    slider.setAttribute("aria-valuetext", frames[i].getAttribute("aria-label"));
    frames.forEach((frame, j) => { frame.hidden = i !== j; });
  };
  const stop = () => {
    timer = clearInterval(timer);
    button.textContent = "play";
  };
  const next = () => {
    if (figure.isConnected && slider.valueAsNumber < frames.length - 1) show(slider.valueAsNumber + 1);
    else stop();
  };
  slider.addEventListener("input", () => { stop(); show(slider.valueAsNumber); });
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.valueAsNumber === frames.length - 1) show(0);
    button.textContent = "pause";
    timer = setInterval(next, Number(figure.dataset.milliseconds));
  });
  show(slider.valueAsNumber);
  figure.querySelector(".controls").hidden = false;
  figure.dataset.ready = "";
}
"""


@dataclass(frozen=True)
class Frame:
    """label: where the slider is, in words, for eyes and ears. body: HTML."""

    label: str
    body: str


def scrub(
    frames: Sequence[Frame], slider: str, alt: str, title: str = "", first: int = -1, fps: float = 2
) -> str:
    """HTML of the frames under one slider and a play button.

    slider: what it moves over, such as "step". alt: what the whole figure shows, for who cannot see it.
    first: the frame shown before anybody moves the slider, and in print; counted from the end if negative.
    ValueError: no frame, or no such first one.
    """
    if not frames or not -len(frames) <= first < len(frames):
        raise ValueError(f"first is {first}, the frames are {len(frames)}: it must be one of them")
    first %= len(frames)
    sections = "".join(
        f'<section aria-label="{html.escape(frame.label)}"{" hidden" * (i != first)}>'
        f"<p>{html.escape(frame.label)}</p>{frame.body}</section>"
        for i, frame in enumerate(frames)
    )
    caption = f"<figcaption>{html.escape(title)}</figcaption>" if title else ""
    return (
        f'<figure class="adatsq-scrub" role="group" aria-label="{html.escape(alt)}" '
        f'data-milliseconds="{1000 / fps:.0f}"><style>{STYLE}</style>{caption}'
        f'<div class="controls" hidden><button type="button" {OWN_KEYS}>play</button>'
        f'<label><span>{html.escape(slider)}</span><input type="range" autocomplete="off" min="0" '
        f'max="{len(frames) - 1}" step="1" value="{first}" {OWN_KEYS}></label></div>'
        f"{sections}</figure><script>{SCRIPT}</script>"
    )


def row(*parts: str) -> str:
    """Parts beside each other, below each other where the page is narrow."""
    return f'<div class="row">{"".join(parts)}</div>'


def picture(image: np.ndarray, alt: str) -> str:
    """An <img> of an image (H, W, 3) uint8 that holds the image itself, at most MOST pixels a side."""
    height, width = image.shape[:2]
    if max(height, width) > MOST:
        size = [max(1, round(side * MOST / max(height, width))) for side in (width, height)]
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    return f'<img alt="{html.escape(alt)}" src="{still(image)}">'


def grid(cells: Sequence[str], columns: int, widest: str = "480px") -> str:
    """Cells (HTML: pictures, or text that is escaped already) row by row, in columns of equal width."""
    inside = "".join(cell if cell.startswith("<img") else f"<span>{cell}</span>" for cell in cells)
    look = f"grid-template-columns: repeat({columns}, minmax(0, 1fr)); max-width: {widest}"
    return f'<div class="pictures" style="{look}">{inside}</div>'
