"""The built site as a reader opens it: from disk, with no server, no kernel and no network.

`make book` runs this on what it built. Skipped where there is no site; the browser tests where there is no
Chromium.
"""

import pathlib
import re
from html import unescape
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from chromium import SITE, chosen, watched
from fontTools.ttLib import TTFont

PAGES = sorted(p for p in SITE.rglob("*.html") if "_static" not in p.parts)
# Equations left as text (they are drawn some time after the page has loaded), or in error.
LEFT = """[...document.querySelectorAll(".math")].filter(e => !e.querySelector(".katex"))"""
FAILED = """[...document.querySelectorAll(".math .katex-error")].map(e => e.textContent)"""
HEAVY = 3e6  # bytes that a page may load, itself, scripts, fonts and pictures included

pytestmark = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="no built site: run make book")


def page_name(path: pathlib.Path) -> str:
    return path.relative_to(SITE).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=page_name)


class Page(HTMLParser):
    """What a page defines (ids), loads by itself, and links to."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.ids, self.loads, self.links, self.images = set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "img":
            self.images.append((given.get("src") or "", given.get("alt") or ""))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in (
            "canonical",
            "search",
            "next",
            "prev",
            "index",
            "genindex",
        ):
            self.links.append(given.get("href", ""))
        else:
            self.loads += [given[key] for key in ("src", "href", "poster", "data") if given.get(key)]


@pytest.fixture(scope="module")
def read():
    """Parse each page once."""
    parsed = {}

    def one(path: pathlib.Path) -> Page:
        if path not in parsed:
            parsed[path] = Page(path)
        return parsed[path]

    return one


def is_outside(url: str) -> bool:
    return url.startswith("//") or urlsplit(url).scheme in ("http", "https", "mailto")


@each_page
def test_page_loads_nothing_from_outside(page, read):
    assert not [url for url in read(page).loads if is_outside(url)]


@each_page
def test_every_picture_says_what_it_shows(page, read):
    """In words: not its file's name, which is what Sphinx puts where nobody wrote any."""
    for src, alt in read(page).images:
        if "_static" in pathlib.PurePosixPath(src).parts:
            continue  # Sphinx's own signs
        assert len(alt.split()) >= 2 and pathlib.PurePosixPath(src).name not in alt, f"{src[:80]}: {alt!r}"


def test_links_to_lines_lead_to_those_lines():
    """The text after the anchor is that line of the file that is named in the link."""
    found = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found |= set(re.findall(r'_modules/([\w/]+)\.html#line-(\d+)".*?>([\w/]+\.py):(\d+)<', text))
    assert found
    for module, anchor, file, number in found:
        assert (f"{module}.py", anchor) == (file, number)
        code = (SITE / "_modules" / f"{module}.html").read_text(encoding="utf-8")
        (line,) = re.findall(rf'<span class="line" id="line-{number}"></span>(.*)', code)
        source = (SITE.parents[1] / file).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        assert unescape(re.sub("<[^>]+>", "", line)) == source


@each_page
def test_every_internal_link_and_anchor_exists(page, read):
    dead = []
    for url in read(page).links + read(page).loads:
        parts = urlsplit(url)
        if is_outside(url) or parts.scheme in ("data", "javascript", "blob"):
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.is_file():
            dead.append(url)
        elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).ids:
            dead.append(url)
    assert not dead


@each_page
def test_page_has_a_social_card(page):
    """Title, text and a picture that is there: relative, or absolute where the site's address was given."""
    if "_modules" in page.parts:
        pytest.skip("source code")
    found = dict(re.findall(r'<meta (?:property|name)="([\w:]+)" content="([^"]*)"', page.read_text("utf-8")))
    assert all(found.get(name) for name in ("og:title", "og:description", "twitter:card"))
    assert found["og:image"] == found["twitter:image"]
    address = urlsplit(found["og:image"])
    place = page.parent / address.path if not address.scheme else SITE / "_static" / "social-card.png"
    assert place.is_file() and address.path.endswith("_static/social-card.png")


# What sticks out of the text to the right, and can not be scrolled to in a box of its own; or to the left,
# where nothing can be scrolled to.
CUT_OFF = """() => { const { left, right } = document.querySelector("article").getBoundingClientRect();
    const scrolls = e => e && e.tagName != "ARTICLE" &&
        (["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    return [...document.querySelectorAll("article *:not(.headerlink)")].filter(e => {
        const box = e.getBoundingClientRect();
        if (!box.width || e.closest(".katex-mathml")) return false;
        const before = box.left < left - 2 && !e.closest("svg"), after = box.right > right + 2;
        return before || (after && !scrolls(e.parentElement));
    }).map(e => e.outerHTML.slice(0, 120)); }"""


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if "_modules" not in p.parts and "<article" in p.read_text("utf-8")],
    ids=page_name,
)
def test_page_fits_a_phone(page, tab):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(page.as_uri(), wait_until="load")
    tab.wait_for_function(f"!{LEFT}.length")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert not tab.evaluate(CUT_OFF), "cut off at a side"


def test_icon_fonts_hold_every_letter_that_styles_ask_for():
    """Boxes have their sign as a letter of a font, of which the site keeps some."""
    styles = {p: p.read_text("utf-8") for p in (SITE / "_static").rglob("*.css")}
    text = "".join(styles.values())
    asked = {int(code, 16) for code in re.findall(r"\\(f[0-9a-f]{3})\b", text)}
    asked |= {ord(letter) for letter in text if 0xF000 <= ord(letter) <= 0xF8FF}
    fonts = [
        (p.parent / found).resolve()
        for p, text in styles.items()
        for found in re.findall(r"url\(([^)]*fa-[^)]*)\)", text)
    ]
    held = {letter for font in fonts for letter in TTFont(font).getBestCmap() or ()}
    assert fonts and len(asked) > 5 and not asked - held, [hex(letter) for letter in asked - held]


def test_front_page_is_the_introduction(tab):
    tab.goto((SITE / "index.html").as_uri())
    tab.wait_for_url("**/book/intro.html")


FAINT = pathlib.Path(__file__).with_name("faint.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    "page", [p for p in PAGES if p != SITE / "index.html" and "_modules" not in p.parts], ids=page_name
)
def test_page_opens_without_complaint(page, theme, tab):
    loaded = set()
    tab.add_init_script(chosen(theme))
    tab.on("request", lambda request: loaded.add(urlsplit(request.url)))
    tab.goto(page.as_uri(), wait_until="networkidle")
    tab.wait_for_function(f"!{LEFT}.length")
    assert not tab.evaluate(FAILED), "equations that can not be read"
    files = {pathlib.Path(unquote(url.path)) for url in loaded if url.scheme == "file"}
    assert page in files and sum(f.stat().st_size for f in files) < HEAVY
    icons = tab.locator("svg.svg-inline--fa, i[class*='fa-']")
    assert icons.count() == tab.locator("svg.svg-inline--fa:has(path)").count(), "an icon is not drawn"
    assert tab.evaluate("document.documentElement.dataset.theme") == theme
    assert not tab.evaluate(FAINT), "words that are hard to read"


def test_faint_words_are_found(tab):
    """Through colours that let others shine through, and whatever way they are written."""
    tab.set_content("""<article style="background: black"><p style="color: #666">grey on black</p>
        <p style="background: rgb(255 255 255 / 90%); color: hsl(0 0% 50%)">grey on white</p>
        <p style="color: white">white on black</p><p style="color: #111; visibility: hidden">unseen</p>""")
    assert [said.split()[0] for said in tab.evaluate(FAINT).values()] == ["grey", "grey"]


def test_explorer_in_a_subfolder_of_a_host(window, subfolder):
    """Where it finds its data and pictures as on the disk, and asks nothing of other hosts."""
    with watched(window, own=(subfolder,)) as tab:
        tab.goto(f"{subfolder}/notebooks/04_explorer.html", wait_until="networkidle")
        explorer = tab.locator(".adatsq-explorer")
        picture = explorer.locator("canvas[data-picture=quantized]").element_handle()
        before = picture.evaluate("e => e.toDataURL()")
        explorer.locator("[name=budget]").press("ArrowLeft")  # at the most bits there may be nothing to gain
        tab.wait_for_function("([e, then]) => e.toDataURL() != then", arg=[picture, before])
