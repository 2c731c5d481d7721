"""What methods cost and save, in tables and sentences."""

import pandas as pd
import pytest

from adatsq import tables, tables_costs
from adatsq.results import ORDER


@pytest.fixture
def scores() -> tables.Scores:
    """Four methods at W4A4, whose Fisher information took as long for all that do not use it."""
    rows = []
    for method, bits in {"q-dit": 4.1, "quarot": 4.0, "svdquant": 7.0, "adatsq": 4.0}.items():
        place = {"model": "m", "method": method, "w_bits": 4, "a_bits": 4.0, "name": f"{method} W4A4"}
        facts = {
            "total": 0.5,
            "effective_w_bits": bits,
            "effective_bits": bits,
            "average_bits": 4.0,
            "flop_weighted_bits": bits,
            "transformer_bytes": 1000.0,
            "fisher_s": 9.5,
            "search_s": 2.5 if method == "adatsq" else None,
        }
        rows += [{**place, "metric": m, "value": v} for m, v in facts.items() if v is not None]
    table = pd.DataFrame(rows).assign(ci_low=None, ci_high=None)
    return tables.Scores(table, pd.DataFrame())


def test_sizes_follow_from_bytes_and_bits(scores):
    row = tables_costs.saved(scores).loc["adatsq W4A4"]
    assert row["parameters, M"] == pytest.approx(2000 / 1e6)  # 1000 bytes of 4 bits each
    assert row["smaller by"] == pytest.approx(row["16 bit, MB"] / row["saved, MB"]) == 4


def test_costs_show_what_a_row_needs(scores):
    table = tables_costs.costs(scores, ("adatsq", "svdquant"))
    assert table.at["adatsq W4A4", "search, s"] == 2.5 and table.at["adatsq W4A4", "Fisher, s"] == 9.5
    assert "svdquant W4A4" not in table.index  # nothing but a Fisher information that it does not use


def test_what_a_search_of_groups_cost_and_had_to_choose_from(scores):
    """With and without seconds, with and without a choice; no line for rows that have no such search."""
    place = scores.table[scores.table.name == "q-dit W4A4"].iloc[[0]]
    facts = {"group_tried": 1, "group_calls": 50, "group_mean": 128, "group_s": 2.5}
    layers = {"group_32_layers": 7, "group_128_layers": 4, "group_192_layers": 0}
    more = [place.assign(metric=metric, value=value) for metric, value in {**facts, **layers}.items()]
    found = tables.Scores(pd.concat([scores.table, *more]), scores.paired)
    wanted = (
        "inputs: 32 (7 layers), 128 (4 layers); of no layer: 192. Taken: the largest that divide, without a"
    )
    said = tables_costs.group_search(found, "q-dit W4A4")
    assert wanted in said and said.endswith("search, 128 on average; 1 assignment, 50 calls, 2.5 s")
    assert tables_costs.costs(found, ("q-dit",)).at["q-dit W4A4", "group sizes, calls"] == 50
    found.table.loc[found.table.metric == "group_tried", "value"] = 20
    shared = tables.Scores(found.table[~found.table.metric.str.endswith("_s")], found.paired)
    said = tables_costs.group_search(shared, "q-dit W4A4")
    assert said.endswith("Taken: the best of those tried, 128 on average; 20 assignments, 50 calls")
    assert tables_costs.costs(shared, ("q-dit",)).columns.tolist() == ["group sizes, calls"]
    assert tables_costs.group_search(scores, "q-dit W4A4") is None


def test_calls_are_added_up_by_hand():
    """A search's forward, and three times those of the Fisher information; NaN where one of them is."""
    facts = {
        "gptq W4A4": {"calibration_calls": 100},
        "svdquant W4A4": {"calibration_calls": 100},
        "svdquant+gptq W4A4": {"calibration_calls": 200},
        "adatsq-weights W4A4": {"calibration_calls": 100, "fisher_calls": 50},
        "adatsq W4A4": {"calibration_calls": 100, "fisher_calls": 50, "search_calls": 30},
        "adatsq+ladder W4A4": {"calibration_calls": 100, "search_calls": 30},
        "rtn W4A4": {"calibration_calls": 0},
    }
    rows = [{"name": n, "metric": m, "value": float(v)} for n, f in facts.items() for m, v in f.items()]
    found = tables_costs.calls(tables.Scores(pd.DataFrame(rows), pd.DataFrame()))
    assert list(found.index) == list(ORDER[1:])
    known = {
        "rtn": 0,
        "gptq": 100,
        "svdquant": 100,
        "svdquant+gptq": 200,
        "adatsq-weights": 250,
        "adatsq": 280,
    }
    assert found.dropna().to_dict() == known
    said = tables_costs.equal_calls(found)
    assert said.startswith("100 calls: gptq, svdquant. Not equal, times as many: rtn 0, svdquant+gptq 2, ")
    assert (
        "adatsq-weights 2.5, adatsq 2.8. Not recorded: " in said
        and "adatsq+ladder" in said.split("recorded")[1]
    )
    assert tables_costs.equal_calls(found * float("nan")) == "no calls are stored"


def test_weights_are_sized_once_per_width(scores):
    table = tables_costs.weights(scores)
    assert table.index.tolist() == ["quarot", "q-dit", "svdquant"]  # a policy changes no weight
    assert list(table) == ["W4, MB", "W4, bits", "W4, smaller by"]
    assert table.at["svdquant", "W4, smaller by"] == pytest.approx(16 / 7) and table["W4, MB"].eq(1e-3).all()
    disk = scores.table[scores.table.metric == "transformer_bytes"].assign(metric="disk_bytes", value=1500.0)
    more = tables.Scores(pd.concat([scores.table, disk]), scores.paired)
    assert tables_costs.weights(more)["W4, MB on disk"].eq(1.5e-3).all()
