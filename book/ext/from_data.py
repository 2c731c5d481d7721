"""Sphinx: tables and sentences that are computed when the book is built, so that they cannot go stale."""

from pathlib import Path

import adatsq
from adatsq import evidence

DATA = Path(adatsq.__file__).resolve().parents[1] / "data"


def full_size() -> str:
    names = evidence.not_mini(DATA / "results", DATA / "models")
    if names:
        return f"Models with stored results that are not mini models: {', '.join(names)}."
    shapes = (DATA / "results" / "cuda-shapes.csv").exists()
    return (
        "Every file in `data/results/` is of a mini model. **Nothing is stored of a model at its full "
        "size**, neither with its trained weights nor with random ones"
        + (", but the times of single layers of those shapes, on random numbers." if shapes else ".")
    )


def measured() -> str:
    table = evidence.stored(DATA / "results")
    return evidence.markdown(table.assign(command="`" + table["command"] + "`"))


def memory() -> str:
    """A column per model, which fits a page's width."""
    table = evidence.memories().set_index("model").T.rename(columns=lambda name: name.split("/")[-1])
    return evidence.markdown(table.rename_axis("").reset_index())


# {page: {word in its text: what stands there in the book}}
TEXTS = {
    "book/your_model": {
        "MEMORY_TABLE": memory,
        "TIME_TABLE": lambda: evidence.markdown(evidence.seconds(DATA / "results")),
    },
    "book/measured": {"RESULTS_TABLE": measured, "FULL_SIZE": full_size},
}


def fill_in(app, docname, source):
    for word, text in TEXTS.get(docname, {}).items():
        if word not in source[0]:
            raise ValueError(f"{docname}.md has no {word} to be filled in")
        source[0] = source[0].replace(word, text())


def setup(app):
    app.connect("source-read", fill_in)
    return {"version": "1", "parallel_read_safe": True}
