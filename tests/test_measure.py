"""The one command for all measurements: order, side by side, the clock, failures."""

import importlib
import sys
import time
from pathlib import Path

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


@pytest.mark.parametrize("job", measure.JOBS)
def test_every_job_is_a_command_that_takes_these_arguments(job, monkeypatch, capsys):
    """Each command's own parser knows all of the line but the last word, which nobody knows."""
    ((name, command),) = measure.commands(Path("data/models/x"), Path("out"), [job], "abc")
    assert name == f"x {job}"
    module = importlib.import_module(command[2])
    monkeypatch.setattr(sys, "argv", [command[2], *command[3:], "--nonsense"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().endswith("unrecognized arguments: --nonsense")
