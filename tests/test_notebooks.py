"""Every notebook runs with small parameters, says nothing on stderr, and is committed clean.

The executed copies stay in _build/test-notebooks, a failed one too.
"""

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


def test_every_notebook_is_in_the_book_and_has_small_parameters():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    in_book = {name.removeprefix("notebooks/") for name in chapters(toc) if name.startswith("notebooks/")}
    assert {path.stem for path in NOTEBOOKS} == set(SMALL) == in_book


@each_notebook
def test_notebook_runs(path):
    small, known = SMALL[path.stem], set(papermill.inspect_notebook(path))
    assert set(small) <= known, f"{path.name} has no parameter {set(small) - known}"  # papermill only warns
    OUT.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        path,
        OUT / path.name,
        parameters=small,
        kernel_name="python3",
        cwd=path.parent,
        execution_timeout=300,
        progress_bar=False,
    )
    cells = nbformat.read(OUT / path.name, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    assert not said, f"{path.name} wrote to stderr:\n{said}"


@each_notebook
def test_notebook_is_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "outputs: make strip"
    assert not {"widgets", "papermill"} & set(notebook.metadata), "widget or papermill state: make strip"
    assert notebook.metadata.kernelspec.name == "python3"
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
