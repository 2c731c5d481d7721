"""Calls of `adatsq::packed_linears`, counted."""

import pytest

from adatsq.cuda import together


@pytest.fixture
def calls(monkeypatch):
    """Of the operator."""
    seen, right = [], together.packed_linears

    def packed_linears(*args):
        seen.append(1)
        return right(*args)

    monkeypatch.setattr(together, "packed_linears", packed_linears)
    return seen
