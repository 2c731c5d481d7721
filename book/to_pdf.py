"""The built site as one PDF: python book/to_pdf.py _build/site _build/site/book.pdf

Each page of the table of contents is printed by headless Chromium, in light colours and without what only a
reader at a screen can use; the prints are joined behind a page of contents, with an outline, and numbered
from the first page to the last. Needs Chromium on PATH, and of Python's packages playwright and pypdf.
"""

import html
import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# What the theme does not leave out by itself. A figure with sliders is printed as it opens.
STYLE = """
.copybtn, .headerlink, .toggle-button, .prev-next-area, .bd-header-article, #jb-print-toc,
article .brush, article .actions, article form, article input, article button { display: none !important; }
article select { appearance: none; border: 0; background: none; font: inherit; }
article a.code-link { text-decoration: none !important; }
pre { white-space: pre-wrap !important; }
pre, article div[class*="cell"], article div[class*="highlight"], article .literal-block-wrapper {
    break-inside: auto !important; }
table, article div[class*="output"] { break-inside: auto !important; overflow: visible !important; }
tr, img, svg, figure { break-inside: avoid; }
"""
# A link to another page of the site would hold the folder it was printed from.
OPEN_UP = """() => {
    document.querySelectorAll(".toggle-hidden").forEach(e => e.classList.remove("toggle-hidden"));
    document.querySelectorAll("details").forEach(e => { e.open = true; });
    document.querySelectorAll("a[href]").forEach(e => {
        if (e.protocol == "file:" && !e.getAttribute("href").startsWith("#")) e.removeAttribute("href");
    });
}"""
DRAWN = """![...document.querySelectorAll(".math")].some(e => !e.querySelector(".katex"))"""  # equations
# Pages of our own: the contents, and the feet that are laid over all other pages, since Chromium would count
# each print from 1. Sizes are those of A4 at 96 pixels an inch, of which a PDF has 72.
OWN = """<!doctype html><meta charset="utf-8"><style>
@page { size: A4; margin: 0 }
body { font: 15px/2 system-ui, sans-serif; font-variant-ligatures: none; margin: 0; width: 210mm }
h1, p { margin: 0 20mm } h1 { font-size: 26px; padding-top: 20mm }
p { display: flex; gap: 8px; break-inside: avoid }
p::after { border-bottom: 1px dotted; content: ""; flex: 1; margin-bottom: 0.6em }
p > :last-child { order: 1 }
div { break-after: page; display: flex; font-size: 10px; height: 296mm }
div span { margin: auto auto 6mm }
</style>"""
POINTS = 72 / 96
BOXES = "es => es.map(e => e.getBoundingClientRect()).map(b => [b.left, b.top, b.right, b.bottom])"


def chromium() -> str:
    """Where it is. FileNotFoundError if it is not."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    raise FileNotFoundError(
        f"no Chromium on PATH (looked for {', '.join(NAMES)}): install it, such as your "
        "system's package `chromium`, and say make pdf again"
    )


def chapters(toc: Path) -> list[str]:
    """The pages, as they follow each other in the book."""
    import yaml

    content = yaml.safe_load(toc.read_text(encoding="utf-8"))
    return [content["root"], *(page["file"] for part in content["parts"] for page in part["chapters"])]


@contextmanager
def window() -> Iterator:
    """A tab of a Chromium that nobody sees."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 900, "height": 1200}, color_scheme="light")
        browser.close()


def printed(tab, site: Path, pages: list[str]) -> dict[str, bytes]:
    """{title of a page: its PDF}"""
    found = {}
    for page in pages:
        file = (site / f"{page}.html").resolve()
        if not file.exists():
            raise FileNotFoundError(f"no {file.name} in {site}: build the site first (make book)")
        tab.goto(file.as_uri(), wait_until="networkidle")
        tab.wait_for_function(DRAWN)
        tab.evaluate("() => document.fonts.ready.then(() => true)")
        tab.add_style_tag(content=STYLE)
        tab.evaluate(OPEN_UP)
        margin = {"top": "15mm", "bottom": "18mm", "left": "15mm", "right": "15mm"}
        title = tab.locator("h1").first.inner_text().replace("#", "").strip()
        found[title] = tab.pdf(format="A4", scale=0.75, margin=margin, print_background=True)
    return found


def contents(tab, starts: dict[str, int]) -> tuple[bytes, list[list[float]]]:
    """The page of contents, and the boxes of its lines in pixels from the top left. starts: {title: page}"""
    lines = [f"<p><span>{html.escape(title)}</span><b>{page}</b></p>" for title, page in starts.items()]
    tab.set_content(f"{OWN}<h1>Contents</h1>{''.join(lines)}")
    return tab.pdf(prefer_css_page_size=True), tab.eval_on_selector_all("p", BOXES)


def feet(tab, titles: list[str]) -> bytes:
    """What is laid over each page after the contents, which are page 1: its part's title, its number."""
    pages = [f"<div><span>{html.escape(title)}, {n}</span></div>" for n, title in enumerate(titles, 2)]
    tab.set_content(OWN + "".join(pages))
    return tab.pdf(prefer_css_page_size=True)


def write(tab, parts: dict[str, bytes], out: Path) -> int:
    """One PDF: a page of contents that links to the parts, the parts, numbers on all pages, an outline.
    How many pages it has."""
    from pypdf import PdfReader, PdfWriter
    from pypdf.annotations import Link

    titles = [title for title, part in parts.items() for _ in PdfReader(io.BytesIO(part)).pages]
    starts = {title: titles.index(title) + 2 for title in parts}
    first, boxes = contents(tab, starts)
    writer = PdfWriter()
    writer.append(io.BytesIO(first), outline_item="Contents")
    if len(writer.pages) != 1:
        raise ValueError("the contents take more than the one page that the numbers allow for")
    for title, content in parts.items():
        writer.append(io.BytesIO(content), outline_item=title)
    for page, foot in zip(writer.pages[1:], PdfReader(io.BytesIO(feet(tab, titles))).pages, strict=True):
        page.merge_page(foot)
        page.compress_content_streams()  # merging unpacked them
    top = float(writer.pages[0].mediabox.top)
    for start, (left, above, right, below) in zip(starts.values(), boxes):
        place = (left * POINTS, top - below * POINTS, right * POINTS, top - above * POINTS)
        writer.add_annotation(0, Link(rect=place, target_page_index=start - 1))
    writer.compress_identical_objects()
    writer.add_metadata({"/Title": next(iter(parts))})
    partial = out.with_name(out.name + ".partial")
    with open(partial, "wb") as file:
        writer.write(file)
    partial.replace(out)
    return len(writer.pages)


if __name__ == "__main__":
    site, out = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        with window() as tab:
            count = write(tab, printed(tab, site, chapters(Path(__file__).with_name("_toc.yml"))), out)
    except FileNotFoundError as error:
        sys.exit(str(error))
    print(f"{out}: {count} pages, {out.stat().st_size / 1e6:.1f} MB")
