"""The built site as one PDF: python book/to_pdf.py _build/site _build/site/book.pdf

Each page of the table of contents is printed by headless Chromium, in light colours and without what only a
reader at a screen can use; the prints are joined, with an outline. Needs Chromium on PATH, and of Python's
packages playwright and pypdf.
"""

import io
import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# What the theme does not leave out by itself. A figure with sliders is printed as it opens.
STYLE = """
.copybtn, .headerlink, .toggle-button, .prev-next-area, .bd-header-article, #jb-print-toc,
article .brush, article .actions, article form, article input, article button { display: none !important; }
article select { appearance: none; border: 0; background: none; font: inherit; }
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
FOOT = (
    '<div style="font-size: 8px; width: 100%; text-align: center"><span class="title"></span>, '
    '<span class="pageNumber"></span></div>'
)


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


def printed(site: Path, pages: list[str]) -> dict[str, bytes]:
    """{title of a page: its PDF}"""
    from playwright.sync_api import sync_playwright

    found = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 900, "height": 1200}, color_scheme="light")
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
            found[title] = tab.pdf(
                format="A4",
                scale=0.75,
                margin=margin,
                print_background=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOT,
            )
        browser.close()
    return found


def join(parts: dict[str, bytes], out: Path) -> int:
    """Write one PDF with an entry per part in its outline; how many pages it has."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter()
    for title, content in parts.items():
        writer.append(io.BytesIO(content), outline_item=title)
    writer.compress_identical_objects()
    writer.add_metadata({"/Title": next(iter(parts))})
    partial = out.with_name(out.name + ".partial")
    with open(partial, "wb") as file:
        writer.write(file)
    partial.replace(out)
    return len(PdfReader(out).pages)


if __name__ == "__main__":
    site, out = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        count = join(printed(site, chapters(Path(__file__).with_name("_toc.yml"))), out)
    except FileNotFoundError as error:
        sys.exit(str(error))
    print(f"{out}: {count} pages, {out.stat().st_size / 1e6:.1f} MB")
