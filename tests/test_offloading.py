"""Packed weights under the offloading of diffusers and accelerate, with the CPU in the GPU's place: the same
pictures, a policy followed. Moves between two devices need a GPU."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

import adatsq

CPU = torch.device("cpu")
OFFLOADING = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "group": lambda pipe: pipe.transformer.enable_group_offload(CPU, CPU, offload_type="leaf_level"),
    "layers": lambda pipe: cpu_offload(pipe.transformer, CPU),
    "layers and buffers": lambda pipe: cpu_offload(pipe.transformer, CPU, offload_buffers=True),
}


@pytest.fixture
def folder(tiny_pipe, tmp_path):
    trace = adatsq.record(tiny_pipe, ["a ring"], seed=0, progress=False)
    adatsq.quantize(tiny_pipe, trace, solver="rtn", progress=False)
    bits = np.where(np.arange(len(trace.timesteps))[:, None] % 2, 4, 8)
    bits = np.broadcast_to(bits, adatsq.Policy.of(trace, 4).bits.shape)
    adatsq.apply(tiny_pipe, adatsq.Policy.of(trace, bits))
    adatsq.save(tiny_pipe, tmp_path / "saved")
    return tmp_path / "saved"


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    start = torch.Generator().manual_seed(0)
    return pipe("a ring", generator=start, output_type="np", **adatsq.sampling(pipe))[0]


@pytest.mark.parametrize("how", OFFLOADING)
def test_pictures_stay_the_same(how, folder):
    expected = draw(adatsq.load(folder, packed=True))
    pipe = adatsq.load(folder, packed=True)
    OFFLOADING[how](pipe)
    for _ in range(2):  # what was moved away comes back
        assert np.array_equal(draw(pipe), expected)
    away = {name.rpartition(".")[2] for name, t in pipe.transformer.named_buffers() if t.is_meta}
    assert ("planes" in away) == (how == "layers and buffers")
