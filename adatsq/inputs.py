"""What smoothing and low-rank branches must know of a layer's inputs: range, a sample, who shares them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline
from diffusers.models.activations import GELU
from torch import Tensor, nn

from adatsq.models import block_names
from adatsq.trace import Trace, layer_inputs, velocity

GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, fill the unit interval evenly, however many there are


@dataclass
class Inputs:
    """largest: max |x_j| over all images, tokens and timesteps, (in,) per layer. rows: (n, in), evenly spaced
    over tokens and images in each call, other ones from call to call. shared: layers of one block that read
    one tensor (query, key, value). gelu: layers that read what a GELU gave, which is above -0.17.
    """

    largest: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    shared: list[tuple[str, ...]] = field(default_factory=list)
    gelu: set[str] = field(default_factory=set)


def inputs(
    pipe: DiffusionPipeline, trace: Trace, layers: Iterable[str], rows: int = 128, batch_size: int = 8
) -> Inputs:
    """Inputs of the named layers from one run over the trace; about `rows` rows each."""
    trace.check(pipe)
    names, found = list(layers), Inputs()
    batches = [range(len(trace))[i : i + batch_size] for i in range(0, len(trace), batch_size)]
    per_call = -(-rows // (len(batches) * len(trace.timesteps)))
    samples: dict[str, list[Tensor]] = {name: [] for name in names}
    calls: dict[tuple, list[str]] = {}  # layers by the tensor they read, in one call
    alive: list[Tensor] = []  # so that no address is used twice in a block
    after_gelu: set[tuple] = set()
    block_of, running = {name: _block(pipe, name) for name in names}, None
    call = 0

    def add(name: str, x: Tensor) -> None:
        nonlocal running
        if block_of[name] != running:  # layers share inputs within a block: memory for one is enough
            running = block_of[name]
            alive.clear()
            after_gelu.clear()
        alive.append(x)
        calls.setdefault((running, *_address(x)), []).append(name)
        if _address(x) in after_gelu:
            found.gelu.add(name)
        flat = x.detach().reshape(-1, x.shape[-1])
        largest = flat.abs().amax(dim=0).float()
        found.largest[name] = (
            torch.maximum(found.largest[name], largest) if name in found.largest else largest
        )
        n = min(per_call, len(flat))
        at = (torch.arange(n, dtype=torch.float64) + (GOLDEN * call) % 1) * (len(flat) / n)
        samples[name].append(flat[at.long().to(x.device)])

    def remember(module: nn.Module, args: tuple, output: Tensor) -> None:
        alive.append(output)
        after_gelu.add(_address(output))

    gelus = [m for m in pipe.transformer.modules() if isinstance(m, (GELU, nn.GELU))]
    hooks = [gelu.register_forward_hook(remember) for gelu in gelus]
    try:
        with layer_inputs(pipe.transformer, names, add), torch.no_grad():
            for t in range(len(trace.timesteps)):
                for index in batches:
                    calls.clear()
                    running, call = None, call + 1
                    velocity(pipe.transformer, trace, t, index=index)
    finally:
        for hook in hooks:
            hook.remove()
    found.rows = {name: torch.cat(parts) for name, parts in samples.items()}
    found.shared = [tuple(group) for group in calls.values()]
    return found


def _block(pipe: DiffusionPipeline, name: str) -> str:
    return next(block for block in block_names(pipe.transformer) if name.startswith(f"{block}."))


def _address(x: Tensor) -> tuple:
    return x.data_ptr(), tuple(x.shape), x.stride()


def groups_of(shared: Sequence[tuple[str, ...]], names: Sequence[str]) -> list[tuple[str, ...]]:
    """The groups, with only the named layers in them, and without those that are empty then."""
    wanted = set(names)
    kept = [tuple(name for name in group if name in wanted) for group in shared]
    return [group for group in kept if group]
