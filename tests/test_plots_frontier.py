"""Figures of frontiers show each policy, each path and each beam that they are given."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from adatsq import plots, plots_frontier
from adatsq.policy import LayerShape, Policy
from adatsq.search import FrontPath, SearchResult

TIMESTEPS = [1.0, 0.5]


@pytest.fixture(autouse=True)
def styled():
    plots.style()
    yield
    plt.close("all")


def result(paths: dict[tuple[str, str], tuple[float, float]]) -> SearchResult:
    """paths: {candidates: (average bits, error)}, all of them on the front."""
    layers = [LayerShape("blocks.0.to_q", 4, 4, 1)]
    policy = Policy(TIMESTEPS, layers, np.full((2, 1), 4), "m")
    begun = {first: i for i, first in enumerate(dict.fromkeys(first for first, _ in paths))}
    rows = [[0, i, -1, first, 3.0, 0.0, True] for first, i in begun.items()]
    for i, ((first, last), point) in enumerate(paths.items()):
        rows.append([1, len(begun) + i, begun[first], last, *point, True])
    columns = ["step", "path", "parent", "candidate", "average_bits", "error", "kept"]
    front = [FrontPath(policy, *point, names) for names, point in paths.items()]
    return SearchResult(front, pd.DataFrame(rows, columns=columns), 3.0, 0.1)


TRUTH = result({("low", "low"): (3.0, 0.9), ("low", "high"): (3.6, 0.4), ("high", "high"): (4.2, 0.1)})
BEAM = result({("low", "high"): (3.6, 0.4)})


def test_a_row_per_policy_and_a_box_per_step():
    ax = plots_frontier.policies(TRUTH, {1: BEAM}, ["1", "0.5"], ["low", "mid", "high"])
    assert len(ax.patches) == 3 * 2
    assert [label.get_text() for label in ax.get_yticklabels()] == ["3.00", "3.60", "4.20"]
    said = [text.get_text() for text in ax.texts]
    assert "no beam" in said[0] and "M = 1" in said[1] and "error 0.1" in said[2]
    faces = [tuple(np.round(patch.get_facecolor(), 3)) for patch in ax.patches]
    assert faces[0] == faces[1] == faces[2] != faces[3]


def test_beams_have_their_share_in_the_legend():
    ax = plots_frontier.beams_on_front(TRUTH, {1: BEAM, 4: TRUTH}, "title")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert any("M = 4: 100.0%" in label for label in labels)
    assert any("M = 1:" in label and "100" not in label for label in labels)


def test_a_panel_per_width():
    table = pd.DataFrame(
        {
            "candidates": ["low low", "high high"] * 2,
            "average_bits": [3.0, 4.2] * 2,
            "error": [0.9, 0.1, 0.8, 0.2],
            "beam=1": [True, False, True, True],
            "on_front": [True, True, True, True],
            "model": "m",
            "w_bits": [3, 3, 4, 4],
        }
    )
    figure = plots_frontier.stored(table)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["W4: 2 policies", "W3: 2 policies"]
    assert figure.axes[0].get_ylabel() and figure.axes[0].get_xlabel()


def test_policies_side_by_side_share_a_legend():
    layers = [LayerShape("blocks.0.to_q", 4, 4, 1)]
    three, four = (Policy(TIMESTEPS, layers, np.full((2, 1), bits), "m") for bits in (3, 4))
    figure = plots_frontier.policy_maps({"one": {"low": three, "high": four}, "two": {"high": four}}, "maps")
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["one, low: 3.00 bits", "one, high: 4.00 bits", "", "two, high: 4.00 bits"]
    assert not any(ax.get_legend() for ax in figure.axes) and len(figure.legends) == 1


def test_six_widths_leave_the_title_and_all_else_in_sight():
    widths = np.array([[2, 3, 4], [5, 6, 8]])
    layers = [LayerShape(f"blocks.{i}.to_q", 4, 4, 1) for i in range(3)]
    policy = Policy(TIMESTEPS, layers, widths, "m")
    title = "The policies that were picked for a budget of many widths to choose from"
    figure = plots_frontier.policy_maps({"one": {"low": policy, "high": policy}}, title)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 6
    parts = [legend, figure._suptitle, *(ax.xaxis for ax in figure.axes), *(ax for ax in figure.axes)]
    boxes = [part.get_tightbbox(figure.canvas.get_renderer()) for part in parts]
    for box in boxes[:2]:
        assert 0 <= box.x0 and box.x1 <= figure.bbox.width and 0 <= box.y0 and box.y1 <= figure.bbox.height
        assert not any(box.overlaps(other) for other in boxes if other is not box)
