"""What the ablation measures and how it is stored, without a model."""

import numpy as np
import pandas as pd
import pytest

from adatsq.ablation_plan import CANDIDATES, PROMPTS, Row, Search, Weights, plan
from adatsq.measurements import append, stored
from adatsq.pareto import share_of_box


@pytest.mark.parametrize("w_bits", [3, 4])
def test_baselines_come_first_also_by_weights(w_bits):
    rows = plan(w_bits, 32)
    seen = set()
    for weights in dict.fromkeys(row.weights for row in rows):
        for row in rows:
            if row.weights == weights:
                assert {(row.part, *baseline) for baseline in row.baselines} <= seen
                seen.add((row.part, row.setting, row.a_bits))
    assert len(seen) == len(rows)
    assert len({row.weights for row in rows}) == 5 + 2 * 5 + 1  # each set of weights is made once
    sizes = {row.setting for row in rows if row.part == "prompts"}
    assert sizes == {f"{kind} {n}" for kind in ("uniform", "fisher") for n in PROMPTS}
    for shares in CANDIDATES[w_bits].values():
        assert all(sum(share) == pytest.approx(1) and min(share) >= -1e-9 for share in shares.values())


def test_methods_have_the_names_of_the_benchmark():
    rows = {(row.setting, row.a_bits): row.method for row in plan(3, 32, ["2x2"])}
    assert rows["uniform, fixed", 3] == "hadamard+gptq" and rows["fisher, searched", 3.6] == "adatsq"
    assert Row("", "", Weights(1), 3.6, Search("lagrangian")).method.endswith("lagrangian")


def test_appending_replaces_the_same_key_and_leaves_the_rest_to_the_letter(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,v\nx,3,0.10000\ny,3,2\n")
    append(path, pd.DataFrame({"a": ["y", "y"], "b": [3, 4], "v": [1.5, 2.5]}), ["a", "b"])
    assert path.read_text() == "a,b,v\nx,3,0.10000\ny,3,1.5\ny,4,2.5\n"
    assert list(stored(path, a="y", b=4).v) == [2.5] and stored(tmp_path / "none.csv", a=1).empty


def test_share_of_box():
    assert share_of_box(np.array([[3.0, 0.5]]), (3, 0), (5, 1)) == pytest.approx(0.5)
    assert share_of_box(np.array([[3.0, 0.0]]), (3, 0), (5, 1)) == pytest.approx(1)
    assert share_of_box(np.array([[9.0, 0.0]]), (3, 0), (5, 1)) == 0
