"""The messages on the troubleshooting page are the package's own, or those of a library below it."""

import ast
import importlib
import pathlib
import re

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "book" / "troubleshooting.md").read_text(encoding="utf-8")
# A term of a definition list: a line that is nothing but `code`, before one that begins with a colon.
QUOTED = re.findall(r"(?m)^`([^`\n]+)`\n: ", PAGE)


def templates(source: str) -> list[str]:
    """All strings of a module, with … for what is formatted into them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


# Other libraries' messages: of what is Python, its source; of what is not, the thing itself (below).
BELOW = ("diffusers.pipelines.pipeline_utils", "huggingface_hub.utils._http", "torch.cuda")
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate … GiB"


@pytest.fixture(scope="module")
def messages() -> list[str]:
    files = [*sorted((ROOT / "adatsq").rglob("*.py")), *(importlib.import_module(m).__file__ for m in BELOW)]
    return [text for file in map(pathlib.Path, files) for text in templates(file.read_text("utf-8"))]


def is_said(quote: str, messages: list[str]) -> bool:
    """Whether a message reads so; it may go on before and after."""
    return any(quote.strip("…") in message for message in messages)


def test_there_are_messages_on_the_page():
    assert len(QUOTED) >= 20 and OUT_OF_MEMORY in QUOTED and len(set(QUOTED)) == len(QUOTED)
    assert PAGE.count("*Cause:*") == PAGE.count("*Cure:*") == len(QUOTED)


@pytest.mark.parametrize("quote", [quote for quote in QUOTED if quote != OUT_OF_MEMORY])
def test_every_message_is_one_that_code_says(quote, messages):
    assert is_said(quote, messages), f"no message reads {quote!r}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_without_memory_left_says_so():
    with pytest.raises(torch.OutOfMemoryError, match=re.sub(r"…", r"[\\d.]+", OUT_OF_MEMORY)):
        torch.empty(2**45, dtype=torch.uint8, device="cuda")


def test_a_message_that_is_slightly_other_is_found_out(messages):
    assert not is_said("this pipeline is quantized already: load the float one again", messages)
    assert not is_said("budget … is above the cheapest candidates", messages)
