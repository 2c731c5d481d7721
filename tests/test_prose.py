"""Spelling and prose: codespell on everything that is text, proselint on what is read as a page.

Neither asks a network. What codespell skips and allows is in pyproject.toml.
"""

import pathlib
import re
import subprocess
import sys

import nbformat
import pytest
from proselint.checks import __register__
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.tools import LintFile

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "book").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
# Off: signs that a keyboard has not. The more special rule has to come first.
CHECKS = {"typography.symbols.curly_quotes": False, "typography.symbols.ellipsis": False}
RULES = {**DEFAULT, "checks": CHECKS | DEFAULT["checks"]}


@pytest.fixture(scope="module", autouse=True)
def checks():
    CheckRegistry().register_many(__register__)


def paragraphs(path: pathlib.Path) -> list[str]:
    """What is read as prose: without code, equations, tables, links' addresses and names of directives."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    text = re.sub(r"(?ms)^```(python|bash|text|\{math\}|bibtex)?$.*?^```$", "", text)
    text = re.sub(r"(?m)^(    .*|\|.*|```.*|:{3,}.*|:\w+:.*|\(.*\)=)$", "", text)
    text = re.sub(r"(?s)\$\$.*?\$\$", "", text)
    count = iter(range(10**6))  # two names in a row are not a word said twice
    text = re.sub(r"\{[\w:]+\}`[^`]*`|`[^`\n]*`|\$[^$\n]*\$", lambda _: f"X{next(count)}", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return [part.strip() for part in re.split(r"\n\s*\n|\n(?=#|- |\d\. )", text) if part.strip()]


def faults(text: str) -> list[str]:
    return [found.check_result.message for found in LintFile("page", text).lint(RULES)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_prose(page):
    found = {text: said for text in paragraphs(page) if (said := faults(text))}
    assert not found


def test_paragraphs_are_prose():
    """The rules see the text of a page, and see a fault in it."""
    text = " ".join(paragraphs(ROOT / "README.md"))
    assert "small diffusers pipelines" in text and "import adatsq" not in text and "make book" not in text
    assert faults("It is the the best.") and faults("This is very unique.")


def test_spelling():
    run = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_spelling_sees_a_mistake(tmp_path):
    (tmp_path / "page.md").write_text("It is teh same.")  # codespell:ignore teh
    command = [sys.executable, "-m", "codespell_lib", "--toml", str(ROOT / "pyproject.toml"), str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "teh ==> the" in run.stdout, run.stderr  # codespell:ignore teh
