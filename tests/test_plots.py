"""Figures draw what they are given, and their colours stay apart for eyes with two kinds of cones."""

import base64
import io
import itertools
import math
import pathlib
import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from adatsq import growth, plots, plots_frontier, plots_speed, plots_tables, reweighting
from adatsq.policy import LayerShape, Policy
from adatsq.results import ORDER
from adatsq.search import FrontPath, SearchResult

# Machado, Oliveira and Fernandes 2009: linear RGB as seen with one kind of cones missing.
SEEN = {
    "all cones": np.eye(3),
    "no L cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no M cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no S cones": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
LAYERS = [
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.ff.net.2",
    "single_transformer_blocks.0.proj_out",
]
TIMESTEPS = [1.0, 0.7, 0.3, 0.1]


def lab(color: str, eyes: str) -> np.ndarray:
    """CIE L*a*b* of a colour as these eyes see it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(SEEN[eyes]) @ linear, 0, 1)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.072175],
        [0.0193339, 0.119192, 0.9503041],
    ]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.fixture(autouse=True)
def close_figures():
    with plt.rc_context():
        plots.style()
        yield
    plt.close("all")


ROOT = pathlib.Path(__file__).resolve().parents[1]


def written(files: str) -> set[str]:
    """The colours that stand in files as such."""
    return set(re.findall(r"#[0-9A-Fa-f]{6}\b", "".join(f.read_text("utf-8") for f in ROOT.glob(files))))


# Colours that appear together in a figure.
PALETTES = {
    "methods": plots.METHOD_COLORS,
    "policies": plots_tables.POLICY_COLORS,
    "beams": dict(enumerate(color for color, _ in plots_frontier.BEAMS)),
    "a search's extensions": {reason: color for reason, (color, _) in growth.LOOKS.items()},
    "two calibrations": {"uniform": reweighting.UNIFORM, "weighted": reweighting.WEIGHTED},
    "what is no method": {color: color for color in (*plots.SERIES, plots.GREY, plots.PALE)},
    "kinds of work": plots_speed.WORK_COLORS,
    "eager and compiled": plots_speed.MODES,
    "roofs": plots_speed.ROOFS,
    "explorer": {color: color for color in written("adatsq/explorer*.js")},
}


@pytest.mark.parametrize("eyes", SEEN)
@pytest.mark.parametrize("palette", PALETTES)
def test_colours_are_apart(palette, eyes):
    """A distance of 2.3 is just noticeable; side by side in small dots takes several times that."""
    colors = PALETTES[palette]
    for a, b in itertools.combinations(colors, 2):
        distance = np.linalg.norm(lab(colors[a], eyes) - lab(colors[b], eyes))
        assert distance > 12, f"{a} and {b} are {distance:.1f} apart to eyes with {eyes}"


def test_no_notebook_has_colours_of_its_own():
    """Those that it writes are in the tables above, so they are apart too."""
    known = {*plots.METHOD_COLORS.values(), *plots.SERIES, plots.GREY, plots.PALE, plots.INK}
    assert written("notebooks/*.ipynb") <= known


def test_every_method_of_the_benchmark_has_a_colour():
    assert tuple(plots.METHOD_COLORS) == ORDER


@pytest.mark.parametrize("eyes", SEEN)
def test_more_bits_are_darker(eyes):
    lightness = [lab(to_hex(color), eyes)[0] for color in plots.BIT_COLORS.values()]
    assert list(plots.BIT_COLORS) == sorted(plots.BIT_COLORS)
    assert (np.diff(lightness) < -3).all()


def test_method_colour_ignores_what_follows_the_name():
    assert plots.method_color("adatsq 3.1 bits") == plots.METHOD_COLORS["adatsq"]
    with pytest.raises(ValueError, match="nobody"):
        plots.method_color("nobody")


def test_layer_labels_keep_other_models_words():
    assert plots.layer_label("transformer_blocks.0.attn.to_q") == "double 0 attn.to_q"
    assert plots.layer_label("single_transformer_blocks.12.proj_out") == "single 12 proj_out"
    assert plots.layer_label("blocks.3") == "block 3"


def test_heatmap_shows_every_value_in_its_place():
    values = pd.DataFrame(np.random.default_rng(0).random((4, 3)), TIMESTEPS, LAYERS)
    ax = plots.heatmap(values, "Sensitivity", "I", each_layer=True)
    assert np.array_equal(ax.images[0].get_array(), values.to_numpy().T)  # layers down, time to the right
    assert [t.get_text() for t in ax.get_yticklabels()] == [plots.layer_label(name) for name in LAYERS]
    assert [float(t.get_text()) for t in ax.get_xticklabels()] == TIMESTEPS
    blocks = plots.heatmap(values)
    assert [t.get_text() for t in blocks.get_yticklabels()] == ["double 0", "single 0"]


def test_policy_heatmap_colours_by_bits_and_counts_them():
    bits = np.array([[3, 4, 8], [3, 3, 8], [3, 3, 3], [16, 3, 3]])
    policy = Policy(TIMESTEPS, [LayerShape(name, 4, 4, 1) for name in LAYERS], bits, "model")
    ax = plots.policy_heatmap(policy)
    image = ax.images[0]
    drawn = image.cmap(image.norm(image.get_array()))
    wanted = np.array([[plots.BIT_COLORS[b] for b in row] for row in bits.T])
    assert np.allclose(drawn, wanted)
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == ["3 bit, 67%", "4 bit, 8%", "8 bit, 17%", "16 bit, 8%"]
    assert f"{bits.mean():.2f}" in ax.get_title(loc="left")


def test_lines_end_in_their_names_and_run_from_noise_to_image():
    table = pd.DataFrame({"rtn W4A4": [1.0, 2, 3, 4], "other": [1.0, 2, 3, 4.001]}, index=TIMESTEPS)
    ax = plots.lines(table)
    for line, name in zip(ax.lines, table):
        assert np.array_equal(line.get_ydata(), table[name])
    assert to_hex(ax.lines[0].get_color()) == plots.METHOD_COLORS["rtn"].lower()
    assert ax.xaxis_inverted()
    ax.figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert set(boxes) == set(table)
    assert not boxes["rtn W4A4"].overlaps(boxes["other"]), "two names on top of each other"


def test_front_shows_its_paths_and_only_complete_ones():
    policy = Policy([1.0], [LayerShape("a.0.b", 4, 4, 1)], [[3]], "model")
    front = [FrontPath(policy, 3.0, 0.5, ("low",)), FrontPath(policy, 4.0, 0.1, ("high",))]
    rows = [
        [0, 0, -1, "low", 3.0, 0.2, True],
        [1, 1, 0, "low", 3.0, 0.5, True],
        [1, 2, 0, "high", 4.0, 0.1, True],
    ]
    columns = ["step", "path", "parent", "candidate", "average_bits", "error", "kept"]
    result = SearchResult(front, pd.DataFrame(rows, columns=columns), 3.0, 0.0)
    complete, shown = plots.front(result).collections
    assert np.array_equal(complete.get_offsets(), [[3.0, 0.5], [4.0, 0.1]])
    assert np.array_equal(shown.get_offsets(), [[3.0, 0.5], [4.0, 0.1]])


def test_bars_have_the_height_and_the_interval_of_their_row():
    columns = ["method", "metric", "value", "ci_low", "ci_high"]
    rows = [
        ("fp", "total", 0.9, 0.8, 0.95),
        ("rtn", "total", 0.5, 0.4, 0.7),
        ("rtn", "counting", 0.3, 0.1, 0.4),
    ]
    ax = plots.bars(pd.DataFrame(rows, columns=columns))
    heights = {
        (bars.get_label(), ax.get_xticklabels()[i].get_text()): bar.get_height()
        for bars in ax.containers
        if hasattr(bars, "patches")
        for i, bar in enumerate(bars)
    }
    assert heights["fp", "total"] == 0.9 and heights["rtn", "counting"] == 0.3
    assert math.isnan(heights["fp", "counting"]), "a bar for a score that was not given"
    spans = [tuple(path[:, 1]) for lines in ax.collections for path in lines.get_segments() if len(path)]
    for _, _, _, low, high in rows:
        assert any(np.allclose(span, (low, high)) for span in spans)


def test_differences_are_read_from_top_to_bottom():
    rows = [("first", "adatsq", 0.1, 0.05, 0.2), ("second", "rtn", -0.1, -0.2, 0.0)]
    ax = plots.differences(pd.DataFrame(rows, columns=["row", "method", "value", "ci_low", "ci_high"]))
    places = {text.get_text(): y for text, y in zip(ax.get_yticklabels(), ax.get_yticks())}
    assert places["first"] > places["second"]
    intervals, dots = ax.collections
    assert np.array_equal(dots.get_offsets(), [[0.1, places["first"]], [-0.1, places["second"]]])
    assert [to_hex(c) for c in dots.get_facecolor()] == [
        plots.METHOD_COLORS[m].lower() for m in ("adatsq", "rtn")
    ]
    assert [segment[:, 0].tolist() for segment in intervals.get_segments()] == [[0.05, 0.2], [-0.2, 0.0]]


def test_image_grid_places_images_and_words():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    captions = [[f"{i}{j}" for j in range(3)] for i in range(2)]
    figure = plots.image_grid(images, ["fp", "rtn"], ["a", "b", "c"], captions)
    axes = np.array(figure.axes).reshape(2, 3)
    for i, j in np.ndindex(2, 3):
        assert np.array_equal(axes[i, j].images[0].get_array(), images[i, j])
        assert axes[i, j].get_xlabel() == captions[i][j]
    assert [ax.get_title() for ax in axes[0]] == ["a", "b", "c"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["fp", "rtn"]


def test_image_grid_leaves_missing_images_blank():
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    figure = plots.image_grid([[image, image], [image]])
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 0]


def test_image_tag_holds_the_picture_and_its_words():
    figure = plots.image_grid([[np.zeros((8, 8, 3), dtype=np.uint8)]])
    tag = plots.image_tag(figure, 'black, "very"')
    found = re.fullmatch(
        r'<img alt="black, &quot;very&quot;" style="[^"]*" src="data:image/png;base64,(.+)">', tag
    )
    assert (
        Image.open(io.BytesIO(base64.b64decode(found[1]))).size[0] > figure.get_size_inches()[0] * figure.dpi
    )
