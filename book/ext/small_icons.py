"""Sphinx: of the theme's icons, 1.8 MB on every page as script, style and font, keep what the pages show."""

import re
from pathlib import Path

from fontTools import subset

# name:[width, height, [other names], "code", "path"], as Font Awesome 6 writes them
ICON = re.compile(r'("?)([\w-]+)\1:\[\d+,\d+,\[([^\]]*)\],"\w+",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?')
RULE = re.compile(r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\[0-9a-f]+"\}')
SOURCE = re.compile(
    r'src:url\(([^)]*/fa-[\w-]+)\.woff2\) format\("woff2"\),url\([^)]*\) format\("truetype"\)'
)
# How a style names a letter of an icon font: by its number, or as it is. No other letters stand there.
NUMBER, LETTER = re.compile(r"\\([ef][0-9a-f]{3})\b"), re.compile("[\ue000-\uf8ff]")


def drop_unused(app, exception):
    static = Path(app.outdir) / "_static"
    script, style = static / "scripts" / "fontawesome.js", static / "styles" / "pydata-sphinx-theme.css"
    if exception or app.builder.format != "html" or not script.exists():
        return
    pages = "".join(p.read_text(encoding="utf-8") for p in Path(app.outdir).rglob("*.html"))
    shown = set(re.findall(r"\bfa-([a-z0-9-]+)", pages))

    def keep(icon: re.Match) -> str:
        names = {icon[2], *re.findall(r'"([^"]+)"', icon[3])}
        return icon[0] if names & shown else ""

    def keep_rule(rule: re.Match) -> str:
        return rule[0] if set(re.findall(r"\.fa-([\w-]+)", rule[1])) & shown else ""

    script.write_text(ICON.sub(keep, script.read_text(encoding="utf-8")), encoding="utf-8")
    text = RULE.sub(keep_rule, style.read_text(encoding="utf-8"))
    styles = text + "".join(p.read_text(encoding="utf-8") for p in static.rglob("*.css") if p != style)
    letters = [int(code, 16) for code in NUMBER.findall(styles)] + list(map(ord, LETTER.findall(styles)))
    for font in SOURCE.findall(text):
        shorten(style.parent / f"{font}.ttf", letters)
    text = SOURCE.sub(r'src:url(\1.woff) format("woff")', text)
    style.write_text(text, encoding="utf-8")


def shorten(font: Path, letters: list[int]) -> None:
    """Write a font's .woff with these letters alone beside it. (.woff2 would ask for another library.)"""
    options = subset.Options(flavor="woff", notdef_outline=True)
    loaded = subset.load_font(str(font), options)
    worker = subset.Subsetter(options)
    worker.populate(unicodes=letters)
    worker.subset(loaded)
    subset.save_font(loaded, str(font.with_suffix(".woff")), options)


def setup(app):
    app.connect("build-finished", drop_unused)
    return {"parallel_read_safe": True}
