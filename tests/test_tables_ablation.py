"""What the ablation and the controls stored, as tables, figures and sentences."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from adatsq import plots_tables, search_compare, tables_ablation, tables_steps
from adatsq.policy import Policy, act_layers
from adatsq.trace import record


@pytest.fixture
def found(tmp_path) -> tables_ablation.Ablation:
    """Temperatures at 3 and 4 bits; a search and controls on two pictures; runs of 2 and 3 steps."""
    row = {"part": "tau", "w_bits": 3, "a_bits": 3.0, "metric": "psnr", "method": "adatsq-weights"}
    rows = [
        {**row, "setting": "tau inf", "value": 20.0, "ci_low": 19, "ci_high": 21},
        {**row, "setting": "tau 2", "value": 21.0, "ci_low": 20, "ci_high": 22},
        {**row, "setting": "tau 2", "value": 1.0, "ci_low": 0.5, "ci_high": 1.5, "baseline": "tau inf"},
        {**row, "setting": "tau 0.5", "value": -1.0, "ci_low": -2, "ci_high": 2, "baseline": "tau inf"},
        {**row, "setting": "tau 0.5", "value": 9.0, "ci_low": 8, "ci_high": 9, "w_bits": 4},
    ]
    for bits, share in ((3, 0.7), (4, 0.2), (8, 0.1)):
        rows.append(
            {
                **row,
                "part": "picked",
                "setting": "paper",
                "a_bits": 3.6,
                "metric": f"share_{bits}",
                "value": share,
            }
        )
    pd.DataFrame(rows).to_csv(tmp_path / "m-ablation.csv", index=False)
    psnr = {"paper": (30, 32), "random 0": (20, 22), "random 1": (22, 24), "static over time": (31, 33)}
    pictures = [
        {"search": s, "w_bits": 3, "budget": 3.6, "picture": i, "psnr": v}
        for s, values in psnr.items()
        for i, v in enumerate(values)
    ]
    pd.DataFrame(pictures).to_csv(tmp_path / "m-search-compare-pictures.csv", index=False)
    compared = [
        {"search": s, "w_bits": 3, "budget": 3.6, "average_bits": 3.5, "psnr": np.mean(v)}
        for s, v in psnr.items()
    ]
    pd.DataFrame(compared).to_csv(tmp_path / "m-search-compare.csv", index=False)
    steps = [
        {"method": m, "w_bits": 3, "steps": n, "step": t + 1, "value": 0.1 * (t + 1) * k}
        for k, m in enumerate(("uniform 3", "paper"), 1)
        for n in (2, 3)
        for t in range(n)
    ]
    pd.DataFrame(steps).to_csv(tmp_path / "m-ablation-steps.csv", index=False)
    return tables_ablation.read(tmp_path, "m")


def test_differences_are_in_order_and_at_one_width(found):
    rows = found.differences("tau")
    assert rows.row.tolist() == ["tau 0.5, A3", "tau 2, A3"]  # one baseline: it is not named
    said = tables_ablation.verdict(rows)
    assert said == "of 2 differences, 1 cannot be told from zero. Above zero: tau 2, A3 (+1.00)"
    many = tables_ablation.verdict(rows.iloc[[1] * 5].assign(value=[1, 2, 9, 3, 4]))
    assert (
        many == "of 5 differences, 0 cannot be told from zero. Above zero: 5, the farthest tau 2, A3 (+9.00)"
    )
    same = rows[:1].assign(value=0.0, ci_low=0.0, ci_high=0.0)
    assert tables_ablation.verdict(same).endswith("zero. Zero, since no picture differs: tau 0.5, A3")
    assert found.settings("tau").psnr.tolist() == ["20.0 [19.0, 21.0]", "21.0 [20.0, 22.0]"]
    assert len(found.rows) == 7  # without the row of 4 bits


@pytest.mark.parametrize("part", ["2x2", "tau", "beam", "shares", "prompts", "loss"])
def test_a_part_that_a_run_did_not_come_to_is_empty(found, part):
    rest = replace(found, rows=found.rows[found.rows.part == "picked"])
    assert rest.differences(part).empty and rest.settings(part).empty and rest.values(part, "psnr").empty


def test_random_policies_count_as_their_mean(found):
    rows = found.over_controls("paper", 3.6).set_index("control")
    assert rows.at["random", "value"] == 9  # 30 - 21 and 32 - 23
    assert rows.at["static over time", "value"] == rows.at["static over time", "ci_high"] == -1
    assert found.over_controls("lagrangian", 3.6).empty
    assert found.policies(3.6).at["random", "policies"] == 2


def test_policies_come_in_the_order_and_by_the_names_of_figures():
    stored = ["uniform 8", "static over time", "prices", "paper", "random", "uniform 3", "collapsed"]
    calls = pd.Series({"prices": 2.0, "paper": 1.0}).reindex(stored)
    table = tables_ablation.in_order(pd.DataFrame({"psnr": range(7), "calls": calls}))
    assert table.index.tolist() == [
        *("paper", "prices", "3 bits everywhere", "8 bits everywhere"),
        *("random places", "per layer only", "Lagrangian, without time"),
    ]
    assert table.psnr.tolist() == [3, 2, 5, 0, 4, 1, 6]


def test_policies_of_other_pictures_are_not_compared(found):
    """A larger run has replaced the beam and one random policy; the others are still of two pictures."""
    more = pd.DataFrame({"search": "paper", "w_bits": 3, "budget": 3.6, "picture": range(4), "psnr": 40.0})
    more = pd.concat([more, more.assign(search="random 1", psnr=[10, 20, 30, 40])])
    old = found.pictures[~found.pictures.search.isin(["paper", "random 1"])]
    mixed = replace(found, pictures=pd.concat([old, more], ignore_index=True))
    rows = mixed.over_controls("paper", 3.6)
    assert rows.control.tolist() == ["random"] and rows.value.tolist() == [15] and rows.n.tolist() == [4]
    both = [
        {"search": s, "w_bits": 3, "budget": 3.6, "picture": i, "psnr": 30.0}
        for s in ("lagrangian", "random 0", "random 1", "random beam 0")
        for i in range(2)
    ]
    table = replace(found, pictures=pd.DataFrame(both)).over_controls("lagrangian", 3.6)
    assert table.control.tolist() == ["random", "random beam"]


def test_shares_and_how_many_entries_would_have_to_change(found):
    shares = tables_ablation.picked(found)
    assert dict(tables_ablation.distances(shares)) == {"paper, 3.6 bits": pytest.approx(0.1)}
    figure = plots_tables.shares({"m": shares}, "title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["70%", "20%"]
    plt.close("all")


def test_shares_of_stored_policies_are_counted(tmp_path, tiny_pipe):
    trace = record(tiny_pipe, ["a red circle"], num_inference_steps=2, progress=False)
    bits = np.full((2, len(act_layers(trace))), 3)
    bits.flat[:7], bits.flat[7:10] = 8, 4
    Policy.of(trace, bits).save(tmp_path / "m-policy-adatsq+ladder-w3a3.6.json")
    Policy.of(trace, 4).save(tmp_path / "m-policy-adatsq-w4a4.json")
    Policy.of(trace, 8).save(tmp_path / "m2-policy-adatsq-w4a4.json")
    Policy.of(trace, np.where(bits == 4, 5, bits)).save(tmp_path / "m-policy-adatsq-w3a3.6.json")
    table, other = tables_ablation.policies(tables_ablation.policy_bits(tmp_path, "models/m"))
    assert other == ["adatsq W3, 3.6 bits"]
    assert table.index.tolist() == ["adatsq W4, 4 bits", "adatsq+ladder W3, 3.6 bits"]
    assert table.loc["adatsq+ladder W3, 3.6 bits"].tolist() == [
        1 - 10 / bits.size,
        3 / bits.size,
        7 / bits.size,
    ]
    assert table.loc["adatsq W4, 4 bits"].tolist() == [0, 1, 0]
    assert "of the 1 policies picked for 3.6" in tables_ablation.alike(table)
    none, other = tables_ablation.policies(tables_ablation.policy_bits(tmp_path, "other"))
    assert none.empty and not other


def test_only_policies_of_the_papers_average_can_be_like_it():
    """80 / 10 / 10 are 3.6 bits: a policy at 3.1 cannot have these shares, whatever it is."""
    shares = {
        "paper, 3.1 bits": (0.98, 0.01, 0.01),
        "near, 3.6 bits": (0.84, 0.06, 0.1),  # four points off in two
        "lagrangian, flops, 3.6 bits": (0.74, 0.16, 0.1),  # six
    }
    table = pd.DataFrame.from_dict(shares, orient="index", columns=[3, 4, 8])
    said = tables_ablation.alike(table)
    assert said.startswith("the paper's shares average 3.6 bits; of the 2 policies picked for 3.6, ")
    assert said.endswith(" 1 have each share within 5 points of the paper's: `near, 3.6 bits`")
    assert tables_ablation.alike(table.drop("near, 3.6 bits")).endswith("the paper's: none")
    said = tables_ablation.lagrangian_shares(table)
    assert said.endswith("shares of 3 / 4 / 8 bits of 74% / 16% / 10% (`lagrangian, flops, 3.6 bits`)")
    said = tables_ablation.lagrangian_shares(table[:2])
    assert said == "no policy of the Lagrangian search is stored at 3.6 bits"


def searched(**calls: float) -> tables_ablation.Ablation:
    """Searches of one budget with these calls, at a beam of 4; hypervolume grows with them, PSNR falls."""
    names = {"same": "paper, equal calls", "uniform": "uniform 3"}
    rows = [
        {"search": names.get(search, search), "calls": n, "hypervolume": n / 1000, "psnr": 40 - n / 100}
        for search, n in calls.items()
    ]
    compared = pd.DataFrame(rows).assign(budget=3.1, average_bits=3.1, flop_weighted_bits=3.1, beam=4)
    none = pd.DataFrame()
    return tables_ablation.Ablation("m", 3, none, none, compared, none)


def test_calls_are_said_as_multiples_and_why_a_beam_stays_narrow():
    said = tables_ablation.equal_calls(searched(paper=50, lagrangian=200, same=50), 3.1)
    assert said == (
        "m, 3.1 bits: 200 calls by `lagrangian`; as multiples of these `paper` 0.25; `paper, equal calls` "
        "0.25 with a beam of 4, since one of 8 has no more paths to follow"
    )
    said = tables_ablation.equal_calls(searched(paper=300, lagrangian=200, same=300), 3.1)
    assert said.endswith("`paper, equal calls` 1.50 with a beam of 4")
    widest = searched(paper=50, lagrangian=200, same=100)
    widest.compared["beam"] = search_compare.WIDEST
    assert tables_ablation.equal_calls(widest, 3.1).endswith("with a beam of 64, the widest that is tried")
    assert tables_ablation.equal_calls(searched(paper=50), 3.1).endswith("`lagrangian` are not stored")


def test_fronts_and_whether_psnr_has_their_order():
    said = tables_ablation.fronts(searched(paper=50, lagrangian=200, same=300), [3.1])
    assert said == (
        "m, at 3.1 bits `lagrangian` 0.200, `paper` 0.050 (PSNR has another order: `paper` 39.50 dB, "
        "`lagrangian` 38.00 dB)"
    )
    alike = searched(paper=50, lagrangian=200)
    alike.compared["psnr"] = alike.compared.hypervolume
    assert "(PSNR has the same order: `lagrangian`" in tables_ablation.fronts(alike, [3.1])
    assert tables_ablation.fronts(searched(paper=50), [3.1]) == "m, not measured"


def test_a_search_that_spends_nothing_is_named():
    found = searched(paper=50, lagrangian=200, uniform=np.nan)
    assert tables_ablation.unspent(found, 3.1) == []
    found.compared.loc[[0, 2], ["average_bits", "psnr"]] = 3.0, 24.0
    said = "m, 3.1 bits: the policy of `paper` is 3 bits everywhere, with the same PSNR"
    assert tables_ablation.unspent(found, 3.1) == [said]
    assert tables_ablation.unspent(searched(paper=50), 3.1) == []


def test_policies_that_are_not_measured_are_named(found):
    compared = found.compared.assign(n=2, device="a device")
    said = tables_ablation.absent(replace(found, compared=compared), 3.6)
    start = "2 held-out pictures, measured on a device; not measured: `paper, ladder`, `lagrangian`, "
    assert said.startswith(start) and "static" not in said
    assert said.endswith("`uniform 3`, `uniform 4`, `uniform 8`, 38 of 40 random policies")
    names = pd.DataFrame({"search": search_compare.policy_names(), "budget": 3.6, "n": 32})
    assert tables_ablation.absent(replace(found, compared=names), 3.6) == "32 held-out pictures"


def test_errors_along_and_at_the_end_of_runs(found):
    last = tables_steps.last_errors(found.steps)
    assert last["paper"].to_dict() == {2: pytest.approx(0.4), 3: pytest.approx(0.6)}
    along = tables_steps.along(found.steps, 3)
    figure = plots_tables.errors(along, last, "title")
    assert [text.get_text() for text in figure.axes[1].texts] == list(last) or len(figure.axes[1].texts) == 2
    assert len(plots_tables.errors(along, last.iloc[:1], "title").axes) == 1  # one length: nothing to compare
    plt.close("all")


def test_panels_have_the_same_rows(found):
    rows = found.differences("tau")
    figure = plots_tables.panels({"a": rows, "b": rows.iloc[:1]}, "title", "dB")
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["tau 0.5, A3", "tau 2, A3"]
    assert len(figure.axes[1].collections[1].get_offsets()) == 1
    figure = plots_tables.panels({"a": rows}, "title", "dB", order=["x", "tau 2, A3", "tau 0.5, A3"])
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["tau 2, A3", "tau 0.5, A3"]
    controls = found.over_controls("paper", 3.6)
    assert plots_tables.panels({"a": controls}, "title", "dB", by="search").legends
    plt.close("all")


def test_nothing_stored(tmp_path):
    none = tables_ablation.read(tmp_path, "m")
    assert none.budgets() == [] and none.differences("tau").empty and none.settings("tau").empty
    assert tables_ablation.picked(none).empty and none.values("tau", "psnr").empty
    said = tables_ablation.missing([none])
    assert "adatsq.ablation" in said and "adatsq.search_compare" in said and "for m" in said


def test_a_panel_per_metric_reads_from_top_to_bottom_beside_full_precision():
    columns = ["method", "metric", "value", "ci_low", "ci_high"]
    rows = [
        ("fp", "total", 0.9, 0.8, 0.95),
        ("rtn 3 bits", "total", 0.5, 0.4, 0.7),
        ("adatsq 3.1 bits", "total", 0.8, 0.7, 0.9),
        ("rtn 3 bits", "counting", 0.3, 0.1, 0.4),
    ]
    total, counting = plots_tables.by_metric(pd.DataFrame(rows, columns=columns), "title", "share").axes
    assert [text.get_text() for text in total.get_yticklabels()] == ["rtn 3 bits", "adatsq 3.1 bits"]
    assert total.yaxis_inverted(), "the first row is on top"
    intervals, dots = total.collections
    assert dots.get_offsets().tolist() == [[0.5, 0], [0.8, 1]]
    assert [part[:, 0].tolist() for part in intervals.get_segments()] == [[0.4, 0.7], [0.7, 0.9]]
    assert total.lines[0].get_xdata()[0] == 0.9 and not counting.lines
    assert counting.collections[1].get_offsets().tolist() == [[0.3, 0]]
