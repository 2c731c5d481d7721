"""A film holds every frame as it was, and says in words what it shows."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from adatsq import film


def noise_clip(seed: int, shape=(17, 64, 64, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def decoded(address: str) -> Image.Image:
    head, data = address.split(",")
    assert head in ("data:image/webp;base64", "data:image/png;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_every_frame_comes_back_to_the_bit():
    frames = noise_clip(0)
    picture = np.array(decoded(film.strip(frames)).convert("RGB"))
    assert np.array_equal(picture, np.concatenate(frames))


def test_a_film_too_large_for_a_page_loses_detail_but_no_frame():
    smooth = np.linspace(0, 200, 256)[:, None, None] + np.zeros((17, 256, 256, 3))
    noisy = (smooth + np.random.default_rng(0).normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)
    address = film.strip(noisy)
    picture = np.array(decoded(address).convert("RGB"), dtype=float)
    assert len(address) <= film.LIMIT and len(picture) == 17 * 256
    assert np.abs(picture - np.concatenate(noisy)).mean() < 6


def test_clips_stand_side_by_side_with_a_white_gap():
    a, b = noise_clip(1), noise_clip(2)
    both = film.side_by_side([a, b])
    assert np.array_equal(both[:, :, :64], a) and np.array_equal(both[:, :, 64 + film.GAP :], b)
    assert (both[:, :, 64 : 64 + film.GAP] == 255).all()


def test_the_page_needs_no_other_file_and_describes_itself():
    clips = [noise_clip(i) for i in (3, 4)]
    page = film.film(clips, ["full precision", "W4 < W8"], alt='two "clips"', title="A & B")
    assert 'alt="two &quot;clips&quot;"' in page and "W4 &lt; W8" in page and "A &amp; B" in page
    assert not re.search(r"https?:|<script", page)
    (source,) = re.findall(r'src="([^"]+)"', page)
    assert decoded(source).size == (2 * 64 + film.GAP, 17 * 64)
    (still,) = re.findall(r'media="\(prefers-reduced-motion: reduce\), print" srcset="([^"]+)"', page)
    assert np.array_equal(np.array(decoded(still)), film.side_by_side(clips)[-1])


@pytest.mark.parametrize(
    ("clips", "labels", "message"),
    [
        ([noise_clip(0)], ["a", "b"], "2 labels for 1 clips"),
        ([noise_clip(0) / 255.0], ["a"], "must be uint8 of shape"),
        ([noise_clip(0)[0]], ["a"], r"not uint8 \(64, 64, 3\)"),
        ([noise_clip(0, (300, 64, 8, 3))], ["a"], "19200 pixels in all"),
        ([noise_clip(0), noise_clip(1)[:5]], ["a", "b"], r"not uint8 \(5, 64, 64, 3\) beside"),
    ],
)
def test_clips_that_cannot_be_shown_are_refused(clips, labels, message):
    with pytest.raises(ValueError, match=message):
        film.film(clips, labels, alt="")


NOW = "e => getComputedStyle(e).objectPosition"  # the frame that is shown
GO_TO = """moment => {
    const [film] = document.getAnimations();
    film.pause();
    film.currentTime = moment;
}"""
MOVES = "([e, then]) => getComputedStyle(e).objectPosition != then"


def test_it_shows_each_frame_for_as_long_as_it_should(tab):
    """At moments of the film's own clock: frame i from i / fps on, the last one for HOLD times as long."""
    clip = np.repeat(np.arange(0, 250, 25, dtype=np.uint8), 16 * 16 * 3).reshape(10, 16, 16, 3)
    tab.set_content(film.film([clip], ["grey"], "darker to lighter", fps=10, width=16))
    picture = tab.locator("picture img")
    for moment in (0.5, 1.5, 5.5, 8.5, 9.5, 9 + film.HOLD - 0.5, 9 + film.HOLD + 0.5):
        tab.evaluate(GO_TO, 100 * moment)
        seen = np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("L"))
        expected = clip[min(9, int(moment % (9 + film.HOLD))), 0, 0, 0]
        assert seen.shape == (16, 16) and (seen == expected).all(), f"at frame {moment}"


def test_a_key_stops_it_where_it_is_and_lets_it_go_on(tab):
    tab.set_content(film.film([noise_clip(0)], ["noise"], "noise", fps=30))
    picture, box = tab.locator("picture img"), tab.get_by_label("pause")
    handle = picture.element_handle()
    tab.wait_for_function(MOVES, arg=[handle, picture.evaluate(NOW)])
    tab.keyboard.press("Tab")
    tab.keyboard.press("Space")
    assert box.is_checked()
    stopped = picture.evaluate(NOW)
    tab.wait_for_timeout(200)
    assert picture.evaluate(NOW) == stopped
    tab.keyboard.press("Space")
    tab.wait_for_function(MOVES, arg=[handle, stopped])


def test_who_wants_less_motion_sees_the_last_frame_and_no_box(tab):
    tab.emulate_media(reduced_motion="reduce")
    tab.set_content(film.film([noise_clip(0)], ["noise"], "noise", width=64))
    seen = np.asarray(Image.open(io.BytesIO(tab.locator("picture img").screenshot())).convert("RGB"))
    assert np.array_equal(seen, noise_clip(0)[-1]) and not tab.get_by_label("pause").is_visible()
