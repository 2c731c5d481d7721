"""Sphinx: of the theme's icon script, 1.5 MB on every page, keep the icons that the pages show."""

import re
from pathlib import Path

# name:[width, height, [other names], "code", "path"], as Font Awesome 6 writes them
ICON = re.compile(r'("?)([\w-]+)\1:\[\d+,\d+,\[([^\]]*)\],"\w+",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?')


def drop_unused(app, exception):
    script = Path(app.outdir) / "_static" / "scripts" / "fontawesome.js"
    if exception or app.builder.format != "html" or not script.exists():
        return
    pages = "".join(p.read_text(encoding="utf-8") for p in Path(app.outdir).rglob("*.html"))
    shown = set(re.findall(r"\bfa-([a-z0-9-]+)", pages))

    def keep(icon: re.Match) -> str:
        names = {icon[2], *re.findall(r'"([^"]+)"', icon[3])}
        return icon[0] if names & shown else ""

    script.write_text(ICON.sub(keep, script.read_text(encoding="utf-8")), encoding="utf-8")


def setup(app):
    app.connect("build-finished", drop_unused)
    return {"parallel_read_safe": True}
