"""Pictures of every page of the site, to be looked at: python tests/shots.py _build/site _build/shots

In light and in dark, on a desk and on a phone, each page whole: _build/shots/light-desk/notebooks-05_flux.png
and so on. Names of pages after the two folders ask for these alone.
"""

import sys
from pathlib import Path

from chromium import FLAGS, PATH, chosen
from playwright.sync_api import sync_playwright

SIZES = {"desk": (1280, 900), "phone": (390, 844)}
TALLEST = 16000  # pixels that Chromium draws in one picture
DRAWN = """![...document.querySelectorAll(".math")].some(e => !e.querySelector(".katex"))"""  # equations


def take(site: Path, out: Path, wanted: list[str]) -> int:
    """How many pictures there are now."""
    pages = [p for p in sorted(site.rglob("*.html")) if not {"_static", "_modules"} & set(p.parts)]
    pages = [p for p in pages if p != site / "index.html" and (not wanted or p.stem in wanted)]
    count = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PATH, args=FLAGS)
        for theme in ("light", "dark"):
            for size, (width, height) in SIZES.items():
                folder = out / f"{theme}-{size}"
                folder.mkdir(parents=True, exist_ok=True)
                tab = browser.new_page(viewport={"width": width, "height": height})
                tab.add_init_script(chosen(theme))
                for page in pages:
                    tab.goto(page.resolve().as_uri(), wait_until="networkidle")
                    tab.wait_for_function(DRAWN)
                    name = "-".join(page.relative_to(site).with_suffix("").parts)
                    tall = tab.evaluate("document.documentElement.scrollHeight")
                    for part, top in enumerate(range(0, tall, TALLEST)):
                        clip = {"x": 0, "y": top, "width": width, "height": min(TALLEST, tall - top)}
                        file = folder / f"{name}{f'-{part + 1}' * (tall > TALLEST)}.png"
                        tab.screenshot(path=file, full_page=True, clip=clip, animations="disabled")
                        count += 1
                tab.close()
        browser.close()
    return count


if __name__ == "__main__":
    if PATH is None:
        sys.exit("no Chromium on PATH: install it, such as your system's package `chromium`")
    site, out = Path(sys.argv[1]), Path(sys.argv[2])
    if not (site / "index.html").exists():
        sys.exit(f"no site in {site}: build it first (make book)")
    print(f"{take(site, out, sys.argv[3:])} pictures in {out}")
