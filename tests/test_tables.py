"""Stored scores become tables and sentences that say what the numbers say."""

from pathlib import Path

import pandas as pd
import pytest

from adatsq import tables

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results"
BITS = {"fp": (16, 16.0), "hadamard+gptq": (3, 3.0), "adatsq": (3, 3.6)}


def written(folder: Path, adatsq_minus_fp: tuple[float, float, float]) -> Path:
    """The files of a model m with totals of 0.8 (fp), 0.6 and 0.7, and the paired rows of adatsq."""
    same = {"model": "m", "n": 40, "seed": 0, "commit": "abc", "device": "cpu"}
    rows = [
        {
            "method": m,
            "w_bits": w,
            "a_bits": a,
            "metric": "total",
            "value": v,
            "ci_low": v - 0.1,
            "ci_high": 1,
        }
        for (m, (w, a)), v in zip(BITS.items(), (0.8, 0.6, 0.7))
    ]
    rows.append({**rows[-1], "metric": "psnr", "value": 21.25, "ci_low": None, "ci_high": None})
    pd.DataFrame(rows).assign(**same).to_csv(folder / "m.csv", index=False)
    pairs = [("fp", 16.0, *adatsq_minus_fp), ("hadamard+gptq", 3.0, 0.1, -0.05, 0.2)]
    columns = ["baseline", "baseline_a_bits", "value", "ci_low", "ci_high"]
    paired = pd.DataFrame(pairs, columns=columns).assign(
        **same, method="adatsq", w_bits=3, a_bits=3.6, metric="total"
    )
    paired.to_csv(folder / "m-paired.csv", index=False)
    return folder


def paper(fp: float, adatsq: float) -> pd.DataFrame:
    rows = [("fp", 16, fp), ("svdquant", 3, 0.1), ("adatsq", 3, adatsq)]
    return pd.DataFrame(rows, columns=["method", "w_bits", "value"]).assign(metric="total")


def test_nothing_stored_is_none(tmp_path):
    assert tables.read(tmp_path, "some/model") is None


def test_a_row_per_method_and_bits(tmp_path):
    scores = tables.read(written(tmp_path, (-0.1, -0.2, -0.05)), "folder/m")
    shown = scores.show(["total", "psnr", "ssim"])
    assert shown.index.tolist() == ["fp", "hadamard+gptq W3A3", "adatsq W3A3.6"]
    assert shown.at["adatsq W3A3.6", "total"] == "0.700 [0.600, 1.000]"
    assert shown["PSNR, dB"].tolist() == ["", "", "21.2"]
    assert "40 pictures" in scores.origin() and "cpu" in scores.origin() and "abc" in scores.origin()
    assert scores.value("adatsq W3A3.6", "psnr") == 21.25


def test_a_row_that_is_another_and_rows_with_fewer_bits_are_named(tmp_path):
    file = written(tmp_path, (-0.1, -0.2, -0.05)) / "m-paired.csv"
    paired = pd.read_csv(file)
    assert tables.read(tmp_path, "m").twins("adatsq") == []
    (line,) = tables.read(tmp_path, "m").fewer_bits("adatsq")
    assert "adatsq at 3.6 bits" in line and line.endswith(
        "hadamard+gptq A3. These have the same budget: none"
    )
    psnr = paired[1:].assign(metric="psnr", value=0.0, ci_low=0.0, ci_high=0.0)
    same = paired[1:].assign(baseline="rtn+search", baseline_a_bits=3.6)
    pd.concat([paired, psnr, same]).to_csv(file, index=False)
    scores = tables.read(tmp_path, "m")
    (line,) = scores.twins("adatsq")
    assert line.startswith("adatsq W3A3.6 is hadamard+gptq A3: no picture differs")
    assert scores.fewer_bits("adatsq")[0].endswith("These have the same budget: rtn+search")
    assert scores.fewer_bits("hadamard+gptq") == scores.twins("hadamard+gptq") == []


def test_sentences_follow_the_intervals(tmp_path):
    (line,) = tables.read(written(tmp_path, (-0.1, -0.2, -0.05)), "m").sentences("adatsq", {"total": "total"})
    assert "adatsq W3A3.6 reaches 87.5%" in line
    assert "behind fp" in line and "not told apart from hadamard+gptq A3" in line


@pytest.mark.parametrize(
    ("interval", "theirs", "said"),
    [
        ((-0.1, -0.2, -0.05), 0.5, "the same sign"),
        ((-0.1, -0.2, -0.05), 0.9, "the opposite sign"),
        ((-0.1, -0.2, 0.05), 0.9, "cannot be told from no difference"),
    ],
)
def test_beside_the_paper(tmp_path, interval, theirs, said):
    table, lines = tables.read(written(tmp_path, interval), "m").beside(paper(0.7, theirs))
    assert table.at[("adatsq W3A3", "adatsq W3A3.6"), "ours"] == 0.7
    assert table.at[("fp", "fp"), "paper"] == 0.7
    assert table.index.get_level_values(1).tolist() == ["fp", "not measured here", "adatsq W3A3.6"]
    assert len(lines) == 1 and said in lines[0]


def test_the_stored_results_of_the_dev_model_can_be_read():
    scores = tables.read(RESULTS, "flux-dev-mini")
    theirs = pd.read_csv(RESULTS.parent / "paper.csv")
    table, lines = scores.beside(theirs[theirs.model == "flux-dev"])
    assert len(lines) >= 4 and table.at[("adatsq W4A4", "adatsq W4A4"), "paper"] == 0.6183
    assert len(scores.differences("adatsq", "total")) > 5
    assert scores.show(["total"]).index[0] == "fp"


def test_quarot_stands_beside_its_own_row_where_that_is_measured(tmp_path):
    scores = tables.read(written(tmp_path, (-0.1, -0.2, -0.05)), "m")
    assert scores.counterparts("quarot", 3) == ["hadamard+gptq W3A3"]
    assert scores.counterparts("quarot", 4) == scores.counterparts("svdquant", 3) == []
    own = scores.table[scores.table.method == "hadamard+gptq"].assign(method="quarot", name="quarot W3A3")
    both = tables.Scores(pd.concat([scores.table, own]), scores.paired)
    assert both.counterparts("quarot", 3) == ["quarot W3A3"]
    # paired with hadamard+gptq alone: that is the difference which is shown, under its own name
    theirs = pd.concat([paper(0.7, 0.9), paper(0.7, 0.9).iloc[[1]].assign(method="quarot")])
    lines = both.beside(theirs)[1]
    assert [
        line for line in lines if "adatsq minus quarot: +0.800" in line and "minus hadamard+gptq A3" in line
    ]


def test_short_numbers():
    found = tables.short(pd.DataFrame({"a": [1234.567, None], "b": ["text", 0.00012346]}))
    assert found.to_numpy().tolist() == [["1235", "text"], ["", "0.0001235"]]
    assert tables.short(pd.DataFrame({"calls": [10300, 50.0]})).calls.tolist() == ["10300", "50"]


def test_zero_has_no_sign():
    assert [tables.plus(v) for v in (-0.0004, 0.0, 0.0004)] == ["0.000"] * 3
    assert [tables.plus(v) for v in (-0.0006, 0.25)] == ["-0.001", "+0.250"]


def test_long_names_break_after_a_plus_and_long_lists_fold():
    html = tables.narrow(pd.DataFrame({"total": [0.5]}, index=["hadamard+gptq W3A3"])).to_html()
    assert "hadamard+<wbr>gptq W3A3" in html and "0.500" in html
    assert tables.folded("more", []) == ""
    said = tables.folded("more", ["one", "two"])
    assert said.strip().startswith("<details><summary>more</summary>") and "- one.\n- two." in said


def test_of_several_tables_the_first_is_open():
    table = tables.narrow(pd.DataFrame({"total": [0.5]}))
    html = tables.one_open({"one": table, "two": table})
    first, second = html.index("<details open><summary>one"), html.index("<details><summary>two")
    assert first < second < html.rindex("0.500")
