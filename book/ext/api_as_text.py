"""Sphinx: list every module of adatsq on one page, docstrings taken as plain text."""

import pkgutil
import re

import adatsq

SECTION = """
## {name}

```{{eval-rst}}
.. automodule:: {name}
   :members:
   :ignore-module-all:
```
"""


def list_modules(app, docname, source):
    """Replace MODULES in book/api.md by one section per module: the page can not fall behind the package."""
    if docname == "book/api":
        below = [m.name for m in pkgutil.walk_packages(adatsq.__path__, "adatsq.") if "._" not in m.name]
        sections = [SECTION.format(name=name) for name in ["adatsq", *sorted(below)]]
        source[0] = source[0].replace("MODULES", "".join(sections))


def as_text(app, what, name, obj, options, lines):
    """Docstrings are plain text, not reStructuredText: paragraphs flow, what is laid out stays as it is."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()  # Python's words for a field of a named tuple
    out = []
    for block in "\n".join(lines).strip().split("\n\n"):
        if re.search(r"(?m)^( |- |\* |>>> )", block):
            out += [".. code-block:: text", "", *("   " + line for line in block.splitlines()), ""]
        else:
            out += [paragraph(block), ""]
    lines[:] = out


def paragraph(text):
    """One line of reStructuredText: `code` becomes literal, every other special character is escaped."""
    parts = " ".join(text.split()).split("`")
    plain = [re.sub(r"([\\*_|:<>\[\]])", r"\\\1", part) for part in parts[::2]]
    code = [f"\\ ``{part}``\\ " for part in parts[1::2]]
    return "".join(p + c for p, c in zip(plain, code + [""] * len(plain)))


def setup(app):
    app.connect("source-read", list_modules)
    app.connect("autodoc-process-docstring", as_text)
    return {"version": "1", "parallel_read_safe": True}
