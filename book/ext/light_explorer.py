"""Sphinx: the explorer's page has the data of its first model; those of the others are files of their own,
which it loads when the reader chooses them, from disk too."""

import json
import posixpath
import re
import shutil
from functools import partial
from pathlib import Path

DATA = re.compile(r'<script type="text/plain" id="(adatsq-explorer-\w+-data-[1-9]\d*)">([^<]+)</script>')
FOLDER = "_static/explorer"


def move_out(app, exception):
    """From all pages."""
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    for page in out.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        told = DATA.sub(partial(moved, out, page), text)
        if told != text:
            page.write_text(told, encoding="utf-8")


def moved(out: Path, page: Path, found: re.Match) -> str:
    """Write the data to a script that puts them back; the element that names it."""
    name, packed = found.groups()
    file = out / FOLDER / f"{name}.js"
    file.parent.mkdir(parents=True, exist_ok=True)
    put = f"document.getElementById({json.dumps(name)}).textContent = {json.dumps(packed)};\n"
    file.write_text(put, encoding="utf-8")
    place = posixpath.relpath(f"{FOLDER}/{file.name}", page.parent.relative_to(out).as_posix())
    return f'<script type="text/plain" id="{name}" data-src="{place}"></script>'


def setup(app):
    app.connect("build-finished", move_out)
    return {"version": "1", "parallel_read_safe": True}
