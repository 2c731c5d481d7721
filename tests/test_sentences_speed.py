"""Sentences on speed say what the numbers say, and nothing where there are none."""

import pandas as pd

from adatsq import sentences_speed

WORK = ["products", "attention", "rest", "unpacking weights", "rounding activations"]


def work(*ms):
    return pd.Series(ms, WORK, dtype=float)


def table(*rows):
    columns = ["method", "w_bits", "a_bits", "mode", "ms", "weight_bytes", "error", "commit"]
    return pd.DataFrame(rows, columns=columns)


PLAIN = [
    ("bf16", 16, 16, "eager", 200.0, 1000, 0.0, "a"),
    ("bf16", 16, 16, "compiled", 150.0, 1000, 0.01, "a"),
]


def test_steps_are_held_against_both_and_against_others():
    rows = table(
        *PLAIN,
        ("adatsq", 4, 4, "compiled", 160.0, 250, 0.1, "a"),
        ("adatsq", 3, 3, "graph", 100.0, 200, 0.2, "a"),
        ("adatsq", 4, 4, "graph", 120.0, 250, 0.1, "a"),
        ("other 8", 8, 8, "eager", 125.0, 500, 0.05, "a"),
    )
    assert sentences_speed.steps(rows, aims=True) == [
        "ours at its fastest by default, adatsq W3A3 graph, is 1.50 times as fast as compiled bfloat16 (the "
        "aim of 1.4 is reached) and 2.00 times as fast as eager bfloat16 (the aim of 1.9 is reached)",
        "adatsq W4A4 graph is 1.25 times as fast as compiled bfloat16 and 1.67 times as fast as "
        "eager bfloat16",
        "weights at three bits, those of modulation too, are 5.00 times smaller in the GPU's memory than "
        "bfloat16, scales included: the aim of 4.8 is reached",
        "the fastest of other libraries, other 8 eager, is 1.20 times as fast as compiled bfloat16, 2.00 "
        "times smaller, and its answer is off by 0.050; ours, adatsq W3A3 graph, by 0.200",
        "ours is not measured as eager",
    ]
    assert "aim of 1.4" not in sentences_speed.steps(rows, aims=False)[0]


def test_rows_of_several_runs_say_so_and_missed_aims_too():
    rows = table(*PLAIN, ("adatsq", 3, 3, "graph", 120.0, 250, 0.2, "b"))
    fast, runs, small, lacking = sentences_speed.steps(rows, aims=True)
    assert "1.25 times as fast as compiled bfloat16 (the aim of 1.4 is not reached)" in fast
    assert runs.endswith("by commit: bf16 compiled a, bf16 eager a, adatsq W3A3 graph b")
    assert "4.00 times smaller" in small and small.endswith("the aim of 4.8 is not reached")
    assert lacking == "ours is not measured as compiled or eager"
    assert sentences_speed.steps(table(*PLAIN), aims=True) == []


def test_linears_include_what_unpacking_and_rounding_take():
    before, after, floor = work(100, 50, 30, 0, 0), work(40, 50, 20, 4, 6), work(30, 40, 10, 1, 3)
    line = sentences_speed.linears(before, after, floor, aim=False)
    assert line.startswith(
        "products alone are 2.50 times as fast; with unpacking (4.0 ms) and rounding (6.0 ms)"
    )
    assert "the linears are 2.00 times as fast. Attention and the rest take 58% of what is left" in line
    assert line.endswith("75% of their measured time, that of unpacking 25%, and that of rounding 50%")
    line = sentences_speed.linears(before, work(60, 50, 20, 4, 6), floor, aim=True)
    assert (
        "1.43 times as fast: the aim of 1.8 is not reached; with both at their floors it would be 1.56"
        in line
    )


def test_products_that_are_faster_with_pauses_are_named():
    before, after = work(100, 50, 30, 0, 0), work(40, 50, 20, 4, 6)
    eager = pd.DataFrame([work(90, 50, 60, 0, 0)], index=["bf16"])
    (line,) = sentences_speed.at_rest(before, eager, after)
    assert "take 90 ms eagerly, not 100" in line
    assert line.endswith("ours are 2.25 times as fast, 1.80 with unpacking and rounding")
    assert sentences_speed.at_rest(before, eager + 8, after) == []
    assert sentences_speed.at_rest(before, eager.rename({"bf16": "adatsq W3A3"}), after) == []


def test_what_is_more_than_linears_allow_is_explained():
    before, after = work(100, 50, 30, 0, 0), work(40, 50, 20, 4, 6)
    assert sentences_speed.beyond(before, after, 1.2, 1.3) == []
    assert sentences_speed.beyond(before, after, 1.094, 1.086) == []  # as they are shown
    (line,) = sentences_speed.beyond(before, after, 1.5, 1.3)
    assert line.endswith(
        "floors: products are 2.50 times as fast, more than twice; with fusing, the rest takes 20.0 ms, "
        "not 30.0"
    )
    same = work(60, 50, 30, 1, 1)
    assert sentences_speed.beyond(before, same, 1.5, 1.3)[0].endswith("with the added floors")
