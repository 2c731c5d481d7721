"""Every control of the built site, moved as a reader moves it: picture and numbers follow."""

import pytest
from chromium import watched
from explorer_controls import move_everything
from test_site import PAGES, SITE, page_name

pytestmark = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="no built site: run make book")
CONTROLS = "button, input, select, textarea, details, video, audio, [role=slider]"
# What the article of a page may have in it, and the test that moves it.
KNOWN = {
    ".adatsq-explorer": "test_explorer",
    "figure.adatsq-scrub": "test_frames_under_a_slider",
    "figure.adatsq-film": "test_film.py",
    ".dropdown, .toggle": "test_what_is_folded_opens",
    ".cell_output details, .cell > details": "test_what_a_cell_folds_opens",
    ".highlight": "the theme's button that copies code",
}
SHOWN = """figure => {
    const [shown] = [...figure.querySelectorAll(":scope > section")].filter(s => !s.hidden);
    const pictures = [...shown.querySelectorAll("img")].map(e => e.src);
    const drawn = [...shown.querySelectorAll("svg")].map(e => e.innerHTML);
    return { pictures: pictures.join() + drawn.join(), words: shown.innerText };
}"""


def pages_with(sign: str):
    """Of the book's own pages, those with this in their HTML."""
    own = [page for page in PAGES if "_modules" not in page.parts and page.name != "api.html"]
    found = [page for page in own if sign in page.read_text(encoding="utf-8")]
    assert found or not PAGES, f"no page of the site has {sign}"
    return pytest.mark.parametrize("page", found, ids=page_name)


@pages_with("<article")
def test_no_control_is_left_out(page, tab):
    tab.goto(page.as_uri(), wait_until="networkidle")
    others = f"es => es.filter(e => !e.closest('{', '.join(KNOWN)}')).map(e => e.outerHTML.slice(0, 200))"
    assert not tab.eval_on_selector_all(", ".join(f"article {c}" for c in CONTROLS.split(", ")), others)


@pages_with('<div id="adatsq-explorer-')
def test_explorer(page, tab, tmp_path):
    tab.goto(page.as_uri(), wait_until="load")
    explorer = tab.locator(".adatsq-explorer")
    explorer.locator("[name=budget]").wait_for(timeout=20_000)
    move_everything(explorer, tmp_path)
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")  # the theme's ground for outputs is light
    ground = explorer.evaluate("e => getComputedStyle(e.closest('.text_html')).backgroundColor")
    assert ground == "rgba(0, 0, 0, 0)", "a light ground under a dark page's controls"


@pages_with('class="adatsq-scrub"')
def test_frames_under_a_slider(page, tab):
    """Denoising, temperature or growth of a search: each place has its own picture and words; play moves."""
    tab.goto(page.as_uri(), wait_until="load")
    for figure in tab.locator("figure.adatsq-scrub").all():
        slider, play = figure.locator("input[type=range]"), figure.locator("button")
        last = int(slider.get_attribute("max"))
        slider.press("Home")
        found = [figure.evaluate(SHOWN)]
        for _ in range(last):
            slider.press("ArrowRight")
            found.append(figure.evaluate(SHOWN))
            assert found[-1]["pictures"] != found[-2]["pictures"], f"picture {len(found)} is the one before"
            assert found[-1]["words"] != found[-2]["words"], f"the words of {len(found)} are those before"
        slider.press("Home")
        play.click()
        tab.wait_for_function(
            "figure => figure.querySelector('input').value > 1", arg=figure.element_handle()
        )
        play.click()
        stopped = figure.evaluate(SHOWN)
        assert stopped in found and stopped != found[0] and play.inner_text() == "play"


@pages_with("data:image/webp")
def test_clips_play(page, tab):
    """Each film moves by itself; who wants less motion gets its last frame, still."""
    tab.goto(page.as_uri(), wait_until="load")
    for film in tab.locator("picture img").all():
        film.scroll_into_view_if_needed()
        seen = set()
        for _ in range(40):
            seen.add(film.screenshot())
            if len(seen) > 2:
                break
        assert len(seen) > 2, "a film that stands still"
    tab.emulate_media(reduced_motion="reduce")
    for film in tab.locator("picture img").all():
        film.scroll_into_view_if_needed()
        tab.wait_for_function(
            "e => e.complete && e.currentSrc.startsWith('data:image/png')", arg=film.element_handle()
        )
        assert len({film.screenshot() for _ in range(3)}) == 1


@pages_with('class="dropdown admonition"')
def test_what_is_folded_opens(page, tab):
    tab.goto(page.as_uri(), wait_until="load")
    for answer in tab.locator(".admonition.dropdown").all():
        last = answer.locator(":scope > :not(.admonition-title)").last
        assert not last.is_visible()
        answer.locator("button.toggle-button").click()
        last.wait_for(state="visible")


@pages_with("<details")
def test_what_a_cell_folds_opens(page, tab):
    """Long lists, and tables and figures of further models; by a click, or by a key."""
    tab.goto(page.as_uri(), wait_until="load")
    for folded in tab.locator(".cell_output details, .cell > details").all():
        if folded.get_attribute("open") is not None:  # the first of several tables
            continue
        inside = folded.locator(":scope > :not(summary)").last
        assert not inside.is_visible()
        folded.locator("summary").press("Enter")
        inside.wait_for(state="visible")


def test_light_and_dark(tab):
    tab.goto((SITE / "book" / "intro.html").as_uri(), wait_until="load")
    themes, grounds = set(), set()
    for _ in range(3):  # light, dark, and as the system has it
        tab.locator("button.theme-switch-button:visible").first.click()
        themes.add(tab.evaluate("document.documentElement.dataset.theme"))
        grounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert themes == {"light", "dark"} and len(grounds) == 2


@pytest.mark.parametrize("place", ["disk", "subfolder"])
def test_search_finds_pages(place, window, subfolder):
    """From the front door, by the field that a key opens; the first hit leads to a page with the word."""
    address = SITE.as_uri() if place == "disk" else subfolder
    with watched(window, own=(subfolder,)) as tab:
        tab.goto(f"{address}/index.html", wait_until="load")
        tab.wait_for_url("**/book/intro.html")
        tab.wait_for_load_state("load")
        tab.keyboard.press("Control+k")
        field = tab.locator("dialog input[name=q]")
        field.fill("temperature")
        field.press("Enter")
        hits = tab.locator("#search-results ul.search li a")
        hits.nth(1).wait_for(timeout=20_000)
        tab.get_by_text("Search finished").wait_for(timeout=20_000)
        hits.first.click()
        tab.wait_for_url(lambda url: "search.html" not in url)
        assert tab.url.startswith(address) and "temperature" in tab.locator("article").inner_text().lower()
