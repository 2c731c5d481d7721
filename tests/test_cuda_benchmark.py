"""The benchmark of linears, in small: its arithmetic, and that it runs from end to end."""

import pandas as pd
import pytest
import torch

from adatsq.cuda import benchmark
from adatsq.cuda.timing import milliseconds


def test_floors_by_hand():
    rows = [
        {"name": "a", "part": "bf16 linear", "ms": 4.0, "bytes": 1e9, "operations": 1e12},
        {"name": "a", "part": "unpack", "ms": 2.0, "bytes": 4e9, "operations": 0},
        {"name": "a", "part": "linear, whole", "ms": 2.5, "bytes": 1e9, "operations": 1e12},
    ]
    table = benchmark.with_floors(rows, bytes_per_second=4e12, peak=1e15)
    assert table["floor_ms"].tolist() == [2.0, 1.0, 1.0]  # 1e12 at 5e14; 4e9 at 4e12; 1e12 at 1e15
    assert table["floor_share"].tolist() == [0.5, 0.5, 0.4]
    assert table["tops"].tolist()[::2] == [250.0, 400.0]
    assert table["gain"].tolist()[2] == 1.6 and table["gain"].isna().tolist() == [True, True, False]


def test_it_runs_and_writes_its_table(tmp_path, capsys):
    file = tmp_path / "shapes.csv"
    benchmark.main(["--shapes", "--cpu", "--only", "tiny", "--output", str(file)])
    table = pd.read_csv(file)
    assert {"unpack", "product", "linear, whole", "bf16 linear", "rotate, scale, round"} <= set(table["part"])
    few = table[table["name"] == "tiny modulation"]
    assert few["part"].tolist() == ["bf16 linear", "linear, whole", "linear, whole"]
    scales = 2 * 2 * 48  # 2 of a row, of 2 bytes
    assert few["bytes"].tolist() == [2 * 128 * 48, 128 * 48 * 4 / 8 + scales, 128 * 48 * 3 / 8 + scales]
    assert few["gain"].notna().tolist() == [False, True, True]
    assert (table["ms"] > 0).all() and (table["floor_ms"] > 0).all()
    assert table[["device", "torch", "copy_bandwidth"]].notna().all(axis=None)
    assert "no CUDA, the reference in plain torch" in capsys.readouterr().out


def test_a_commit_may_be_given_and_git_may_be_missing(monkeypatch):
    def missing(*args, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(benchmark.subprocess, "run", missing)
    device = torch.device("cpu")
    assert benchmark.origin(device)["commit"] == "" and benchmark.origin(device, "abc")["commit"] == "abc"


def test_an_unknown_shape_is_named(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--shapes", "--cpu", "--only", "nothing"])
    assert "no shape's name contains 'nothing': tiny, odd, tiny modulation" in capsys.readouterr().err


def test_the_median_is_of_calls_after_the_warm_up():
    calls = []
    assert milliseconds(lambda: calls.append(0), torch.device("cpu"), repeats=3, warm_up=2) > 0
    assert len(calls) == 5
