"""Tables of runs at full size say what is in the file, run by run."""

import pandas as pd

from adatsq import evidence, measurements, sentences_speed, tables_full_size

COLUMNS = ["model", "method", "w_bits", "a_bits", "metric", "value"]
FLUX, WAN = "flux-dev, random weights", "wan, random weights"


def table(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


def test_nothing_is_stored(tmp_path):
    nothing = measurements.stored(tmp_path / "full-size.csv")
    assert tables_full_size.parts(nothing, "s").empty and tables_full_size.sizes(nothing).empty
    assert tables_full_size.runs(nothing) == [] and tables_full_size.told(nothing) == ""


def test_parts_stand_by_run_in_their_order():
    rows = table(
        (FLUX, "adatsq", 4, 4, "search_s", 7.0),
        (FLUX, "fp", 16, 16, "load_s", 99.0),
        (FLUX, "fp", 16, 16, "load_s", 3.0),  # measured again
        (WAN, "adatsq", 4, 4, "search_peak_memory_bytes", 2.5e10),
        (WAN, "adatsq", 4, 4, "search_calls", 12.0),
    )
    assert evidence.markdown(tables_full_size.parts(rows, "s")).splitlines() == [
        "| part | flux-dev | wan |",
        "|---|---:|---:|",
        "| load, 16 bit | 3.0 |  |",
        "| search | 7.0 |  |",
    ]
    (memory,) = tables_full_size.parts(rows, "peak_memory_bytes").to_dict("records")
    assert (memory["part"], memory["wan"]) == ("search", 2.5e10) and pd.isna(memory["flux-dev"])


def test_runs_with_several_bits_keep_their_values_apart():
    rows = table(
        (FLUX, "fp", 16, 16, "load_s", 3.0),
        (FLUX, "adatsq", 4, 4, "search_s", 7.0),
        (FLUX, "adatsq", 4, 4, "save_s", 2.0),
        (FLUX, "adatsq", 3, 3.1, "search_s", 6.0),
        (WAN, "adatsq", 4, 4, "search_s", 9.0),
    )
    parts = tables_full_size.parts(rows, "s").set_index("part")
    assert parts.columns.tolist() == ["flux-dev W4A4", "flux-dev W3A3.1", "wan"]
    assert parts.loc["search"].tolist() == [7.0, 6.0, 9.0]
    for part, value in {"load, 16 bit": 3.0, "save": 2.0}.items():
        assert parts.loc[part].dropna().to_dict() == {"flux-dev W4A4": value}
    four, three, wan = tables_full_size.runs(rows)
    assert four.full == three.full == {"load_s": 3.0} and wan.full == {}
    assert four.ours == {"search_s": 7.0, "save_s": 2.0} and three.ours == {"search_s": 6.0}


def test_runs_are_told_with_their_size_and_steps():
    rows = table(
        (FLUX, "fp", 16, 16, "load_s", 1.0),
        (WAN, "fp", 16, 16, "load_s", 1.0),
        (WAN, "fp", 16, 16, "load_s", 1.0),  # measured again
    ).assign(
        size=["1024x1024", "480x832x81", "480x832x81"],
        steps=[50, 50, 20],
        calibration_steps=[10, 10, 5],
        device=["a GPU", "a GPU", "another GPU"],
    )
    assert tables_full_size.told(rows).split("; ") == [
        "flux-dev at 1024 x 1024, 50 steps, 10 of them for Fisher information and weights, on a GPU",
        "wan at 480 x 832, 81 frames, 20 steps, 5 of them for Fisher information and weights, on another GPU",
    ]


def test_runs_that_were_alike_are_told_once():
    rows = table(
        (FLUX, "adatsq", 4, 4, "search_s", 1.0),
        (FLUX, "adatsq", 3, 3, "search_s", 1.0),
        (WAN, "adatsq", 4, 4, "search_s", 1.0),
    ).assign(size="1024x1024", steps=50, calibration_steps=10, device="a GPU")
    assert tables_full_size.told(rows) == (
        "flux-dev W4A4, flux-dev W3A3, wan at 1024 x 1024, 50 steps, 10 of them for Fisher information and "
        "weights, on a GPU"
    )


def test_bytes_are_held_against_16_bit():
    rows = table(
        ("big, random weights", "fp", 16, 16, "disk_bytes", 8e9),
        ("big, random weights", "adatsq", 4, 4, "disk_bytes", 2e9),
        ("big, random weights", "adatsq", 4, 4, "search_s", 60),
        ("big, random weights", "adatsq", 3, 3, "disk_bytes", 1e9),
    )
    on_device, folder, _, three = tables_full_size.sizes(rows).to_dict("records")
    assert folder == {
        "model": "big W4A4",
        "what": "folder",
        "weight bits": "4",
        "16 bit": 8.0,
        "packed": 2.0,
        "times smaller": 4.0,
    }
    assert pd.isna(on_device["packed"])
    assert three["weight bits"] == "3" and three["times smaller"] == 8.0


def run_of(steps, **ours):
    full = {"parameters": 12e9, "transformer_memory_bytes": 24e9, "generate_s": 9.0}
    rows = [(FLUX, "fp", 16, 16, metric, value) for metric, value in full.items()]
    rows += [(FLUX, "adatsq", 4, 4, metric, value) for metric, value in ours.items()]
    (run,) = tables_full_size.runs(table(*rows).assign(steps=steps, calibration_steps=10))
    return run


def test_a_run_in_words():
    graphs = {"generate_graphs_peak_memory_bytes": 9e9, "generate_graphs_s": 5.0, "record_graphs_s": 12.0}
    graphs["generate_compiled_peak_memory_bytes"] = 6e9
    peaks = {"fisher_peak_memory_bytes": 46e9, "quantize_peak_memory_bytes": 36e9}
    run = run_of(
        50,
        calibration_s=60.0,
        search_s=44.0,
        search_calls=297.0,
        generate_s=10.0,
        generate_peak_memory_bytes=7e9,
        transformer_memory_bytes=5e9,
        **peaks,
        **graphs,
    )
    assert sentences_speed.full_size(run) == [
        "12.0 · 10⁹ weights",
        "recording 50 timesteps of one run, and Fisher information and weights on 10 of them, take 60 s",
        "the search over 50 steps takes 44 s, 297 calls of the transformer: the aim of 60 s for 50 steps is "
        "reached",
        "most memory, 46 GB of tensors, is taken by the phase *fisher*",
        "the transformer is 24.0 GB in bfloat16 and 5.0 GB packed",
        "the phase *quantize*, which takes one layer after the other, has 1.5 times the transformer in "
        "bfloat16",
        "a whole run takes 9.0 s in bfloat16 (eager), 10.0 s packed (eager), 5.0 s packed with graphs",
        "the run that records the graphs takes 12.0 s, and with them a run takes 3.0 GB more than compiled "
        "without",
    ]


def test_nothing_is_said_of_phases_that_were_not_run():
    assert sentences_speed.full_size(run_of(50))[1:] == ["a whole run takes 9.0 s in bfloat16 (eager)"]
    packed = dict(generate_s=10.0, calibration_s=60.0, quantize_peak_memory_bytes=3e10, record_graphs_s=2.0)
    rows = table(*[(FLUX, "adatsq", 4, 4, metric, value) for metric, value in packed.items()])
    (run,) = tables_full_size.runs(rows.assign(steps=50, calibration_steps=10))
    assert sentences_speed.full_size(run) == [  # of full precision nothing is known
        "recording 50 timesteps of one run, and Fisher information and weights on 10 of them, take 60 s",
        "most memory, 30 GB of tensors, is taken by the phase *quantize*",
        "a whole run takes 10.0 s packed (eager)",
        "the run that records the graphs takes 2.0 s",
    ]


def test_a_model_has_one_device_and_the_steps_of_its_search():
    rows = table(
        (FLUX, "adatsq", 4, 4, "search_s", 60.0),
        (FLUX, "adatsq", 4, 4, "generate_s", 9.0),
        (FLUX, "adatsq", 4, 4, "load_s", 3.0),
        (WAN, "adatsq", 4, 4, "search_s", 70.0),
    ).assign(size="64x64", steps=[50, 20, 50, 50], calibration_steps=10, device=["new", "new", "old", "old"])
    flux, wan = tables_full_size.runs(rows.iloc[[2, 0, 1, 3]])
    assert flux.ours == {"search_s": 60.0, "generate_s": 9.0} and wan.ours == {"search_s": 70.0}
    assert flux.of("steps") == 50 and flux.of("device") == "new"


def test_a_search_is_fast_enough_over_all_steps_alone():
    for steps, seconds, reached in ((50, 60.0, True), (50, 61.0, False), (20, 30.0, False)):
        _, line, _ = sentences_speed.full_size(run_of(steps, search_s=seconds, search_calls=9.0))
        assert line.endswith("is reached" if reached else "is not reached")
