"""Links to single words of the glossary: every notebook has some, and each names an entry."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
BOOK, NOTEBOOKS = ROOT / "book", sorted((ROOT / "notebooks").glob("*.ipynb"))
LINKING = [BOOK / "method.md", BOOK / "your_model.md", *NOTEBOOKS]
GLOSSARY = (BOOK / "glossary.md").read_text(encoding="utf-8").partition("```{glossary}\n")[2]
ENTRIES = set(re.findall(r"(?m)^\w.*$", GLOSSARY.partition("```")[0]))


def terms(page: pathlib.Path) -> list[str]:
    """Entries that a page links, as written in its prose."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    found = re.findall(r"\{term\}`([^`]+)`", text)
    return [re.sub(r".*<(.+)>", r"\1", term) for term in found]


@pytest.mark.parametrize("page", sorted({*LINKING, *BOOK.glob("*.md")}), ids=lambda p: p.stem)
def test_terms_are_entries_and_linked_once(page):
    found = terms(page)
    assert found or page not in LINKING, "no word of the glossary is linked"
    assert not set(found) - ENTRIES
    if page in LINKING:
        assert len(set(found)) == len(found), "linked at the first use alone"
