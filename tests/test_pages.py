"""The book's pages: their code runs, what they say of offloading holds, their entries have links."""

import ast
import importlib.util
import io
import json
import pathlib
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from chromium import PATH as CHROMIUM
from PIL import Image

import adatsq
from adatsq.colors import METHOD_COLORS
from adatsq.world import aims

ROOT = pathlib.Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
GUIDE = (BOOK / "your_model.md").read_text(encoding="utf-8")
# What stands for the real model: a mini model without a GPU, and few steps.
STAND_IN = {
    '"black-forest-labs/FLUX.1-dev"': '"mini/flux-schnell-mini"',
    '"cuda", torch.bfloat16': '"cpu", torch.float32',
    "steps = 50": "steps = 2",
}
AFTER = "## When the pipeline does not fit the GPU"  # needs what a test machine has not


def blocks(text: str) -> list[str]:
    return re.findall(r"(?ms)^```python\n(.+?)^```", text)


def test_code_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    code = "\n".join(blocks(GUIDE.partition(AFTER)[0]))
    for real, small in STAND_IN.items():
        assert code.count(real) == 1, f"the guide has no {real}"
        code = code.replace(real, small)
    shutil.copytree(ROOT / "data" / "models" / "flux-schnell-mini", tmp_path / "mini" / "flux-schnell-mini")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(code, "book/your_model.md", "exec"), namespace)
    assert namespace["image"].size == (64, 64)
    assert "PSNR to full precision" in capsys.readouterr().out
    assert {"my-model-w4", "my-model-a4.json", "my-model-fisher.json"} <= {p.name for p in tmp_path.iterdir()}


def test_code_that_needs_gpus_is_python_and_names_what_exists():
    code = blocks(GUIDE.partition(AFTER)[2])
    assert code
    for node in ast.walk(ast.parse("\n".join(code))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "adatsq":
            assert hasattr(adatsq, node.attr), node.attr


OFFLOADING = {
    "nothing": lambda pipe: None,
    "model offloading": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "a device for each part": lambda pipe: dispatch_model(pipe.transformer, {"": "cpu"}, force_hooks=True),
}


def quantized_run(pipe) -> np.ndarray:
    """A picture by the whole method, the hooks of accelerate taken off after the recording."""
    offloaded = hasattr(pipe, "_all_hooks") and bool(pipe._all_hooks)
    trace = adatsq.record(pipe, ["a cat", "a dog"], num_inference_steps=2, progress=False)
    if offloaded:
        pipe.remove_all_hooks()
    fisher = adatsq.temporal_fisher(pipe, trace, progress=False)
    adatsq.quantize(pipe, trace, alpha=fisher.alpha(), progress=False)
    shares = adatsq.SHARES[4]
    front = adatsq.beam_search(pipe, trace, fisher, shares=shares, budget=4.0, progress=False)
    adatsq.apply(pipe, front.pick(4.0))
    if offloaded:
        pipe.enable_model_cpu_offload(device="cpu")
    pipe.set_progress_bar_config(disable=True)
    start = torch.Generator().manual_seed(0)
    settings = {**adatsq.sampling(pipe), "num_inference_steps": 2}
    return pipe("a bird", generator=start, output_type="np", **settings).images


def test_hooks_of_accelerate_change_nothing(tiny_folder):
    pictures = {}
    for name, prepare in OFFLOADING.items():
        pipe = adatsq.load_pipeline(tiny_folder)
        prepare(pipe)
        assert (name == "nothing") != any(hasattr(p, "_hf_hook") for p in pipe.transformer.modules())
        pictures[name] = quantized_run(pipe)
    for name, picture in pictures.items():
        assert np.abs(picture - pictures["nothing"]).max() < 1e-5, name  # up to rounding


def test_every_reference_has_a_link():
    entries = re.split(r"(?m)^@", (BOOK / "references.bib").read_text(encoding="utf-8"))[1:]
    assert entries
    for entry in entries:
        number = re.search(r"eprint = \{([\d.]+)\}", entry)
        if number:  # arXiv's DOIs are made of its numbers
            assert f"doi = {{10.48550/arXiv.{number[1]}}}" in entry, entry
        else:
            assert re.search(r"(doi|url) = \{\S+\}", entry), entry


def test_every_method_and_test_with_a_name_has_its_words():
    """What papers call themselves, before the colon of their titles; and the tools that pages name."""
    titles = re.findall(r"(?m)^  title = \{(.+)\},$", (BOOK / "references.bib").read_text(encoding="utf-8"))
    named = {title.partition(":")[0].replace("{", "").replace("}", "") for title in titles if ":" in title}
    assert {"GPTQ", "QuaRot", "VBench"} <= named
    glossary = (BOOK / "glossary.md").read_text(encoding="utf-8").partition("```{glossary}\n")[2]
    entries = set(re.findall(r"(?m)^\w.*$", glossary.partition("```")[0]))
    assert not (named | {"Triton", "CUDA graph", "RoPE"}) - entries - {"Diffusers"}


LOOKED_UP = {"api", "glossary", "references"}  # nothing there to try or to sum up


@pytest.mark.parametrize("page", sorted(BOOK.glob("*.md")), ids=lambda p: p.stem)
def test_every_page_opens_with_what_is_there_and_ends_with_the_next_step(page):
    text = page.read_text(encoding="utf-8")
    assert "**Next:**" in text and "**Reading time:**" in text
    opening = r"(\(.+\)=\n)?# .+\n\n\*\*.+\?.*\*\*\n\n```\{admonition\} You will "  # a question first
    assert page.stem in {"api", "references"} or re.match(opening, text)
    assert ("You will find" if page.stem in LOOKED_UP else "{admonition} You will learn") in text
    last = re.findall(r"(?m)^## .+", text)[-1:]
    assert page.stem in LOOKED_UP or last == ["## What was said, and what next"]


@pytest.mark.parametrize("page", sorted(BOOK.glob("*.md")), ids=lambda p: p.stem)
def test_every_page_has_something_to_try_with_its_answer_folded(page):
    text = page.read_text(encoding="utf-8")
    assert (page.stem in LOOKED_UP) != bool(re.search(TRY, text)), "a page that teaches has one thing to try"


TRY = r"(?m)^```\{admonition\} Answer\n:class: dropdown$"
EQUATION = re.compile(r"\$\$.+?\$\$", re.DOTALL)


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def prose(notebook: pathlib.Path) -> list[str]:
    """Its cells of text."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_opens_with_what_it_shows_and_ends_with_what_was_shown(notebook):
    texts = prose(notebook)
    first, last = texts[0], texts[-1]
    assert "{admonition} You will see" in first and "**Time:**" in first and "**Before:**" in first
    assert re.search(r"(?m)^## (What was m|M)easured, and (what )?not$", last)
    assert last.splitlines()[-1].find("**Next:**") >= 0, "the last line says where to go on"
    assert re.search(TRY, "\n".join(texts)), "one thing to try, its answer folded"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_opens_with_the_way_to_its_symbols_and_words(notebook):
    first = prose(notebook)[0]
    assert "{ref}`symbols <notation>`" in first and "{ref}`words <glossary>`" in first


@pytest.mark.parametrize("page", [*sorted(BOOK.glob("*.md")), *NOTEBOOKS], ids=lambda p: p.stem)
def test_functions_are_named_with_their_module_which_makes_them_links(page):
    """`adatsq.record` or `trace.record`, and not `record`, which could be anything; methods are rows too."""
    text = page.read_text("utf-8") if page.suffix == ".md" else "\n".join(prose(page))
    bare = set(re.findall(r"(?<![}`])`([a-z]\w+)`", text)) - set(METHOD_COLORS)
    assert not bare & set(adatsq.__all__), "write adatsq. before it"
    for file in (ROOT / "adatsq").glob("*.py"):
        made = set(re.findall(r"(?m)^def ([a-z]+_\w+)", file.read_text(encoding="utf-8")))
        assert not bare & made, f"write {file.stem}. before it"


@pytest.mark.parametrize("page", [BOOK / "method.md", *NOTEBOOKS], ids=lambda p: p.stem)
def test_every_equation_says_which_line_of_code_does_it(page):
    """In its paragraph or a later one of its cell, before the next heading."""
    texts = prose(page) if page.suffix == ".ipynb" else [page.read_text(encoding="utf-8")]
    for part in (part for cell in texts for part in re.split(r"(?m)^#+ ", cell)):
        if equations := list(EQUATION.finditer(part)):
            assert "{line}`" in part[equations[-1].end() :], equations[-1][0]


def module_of_the_book(name: str):
    """A script of book/ that is no package: an extension of Sphinx, or a tool."""
    place = BOOK / f"{name}.py"
    spec = importlib.util.spec_from_file_location(place.stem, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_addresses_of_the_card_are_absolute_where_the_site_is_known():
    card = module_of_the_book("ext/social_card")
    page, base = "notebooks/05_flux.html", "https://host.example/book/"
    assert card.address(base, page, card.IMAGE) == f"{base}_static/social-card.png"
    assert card.address("", page, card.IMAGE) == "../_static/social-card.png"
    assert card.address("", "index.html", card.IMAGE) == "_static/social-card.png"
    assert 'content="a &quot;b&quot; &lt;c&gt;"' in card.tags('a "b" <c>', "text", "u", "i")


def test_the_card_is_a_picture_of_stored_results():
    card = module_of_the_book("ext/social_card")
    data = card.load_data(card.RESULTS / card.STORED)
    with Image.open(io.BytesIO(card.draw(data))) as picture:
        assert picture.size == card.SIZE
    other = {**data, "settings": data["settings"][:1], "prompts": data["prompts"][:1]}  # fewer pictures
    assert card.draw(other) != card.draw(data)


def test_pictures_get_lighter_and_keep_every_pixel(tmp_path):
    module, rng = module_of_the_book("ext/light_pictures"), np.random.default_rng(0)
    figure = np.full((200, 300, 3), 255, np.uint8)
    figure[50:150, 40:80] = (10, 120, 200)
    figure[20:40, 100:160] = rng.integers(0, 256, (20, 60, 3))
    images = tmp_path / "_images"
    images.mkdir()
    Image.fromarray(figure).save(images / "a.png", compress_level=0)
    before, page = (images / "a.png").stat().st_size, tmp_path / "sub" / "page.html"
    page.parent.mkdir()
    page.write_text(
        '<a href="../_images/a.png"><img src="../_images/a.png" alt="a.png"></a>', encoding="utf-8"
    )
    app = SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html"))
    module.convert(app, None)
    (made,) = images.iterdir()
    with Image.open(made) as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), figure)
    assert made.name == "a.webp" and made.stat().st_size < before
    assert page.read_text(encoding="utf-8").count("../_images/a.webp") == 2
    assert 'alt="a.png"' in page.read_text(encoding="utf-8"), "words are left alone"


def test_every_page_has_its_places_to_fill_in():
    for page, texts in module_of_the_book("ext/from_data").TEXTS.items():
        text = (BOOK.parent / f"{page}.md").read_text(encoding="utf-8")
        assert all(text.count(word) == 1 for word in texts), page


def test_what_the_mini_models_aimed_at_is_told():
    said = module_of_the_book("ext/from_data").aims()
    for name in ("flux-schnell-mini", "z-image-mini"):
        assert f"- **{name}.** {aims.aim(name, BOOK.parent / 'data' / 'results')}" in said


def test_the_pdf_is_linked_where_it_is_made(monkeypatch):
    from_data = module_of_the_book("ext/from_data")
    monkeypatch.setenv("BOOK_PDF", "book.pdf")
    assert 'href="../book.pdf"' in from_data.pdf()
    monkeypatch.setenv("BOOK_PDF", "")
    assert from_data.pdf() == ""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_pdf_has_contents_and_counts_its_pages_through(tmp_path):
    """Numbers and links of the contents lead to the pages on which the parts begin, as the outline does."""
    pypdf, to_pdf = pytest.importorskip("pypdf"), module_of_the_book("to_pdf")
    for name, pages in (("first & best", 3), ("second", 1), ("last", 2)):
        text = f"<h1>{name}</h1>" + '<p style="break-after: page">words</p>' * (pages - 1) + "<p>end</p>"
        (tmp_path / f"{name[:3]}.html").write_text(text, encoding="utf-8")
    out = tmp_path / "book.pdf"
    with to_pdf.window() as tab:
        assert to_pdf.write(tab, to_pdf.printed(tab, tmp_path, ["fir", "sec", "las"]), out) == 7
    book = pypdf.PdfReader(out)
    texts = [page.extract_text() for page in book.pages]
    begins = {"first & best": 2, "second": 5, "last": 6}
    for title, page in begins.items():
        assert re.search(rf"{title}\s*{page}\b", texts[0]), texts[0]
    feet = ["first & best"] * 3 + ["second"] + ["last"] * 2
    for number, (text, title) in enumerate(zip(texts[1:], feet), 2):
        assert re.search(rf"{title}, {number}\b", text), text
    outline = {entry.title: book.get_destination_page_number(entry) + 1 for entry in book.outline}
    assert outline == {"Contents": 1} | begins
    links = [note.get_object()["/Dest"][0] for note in book.pages[0]["/Annots"]]
    numbers = [at.get_object() if hasattr(at, "get_object") else at for at in links]
    places = [book.pages.index(at) if isinstance(at, dict) else int(at) for at in numbers]
    assert [at + 1 for at in places] == list(begins.values())


def test_pdf_has_every_page_in_order_and_says_what_is_missing(monkeypatch):
    to_pdf = module_of_the_book("to_pdf")
    chapters = to_pdf.chapters(BOOK / "_toc.yml")
    assert chapters[0] == "book/intro" and len(set(chapters)) == len(chapters)
    assert {f"book/{p.stem}" for p in BOOK.glob("*.md")} <= set(chapters)
    monkeypatch.setattr(to_pdf.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="no Chromium on PATH"):
        to_pdf.chromium()
