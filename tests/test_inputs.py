"""Inputs that layers share, and the baselines that need them, on all model families."""

import pytest
import torch

from adatsq.baselines import METHODS
from adatsq.inputs import inputs
from adatsq.trace import layer_inputs, record, velocity


def test_layers_that_share_an_input_and_gelus_are_found(family_pipe, family):
    trace = record(family_pipe, ["a red circle"], seed=0, progress=False)
    names = [layer.name for layer in trace.layers if layer.role == "act"]
    found = inputs(family_pipe, trace, names, rows=8)
    assert sorted(n for group in found.shared for n in group) == sorted(names)
    expected = {
        "flux": {("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), ("proj_mlp", "attn.to_q")},
        "zimage": {
            ("attention.to_q", "attention.to_k", "attention.to_v"),
            ("feed_forward.w1", "feed_forward.w3"),
        },
        "wan": {("attn1.to_q", "attn1.to_k", "attn1.to_v"), ("attn2.to_k", "attn2.to_v")},
    }[{"schnell": "flux", "zimage-guided": "zimage"}.get(family, family)]
    for together in expected:
        assert any(all(any(n.endswith(end) for n in group) for end in together) for group in found.shared)
    for group in found.shared:  # one block each, and the very same statistics
        assert len({".".join(n.split(".")[:2]) for n in group}) == 1
        assert all(torch.equal(found.largest[n], found.largest[group[0]]) for n in group)
    assert found.gelu == {n for n in names if n.endswith(("ff.net.2", "ff_context.net.2", "ffn.net.2"))}


def test_few_rows_a_call_are_not_the_same_tokens(tiny_pipe):
    """One row in each of 6 calls: no two of one place, and some from each half of the tokens."""
    trace = record(tiny_pipe, ["a red circle"], num_inference_steps=6, progress=False)
    name, whole = "transformer_blocks.0.attn.to_q", []
    found = inputs(tiny_pipe, trace, [name], rows=6).rows[name]
    with layer_inputs(tiny_pipe.transformer, [name], lambda _, x: whole.append(x[0])), torch.no_grad():
        for t in range(6):
            velocity(tiny_pipe.transformer, trace, t)
    places = [(x == row).all(1).nonzero().item() for x, row in zip(whole, found, strict=True)]
    assert len(set(places)) == 6
    assert min(places) < len(whole[0]) // 3 and max(places) >= 2 * len(whole[0]) // 3


@pytest.mark.parametrize("method", METHODS)
def test_baselines_in_bfloat16(method, tiny_pipe):
    """Near the full-precision answer at 8 bits, in its dtype."""
    tiny_pipe.to(torch.bfloat16)
    trace = record(tiny_pipe, ["a red circle"], num_inference_steps=2, progress=False)
    METHODS[method](tiny_pipe, trace, 8, 8, None, progress=False)
    with torch.no_grad():
        found = velocity(tiny_pipe.transformer, trace, 1)
    assert found.dtype == torch.bfloat16
    error = (found.float() - trace.velocity[1]).square().mean() / trace.velocity[1].square().mean()
    assert error < 0.01


@pytest.mark.parametrize("method", ["vidit-q", "adatsq+svdquant"])
def test_baselines_on_every_family(method, family_pipe, family):
    """8 bits come closer to full precision than 3, and both stay near it."""
    trace = record(family_pipe, ["a red circle"], seed=0, progress=False)
    weights, modules = family_pipe.transformer.state_dict(), dict(family_pipe.transformer.named_modules())
    errors = []
    for bits in (3, 8):
        for name in trace.tokens:
            family_pipe.transformer.set_submodule(name, modules[name])
        METHODS[method](family_pipe, trace, bits, bits, None, progress=False)
        with torch.no_grad():
            found = velocity(family_pipe.transformer, trace, 1).float()
        errors.append(
            ((found - trace.velocity[1]).square().mean() / trace.velocity[1].square().mean()).item()
        )
    assert errors[1] < 0.1 * errors[0] and errors[0] < 1
    assert all(torch.equal(modules[n].weight, weights[f"{n}.weight"]) for n in trace.tokens)
