"""Trying quantized layers in a full-precision pipeline, some at a time, and taking them out again."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from diffusers import DiffusionPipeline
from torch import nn

from adatsq.linear import QuantLinear
from adatsq.models import quantizable
from adatsq.replacement import quantize
from adatsq.trace import Trace, velocity


def quantized_layers(pipe: DiffusionPipeline, trace: Trace, *args, **options) -> dict[str, QuantLinear]:
    """{layer: as `quantize` would make it} of those with activation bits; the pipeline stays as it is."""
    twin = SimpleNamespace(transformer=copy.deepcopy(pipe.transformer))  # all that `quantize` looks at
    quantize(twin, trace, *args, **options)
    names = [layer.name for layer in quantizable(pipe.transformer) if layer.role == "act"]
    return {name: twin.transformer.get_submodule(name) for name in names}


def velocity_error(
    pipe: DiffusionPipeline, trace: Trace, layers: Mapping[str, nn.Module], images: Sequence[int]
) -> float:
    """Mean squared error of the velocity over all timesteps of these images, with `layers` in place."""
    images, total = list(images), 0.0
    with _in_place(pipe.transformer, layers), torch.no_grad():
        for t in range(len(trace.timesteps)):
            found = velocity(pipe.transformer, trace, t, index=images).float().cpu()
            total += (found - trace.velocity[t, images]).square().mean().item()
    return total / len(trace.timesteps)


@contextmanager
def _in_place(transformer: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    before = {name: transformer.get_submodule(name) for name in layers}
    try:
        for name, layer in layers.items():
            transformer.set_submodule(name, layer)
        yield
    finally:
        for name, layer in before.items():
            transformer.set_submodule(name, layer)
