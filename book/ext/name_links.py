"""Sphinx: a name of the package, written as `code` on a page or in a docstring, links to its API entry.

Names are those that Python finds: `adatsq.quantize`, `policy.Policy`, `Policy.average`, `record(...)`. One
that begins with `adatsq.` and does not exist is a warning, so pages cannot name what is gone.

{line}`fisher.Fisher.alpha` becomes the file and line of that code, linked to the source as it was built.
"""

import importlib
import inspect
import pkgutil
import re

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


class NameLinks(SphinxPostTransform):
    default_priority = 200
    formats = ("html",)

    def run(self, **kwargs):
        domain = self.env.domains["py"]
        for node in list(self.document.findall(nodes.literal)):
            text = node.astext()
            path = None if isinstance(node.parent, nodes.reference) else meant(text)
            if path is None:
                continue
            try:
                target = documented(path, domain.objects)
            except LookupError:
                if text.startswith(("adatsq.", "adatsq/")) and not re.fullmatch(r"adatsq\.(json|\*)", text):
                    log.warning("no %s in the package", text, location=node, type="adatsq")
                continue
            if target:
                place = domain.objects[target]
                link = make_refnode(
                    self.app.builder, self.env.docname, place.docname, place.node_id, node.deepcopy(), target
                )
                node.replace_self(link)


def line(name, rawtext, text, lineno, inliner, options=None, content=None):
    """Role: file and line of a function, class or method, linked to viewcode's page of that module."""
    try:
        found = inspect.unwrap(find(text))
        found = found.fget if isinstance(found, property) else found
        module, number = inspect.getmodule(found), inspect.getsourcelines(found)[1]
    except (LookupError, TypeError, OSError):
        message = inliner.reporter.error(f"no code of {text!r} in the package", line=lineno)
        return [inliner.problematic(rawtext, rawtext, message)], [message]
    env = inliner.document.settings.env
    up = "../" * env.docname.count("/")
    file = module.__name__.replace(".", "/")
    link = nodes.reference("", "", refuri=f"{up}_modules/{file}.html#{found.__qualname__}", internal=True)
    link += nodes.literal("", f"{file}.py:{number}")
    return [link], []


def setup(app):
    app.add_role("line", line)
    app.add_post_transform(NameLinks)
    return {"version": "1", "parallel_read_safe": True}
