"""Sphinx: tables and sentences that are computed when the book is built, so that they cannot go stale."""

import os
from dataclasses import replace
from pathlib import Path

import adatsq
from adatsq import evidence, measurements, tables, tables_full_size
from adatsq.world.aims import AT_LEAST, BELOW_AT_MOST, aim

DATA = Path(adatsq.__file__).resolve().parents[1] / "data"


NOTHING = (
    "**Nothing is stored of a model at its full size**, neither with its trained weights nor with random ones"
)


def full_size() -> str:
    results = DATA / "results"
    names = evidence.not_mini(results, DATA / "models")
    if names:
        return f"Models with stored results that are not mini models: {', '.join(names)}."
    if len(runs := measurements.stored(results / "full-size.csv")):
        said = (
            "The whole method was run at full size **with random weights**: "
            f"{tables_full_size.told(runs)}. Seconds and memory are in "
            "`data/results/full-size.csv`, and {ref}`your-model` shows them. "
            "**With trained weights nothing is stored**"
        )
    else:
        said = f"Every file in `data/results/` is of a mini model. {NOTHING}"
    layers = [f"`{name}`" for name in ("cuda-shapes.csv", "cuda-steps.csv") if (results / name).exists()]
    speed = f"; times of layers and steps of those shapes, on random numbers, are in {' and '.join(layers)}"
    speed += " ({ref}`nb-speed`)"
    return said + (speed if layers else "") + "."


def full_size_times() -> str:
    table = measurements.stored(DATA / "results" / "full-size.csv")
    if table.empty:
        return f"{NOTHING}: `python -m adatsq.cuda.full_size` would measure it, on a GPU."
    memory = tables_full_size.parts(table, "peak_memory_bytes").set_index("part") / 1e9
    return (
        "**Measured at full size, with random weights**: the transformer has the real shapes, so seconds "
        "and memory hold; pictures mean nothing. The runs: "
        + tables_full_size.told(table)
        + ". As the command has it by default: one calibration prompt, small text encoders, guidance that "
        "takes a second call of the transformer off, and what `adatsq.load(packed=True)` gives, without the "
        "fused activation functions of `adatsq.accelerate`. The Fisher information recomputes activations "
        "(diffusers' gradient checkpointing). From `data/results/full-size.csv`, seconds; a part without a "
        "number was not run:\n\n"
        + evidence.markdown(tables_full_size.parts(table, "s"))
        + "\n\nThe most that tensors took at once, in GB of 10⁹ bytes:\n\n"
        + evidence.markdown(memory.reset_index())
        + "\n\nThe transformer's tensors, and the pipeline's folder with small text encoders, in GB:\n\n"
        + evidence.markdown(tables_full_size.sizes(table), digits=2)
    )


def measured() -> str:
    table = evidence.stored(DATA / "results")
    return evidence.markdown(table.assign(command="`" + table["command"] + "`"))


def aims() -> str:
    """What the mini models were trained to reach and whether they do, in a list."""
    said = {name: aim(name, DATA / "results") for name in (*BELOW_AT_MOST, *AT_LEAST)}
    return "\n".join(f"- **{name}.** {text}" for name, text in said.items() if text)


def memory() -> str:
    """A column per model, which fits a page's width."""
    table = evidence.memories().set_index("model").T.rename(columns=lambda name: name.split("/")[-1])
    return evidence.markdown(table.rename_axis("").reset_index())


# One part of the method after the other, and last the strongest of those that the paper compares with.
FIRST_LOOK = ("fp", "rtn", "hadamard", "hadamard+gptq", "adatsq-weights", "adatsq", "svdquant")


def scores() -> str:
    found = tables.read(DATA / "results", "flux-dev-mini")
    rows = replace(found, table=found.table[found.table.method.isin(FIRST_LOOK)])
    table = rows.show(["total", "psnr", "average_bits"]).rename(columns={"average bits": "activation bits"})
    order = sorted(table.index, key=lambda row: (" W3" in row, FIRST_LOOK.index(row.split()[0])))
    return evidence.markdown(table.loc[order].rename_axis("").reset_index())


def pdf() -> str:
    """A link to the book as a PDF, if `make book` prints one: where Chromium is."""
    name = os.environ.get("BOOK_PDF")
    return f'The whole book is also one file, <a href="../{name}">{name}</a>.' if name else ""


# {page: {word in its text: what stands there in the book}}
TEXTS = {
    "book/intro": {"SCORES_TABLE": scores, "PDF_LINK": pdf},
    "book/your_model": {
        "MEMORY_TABLE": memory,
        "TIME_TABLE": lambda: evidence.markdown(evidence.seconds(DATA / "results")),
        "FULL_SIZE_TIMES": full_size_times,
    },
    "book/measured": {"RESULTS_TABLE": measured, "AIMS": aims, "FULL_SIZE": full_size},
}


def fill_in(app, docname, source):
    for word, text in TEXTS.get(docname, {}).items():
        if word not in source[0]:
            raise ValueError(f"{docname}.md has no {word} to be filled in")
        source[0] = source[0].replace(word, text())


def setup(app):
    app.connect("source-read", fill_in)
    return {"version": "1", "parallel_read_safe": True}
