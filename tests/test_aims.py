"""Whether a mini model's training got where it aimed: said from stored pictures, in the shipped card too."""

from pathlib import Path

import pandas as pd
import pytest

from adatsq.world.aims import aim

DATA = Path(__file__).resolve().parents[1] / "data"


def pictures(folder: Path, name: str, first: list[int], second: list[int]) -> None:
    """NAME-images.csv: two categories of a prompt each, with these passes, and a method that has none."""
    rows = [
        {"method": method, "prompt": prompt, "picture": picture, "category": "ab"[prompt], "passed": passed}
        for method in ("fp", "rtn")
        for prompt, passes in enumerate((first, second))
        for picture, passed in enumerate(passes if method == "fp" else [0] * len(passes))
    ]
    pd.DataFrame(rows[::-1]).to_csv(folder / f"{name}-images.csv", index=False)


@pytest.mark.parametrize(
    "passes, said", [([1, 1], "It is 1.0000: met."), ([1, 0], "It is 0.7500: missed by 0.1000.")]
)
def test_a_score_to_reach(tmp_path, passes, said):
    pictures(tmp_path, "z-image-mini", [1, 1], passes)
    assert aim("z-image-mini", tmp_path).endswith(said)


def test_a_distance_to_the_teacher(tmp_path):
    pictures(tmp_path, "flux-dev-mini", [1, 1, 1, 1], [1, 1, 1, 0])
    pictures(tmp_path, "flux-schnell-mini", [1, 1, 1, 1], [1, 0, 1, 0])
    said = aim("flux-schnell-mini", tmp_path)
    assert "It is 0.7500 against 0.8750, a difference of -0.1250 " in said and said.endswith(
        "missed by 0.0950."
    )
    pictures(tmp_path, "flux-schnell-mini", [1, 1, 1, 1], [1, 1, 1, 1])
    assert aim("flux-schnell-mini", tmp_path).endswith("met.")


def test_without_an_aim_or_a_score_nothing_is_said(tmp_path):
    assert aim("z-image-mini", tmp_path) == aim("wan2.1-mini", DATA / "results") == ""
    pictures(tmp_path, "flux-schnell-mini", [1], [1])
    assert aim("flux-schnell-mini", tmp_path) == ""


@pytest.mark.parametrize("name", ["flux-schnell-mini", "z-image-mini"])
def test_the_card_says_it_with_the_scores_of_the_table(name):
    total = pd.read_csv(DATA / "results" / f"{name}.csv").query("method == 'fp' and metric == 'total'")
    said = aim(name, DATA / "results")
    assert f"It is {total.value.item():.4f}" in said
    assert said in " ".join((DATA / "models" / name / "README.md").read_text().split())
