"""SVDQuant's branch at the bits that it takes on a full-size model."""

import pytest
import torch
from diffusers import FluxTransformer2DModel

from adatsq import sizes
from adatsq.baselines import METHODS
from adatsq.models import load_pipeline
from adatsq.trace import record


@pytest.fixture(scope="module")
def trace(tiny_folder):
    return record(load_pipeline(tiny_folder), ["a red circle"], num_inference_steps=2, progress=False)


def test_a_small_rank_is_that_and_else_svdquant(tiny_folder, trace):
    """On layers that are so narrow the rank is the least, 1."""
    pipes = [METHODS[f"svdquant{r}"](load_pipeline(tiny_folder), trace, 4, 4) for r in ("", "+small-rank")]
    for name in (layer.name for layer in trace.layers if layer.role == "act"):
        whole, small = (pipe.transformer.get_submodule(name) for pipe in pipes)
        assert len(small.down) == 1 < len(whole.down) and small.group_size == whole.group_size


def test_a_small_rank_weighs_as_much_as_32_on_a_wide_model():
    """Square layers, by hand: a branch of rank r takes 32 r / d bits per weight."""
    real = sizes.branch_bits("black-forest-labs/FLUX.1-dev", 32)

    class Layers(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            block = torch.nn.Module()
            block.attn = torch.nn.Linear(width, width)
            self.blocks = torch.nn.ModuleList([block])

    for width in (64, 256, 320, 3072):
        rank = sizes.rank_of_equal_bits(Layers(width), 32, "black-forest-labs/FLUX.1-dev")
        assert 32 * (rank - 1) / width < real <= 32 * rank / width
    with torch.device("meta"):
        flux = FluxTransformer2DModel(guidance_embeds=True)
    assert sizes.rank_of_equal_bits(flux, 32, "black-forest-labs/FLUX.1-dev") == 32
