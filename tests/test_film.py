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


def test_every_frame_comes_back_to_the_bit_at_its_speed():
    frames = noise_clip(0)
    picture = decoded(film.animated(frames, fps=10))
    assert picture.n_frames == len(frames) and picture.info["loop"] == 0
    for i, frame in enumerate(frames):
        picture.seek(i)
        assert np.array_equal(np.array(picture.convert("RGB")), frame)
        assert picture.info["duration"] == (100 if i < len(frames) - 1 else 100 * film.HOLD)


def test_a_film_too_large_for_a_page_loses_detail_but_no_frame():
    smooth = np.linspace(0, 200, 256)[:, None, None] + np.zeros((17, 256, 256, 3))
    noisy = (smooth + np.random.default_rng(0).normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)
    address = film.animated(noisy, fps=8)
    picture = decoded(address)
    assert len(address) <= film.LIMIT and picture.n_frames == len(noisy)
    assert np.abs(np.array(picture.convert("RGB"), dtype=float) - noisy[0]).mean() < 6


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
    assert decoded(source).size == (2 * 64 + film.GAP, 64)
    (still,) = re.findall(r'media="\(prefers-reduced-motion: reduce\), print" srcset="([^"]+)"', page)
    assert np.array_equal(np.array(decoded(still)), film.side_by_side(clips)[-1])


@pytest.mark.parametrize(
    ("clips", "labels", "message"),
    [
        ([noise_clip(0)], ["a", "b"], "2 labels for 1 clips"),
        ([noise_clip(0) / 255.0], ["a"], "must be uint8 of shape"),
        ([noise_clip(0)[0]], ["a"], r"not uint8 \(64, 64, 3\)"),
        ([noise_clip(0), noise_clip(1)[:5]], ["a", "b"], r"not uint8 \(5, 64, 64, 3\) beside"),
    ],
)
def test_clips_that_cannot_be_shown_are_refused(clips, labels, message):
    with pytest.raises(ValueError, match=message):
        film.film(clips, labels, alt="")
