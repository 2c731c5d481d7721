"""Sphinx: a name of the package inside a block of Python links to its API entry, as names in text do.

Linked are `adatsq.X` and what the page imports from the package, with what is called on it, unless the page
gives that name to something else too. The highlighter knows no links, so this is done on the finished HTML.
"""

import ast
import html
import re
from pathlib import Path

from name_links import documented

BLOCK = re.compile(
    r'(<div class="highlight-(?:ipython3|python) [^>]*><div class="highlight"><pre>)(.*?)</pre>', re.S
)
DOT, NAME = '<span class="o">[.]</span>', r'<span class="n[nc]?">([\w.]+)</span>'
# A name and what hangs on it; neither an attribute of something else nor the name of an argument.
CHAIN = re.compile(f'(?<!{DOT}){NAME}(?:{DOT}{NAME})*(?!<span class="o">=</span>)')
TAG = re.compile(r"<[^>]+>")


def imported(blocks: list[str]) -> dict[str, str]:
    """{a name: what it is, as a dotted name below `adatsq`} of a page whose blocks of Python import it."""
    nodes = []
    for code in blocks:
        try:
            nodes += ast.walk(ast.parse(code))
        except SyntaxError:  # a command line, or a piece of something
            continue
    found = {"adatsq": ""}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "adatsq":
            below = node.module.split(".")[1:]
            found |= {name.asname or name.name: ".".join([*below, name.name]) for name in node.names}
    own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return {name: path for name, path in found.items() if name not in own}


def link(page: str, address) -> str:
    """The HTML of a page, its names of the package linked. address: from a dotted name to a URL, or None."""
    names = imported([html.unescape(TAG.sub("", block)) for _, block in BLOCK.findall(page)])

    def linked(chain: re.Match) -> str:
        first, *rest = ".".join(re.findall(NAME, chain[0])).split(".")
        if first not in names:
            return chain[0]
        url = address(".".join(filter(None, [names[first], *rest])))
        return f'<a class="code-link" href="{html.escape(url)}">{chain[0]}</a>' if url else chain[0]

    return BLOCK.sub(lambda block: f"{block[1]}{CHAIN.sub(linked, block[2])}</pre>", page)


def link_pages(app, exception):
    if exception or app.builder.format != "html":
        return
    objects = app.env.get_domain("py").objects
    for name in app.env.found_docs:

        def address(path, name=name):
            try:
                place = objects.get(documented(path, objects))
            except LookupError:
                return None
            return place and f"{app.builder.get_relative_uri(name, place.docname)}#{place.node_id}"

        file = Path(app.outdir) / f"{name}.html"
        file.write_text(link(file.read_text(encoding="utf-8"), address), encoding="utf-8")


def setup(app):
    app.connect("build-finished", link_pages)
    return {"version": "1", "parallel_read_safe": True}
