"""Tables that are read from the stored files say what is in the files."""

import importlib.util
import pathlib

import pandas as pd
import pytest
import torch

from adatsq import evidence, sizes
from adatsq.linear import QuantLinear

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
RESULTS = DATA / "results"


def test_every_stored_file_is_counted_once_and_every_command_exists():
    table = evidence.stored(RESULTS)
    assert table["files"].sum() == len([*RESULTS.glob("*.csv"), *RESULTS.glob("*.json")])
    for command in table["command"]:
        assert importlib.util.find_spec(command.removeprefix("python -m ").split()[0]), command


@pytest.mark.parametrize(("name", "command"), evidence.OF_ALL.items())
def test_files_of_no_one_model_are_known(name, command, tmp_path):
    pd.DataFrame({"device": ["gpu"], "commit": ["a"]}).to_csv(tmp_path / name, index=False)
    [row] = evidence.stored(tmp_path).to_dict("records")
    assert (row["model"], row["command"]) == ("all", f"python -m {command}")
    assert importlib.util.find_spec(command.split()[0])


def test_rows_devices_and_commits_are_those_of_the_files(tmp_path):
    facts = pd.DataFrame({"device": ["cpu", "gpu", None], "commit": ["b", "a", "a"]})
    facts.to_csv(tmp_path / "toy-facts.csv", index=False)
    facts.head(2).to_csv(tmp_path / "toy.csv", index=False)
    (tmp_path / "toy-fisher.json").write_text("{}")
    (tmp_path / "toy-explorer.json").write_text("{}")
    table = evidence.stored(tmp_path).set_index("command")
    assert table.loc["python -m adatsq.benchmark"].tolist() == ["toy", 3, 5, "cpu, gpu", "a, b"]
    assert table.loc["python -m adatsq.sweep", "device"] == evidence.UNKNOWN
    (tmp_path / "toy-explorer.json").write_text('{"device": "cpu", "commit": "c"}')
    table = evidence.stored(tmp_path).set_index("command")
    assert table.loc["python -m adatsq.sweep"].tolist() == ["toy", 1, 0, "cpu", "c"]


def test_a_file_of_no_known_command_is_refused(tmp_path):
    (tmp_path / "notes.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match=r"notes\.csv is no result"):
        evidence.stored(tmp_path)


def test_models_at_full_size_are_found(tmp_path):
    (tmp_path / "models" / "toy").mkdir(parents=True)
    results = tmp_path / "results"
    results.mkdir()
    for name in ("toy", "flux.1-dev"):
        (results / f"{name}-fisher.json").write_text("{}")
    assert evidence.not_mini(results, tmp_path / "models") == ["flux.1-dev"]


def test_seconds_come_from_one_device_and_commit(tmp_path):
    rows = [
        ("rtn", 4, 1.0, 2.0, 3.0, None, "cpu", "a"),
        ("adatsq", 4, 1.5, None, 4.0, 5.0, "cpu", "a"),
        ("rtn", 4, 9.0, 9.0, 9.0, 9.0, "gpu", "a"),
    ]
    columns = ["method", "w_bits", "record_s", "fisher_s", "quantize_s", "search_s", "device", "commit"]
    pd.DataFrame(rows, columns=columns).assign(model="toy").to_csv(tmp_path / "toy-facts.csv", index=False)
    [row] = evidence.seconds(tmp_path).to_dict("records")
    assert [row[f"{part}, s"] for part in ("record", "fisher", "quantize", "search")] == [1.5, 2.0, 4.0, 5.0]


def test_seconds_that_were_measured_anew_are_of_that_commit(tmp_path):
    columns = ["method", "w_bits", "record_s", "fisher_s", "quantize_s", "search_s", "device", "commit"]
    facts = pd.DataFrame([("adatsq", 4, 1.0, 2.0, 3.0, 4.0, "cpu", "a")], columns=columns)
    facts = facts.assign(model="toy", costs_device="gpu", costs_commit="1234567")
    facts.to_csv(tmp_path / "toy-facts.csv", index=False)
    [row] = evidence.seconds(tmp_path).to_dict("records")
    assert (row["device"], row["commit"]) == ("gpu", "1234567")


def test_a_weight_takes_a_byte_while_it_runs():
    """What the page says of memory "as run here" is true of the layer, and of the table."""
    table = evidence.memories().set_index("model")
    assert (table["saved, W3"] < table["saved, W4"]).all()
    assert (table["saved, W4"] < table["as run here"]).all()
    name = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    parameters = sizes.memory(name).iloc[0]["parameters"]
    assert 1.0 < table.loc[name, "as run here"] / (1e-9 * parameters) < 1.1
    codes = torch.zeros(4, 8, dtype=torch.int8)
    layer = QuantLinear(codes, torch.ones(4, 1), None, w_bits=3)
    assert layer.codes.dtype == torch.int8 and layer.codes.nbytes == 4 * 8


def test_markdown_escapes_and_aligns():
    table = pd.DataFrame({"name": ["a|b"], "value": [1.26], "none": [float("nan")]})
    assert evidence.markdown(table).splitlines() == [
        "| name | value | none |",
        "|---|---:|---:|",
        "| a\\|b | 1.3 |  |",
    ]
