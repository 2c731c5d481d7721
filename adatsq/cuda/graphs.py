"""A transformer's call as one CUDA graph for each assignment of bits: a step without the CPU.

A quantized layer is three kernels, launched from Python, and a step has over a thousand: the CPU takes longer
to launch them than the GPU to run them. A graph is launched at once. It has the kernels that the layers' bits
ask for, so that each row of a policy needs one of its own; a graph is made when its bits come up first, which
takes some tenths of a second, and is used in all later runs. Graphs share the memory of what happens inside a
call.

A graph reads the transformer's tensors where they were. If they are elsewhere, after `pipe.to(...)` or when a
pipeline that is offloaded comes back, all graphs are dropped, and made again.
"""

import functools
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from adatsq.cuda import packing, sharing
from adatsq.linear import QuantLinear

PLAIN = (bool, int, float, str, type(None))  # arguments that are no tensors, and part of what a graph is of


@dataclass
class Recorded:
    """inputs: where the graph reads. output: where it writes. buffers: of weights, which it uses, too."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: object
    buffers: list[Tensor]


@dataclass
class Graphs:
    """The graphs of a transformer, by bits and shapes. None: a call that could not be recorded."""

    transformer: nn.Module
    forward: object
    layers: list[QuantLinear]
    recorded: dict[tuple, Recorded | None] = field(default_factory=dict)
    pool: tuple | None = None
    places: list[int] = field(default_factory=list)  # addresses of the tensors, when a graph was recorded

    def __post_init__(self) -> None:
        self.holders = [
            (holder, name)
            for module in self.transformer.modules()
            for holder in (module._parameters, module._buffers)
            for name, tensor in holder.items()
            if tensor is not None
        ]

    def call(self, *args, **kwargs) -> object:
        leaves, form = tree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))
        if (
            torch.is_grad_enabled()
            or not tensors
            or not on_cuda(tensors)
            or not all(isinstance(leaf, PLAIN) for leaf in others)
        ):
            return self.forward(*args, **kwargs)
        bits = tuple(layer.a_bits for layer in self.layers)
        key = bits, str(form), others, tuple((t.shape, t.dtype, t.device) for t in tensors)
        self._drop_if_moved()
        if key not in self.recorded:
            self.recorded[key] = self._record(leaves, form)
            self.places = self._addresses()
        found = self.recorded[key]
        if found is None:
            return self.forward(*args, **kwargs)
        for there, tensor in zip(found.inputs, tensors):
            there.copy_(tensor)
        found.graph.replay()
        return tree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, found.output)

    def _addresses(self) -> list[int]:
        return [holder[name].data_ptr() for holder, name in self.holders]

    def _drop_if_moved(self) -> None:
        if self.recorded and self._addresses() != self.places:
            self.recorded.clear()
            self.pool = None
            warnings.warn(
                f"{type(self.transformer).__name__} was moved since its CUDA graphs were recorded: they are "
                "recorded again, which costs more than they save if it is moved for each picture",
                stacklevel=3,
            )

    def _record(self, leaves: list, form: object) -> Recorded | None:
        """One call to warm up, one that is recorded; None, and one warning, if it cannot be."""
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree.tree_unflatten(leaves, form)
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        device, graph = inputs[0].device, torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(device):
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    self.forward(*args, **kwargs)
                torch.cuda.current_stream().wait_stream(side)
                sharing.forget(device)
                with torch.cuda.graph(graph, pool=self.pool):
                    output = self.forward(*args, **kwargs)
        except Exception as error:  # whatever a call does that a graph cannot hold
            torch.cuda.synchronize(device)
            first = (str(error).splitlines() or [""])[0]
            reason = f"{type(error).__name__}: {first}"
            warnings.warn(
                f"a call of {type(self.transformer).__name__} cannot be a CUDA graph ({reason}): "
                "it runs as it is",
                stacklevel=2,
            )
            return None
        finally:
            sharing.forget(device)  # codes in the graph's memory
        self.pool = graph.pool()
        return Recorded(graph, inputs, output, packing.buffers(device))


def on_cuda(tensors: list[Tensor]) -> bool:
    return all(tensor.is_cuda for tensor in tensors)


def record_calls(transformer: nn.Module) -> Graphs:
    """From now on the transformer's calls on a CUDA device, without gradients, are CUDA graphs; as before
    elsewhere, and where a call cannot be one. Returns what keeps them; `forget` undoes it."""
    forget(transformer)
    layers = [module for module in transformer.modules() if isinstance(module, QuantLinear)]
    graphs = Graphs(transformer, transformer.forward, layers)

    @functools.wraps(transformer.forward)
    def forward(*args, **kwargs):
        return graphs.call(*args, **kwargs)

    transformer.forward = forward
    transformer._adatsq_graphs = graphs
    return graphs


def forget(transformer: nn.Module) -> None:
    """Drop the transformer's graphs, and their memory; without any, nothing happens."""
    if hasattr(transformer, "_adatsq_graphs"):
        del transformer._adatsq_graphs
        transformer.__dict__.pop("forward", None)
