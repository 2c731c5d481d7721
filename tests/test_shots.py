"""`make shots` takes each page in both themes and both sizes, whole."""

import numpy as np
import pytest
import shots
from chromium import PATH
from PIL import Image

PAGE = """<html><body style="margin: 0; height: 1500px"><article>page</article>
<script>document.body.style.background = localStorage.theme == "dark" ? "black" : "white"</script>"""


@pytest.mark.skipif(PATH is None, reason="no Chromium on PATH")
def test_a_page_is_taken_in_both_themes_and_sizes(tmp_path):
    site, out = tmp_path / "site", tmp_path / "shots"
    (site / "notebooks").mkdir(parents=True)
    for name in ("index", "notebooks/a", "notebooks/b"):
        (site / f"{name}.html").write_text(PAGE)
    assert shots.take(site, out, ["a"]) == 4
    for theme, ground in (("light", 255), ("dark", 0)):
        for size, (width, _) in shots.SIZES.items():
            (file,) = (out / f"{theme}-{size}").iterdir()
            picture = np.asarray(Image.open(file).convert("L"))
            assert file.name == "notebooks-a.png" and picture.shape == (1500, width)
            assert picture[-1, -1] == ground
