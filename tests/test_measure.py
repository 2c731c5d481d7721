"""The one command for all measurements: order, side by side, the clock, failures."""

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from adatsq import measure


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_chain_runs_in_order_and_chains_side_by_side(tmp_path):
    note = "import sys, time, pathlib; time.sleep(.5); open({!r}, 'a').write({!r})"
    file = str(tmp_path / "order")
    chain = [(f"m {letter}", python(note.format(file, letter))) for letter in "abc"]
    other = [(f"n {letter}", python(note.format(file + "2", letter))) for letter in "abc"]
    start = time.monotonic()
    assert measure.run([chain, other], tmp_path / "logs", say=lambda text: None) == []
    assert (tmp_path / "order").read_text() == (tmp_path / "order2").read_text() == "abc"
    assert time.monotonic() - start < 2.9  # one after the other they sleep 3 s


def test_a_failure_is_named_and_the_rest_goes_on(tmp_path):
    said = []
    chain = [("m bad", python("raise SystemExit('no such thing')")), ("m good", python("print('fine')"))]
    assert measure.run([chain], tmp_path, say=said.append) == ["m bad"]
    assert "no such thing" in (tmp_path / "m-bad.log").read_text()
    assert "fine" in (tmp_path / "m-good.log").read_text()
    assert said[0].startswith("m bad: failed") and said[1].startswith("m good: done")


def test_the_clock_ends_what_runs_and_starts_nothing_more(tmp_path):
    chain = [("m long", python("import time; time.sleep(60)")), ("m next", python("print(1)"))]
    start = time.monotonic()
    assert measure.run([chain], tmp_path, seconds=1, say=lambda text: None) == ["m long", "m next"]
    assert time.monotonic() - start < 30 and not (tmp_path / "m-next.log").exists()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(true, seconds=60):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()


def test_told_to_end_it_ends_what_it_started(tmp_path):
    """And starts nothing more. The command writes its number, then sleeps."""
    file, child = (
        tmp_path / "pid",
        "import os, time; open({!r}, 'w').write(str(os.getpid())); time.sleep(300)",
    )
    code = f"""
import signal, sys
from pathlib import Path
from adatsq import measure
signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
python = lambda code: [sys.executable, "-c", code]
first, second = python({child.format(str(file))!r}), python({child.format(str(file) + "2")!r})
measure.run([[("m first", first), ("m second", second)]], Path({str(tmp_path)!r}))
"""
    process = subprocess.Popen(python(code), stderr=subprocess.PIPE, text=True)
    assert wait_for(lambda: file.exists() and file.read_text())
    process.terminate()
    assert "told to end" in process.communicate(timeout=60)[1] and process.returncode == 1
    assert not alive(int(file.read_text())) and not (tmp_path / "pid2").exists()


def test_judges_end_with_the_process_that_started_them(tmp_path):
    code = f"""
import os, time
from adatsq import judging
if __name__ == "__main__":
    open({str(tmp_path / "pid")!r}, "w").write(str(judging._workers().submit(os.getpid).result()))
    time.sleep(300)
"""
    (tmp_path / "judge.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "judge.py")])
    pid = tmp_path / "pid"
    assert wait_for(lambda: pid.exists() and pid.read_text(), 120)
    assert alive(int(pid.read_text()))
    process.kill()
    process.wait()
    assert wait_for(lambda: not alive(int(pid.read_text())), 20)


def test_missing_rows_are_listed_and_nothing_runs(tmp_path, monkeypatch, capsys):
    model, out = tmp_path / "m", tmp_path / "out"
    model.mkdir()
    out.mkdir()
    (model / "sampling.json").write_text('{"num_inference_steps": 10}')
    monkeypatch.setattr(measure, "run", None)
    command = ["measure", "--missing", "--models", str(model), "--out", str(out)]

    def lines():
        monkeypatch.setattr(sys, "argv", command)
        measure.main()
        return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())

    said = lines()
    assert list(said) == [f"m {job}" for job in measure.JOBS]
    assert said["m benchmark"].startswith("66 missing, about ")
    assert (
        "s on one H200: fp; rtn W4A4;" in said["m benchmark"]
    )  # 17 methods at two widths, 7 searched at three budgets, 5 at two
    extra = {job for job, line in said.items() if "missing, extra" in line}
    assert extra == {"m ablation-w3", "m ablation-w4", "m sweep"}  # not the paper's model
    assert (
        said["m search"].startswith("122 missing, ") and ": paper at 3.1;" in said["m search"]
    )  # 7 searches, 2 wider, 52 controls, two budgets
    assert said["m ablation-w3"].endswith(
        "runs of 4 steps; runs of 10 steps"
    )  # none longer than the model's own
    facts = [("fp", 16, 16.0), ("rtn", 4, 4.0), ("adatsq", 3, 3.1), ("hqq", 4, 16.0)]
    table = pd.DataFrame(facts, columns=["method", "w_bits", "a_bits"])
    table.to_csv(out / "m-facts.csv", index=False)
    again = lines()
    gone = {
        job: set(said[job].split(": ")[1].split("; ")) - set(again[job].split(": ")[1].split("; "))
        for job in said
        if job != "m costs"
    }
    assert said["m costs"] == "whole, of the rows that are there"
    assert again["m costs"].startswith("2 missing") and again["m costs"].endswith(": rtn W4A4; adatsq W3A3.1")
    assert gone["m benchmark"] == {"fp", "rtn W4A4", "adatsq W3A3.1"} and gone["m peers"] == {"hqq W4A16"}
    rows = {"search": ["paper", "lagrangian"], "w_bits": 3, "budget": 3.1, "n": [32, 8]}
    pd.DataFrame(rows).to_csv(out / "m-search-compare.csv", index=False)
    few = lines()["m search"]  # 8 pictures are too few
    assert few.startswith("121 missing") and ": paper, ladder at 3.1; lagrangian at 3.1;" in few
    run = {"part": "run", "setting": "X: 10 steps, 8 calibration, 8 held out", "w_bits": 16, "a_bits": 16.0}
    pd.DataFrame([run]).to_csv(out / "m-ablation.csv", index=False)
    assert "to be deleted before a larger run" in lines()["m ablation-w4"]


@pytest.fixture
def phases(monkeypatch):
    """phases(*options) -> (chains, most at once) of the three phases. Nothing is run; of models x and y
    all rows are missing, but for the jobs in `whole`."""

    def of(*options, whole=()):
        ran = []
        monkeypatch.setattr(
            measure, "run", lambda chains, *_, **how: ran.append((chains, how.get("at_once"))) or []
        )
        monkeypatch.setattr(
            measure, "lacking", lambda model, out, job: [] if f"{model.name} {job}" in whole else ["row"]
        )
        monkeypatch.setattr(measure, "cuda_devices", lambda: ["0", "1"])
        monkeypatch.setattr(measure.signal, "signal", lambda *args: None)
        monkeypatch.setattr(sys, "argv", ["measure", "--models", "x", "y", *options])
        measure.main()
        return ran[:3]

    return of


def names(chains):
    return [[name for name, _ in chain] for chain in chains]


def test_jobs_that_write_the_same_files_are_one_chain(phases):
    (first, one), (beside, many), (last, alone) = phases()
    assert names(first) == [["x benchmark"], ["y benchmark"]]  # each alone on a device
    assert (one, many, alone) == (2, 8, 2)
    assert names(beside) == [
        ["x peers", "x modelopt"],
        ["y peers", "y modelopt"],
        ["x search"],
        ["y search"],
        ["x ablation-w3", "x ablation-w4"],
        ["y ablation-w3", "y ablation-w4"],
        ["x sweep"],
        ["y sweep"],
    ]
    assert names(last) == [["x costs"], ["y costs"]]
    told = {name for chain in (*first, *beside, *last) for name, line in chain if "--shared" in line}
    assert told == {"x peers", "y peers", "x modelopt", "y modelopt"}


def test_side_by_side_records_no_seconds(phases):
    (first, _), (beside, _), _ = phases("--side-by-side", "--jobs", "peers", "benchmark", "search")
    assert first == [] and names(beside)[:2] == [["x peers", "x benchmark"], ["y peers", "y benchmark"]]
    assert all("--shared" in line for chain in beside[:2] for _, line in chain)


def test_what_lacks_no_row_is_not_started(phases):
    """But for the costs: what they lack depends on the device that they are on."""
    (first, _), (beside, _), (last, _) = phases(
        "--jobs", "benchmark", "search", "costs", whole=("x benchmark", "y search", "x costs")
    )
    assert [names(first), names(beside)] == [[["y benchmark"]], [["x search"]]]
    assert names(last) == [["x costs"], ["y costs"]]


def test_for_tables_leaves_out_the_rest(phases):
    _, (beside, _), _ = phases("--for-tables")
    assert names(beside)[:2] == [["x peers", "x modelopt"], ["y peers", "y modelopt"]]
    assert names(beside)[2:] == [["x search"], ["y search"]]
    assert measure.for_tables("flux-dev-mini", "ablation-w3")
    assert not measure.for_tables("flux-dev-mini", "ablation-w4")


def test_chains_are_spread_over_the_devices(tmp_path):
    note = "import os, time; time.sleep(1); open({!r}, 'a').write(os.environ['CUDA_VISIBLE_DEVICES'])"
    chains = [[(f"m {i}", python(note.format(str(tmp_path / "seen"))))] for i in range(4)]
    assert measure.run(chains, tmp_path / "logs", say=lambda text: None, devices=("0", "1")) == []
    assert sorted((tmp_path / "seen").read_text()) == ["0", "0", "1", "1"]


def test_tables_are_made_of_rows_that_are_newer(tmp_path):
    """Also of a benchmark that the clock ended before it came to that."""
    row = {"model": "m", "method": "fp", "w_bits": 16, "a_bits": 16.0}
    image = {**row, "prompt": 0, "picture": 0, "category": "one", "passed": 1, "psnr": 100.0, "ssim": 1.0}
    pd.DataFrame([image]).to_csv(tmp_path / "m-images.csv", index=False)
    pd.DataFrame([{**row, "commit": "c", "device": "d"}]).to_csv(tmp_path / "m-facts.csv", index=False)
    models = [Path("data/models/m"), Path("data/models/none")]
    assert measure.make_tables(models, tmp_path, tmp_path / "logs") == []
    assert pd.read_csv(tmp_path / "m.csv").metric.tolist() == ["one", "total"]
    before = (tmp_path / "m.csv").stat().st_mtime_ns
    measure.make_tables(models, tmp_path, tmp_path / "logs")
    assert (tmp_path / "m.csv").stat().st_mtime_ns == before


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("job", measure.JOBS)
def test_every_job_is_a_command_that_takes_these_arguments(job, quick, monkeypatch, capsys):
    """Each command's own parser knows all of the line but the last word, which nobody knows."""
    place = Path("data/models/x"), Path("out")
    ((name, command),) = measure.commands(*place, [job], "abc", shared=True, quick=quick)
    assert name == f"x {job}"
    module = importlib.import_module(command[2])
    monkeypatch.setattr(sys, "argv", [command[2], *command[3:], "--nonsense"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().endswith("unrecognized arguments: --nonsense")
