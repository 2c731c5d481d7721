"""The guide's two ways to use several GPUs, on a shipped model: the same numbers as on one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

import adatsq
from adatsq import fisher as fisher_module

MODEL = Path(__file__).parents[1] / "data" / "models" / "flux-schnell-mini"
PROMPTS = ["a red circle", "a blue square above a green ring"]
STEPS = 4

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def drawn(pipe):
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    settings = adatsq.sampling(pipe) | {"num_inference_steps": STEPS}
    return pipe(list(PROMPTS), generator=generators, output_type="np", **settings)[0]


def quantized(pipe):
    trace = adatsq.record(pipe, PROMPTS, num_inference_steps=STEPS, batch_size=1, progress=False)
    fisher = adatsq.temporal_fisher(pipe, trace, batch_size=1, progress=False)
    adatsq.adatsq_weights(pipe, trace, 4, 8, fisher.alpha(tau=1.0), progress=False)
    return fisher, drawn(pipe)


def test_parts_of_a_pipeline_on_different_gpus():
    one = adatsq.load_pipeline(MODEL, torch_dtype=torch.float32, device="cuda:0")
    expected, pictures = quantized(one)
    spread = DiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32, device_map="balanced")
    assert len({str(device) for device in spread.hf_device_map.values()}) > 1
    fisher, found = quantized(spread)
    np.testing.assert_allclose(fisher.values, expected.values, rtol=1e-3)
    assert np.abs(found - pictures).mean() < 1e-2


def test_the_same_work_on_each_gpu():
    pipes = [adatsq.load_pipeline(MODEL, torch_dtype=torch.float32, device=f"cuda:{i}") for i in range(2)]
    trace = adatsq.record(pipes[0], PROMPTS, num_inference_steps=STEPS, batch_size=1, progress=False)
    parts = [
        adatsq.temporal_fisher(pipe, part, batch_size=1, progress=False)
        for pipe, part in zip(pipes, trace.split(2), strict=True)
    ]
    whole = adatsq.temporal_fisher(pipes[0], trace, batch_size=1, progress=False)
    np.testing.assert_allclose(fisher_module.join(parts).values, whole.values, rtol=1e-3)
