"""What packed and simulated pictures are compared from: the same noise, whatever the dtype."""

from pathlib import Path

import pytest
import torch

import adatsq
from adatsq.cuda.agreement import agreement, noise_in_float32

ROOT = Path(__file__).resolve().parents[1] / "data"
MODEL = ROOT / "models" / "flux-schnell-mini"


def first_latents(pipe, seed: int = 0) -> torch.Tensor:
    """What the pipeline's own call begins with."""
    seen, prepare = [], pipe.prepare_latents

    def watched(*args, **kwargs):
        seen.append(prepare(*args, **kwargs))
        return seen[-1]

    pipe.prepare_latents = watched
    pipe.set_progress_bar_config(disable=True)
    settings = adatsq.sampling(pipe) | {"num_inference_steps": 1}
    pipe("a red circle", generator=torch.Generator().manual_seed(seed), output_type="latent", **settings)
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


@pytest.mark.parametrize("name", ["flux-schnell-mini", "z-image-mini"])
def test_noise_is_the_same_in_both_dtypes(name):
    """Flux draws in the dtype of its prompt's embedding, Z-Image always in float32."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        pipe = adatsq.load_pipeline(ROOT / "models" / name, torch_dtype=dtype)
        noise_in_float32(pipe)
        found[dtype] = first_latents(pipe)
    exact, rounded = found.values()
    assert exact.dtype is torch.float32
    assert torch.equal(exact.bfloat16(), rounded.bfloat16())


def test_packed_and_simulated_pictures_agree_as_two_dtypes_do():
    policy = ROOT / "results" / "flux-schnell-mini-policy-adatsq-w4a4.json"
    found = agreement(MODEL, policy, 4, "cpu", ["a red circle"], [0])
    assert set(found) == {"psnr", "psnr_bfloat16"}
    assert (found["psnr"] > 25).all() and (found["psnr_bfloat16"] > 25).all()
