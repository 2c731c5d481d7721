"""The kernel that walks over a block's columns, against plain torch."""

import pytest
import torch

from adatsq import gptq, integer
from adatsq.cuda.devices import Abilities


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("options", [{}, {"group_size": 16}, {"asymmetric": True}, {"block_size": 20}])
def test_the_kernel_gives_the_codes_of_plain_torch(bits, options, kernel_device, monkeypatch):
    pytest.importorskip("adatsq.cuda.gptq_kernel")
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 48, generator=g) @ torch.randn(48, 48, generator=g)
    w, h = torch.randn(19, 48, generator=g), (x.T @ x).to(torch.float32)
    expected, *rest = gptq.gptq(w, h, bits, **options)
    monkeypatch.setattr(gptq, "abilities", lambda device: Abilities(True, False))
    found, *other = gptq.gptq(w.to(kernel_device), h.to(kernel_device), bits, **options)
    # Plain torch rounds the product before it subtracts, the GPU does not: a code at a tie may differ.
    assert (found.cpu() != expected).float().mean() < 0.01
    assert all(torch.equal(a.cpu(), b) for a, b in zip(other, rest))
    if "asymmetric" not in options:
        nearest = integer.quantize(w, rest[0], bits)
        ours, plain, none = (gptq.layer_error(w, c, rest[0], h) for c in (found.cpu(), expected, nearest))
        assert ours == pytest.approx(plain, rel=0.02) and ours < none


def test_the_kernel_is_used_when_there_is_triton(kernel_device, monkeypatch):
    from adatsq.cuda import gptq_kernel

    starts = []
    kernel = gptq_kernel.round_block
    monkeypatch.setattr(gptq_kernel, "round_block", lambda *a: starts.append(a[5]) or kernel(*a))
    monkeypatch.setattr(gptq, "abilities", lambda device: Abilities(True, False))
    w, h = torch.randn(4, 40, device=kernel_device), torch.eye(40, device=kernel_device)
    gptq.gptq(w, h, 4, block_size=16)
    assert starts == [0, 16, 32]
