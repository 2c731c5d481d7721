"""The messages on the troubleshooting page are the package's own, and its code names exist."""

import ast
import pathlib
import re

import pytest

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


@pytest.fixture(scope="module")
def messages() -> list[str]:
    return [text for file in sorted((ROOT / "adatsq").glob("*.py")) for text in templates(file.read_text())]


def is_said(quote: str, messages: list[str]) -> bool:
    """Whether a message reads so; it may go on before and after."""
    return any(quote.strip("…") in message for message in messages)


def test_there_are_messages_on_the_page():
    assert len(QUOTED) >= 20 and len(set(QUOTED)) == len(QUOTED)
    assert PAGE.count("*Cause:*") == PAGE.count("*Cure:*") == len(QUOTED)


@pytest.mark.parametrize("quote", QUOTED)
def test_every_message_is_one_of_the_package(quote, messages):
    assert is_said(quote, messages), f"no message of the package reads {quote!r}"


def test_a_message_that_is_slightly_other_is_found_out(messages):
    assert not is_said("this pipeline is quantized already: load the float one again", messages)
    assert not is_said("budget … is above the cheapest candidates", messages)
