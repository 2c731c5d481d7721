"""Sphinx: list every module of adatsq on one page, docstrings shown as they are written."""

import pkgutil

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
    """Our docstrings are plain text with equations in them, not reStructuredText: keep every character."""
    if any(lines):
        lines[:] = [".. code-block:: text", "", *("   " + line for line in lines), ""]


def setup(app):
    app.connect("source-read", list_modules)
    app.connect("autodoc-process-docstring", as_text)
    return {"version": "1", "parallel_read_safe": True}
