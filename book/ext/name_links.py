"""Sphinx: a name of the package, written as `code` on a page or in a docstring, links to its API entry.

Names are those that Python finds: `adatsq.quantize`, `policy.Policy`, `Policy.average`, `record(...)`. One
that begins with `adatsq.` and does not exist is a warning, so pages cannot name what is gone. A docstring may
also use the names of its own module, and leave out the `cuda.` of `cuda.products.multiply`.

{line}`fisher.Fisher.alpha` becomes the file and line of that code, linked to the source as it was built;
{line}`fisher.Fisher.alpha np.exp(` the one line in it that has these characters.
"""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import adatsq

MODULES = {m.name.removeprefix("adatsq.") for m in pkgutil.walk_packages(adatsq.__path__, "adatsq.")}
NAME = re.compile(r"(?P<name>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)(?P<call>\(.*\))?", re.DOTALL)
log = logging.getLogger(__name__)


def find(path: str) -> object:
    """The module, class, function or attribute of this dotted name below `adatsq`; LookupError if none."""
    parts = path.split(".")
    for end in range(len(parts), -1, -1):
        below = ".".join(parts[:end])
        if below and below not in MODULES:
            continue
        found = importlib.import_module(f"adatsq.{below}" if below else "adatsq")
        try:
            for part in parts[end:]:
                fields = getattr(found, "__dataclass_fields__", {})
                found = fields[part] if part in fields else getattr(found, part)
            return found
        except AttributeError:
            continue
    raise LookupError(path)


def entry(path: str) -> str:
    """Where the API page has it: the module that defines it, not the one that imports it."""
    found = find(path)
    if inspect.ismodule(found):
        return found.__name__
    ours = str(getattr(found, "__module__", "")).startswith("adatsq")  # not a dict's own methods
    if ours and (inspect.isroutine(found) or inspect.isclass(found)):
        return f"{found.__module__}.{found.__qualname__}"
    owner, _, last = path.rpartition(".")
    return f"{entry(owner)}.{last}" if owner else f"adatsq.{last}"


def documented(path: str, objects: dict) -> str | None:
    """The entry of this name among the API's objects, or of what it is a part of; None if there is neither.

    LookupError if the package has no such name.
    """
    target = entry(path)
    while target not in objects and "." in target:  # a field is described in its class's text
        target = target.rpartition(".")[0]
    return target if target in objects else None


def meant(text: str) -> str | None:
    """The dotted name below `adatsq` that this piece of code means, or None: most code is no name of ours."""
    if file := re.fullmatch(r"adatsq/([\w/]+)\.py", text):
        return file[1].replace("/", ".")
    match = NAME.fullmatch(text)
    if not match:
        return None
    name, first = match["name"], match["name"].partition(".")[0]
    if first == "adatsq":
        return name.removeprefix("adatsq.") if name != "adatsq" else None
    ours = first in adatsq.__all__ or first in MODULES
    plain = "." not in name and match["call"] is None and not (name[0].isupper() and not name.isupper())
    return None if plain or not ours else name


def module_of(node: nodes.Node) -> str | None:
    """The module whose docstring this node is in, below `adatsq` ("" for that itself); None if in none."""
    while node is not None:
        _, docstring, owner = (node.source or "").partition("docstring of adatsq")
        if docstring:
            parts = owner.removeprefix(".").split(".")
            names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
            return next((name for name in names if name in MODULES), "")
        node = node.parent
    return None


def nearby(text: str, module: str, objects: dict) -> str | None:
    """The entry of a name in a docstring: of its own module, then of `cuda.`; None if there is no such name.

    Only what has an entry below its module's: a word that is a module is mostly an argument's name, and
    what a module has from another library is not described in the API.
    """
    match = NAME.fullmatch(text)
    below = [module, "cuda"] if match and "." in match["name"] else [module] if match else []
    for place in below:
        try:
            target = documented(f"{place}.{match['name']}".removeprefix("."), objects)
        except LookupError:
            continue
        if target and target != "adatsq" and target.removeprefix("adatsq.") not in MODULES:
            return target
    return None


class NameLinks(SphinxPostTransform):
    default_priority = 200
    formats = ("html",)

    def run(self, **kwargs):
        domain = self.env.domains["py"]
        for node in list(self.document.findall(nodes.literal)):
            text = node.astext()
            if isinstance(node.parent, nodes.reference):
                continue
            path, target = meant(text), None
            try:
                target = documented(path, domain.objects) if path is not None else None
            except LookupError:
                if text.startswith(("adatsq.", "adatsq/")) and not re.fullmatch(r"adatsq\.(json|\*)", text):
                    log.warning("no %s in the package", text, location=node, type="adatsq")
            module = None if target else module_of(node)
            if module is not None:
                target = nearby(text, module, domain.objects)
            if target:
                place = domain.objects[target]
                link = make_refnode(
                    self.app.builder, self.env.docname, place.docname, place.node_id, node.deepcopy(), target
                )
                node.replace_self(link)


def place_of(text: str) -> tuple[str, int, str]:
    """A name of code, and perhaps a piece of one of its lines -> file below the root without .py, number of
    the line, anchor on viewcode's page. LookupError if there is no such code or line, or several lines."""
    name, _, piece = text.partition(" ")
    found = find(name)
    found = inspect.unwrap(found.fget if isinstance(found, property) else found)
    try:
        module, (lines, number) = inspect.getmodule(found), inspect.getsourcelines(found)
    except (TypeError, OSError):
        raise LookupError(f"no code of {name!r} in the package") from None
    file = module.__name__.replace(".", "/")
    if not piece:
        return file, number, found.__qualname__
    having = [i for i, line in enumerate(lines) if piece in line]
    if len(having) != 1:
        raise LookupError(f"{len(having)} lines of {name!r} have {piece!r}, and it must be one")
    return file, number + having[0], f"line-{number + having[0]}"


def line(name, rawtext, text, lineno, inliner, options=None, content=None):
    """Role: file and line of a function, class or method, or of a line of it, linked to viewcode's page."""
    try:
        file, number, anchor = place_of(text)
    except LookupError as error:
        message = inliner.reporter.error(f"no line for {text!r}: {error}", line=lineno)
        return [inliner.problematic(rawtext, rawtext, message)], [message]
    up = "../" * inliner.document.settings.env.docname.count("/")
    link = nodes.reference("", "", refuri=f"{up}_modules/{file}.html#{anchor}", internal=True)
    link += nodes.literal("", f"{file}.py:{number}")
    return [link], []


def with_anchors(page: str, numbers: set[int]) -> str:
    """Viewcode's page of a module, these of its lines made places to go to, and no others: a page may be left
    from an earlier build. Its code begins below <pre>, and what viewcode puts between the lines of the code,
    ahead of and after a function, ends with a line break too."""
    before, pre, code = re.sub('<span class="line" id="[^"]*"></span>', "", page).partition("<pre>\n")
    between = r'(</div>|<div class="viewcode-block.*|<a class="viewcode-back.*)\n'
    lines = re.sub(between, "\\1\0", code).split("\n")
    for number in numbers:
        lines[number - 1] = f'<span class="line" id="line-{number}"></span>{lines[number - 1]}'
    return before + pre + "\n".join(lines).replace("\0", "\n")


def add_anchors(app, exception):
    """For all lines that pages link to."""
    if exception or app.builder.format != "html":
        return
    wanted: dict[str, set[int]] = {}
    for page in Path(app.outdir).rglob("*.html"):
        for file, number in re.findall(r'_modules/([\w/]+)\.html#line-(\d+)"', page.read_text("utf-8")):
            wanted.setdefault(file, set()).add(int(number))
    for file, numbers in wanted.items():
        page = Path(app.outdir) / "_modules" / f"{file}.html"
        page.write_text(with_anchors(page.read_text("utf-8"), numbers), encoding="utf-8")


def setup(app):
    app.add_role("line", line)
    app.add_post_transform(NameLinks)
    app.connect("build-finished", add_anchors)
    return {"version": "1", "parallel_read_safe": True}
