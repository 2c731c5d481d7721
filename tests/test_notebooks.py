"""Every notebook runs with small parameters and with others than its own, describes its figures, says nothing
on stderr, and is committed clean.

The executed copies stay in _build/test-notebooks, a failed one too.
"""

import math
import pathlib

import nbformat
import papermill
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = ROOT / "_build" / "test-notebooks"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Parameters that keep a run short, {notebook: {parameter: value}}.
SMALL = {
    "00_start_here": {"steps": 3, "one_step_images": 1},
    "01_fisher": {"images": 2, "steps": 3, "checked_layers": 4},
    "02_calibration": {"images": 2, "held_out": 3, "steps": 2, "w_bits": [3]},
    "03_search": {"steps": 2, "images": 2, "search_images": 1, "beam": 2, "held_out": 3},
    "04_explorer": {"live_steps": 2, "live_prompts": 1},
    "05_flux": {"steps": 2, "calibration_images": 2, "search_images": 1, "beam": 2},
    "06_schnell": {
        "steps": 2,
        "calibration_images": 2,
        "search_images": 1,
        "baselines": ["rtn"],
        "widths": [3],
    },
    "07_z_image": {"steps": 2, "calibration_images": 2, "search_images": 1, "beam": 1, "widths": [3]},
    "08_wan": {"steps": 2, "calibration_clips": 1, "shown": ["speed"], "w_bits": [3], "beam": 1},
    "09_profiles": {"tested": ["../data/models/flux-dev-mini"], "images": 2, "steps": 2, "resamples": 20},
    "10_tables": {"images": {"flux-schnell-mini": "flux-schnell"}},
    "11_ablation": {"models": ["flux-schnell-mini", "z-image-mini"]},
    "12_speed": {"models": ["flux-dev", "wan2.1-1.3b"], "length": 512},
}
# And once more away from the defaults: another model that is shipped, or another budget, loss or guidance.
OTHER = {
    "00_start_here": {"model": "../data/models/flux-schnell-mini", "steps": 2, "one_step_images": 1},
    "01_fisher": {"model": "../data/models/z-image-mini", "images": 2, "steps": 2, "checked_layers": 2},
    "02_calibration": {
        "model": "../data/models/z-image-mini",
        "images": 2,
        "held_out": 3,
        "steps": 2,
        "w_bits": [4],
        "tau": 0.1,
    },
    "03_search": {
        "model": "../data/models/flux-schnell-mini",
        "w_bits": 4,
        "budget": 5.0,
        "steps": 2,
        "images": 2,
        "search_images": 1,
        "beam": 1,
        "held_out": 3,
    },
    "04_explorer": {"model": "../data/models/wan2.1-mini", "live_steps": 2, "live_prompts": 1},
    "05_flux": {
        "model": "../data/models/flux-schnell-mini",
        "steps": 2,
        "calibration_images": 2,
        "search_images": 1,
        "beam": 1,
        "tau": math.inf,
    },
    "06_schnell": {
        "model": "../data/models/flux-dev-mini",
        "steps": 2,
        "calibration_images": 2,
        "search_images": 1,
        "baselines": ["hadamard"],
        "widths": [4],
    },
    "07_z_image": {
        "steps": 2,
        "budget": 4.5,
        "calibration_images": 2,
        "search_images": 1,
        "beam": 2,
        "baselines": [],
        "widths": [3],
    },
    "08_wan": {
        "steps": 2,
        "guidance": 2.0,
        "calibration_clips": 1,
        "shown": ["two_motions"],
        "w_bits": [4],
        "beam": 1,
        "tau": math.inf,
    },
    "09_profiles": {
        "models": ["../data/models/flux-schnell-mini", "../data/models/wan2.1-mini"],
        "tested": ["../data/models/flux-schnell-mini"],
        "images": 2,
        "steps": 2,
        "resamples": 20,
    },
    "10_tables": {"images": {"z-image-mini": "z-image"}, "video": {}, "quality": "total"},
    "11_ablation": {"models": ["wan2.1-mini"], "budgets": [3.6]},
    "12_speed": {"models": ["z-image"], "w_bits": 4, "length": 128},
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def chapters(entry: object) -> list[str]:
    """All `file:` and `root:` values of a table of contents."""
    if isinstance(entry, list):
        return [name for part in entry for name in chapters(part)]
    if isinstance(entry, dict):
        own = [entry[key] for key in ("root", "file") if key in entry]
        return own + [name for value in entry.values() for name in chapters(value)]
    return []


def test_every_notebook_is_in_the_book_and_has_both_sets_of_parameters():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    in_book = {name.removeprefix("notebooks/") for name in chapters(toc) if name.startswith("notebooks/")}
    assert {path.stem for path in NOTEBOOKS} == set(SMALL) == set(OTHER) == in_book


def run(path: pathlib.Path, parameters: dict, folder: pathlib.Path) -> None:
    """Execute a notebook into a folder. It must know the parameters, say nothing on stderr, and have words in
    the metadata of each cell that draws (`mystnb: image: alt`, which the book makes the figure's alt text).
    """
    known = set(papermill.inspect_notebook(path))
    assert set(parameters) <= known, f"{path.name} has no {set(parameters) - known}"  # papermill only warns
    folder.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        path,
        folder / path.name,
        parameters=parameters,
        kernel_name="python3",
        cwd=path.parent,
        execution_timeout=300,
        progress_bar=False,
    )
    for cell in nbformat.read(folder / path.name, as_version=4).cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", f"{path.name} wrote to stderr:\n{output['text']}"
            if "image/png" in output.get("data", {}):
                alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
                assert len(alt) > 20, f"{path.name}: the figure of this cell has no alt text:\n{cell.source}"


@each_notebook
def test_notebook_runs(path):
    run(path, SMALL[path.stem], OUT)


@each_notebook
def test_notebook_runs_with_other_parameters(path):
    run(path, OTHER[path.stem], OUT / "other")


@each_notebook
def test_notebook_is_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "outputs: make strip"
    assert not {"widgets", "papermill"} & set(notebook.metadata), "widget or papermill state: make strip"
    assert notebook.metadata.kernelspec.name == "python3"
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
