"""Which pieces of code on a page are names of the package, and where the API page has them."""

import html
import pathlib
import re
import sys

import pytest
from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

pytest.importorskip("sphinx", reason="the book's packages are not installed")
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "book" / "ext"))
import code_links
import name_links


@pytest.mark.parametrize(
    "text, where",
    [
        ("adatsq.quantize", "adatsq.replacement.quantize"),
        ("policy.apply", "adatsq.policy.apply"),
        ("Policy.average", "adatsq.policy.Policy.average"),
        ("Policy.bits", "adatsq.policy.Policy.bits"),
        ("record(pipe, prompts)", "adatsq.trace.record"),
        ("adatsq/gptq.py", "adatsq.gptq"),
        ("adatsq.SHARES", "adatsq.SHARES"),
    ],
)
def test_names_lead_to_where_they_are_defined(text, where):
    assert name_links.entry(name_links.meant(text)) == where


@pytest.mark.parametrize("text", ["rtn", "adatsq", "hadamard+gptq", "W4A4", "np.argsort(x)"])
def test_other_code_is_left_alone(text):
    assert name_links.meant(text) is None


API = dict.fromkeys(
    [
        "adatsq.cuda.activations",
        "adatsq.cuda.activations.quantize",
        "adatsq.cuda.exact",
        "adatsq.cuda.exact.row_sum",
        "adatsq.cuda.linear.PackedLinear",
        "adatsq.cuda.products.multiply",
        "adatsq.linear.QuantLinear",
        "adatsq.search.beam_search",
    ]
)


@pytest.mark.parametrize(
    "text, module, where",
    [
        ("activations.quantize", "cuda.few_rows_kernel", "adatsq.cuda.activations.quantize"),
        ("products.multiply", "search", "adatsq.cuda.products.multiply"),
        ("beam_search", "search", "adatsq.search.beam_search"),
        ("QuantLinear", "linear", "adatsq.linear.QuantLinear"),
        ("row_sum(codes)", "cuda.exact", "adatsq.cuda.exact.row_sum"),
        ("beam_search", "", "adatsq.search.beam_search"),
    ],
)
def test_names_of_a_docstrings_module_and_of_cuda_are_found(text, module, where):
    assert name_links.nearby(text, module, API) == where


@pytest.mark.parametrize(
    "text, module",
    [
        ("beam_search", "gptq"),
        ("exact", "cuda.linear"),  # a module there, and a word of many meanings
        ("Tensor", "cuda.exact"),  # another library's
        ("torch.Tensor", "cuda.exact"),
        ("x + y", "cuda.exact"),
    ],
)
def test_other_words_of_a_docstring_are_left_alone(text, module):
    assert name_links.nearby(text, module, API) is None


def test_the_module_of_a_docstring_is_known_from_where_its_text_is_from():
    def within(source):
        literal, paragraph = nodes.literal(), nodes.paragraph()
        paragraph.source = source
        paragraph += literal
        return name_links.module_of(literal)

    assert within("a/adatsq/policy.py:docstring of adatsq.policy.Policy.average") == "policy"
    assert within("a/adatsq/cuda/exact.py:docstring of adatsq.cuda.exact") == "cuda.exact"
    assert within("a/adatsq/__init__.py:docstring of adatsq") == ""
    assert within("book/method.md") is within(None) is None


def test_a_name_that_is_gone_is_found_out():
    with pytest.raises(LookupError):
        name_links.entry(name_links.meant("adatsq.quantise"))


ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("book/*.md"), *ROOT.glob("notebooks/*.ipynb")]
LINES = sorted({found for page in PAGES for found in re.findall(r"\{line\}`(.+?)`", page.read_text("utf-8"))})


@pytest.mark.parametrize("text", LINES)
def test_every_line_that_pages_point_to_is_that_line(text):
    """Read from the file: a line with the characters, inside of what has the name; or where that begins."""
    file, number, anchor = name_links.place_of(text)
    lines = (ROOT / f"{file}.py").read_text("utf-8").splitlines()
    name, _, piece = text.partition(" ")
    last = name.rpartition(".")[2]
    head = max(
        i for i, line in enumerate(lines[:number]) if re.match(r"\s*(def|class) ", line) or line[:1] == "@"
    )
    if piece:
        head = max(i for i, line in enumerate(lines[:number]) if re.search(rf"(def|class) {last}\b", line))
        assert piece in lines[number - 1] and anchor == f"line-{number}"
        depth = len(lines[head]) - len(lines[head].lstrip())
        assert all(not line.strip() or line[depth:][:1] in " )" for line in lines[head + 1 : number])
    else:
        assert head == number - 1 and any(f" {last}" in line for line in lines[head : head + 3])


@pytest.mark.parametrize(
    "text", ["fisher.Fisher.alpha tau", "fisher.Fisher.alpha np.cos(", "fisher.Fischer x"]
)
def test_a_line_that_is_gone_or_not_alone_is_found_out(text):
    with pytest.raises(LookupError):
        name_links.place_of(text)


def test_lines_of_a_module_get_anchors_and_keep_every_letter():
    function = '<div class="viewcode-block" id="f">\n<a class="viewcode-back" href="">[docs]</a>\ndef f():'
    page = f'<h1>m</h1><pre>\n<span>"""</span>\n{function}\n    x</div>\n\n\ny = 1\n</pre></div>\n'
    made = name_links.with_anchors(page, {3, 5})  # two lines of code before; an empty one between
    for number, text in ((3, "    x"), (5, "y = 1")):
        assert f'\n<span class="line" id="line-{number}"></span>{text}' in made
    assert name_links.with_anchors(name_links.with_anchors(page, {1, 5}), {3, 5}) == made
    assert re.sub(r'<span class="line" id="line-\d"></span>', "", made) == page


def shown(*cells: str) -> str:
    """Cells of a page as the highlighter writes them."""
    blocks = [highlight(code, PythonLexer(), HtmlFormatter()) for code in cells]
    return "".join(f'<div class="highlight-ipython3 notranslate">{block}</div>' for block in blocks)


def links(page: str) -> dict[str, str]:
    """{code that is linked: where to}"""
    address = {
        "record": "r",
        "plots": "p",
        "plots.heatmap": "h",
        "trace.velocity": "v",
        "": "a",
        "fisher": "f",
    }
    found = re.findall(r'<a class="code-link" href="(\w+)">(.*?)</a>', code_links.link(page, address.get))
    return {html.unescape(re.sub("<[^>]+>", "", inside)): url for url, inside in found}


def test_names_in_code_lead_there_too():
    page = shown(
        "import adatsq\nfrom adatsq import plots\nfrom adatsq.trace import velocity as v",
        "t = adatsq.record(pipe)\nplots.heatmap(v(t), record=1)",
    )
    assert links(page) == {
        "adatsq": "a",
        "plots": "p",
        "adatsq.record": "r",
        "plots.heatmap": "h",
        "v": "v",
    }


def test_names_in_code_that_are_something_else_are_left_alone():
    page = shown(
        "from adatsq import fisher", "fisher = adatsq.record()\nmine.adatsq.record(adatsq=1)\nfisher.x"
    )
    assert set(links(page)) == {"adatsq", "adatsq.record"}
    assert links(shown("record(plots)")) == {}
    assert links("<p>adatsq.record</p>") == {}


def test_links_change_no_letter_of_the_code():
    page = shown("import adatsq\n\nif 1 < 2:\n    adatsq.record('&')  # adatsq.record")
    linked = code_links.link(page, lambda path: "x")
    assert linked != page and code_links.TAG.sub("", linked) == code_links.TAG.sub("", page)


def test_what_hangs_on_a_constant_leads_to_its_module():
    assert name_links.documented("plots.METHOD_COLORS.get", {"adatsq.plots": 1}) == "adatsq.plots"
