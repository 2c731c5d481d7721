"""How much of a gap is closed, against gaps that are known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from adatsq import evaluate, tables, tables_gap


def pictures(**psnr) -> pd.DataFrame:
    names = {"uniform": "uniform 3", "flops": "lagrangian, flops"}
    return pd.concat(
        pd.DataFrame({"search": names.get(s, s), "budget": 3.1, "picture": range(len(v)), "psnr": v})
        for s, v in psnr.items()
    )


def test_three_decibels_are_half_of_the_squared_error():
    rows = tables_gap.gaps(pictures(uniform=[20.0] * 8, lagrangian=[20 + 10 * np.log10(2)] * 8))
    assert rows[["from", "search"]].values.tolist() == [["fixed 3 bits", "lagrangian"]]
    assert rows[["value", "ci_low", "ci_high"]].to_numpy() == pytest.approx(0.5)


def test_squared_error_is_that_of_the_pictures():
    a, b = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), dtype=np.uint8)
    wanted = np.square(a.astype(float) - b).mean((1, 2, 3))
    np.testing.assert_allclose(tables_gap.squared_error(pd.Series(evaluate.psnr(a, b))), wanted, rtol=1e-9)


def test_the_interval_is_that_of_a_ratio_of_means():
    """Against the delta method: after = before / 2 + noise, whose ratio has a known standard error."""
    random = np.random.default_rng(1)
    before = random.gamma(4.0, 1.0, 400)
    after = 0.5 * before + 0.3 * random.standard_normal(400)
    share, low, high = tables_gap.share_closed(before, after)
    ratio = after.mean() / before.mean()
    error = (after - ratio * before).std() / before.mean() / np.sqrt(len(before))
    assert share == pytest.approx(1 - ratio)
    assert high - low == pytest.approx(2 * norm.ppf(0.975) * error, rel=0.1)


def test_a_gap_of_nothing_has_no_share():
    random = np.random.default_rng(0)
    assert tables_gap.share_closed(random.standard_normal(50), np.ones(50)) is None
    assert tables_gap.share_closed(np.array([]), np.array([])) is None


@pytest.mark.parametrize(
    ("decibels", "said"),
    [
        (6.0, "the aim is met by `lagrangian` (+75%)"),
        (1.0, "the aim is not met by `lagrangian` (+21%)"),
        (-2.0, "the aim is not met by `lagrangian` (-58%)"),
    ],
)
def test_the_words_follow_the_numbers(decibels, said):
    ((line),) = tables_gap.sentences("m", pictures(uniform=[20.0] * 9, lagrangian=[20.0 + decibels] * 9))
    assert line == f"m, of the gap of fixed 3 bits: {said}"


def test_a_row_says_what_it_spends_and_what_it_closes():
    found = pictures(uniform=[20.0] * 9, lagrangian=[26.0] * 9, flops=[21.0] * 9)
    searches = ["uniform 3", "lagrangian", "lagrangian, flops"]
    spent = {"average_bits": [3, 3.1, 3.2], "flop_weighted_bits": [3, 3.25, 3.1], "budget": 3.1}
    table = tables_gap.table(found, pd.DataFrame({"search": searches, **spent}))
    assert list(table.index) == searches[1:]
    assert list(table.loc["lagrangian"]) == ["3.100", "3.250", "26.00", "+75%<br><small>+75% to +75%</small>"]
    assert table.columns[-1] == "fixed 3 bits, 20.00 dB" and table.weighted["lagrangian, flops"] == "3.100"
    assert tables_gap.table(pd.DataFrame(), pd.DataFrame()).empty


def test_an_interval_over_the_aim_decides_nothing():
    assert tables_gap.verdict(0.4, 0.6) == "whether the aim is met cannot be told"


@pytest.mark.parametrize("rows", [pd.DataFrame(), pictures(lagrangian=[20.0]), pictures(uniform=[20.0])])
def test_missing_rows_are_named(rows):
    assert list(tables_gap.sentences("m", rows)) == ["m: not measured at 3.1 bits"]


def test_what_8_bits_leave_is_the_weights(tmp_path):
    """At 20 dB and 23.01 dB half of the squared error goes; the aim of a half takes all of it."""
    half = 20 + 10 * np.log10(2)
    found = pictures(uniform=[20.0] * 8, eight=[half] * 8).replace("eight", "uniform 8")
    assert tables_gap.reachable(found) == pytest.approx((0.5, 0.5, 0.5))
    said = tables_gap.floor_sentence("m", found)
    assert "close 50% of the gap" in said and said.endswith("takes 100% of all that activation bits can give")
    less = pictures(uniform=[20.0] * 8, eight=[21.0] * 8).replace("eight", "uniform 8")
    said = tables_gap.floor_sentence("m", less)
    assert "the other 79% are the weights': no policy" in said and said.endswith("expected to meet the aim")
    for rows in (pd.DataFrame(), pictures(uniform=[20.0]), pictures(eight=[20.0])):
        assert tables_gap.floor_sentence("m", rows) == "m: 8 bits everywhere are not measured"
    other = pd.concat([pictures(uniform=[20.0] * 3), pictures(eight=[22.0] * 8)])
    other = other.replace("eight", "uniform 8")
    assert tables_gap.reachable(other) is None  # of other pictures


def test_all_prompts_count_once_each():
    """Four pictures of a prompt that are alike are one: the interval is that of 30 prompts, not of 120."""
    random, rows = np.random.default_rng(0), []
    before = np.repeat(random.gamma(4.0, 10.0, 30), 4)
    after = np.repeat(0.5 * before[::4] * np.exp(0.3 * random.standard_normal(30)), 4)
    for method, a_bits, errors in (("hadamard+gptq", 3.0, before), ("hadamard+gptq+lagrangian", 3.1, after)):
        psnr = 10 * np.log10(255.0**2 / errors)
        place = {"method": method, "w_bits": 3, "a_bits": a_bits}
        rows.append(pd.DataFrame({**place, "prompt": np.repeat(range(30), 4), "psnr": psnr}))
    images = pd.concat(rows)
    ((_, row),) = tables_gap.of_all_prompts(images).iterrows()
    share, low, high = tables_gap.share_closed(before[::4], after[::4])
    assert (row.value, row.ci_low, row.ci_high) == pytest.approx((share, low, high)) and row.n == 30
    said = tables_gap.all_sentence("m", found := tables_gap.of_all_prompts(images))
    best = f"from `hadamard+gptq` by `hadamard+gptq+lagrangian`, {share:.0%} ({low:+.0%} to {high:+.0%})"
    assert said.startswith("m, 30 prompts: ") and said.endswith(f": all 1. Most is closed {best}")
    nothing = tables_gap.of_all_prompts(images[:120])
    assert tables_gap.all_sentence("m", nothing) == "m: not measured at 3.1 bits"
    table = tables_gap.by_model({"m": found, "n": nothing})
    assert table.index.tolist() == [("from hadamard+gptq", "hadamard+gptq+lagrangian")]
    assert table.columns.tolist() == ["m"] and table.iloc[0, 0].startswith(f"{share:+.0%}<br>")
    assert tables_gap.by_model({"n": nothing}).empty


def test_what_rounds_to_zero_has_no_sign():
    assert [tables_gap.percent(share) for share in (-0.004, 0.0, 0.126, -1.13)] == [
        "0%",
        "0%",
        "+13%",
        "-113%",
    ]
    assert [tables_gap.percent(share, "") for share in (-0.004, 0.126)] == ["0%", "13%"]


BEAM, PRICES = "hadamard+gptq+search", "hadamard+gptq+prices"
LAGRANGIAN, WIDTHS = "hadamard+gptq+lagrangian", "hadamard+gptq+widths"


def scores(*rows: tuple) -> tables.Scores:
    """Scores of paired totals: (name, baseline, value, low, high)."""
    columns = ["name", "baseline", "value", "ci_low", "ci_high"]
    return tables.Scores(pd.DataFrame(), pd.DataFrame(rows, columns=columns).assign(metric="total"))


@pytest.fixture
def judged() -> pd.DataFrame:
    """A gap of 0.4 that can be told from none, and the beam's of 0.1 that cannot."""
    return tables_gap.totals(
        scores(
            ("hadamard+gptq W3A3", "fp", -0.4, -0.5, -0.3),
            (f"{BEAM} W3A3.1", "fp", -0.1, -0.3, 0.1),
            (f"{PRICES} W3A3.1", "hadamard+gptq", 0.3, 0.24, 0.36),
            (f"{WIDTHS} W3A3.1", "hadamard+gptq", -0.45, -0.7, -0.2),
            (f"{LAGRANGIAN} W3A3.1", "hadamard+gptq", 0.0, -0.1, 0.1),
            (f"{PRICES} W3A3.1", BEAM, 0.05, 0.01, 0.09),
            (f"{PRICES} W3A3.6", BEAM, 0.9, 0.8, 1.0),
        )
    )


def test_the_judged_gap(judged):
    found = judged.set_index(["from", "search"])
    row = found.loc[("hadamard+gptq", PRICES)]
    assert row[["gap", "value", "ci_low", "ci_high"]].tolist() == pytest.approx([0.4, 0.75, 0.6, 0.9])
    row = found.loc[(BEAM, PRICES)]
    assert row.points == 0.05 and np.isnan(row.gap) and np.isnan(row.value)
    table = tables_gap.by_model({"m": judged}, tables_gap.total_cell)
    assert table.index.tolist() == [
        *(("from hadamard+gptq", search) for search in (LAGRANGIAN, PRICES, WIDTHS)),
        (f"from {BEAM}", PRICES),
    ]
    assert table.m.tolist()[2:] == [
        "<b>-0.450</b><br><small>-0.700 to -0.200</small><br><small>closes -112%<br>(-175% to -50%)</small>",
        "<b>+0.050</b><br><small>+0.010 to +0.090</small>",
    ]


def test_searches_that_raise_and_lower_the_total_are_named(judged):
    first, second = tables_gap.total_sentences("m", judged)
    assert first == (
        f"m, 4 differences: the total is raised from `hadamard+gptq` by `{PRICES}` (+0.300), and from "
        f"`{BEAM}` by `{PRICES}` (+0.050); the total is lowered from `hadamard+gptq` by `{WIDTHS}` (-0.450); "
        "1 cannot be told from zero"
    )
    assert second == (
        f"m, the gap is 0.400 from `hadamard+gptq`; the aim is met: from `hadamard+gptq` by `{PRICES}`; the "
        f"aim is not met: the other 2. Most is closed from `hadamard+gptq` by `{PRICES}`, 75% (+60% to +90%)"
    )
    _, second = tables_gap.total_sentences("m", judged[judged.gap.isna()])
    assert second == "m: no start's gap can be told from none, so there is no share of it"
    nothing = tables_gap.totals(scores())
    assert list(tables_gap.total_sentences("m", nothing)) == ["m: no search is judged at 3.1 bits"]


def test_where_the_total_and_the_squared_error_disagree(judged):
    """Prices: nearer and higher from the start, not told from the beam. Widths: nearer, and yet lower."""
    rows = [
        ("hadamard+gptq", PRICES, 0.2, 0.3),
        ("hadamard+gptq", WIDTHS, 0.2, 0.3),
        ("hadamard+gptq", LAGRANGIAN, -0.3, -0.2),
        (BEAM, PRICES, -0.1, 0.1),
    ]
    shares = pd.DataFrame(rows, columns=["from", "search", "ci_low", "ci_high"])
    assert tables_gap.disagreement("m", judged, shares) == (
        f"m, the error falls, and so does the total: from `hadamard+gptq` by `{WIDTHS}`; the total rises, "
        f"but whether the error falls cannot be told: from `{BEAM}` by `{PRICES}`"
    )
    assert tables_gap.disagreement("m", judged, shares[:1]) == "m, nowhere"
    assert tables_gap.disagreement("m", judged, pd.DataFrame()) == "m: not both are measured"
