"""Sphinx: what a page shows of itself where its address is passed on: title, a sentence, one picture.

The picture is drawn from stored results when the book is built. Its address must be absolute to be found from
elsewhere: `html: baseurl` in book/_config.yml, or the environment variable SITE_URL, is where the site will
stand. Without either, addresses are relative.
"""

import base64
import html
import io
import os
import posixpath
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from docutils import nodes
from matplotlib.colors import to_rgb
from PIL import Image

import adatsq
from adatsq import plots
from adatsq.explorer import choices_of, load_data, place_of

RESULTS = Path(adatsq.__file__).resolve().parents[1] / "data" / "results"
STORED = "flux-dev-mini-explorer.json"
SHOWN = {"method": "paper", "w_bits": 3, "tau": 1.0, "beam": 4, "budget": 3.6}  # of it
IMAGE = "_static/social-card.png"
SIZE = (1200, 630)  # pixels
ALT = "Activation bits by timestep and layer, and pictures of coloured shapes at full precision and quantized"
ABOUT = (
    "AdaTSQ reconstructed: low-bit diffusion transformers, executed on small models of Flux, Z-Image and Wan."
)
REDIRECT = '<!DOCTYPE html>\n<meta http-equiv="Refresh" content="0; url={first}.html" />\n{tags}\n'


def draw(data: dict) -> bytes:
    """PNG of a policy of a stored sweep beside its first pictures, at most two, and their twins."""
    plots.style()
    plt.rcParams["savefig.bbox"] = "standard"  # to the pixel
    place = place_of(data, **SHOWN)
    setting = data["settings"][place["setting"]]
    choice = choices_of(data, setting)[place["budget"]]
    figure = plt.figure(figsize=(SIZE[0] / 100, SIZE[1] / 100), dpi=100, layout="none")
    figure.text(0.05, 0.84, "AdaTSQ, executed", fontsize=40, fontweight="bold", color=plots.INK)
    said = "How many bits does a diffusion transformer need, when, and in which layer?"
    figure.text(0.05, 0.75, said, fontsize=18, color=plots.INK)

    policy = figure.add_axes((0.05, 0.13, 0.48, 0.52))
    colors = np.array([to_rgb(plots.BIT_COLORS[int(digit)]) for row in choice["bits"] for digit in row])
    grid = colors.reshape(len(choice["bits"]), -1, 3).transpose(1, 0, 2)
    policy.imshow(grid, aspect="auto", interpolation="nearest")
    policy.set(xticks=[], yticks=[])
    policy.set_xlabel("timestep, from noise to image", fontsize=15)
    policy.set_ylabel("layer", fontsize=15)
    shades = ", ".join(f"{b}" for b in data["a_bits"])
    policy.set_title(
        f"activation bits: {choice['average_bits']:.1f} on average (light to dark: {shades})",
        fontsize=14,
        fontweight="normal",
    )
    for column, (prompt, twin) in enumerate(list(zip(data["prompts"], choice["images"]))[:2]):
        rows = (("full precision", prompt["image"]), (f"{setting['w_bits']}-bit weights", twin))
        for row, (label, picture) in enumerate(rows):
            ax = figure.add_axes((0.62 + 0.175 * column, 0.41 - 0.32 * row, 0.165, 0.265))
            ax.imshow(Image.open(io.BytesIO(base64.b64decode(picture))), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if column == 0:
                ax.set_ylabel(label, fontsize=14)
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches=None)
    plt.close(figure)
    return file.getvalue()


def first_sentence(doctree: nodes.document | None) -> str:
    """A page's first paragraph outside of boxes, the question that it answers, cut to 200 letters."""
    for paragraph in doctree.findall(nodes.paragraph) if doctree else ():
        if isinstance(paragraph.parent, nodes.section) and paragraph.astext().strip():
            return textwrap.shorten(paragraph.astext(), 200, placeholder=" …")
    return ABOUT


def tags(title: str, text: str, url: str, image: str) -> str:
    """The lines for a page's head: Open Graph, and what one network wants instead."""
    width, height = SIZE
    shown = {
        "title": title,
        "description": text,
        "type": "article",
        "url": url,
        "site_name": "AdaTSQ, executed",
    }
    shown |= {"image": image, "image:width": width, "image:height": height, "image:alt": ALT}
    lines = [
        f'<meta property="og:{name}" content="{html.escape(str(value))}" />' for name, value in shown.items()
    ]
    lines += [
        f'<meta name="{name}" content="{html.escape(value)}" />'
        for name, value in {
            "description": text,
            "twitter:card": "summary_large_image",
            "twitter:title": title,
            "twitter:description": text,
            "twitter:image": image,
        }.items()
    ]
    return "\n".join(lines) + "\n"


def address(base: str, page: str, target: str) -> str:
    """Of `target`, a file of the site: absolute if the site's base is known, else relative to the page."""
    return base + target if base else posixpath.relpath(target, posixpath.dirname(page) or ".")


def use_site_url(app, config):
    base = os.environ.get("SITE_URL") or config.html_baseurl
    config.html_baseurl = base.rstrip("/") + "/" if base else ""


def add_tags(app, pagename, templatename, context, doctree):
    base, page = app.config.html_baseurl, f"{pagename}.html"
    heading = doctree.next_node(nodes.title) if doctree else None
    title = heading.astext() if heading else "AdaTSQ, executed"
    context["metatags"] = context.get("metatags", "") + tags(
        title, first_sentence(doctree), address(base, page, page), address(base, page, IMAGE)
    )


def write_files(app, exception):
    """The picture, and the front door with its own tags: readers are sent on, networks may not follow."""
    if exception or app.builder.format != "html":
        return
    out, base, first = Path(app.outdir), app.config.html_baseurl, app.config.root_doc
    (out / IMAGE).write_bytes(draw(load_data(RESULTS / STORED)))
    lines = tags("AdaTSQ, executed", ABOUT, address(base, "index.html", "index.html"), base + IMAGE)
    (out / "index.html").write_text(REDIRECT.format(first=first, tags=lines), encoding="utf-8")


def setup(app):
    app.connect("config-inited", use_site_url, priority=900)
    app.connect("html-page-context", add_tags)
    app.connect("build-finished", write_files, priority=400)  # before sphinx_external_toc writes a bare one
    return {"version": "1", "parallel_read_safe": True}
