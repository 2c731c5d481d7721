"""Growth of the error with the length of the run, against growth that is known."""

import numpy as np
import pandas as pd
import pytest

from adatsq import tables_steps


def ends(**growth) -> pd.DataFrame:
    """Errors of 200 pictures after 4, 10 and 50 steps; each policy's mean grows by the given factor."""
    rng = np.random.default_rng(0)
    of_picture, rows = rng.gamma(4.0, 0.25, 200), []
    for method, factor in growth.items():
        for steps, times in ((4, 1.0), (10, factor**0.5), (50, factor)):
            noise = np.exp(0.2 * rng.standard_normal(200) - 0.02)
            values = of_picture * times * noise
            rows += [{"method": method.replace("_", " "), "steps": steps, "picture": i, "error": v}
                     for i, v in enumerate(values)]  # fmt: skip
    return pd.DataFrame(rows)


def test_growth_is_the_ratio_of_means_with_a_paired_interval():
    """Pictures differ much more than a picture's two runs do, so the interval is that of the runs alone."""
    table = ends(paper=3.0)
    value, low, high = tables_steps.growth(table, "paper")
    errors = table.pivot(index="picture", columns="steps", values="error")
    assert value == pytest.approx(errors[50].mean() / errors[4].mean())
    residual = (errors[50] - value * errors[4]).std() / errors[4].mean() / 200**0.5  # delta method
    assert high - low == pytest.approx(2 * 1.96 * residual, rel=0.12) and low < 3 < high
    same = tables_steps.growth(table, "paper", "paper")
    assert same == (1, 1, 1)


@pytest.mark.parametrize(
    ("base", "search", "said"),
    [
        (3.0, 0.8, "the search stops the growth"),
        (3.0, 1.0, "whether the search stops the growth cannot be told"),
        (3.0, 2.0, "does not stop the growth, but slows it"),
        (3.0, 3.0, "does not stop the growth, and does not slow it"),
        (1.0, 2.0, "whether there is growth to stop cannot be told"),
        (0.5, 0.5, "it falls by itself"),
    ],
)
def test_words_follow_the_intervals(base, search, said):
    line = tables_steps.verdict(ends(uniform_3=base, paper=search), "paper")
    assert said in line and line.startswith("from 4 to 50 steps the error of 3 bits everywhere becomes ")


def test_one_length_says_nothing():
    table = ends(uniform_3=2.0, paper=1.5)
    assert tables_steps.verdict(table[table.steps == 4], "paper") is None
    assert tables_steps.verdict(table, "lagrangian") is None
    fewer = table[(table.method == "paper") | (table.picture < 50)]
    assert tables_steps.growth(fewer, "paper", "uniform 3") is None


def test_without_pictures_the_means_intervals_are_taken_as_apart():
    """Against a bootstrap that draws other pictures for each run: as wide; the paired one is narrower."""
    table, rows = ends(uniform_3=3.0, paper=1.5), []
    rng = np.random.default_rng(1)
    drawn = {}
    for (method, steps), group in table.groupby(["method", "steps"]):
        values = group.error.to_numpy()
        drawn[method, steps] = values[rng.integers(0, 200, (4000, 200))].mean(1)
        low, high = np.percentile(drawn[method, steps], (2.5, 97.5))
        place = {"method": method, "steps": steps, "step": steps}
        rows.append({**place, "value": values.mean(), "ci_low": low, "ci_high": high})
    steps = pd.DataFrame(rows)
    for method, over in (("paper", None), ("paper", "uniform 3")):
        times = drawn[method, 50] / drawn[method, 4]
        times = times / (drawn[over, 50] / drawn[over, 4]) if over else times
        value, low, high = tables_steps.growth_apart(steps, method, over)
        assert value == pytest.approx(tables_steps.growth(table, method, over)[0])
        assert (low, high) == pytest.approx(tuple(np.percentile(times, (2.5, 97.5))), rel=0.03)
        assert high - low > np.ptp(tables_steps.growth(table, method, over)[1:])
    said = tables_steps.verdict(pd.DataFrame(), "paper", steps)
    assert "does not stop the growth, but slows it" in said
    assert tables_steps.verdict(pd.DataFrame(), "paper", steps[steps.steps == 4]) is None
    assert tables_steps.verdict(pd.DataFrame(), "paper", pd.DataFrame()) is None


def test_what_is_not_stored_is_empty(tmp_path):
    assert tables_steps.read_ends(tmp_path, "m").empty
    pd.DataFrame({"method": ["paper"] * 2, "w_bits": [3, 4]}).to_csv(
        tmp_path / "m-ablation-steps-pictures.csv", index=False
    )
    assert len(tables_steps.read_ends(tmp_path, "m", 4)) == 1
