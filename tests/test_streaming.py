"""Calibration block by block: the same weights, each block run once per call; what it cannot do is named."""

import pytest
import torch

import adatsq
from adatsq.models import block_names, load_pipeline


@pytest.fixture
def trace(tiny_pipe):
    return adatsq.record(tiny_pipe, ["a red circle", "a ring"], num_inference_steps=3, progress=False)


def test_streaming_gives_the_same_layers_packed(family_folders, family):
    """Each block is replaced before the next is calibrated, which changes no Hessian."""
    pipe, streamed = (load_pipeline(family_folders(family)) for _ in range(2))
    trace = adatsq.record(pipe, ["a red circle", "a ring"], num_inference_steps=2, progress=False)
    adatsq.quantize(pipe, trace, 4, progress=False)
    adatsq.quantize(streamed, trace, 4, stream=True, progress=False)
    state, expected = streamed.transformer.state_dict(), adatsq.accelerate(pipe, verbose=False).transformer
    assert not any("forward" in vars(m) for m in streamed.transformer.modules())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_streaming_calls_each_block_once_per_call(tiny_pipe, trace):
    calls = dict.fromkeys(block_names(tiny_pipe.transformer), 0)
    for name in calls:
        block = tiny_pipe.transformer.get_submodule(name)
        first = next(m for m in block.modules() if isinstance(m, torch.nn.LayerNorm))
        first.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    adatsq.quantize(tiny_pipe, trace, 4, stream=True, batch_size=len(trace), progress=False)
    assert set(calls.values()) == {len(trace.timesteps) + 1}  # once more to see what it is given


def test_blocks_that_skip_are_not_streamed(tiny_pipe, trace):
    """A block that is given another block's answer than the last one's."""
    first = tiny_pipe.transformer.transformer_blocks[0]
    single = tiny_pipe.transformer.single_transformer_blocks[1]
    kept = []
    first.register_forward_hook(lambda m, a, y: kept.append(y[1]))
    single.register_forward_pre_hook(
        lambda m, a, k: (a, {**k, "hidden_states": k["hidden_states"] + kept[-1]}), with_kwargs=True
    )
    with pytest.raises(ValueError, match=r"block single_transformer_blocks\.1 of FluxTransformer2DModel is"):
        adatsq.quantize(tiny_pipe, trace, 4, stream=True, progress=False)
