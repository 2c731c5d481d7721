"""Frames under a slider: what is in the HTML, and what a reader with a keyboard gets of it in Chromium."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from adatsq import scrub, svg

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: the slider was not moved")


def frames(count: int = 3) -> list[scrub.Frame]:
    """A picture and a number each, all different."""
    axes = svg.Axes((0, count), (0, count), "x", "y")
    made = []
    for i in range(count):
        image = np.full((4, 4, 3), 60 * i, dtype=np.uint8)
        body = scrub.row(
            scrub.grid([scrub.picture(image, f"grey {i}"), f"value {i}"], 1),
            svg.chart(axes, [svg.points(axes, [i], [i], "red")], f"point {i}"),
        )
        made.append(scrub.Frame(f"step {i + 1}", body))
    return made


class Elements(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def all(self, tag: str) -> list[dict]:
        return [given for name, given in self.found if name == tag]


def test_one_frame_shows_and_controls_wait_for_the_script():
    page = Elements(scrub.scrub(frames(), "step", "three greys", "greys", first=1))
    assert ["hidden" in section for section in page.all("section")] == [True, False, True]
    (controls,) = [given for given in page.all("div") if given.get("class") == "controls"]
    assert "hidden" in controls
    (slider,) = page.all("input")
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "2", "1")


def test_everything_has_words_for_it_and_nothing_is_loaded():
    html = scrub.scrub(frames(), 'τ "<b>', 'all of "it" <b>', "A <i> & B")
    page = Elements(html)
    (figure,) = page.all("figure")
    assert figure["aria-label"] == 'all of "it" <b>' and figure["role"] == "group"
    assert not page.all("b") and not page.all("i")  # titles are text
    assert [image["alt"] for image in page.all("img")] == [f"grey {i}" for i in range(3)]
    assert [drawn["aria-label"] for drawn in page.all("svg")] == [f"point {i}" for i in range(3)]
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert "http" not in html and "</script>" not in scrub.SCRIPT and "<" not in scrub.STYLE


def test_a_large_picture_is_made_small_and_a_small_one_stays_to_the_bit():
    def decoded(tag):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", tag)[1]))))

    noise = np.random.default_rng(0).integers(0, 256, (1024, 512, 3), dtype=np.uint8)
    tag = scrub.picture(noise, "noise")
    assert decoded(tag).shape == (scrub.MOST, scrub.MOST // 2, 3) and len(tag) < 40_000
    assert np.array_equal(decoded(scrub.picture(noise[:64, :64], "noise")), noise[:64, :64])


@pytest.mark.parametrize(("made", "first"), [([], -1), (frames(), 3), (frames(), -4)])
def test_a_first_frame_that_is_not_there_is_refused(made, first):
    with pytest.raises(ValueError, match=f"first is {first}, the frames are {len(made)}"):
        scrub.scrub(made, "step", "alt", first=first)


def test_axes_place_their_corners_middles_and_what_lies_beyond():
    left, right = svg.LEFT, svg.WIDTH - svg.RIGHT
    top, foot = svg.TOP, svg.HEIGHT - svg.BOTTOM
    backwards = svg.Axes((1, 0), (0, 2), "", "")
    assert backwards.at(1, 0) == (left, foot) and backwards.at(0, 2) == (right, top)
    assert backwards.at(2, 9) == (left, top)
    log = svg.Axes((0, 1), (1e-4, 1), "", "", log=True)
    assert log.at(0.5, 1e-2) == pytest.approx(((left + right) / 2, (top + foot) / 2))
    assert log.at(0, 0.0) == pytest.approx((left, foot))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[1, 2, 5], [3], [0.001, 0.0011], [1e-6, 1e3]])
def test_limits_hold_the_values_and_ticks_lie_within(values, log):
    low, high = svg.limits(values, log)
    assert low < min(values) <= max(values) < high
    found = svg.ticks((high, low), log)
    assert 2 <= len(found) <= 8 and all(low <= tick <= high for tick in found)


def test_ticks_of_what_is_counted_are_whole():
    assert all(tick == int(tick) for tick in svg.ticks((0.5, 6.5), whole=True))


@pytest.fixture
def tab(tmp_path):
    from playwright.sync_api import sync_playwright

    (tmp_path / "page.html").write_text(
        "<!doctype html><meta charset='utf-8'>"
        + scrub.scrub(frames(), "step", "three greys", "one", first=0, fps=50)
        + scrub.scrub(frames(2), "step", "two greys", "two"),
        encoding="utf-8",
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab, complaints = browser.new_page(viewport={"width": 360, "height": 800}), []
        tab.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto((tmp_path / "page.html").as_uri())
        yield tab
        browser.close()
    assert not complaints, "the console of a page"


def seen(figure) -> tuple[str, str, str]:
    """Number, picture and label that show, each of one frame alone."""
    (shown,) = figure.locator("section:visible").all()
    return shown.inner_text(), shown.locator("img").get_attribute("src"), shown.get_attribute("aria-label")


@in_browser
def test_the_keyboard_moves_one_figure_and_its_words(tab):
    first, second = tab.locator("figure").all()
    other, slider = seen(second), first.get_by_role("slider", name="step")
    found = [seen(first)]
    slider.focus()
    for key in ("ArrowRight", "End", "Home"):
        slider.press(key)
        found.append(seen(first))
        assert slider.get_attribute("aria-valuetext") == found[-1][2]
    assert [label for _, _, label in found] == ["step 1", "step 2", "step 3", "step 1"]
    assert len({text for text, _, _ in found}) == len({src for _, src, _ in found}) == 3
    assert seen(second) == other
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


@in_browser
def test_play_runs_to_the_end_and_starts_again(tab):
    figure = tab.locator("figure").first
    play = figure.get_by_role("button")
    for _ in range(2):
        play.press("Enter")
        figure.get_by_role("button", name="play").wait_for()  # it says pause while it runs
        assert seen(figure)[2] == "step 3"


@in_browser
def test_less_motion_leaves_the_slider_and_print_the_frame(tab):
    figure = tab.locator("figure").first
    assert figure.get_by_role("button").is_visible()
    tab.emulate_media(reduced_motion="reduce")
    assert not figure.locator("button").is_visible() and figure.get_by_role("slider").is_visible()
    tab.emulate_media(media="print")
    assert not figure.locator("input").is_visible() and seen(figure)[2] == "step 1"
