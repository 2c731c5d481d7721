"""The checks of `python -m adatsq.cuda.check`: in small on plain torch, at full size on a GPU."""

import pytest
import torch

from adatsq.cuda import check, packing
from adatsq.cuda.shapes import SHAPES, TINY


@pytest.mark.parametrize("checks", check.ALL, ids=lambda checks: checks.__name__)
def test_in_small(checks):
    found = list(checks(TINY, torch.device("cpu")))
    assert found and not [c for c in found if c.right is False]


@pytest.mark.gpu
@pytest.mark.parametrize("checks", check.ALL, ids=lambda checks: checks.__name__)
def test_at_full_size(checks):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found = list(checks(SHAPES, torch.device("cuda")))
    assert found and not [c for c in found if c.right is False]


def test_a_wrong_kernel_is_seen(monkeypatch, capsys):
    """One code too large, as a kernel with a wrong mask might leave it."""
    right = packing.unpack

    def wrong(planes, shape, *others):
        codes = right(planes, shape, *others)
        codes.view(torch.uint8)[-1, -1] ^= 1
        return codes

    monkeypatch.setattr(packing, "unpack", wrong)
    assert check.main(["--cpu", "--quiet"]) > 10
    assert "WRONG  unpack 3 bit to int8" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit):
        check.main([])
    assert "no CUDA device: --cpu runs the checks in small" in capsys.readouterr().err
