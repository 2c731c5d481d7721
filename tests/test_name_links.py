"""Which pieces of code on a page are names of the package, and where the API page has them."""

import importlib.util
import pathlib

import pytest

pytest.importorskip("sphinx", reason="the book's packages are not installed")
FILE = pathlib.Path(__file__).resolve().parents[1] / "book" / "ext" / "name_links.py"
SPEC = importlib.util.spec_from_file_location("name_links", FILE)
name_links = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(name_links)


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


def test_a_name_that_is_gone_is_found_out():
    with pytest.raises(LookupError):
        name_links.entry(name_links.meant("adatsq.quantise"))
