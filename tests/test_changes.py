"""The table of what changes a profile, from runs whose answer is known, and the program that writes it."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from adatsq import changes, fisher, profiles


def run_of(per_image: np.ndarray) -> profiles.Run:
    levels, images = np.linspace(1, 0.2, len(per_image)), per_image.shape[1]
    layers = [f"layer {i}" for i in range(per_image.shape[2])]
    measured = fisher.Fisher(
        per_image, levels.tolist(), layers, list(range(images)), "gauss-newton", 1, "model"
    )
    return profiles.Run(measured, levels)


def test_the_table_names_the_change_that_turns_the_profile_over():
    rising = np.exp(np.random.default_rng(0).normal(0, 0.1, (5, 6, 4)) + np.arange(5)[:, None, None])
    runs = dict.fromkeys(("base", "other probes", "other pictures", *changes.CHANGES), run_of(rising))
    found = changes.table({**runs, "other shift": run_of(1 / rising)}, resamples=50).set_index("change")
    assert found.rho["other shift"] < -0.8 and np.allclose(found.rho.drop("other shift"), 1)
    assert found.lowest["other shift"] == 1 and (found.lowest[["new weights", "other captions"]] == 0).all()
    assert found.lowest[["base", "other probes", "other pictures"]].isna().all()
    median = np.median(runs["base"].profile(runs["base"].levels), axis=1)
    assert found.height["base"] == pytest.approx(median.max() / median.min())
    assert (found.ci_low <= found.ci_high).all() and found.ci_high["other shift"] < 0


def test_kinds_are_the_first_and_the_last_with_enough_prompts():
    prompts = [SimpleNamespace(category=kind, text=f"{kind} {i}") for i in range(4) for kind in "abc"][:-1]
    kind, other, texts = changes.kinds_of(prompts, 2)
    assert (kind, other) == ("a", "b") and texts["c"] == ["c 0", "c 1", "c 2"]
    with pytest.raises(ValueError, match="two kinds with 20 prompts"):
        changes.kinds_of(prompts, 10)


def test_the_program_writes_a_row_per_change(tiny_folder, tmp_path):
    prompts = [
        {"text": f"a {word} {kind}", "category": kind, "objects": [], "count": 1, "relation": None, "seed": i}
        for i, word in enumerate(("red", "blue"))
        for kind in ("star", "ring")
    ]
    (tmp_path / "calibration.json").write_text(json.dumps(prompts))
    out = tmp_path / "profiles.csv"
    changes.main(
        [str(tiny_folder), "--prompts", str(tmp_path), "--out", str(out), "--images", "1", "--steps", "2"]
    )
    found = pd.read_csv(out)
    assert set(found.change) == {"base", "other probes", "other pictures", *changes.CHANGES}
    assert (found.model == tiny_folder.name).all() and found[["kind", "other_kind"]].iloc[0].tolist() == [
        "star",
        "ring",
    ]
    assert found.rho.between(-1, 1).all() and found.rho[found.change == "base"].item() == 1
