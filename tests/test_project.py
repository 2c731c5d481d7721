"""The project's own papers agree with each other: requirements, pins, conda environment, citation, style."""

import ast
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import adatsq

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.10", "3.11", "3.12")
# Import name -> distribution, where they differ.
DISTRIBUTION = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "IPython": "ipykernel",
    "triton": "torch",  # comes with its CUDA builds, and is imported only there
    "myst_nb": "jupyter-book",
    "sphinx": "jupyter-book",
    "fontTools": "matplotlib",
    "docutils": "jupyter-book",
    "pygments": "jupyter-book",
    "tomli": "pytest",
    "traitlets": "ipywidgets",
    "optimum": "optimum-quanto",
    "modelopt": "nvidia-modelopt",
}


def requirements() -> list[Requirement]:
    lines = PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])
    return [Requirement(line) for line in lines]


def pins(python: str) -> dict[str, str]:
    """The pins that hold for one Python version, {name: version}."""
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found = {}
    for pin in (Requirement(line) for line in lines if line and not line.startswith("#")):
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            name, version = canonicalize_name(pin.name), re.fullmatch(r"==([\w.]+)", str(pin.specifier))
            assert version, f"constraints.txt: {pin} is not one exact version"
            assert name not in found, f"constraints.txt: {name} is pinned twice for Python {python}"
            found[name] = version[1]
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_pin_inside_its_range(python):
    have = pins(python)
    for need in requirements():
        version = have.get(canonicalize_name(need.name))
        assert version, f"{need.name} of pyproject.toml has no pin in constraints.txt for Python {python}"
        assert need.specifier.contains(version), f"pin {need.name}=={version} is outside {need.specifier}"
    assert set(have) == {canonicalize_name(need.name) for need in requirements()}, "a pin nobody requires"


def test_pins_are_checked_for_the_pythons_we_promise():
    assert PROJECT["requires-python"] == ">=" + PYTHONS[0]


def test_conda_environment_is_the_same_set():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    (python,) = [e.partition("=")[2] for e in listed if isinstance(e, str) and e.startswith("python=")]
    extras = ",".join(
        e for e in PROJECT["optional-dependencies"] if e != "peers"
    )  # to compare with, not to run
    assert python in PYTHONS
    assert pip == ["-c constraints.txt", f"torch=={pins(python)['torch']}", f"-e .[{extras}]"]


def imported(path: pathlib.Path) -> set[str]:
    """Top-level names that a module or notebook imports."""
    if path.suffix == ".ipynb":
        cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        code = "\n".join(re.sub(r"(?m)^\s*[%!].*$", "pass", cell) for cell in cells)
    else:
        code = path.read_text()
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("room", ["adatsq", "notebooks", "tests", "book/ext"])
def test_every_import_is_required(room):
    files = [
        p
        for p in (ROOT / room).rglob("*")
        if p.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in p.parts
    ]
    ours = {"adatsq"} | {p.stem for place in ("tests", "book/ext") for p in (ROOT / place).glob("*.py")}
    everything = {canonicalize_name(need.name) for need in requirements()}
    package = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    for path in files:
        foreign = imported(path) - sys.stdlib_module_names - ours
        # The package runs without a notebook or rivals around it; only its widget and peers need them.
        extra = path.stem == "explorer" or path.parent.name == "peers"
        declared = everything if extra or room != "adatsq" else package
        missing = {n for n in foreign if canonicalize_name(DISTRIBUTION.get(n, n)) not in declared}
        assert not missing, f"{path.relative_to(ROOT)} imports {missing}: not required in pyproject.toml"


def test_versions_agree():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == adatsq.__version__


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_is_content(command):
    run = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_large_file_and_no_pickle_is_tracked():
    git = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in git.stdout.splitlines() if (ROOT / name).exists()]
    large = [p.name for p in files if p.stat().st_size > 16 * 2**20]
    pickles = [p.name for p in files if p.suffix in {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin"}]
    assert not large and not pickles, f"over 16 MB: {large}; pickles: {pickles}"


def test_vendored_scripts_are_listed_with_a_licence():
    vendor = ROOT / "book" / "vendor"
    table = (vendor / "README.md").read_text()
    for path in (p for p in vendor.rglob("*") if p.suffix in (".js", ".woff2")):
        name = "*.woff2" if path.suffix == ".woff2" else path.relative_to(vendor).as_posix()
        assert f"`{name}`" in table, f"{name} is not in book/vendor/README.md"
    for licence in re.findall(r"`(licenses/[^`]+)`", table):
        assert (vendor / licence).stat().st_size > 500


def test_the_workflow_builds_what_the_makefile_makes_and_publishes_it():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
    makefile = (ROOT / "Makefile").read_text()
    steps = workflow["jobs"]["build"]["steps"]
    used = {step["uses"].partition("@")[0]: step.get("with", {}) for step in steps if "uses" in step}
    python = used["actions/setup-python"]
    assert python["python-version"] in PYTHONS and (ROOT / python["cache-dependency-path"]).exists()
    targets = [step["run"].removeprefix("make ") for step in steps if "run" in step]
    assert targets and all(re.search(rf"(?m)^{target}:", makefile) for target in targets)
    (site,) = re.findall(r"(?m)^SITE\s*:= (\S+)$", makefile)
    assert used["actions/upload-pages-artifact"]["path"] == site
    assert "TORCH" in workflow["env"] and re.search(r"(?m)^TORCH +\?= torch$", makefile)
    book = next(step for step in steps if step.get("run") == "make book")
    asked = re.search(r"steps\.(\w+)\.outputs\.base_url", book["env"]["SITE_URL"])
    assert asked and [s["uses"] for s in steps if s.get("id") == asked[1]] == ["actions/configure-pages@v5"]
    assert "SITE_URL" in (ROOT / "book" / "ext" / "social_card.py").read_text()
    assert workflow["jobs"]["publish"]["needs"] == "build"
    assert workflow["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}
