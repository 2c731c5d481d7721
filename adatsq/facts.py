"""What a quantized pipeline is and what it took: bytes, bits, multiplications, calls, memory."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import DiffusionPipeline
from torch import nn

from adatsq.arguments import argument_names, bind
from adatsq.io import save
from adatsq.policy import Policy, act_layers
from adatsq.storage import summary
from adatsq.trace import Trace

try:
    import resource
except ImportError:  # Windows
    resource = None


def size(pipe: DiffusionPipeline) -> dict:
    """Bytes and bits of the transformer as saved, and the share of its parameters that is quantized."""
    table = summary(pipe)
    return {
        "transformer_bytes": int(table.at["transformer", "bytes"]),
        "effective_bits": float(table.at["transformer", "effective_bits"]),
        "effective_w_bits": float(table.at["weights and activations", "effective_bits"]),
        "quantized_share": 1 - float(table.at["kept", "share"]),
    }


def on_disk(pipe: DiffusionPipeline) -> dict:
    """disk_bytes: of the transformer's folder as `save` writes it, its weights and its configuration."""
    with TemporaryDirectory() as folder:
        save(pipe, Path(folder) / "saved")
        files = (Path(folder) / "saved" / "transformer").iterdir()
        return {"disk_bytes": sum(file.stat().st_size for file in files)}


def activation_bits(pipe: DiffusionPipeline, trace: Trace, policy: Policy | None = None) -> dict:
    """Averages of the layers' activation bits, as they stand or as a policy has them on average over its
    timesteps: each layer once, and by its multiplications.

        flop_weighted = (sum_l n_l in_l out_l a_l + 16 sum_l n_l r_l (in_l + out_l)) / sum_l n_l in_l out_l

    n tokens, a bits (8 where a mixed precision says so), r the rank of a 16-bit branch. Its multiplications
    come on top of those of the layer as it was, as its bytes do in the effective bits of weights. Rotations
    (`sizes.rotation_bits` tells what they would add), smoothing and scales are not counted.
    """
    layers = act_layers(trace)
    linears = [pipe.transformer.get_submodule(layer.name) for layer in layers]
    a_bits = [linear.a_bits for linear in linears] if policy is None else policy.bits.mean(0).tolist()
    whole = bits = 0
    for layer, linear, a in zip(layers, linears, a_bits):
        own = layer.tokens * layer.in_features * layer.out_features
        rank = 0 if linear.down is None else len(linear.down)
        whole += own
        bits += a * own + 16 * layer.tokens * rank * (layer.in_features + layer.out_features)
    return {"average_bits": sum(a_bits) / len(a_bits), "flop_weighted_bits": bits / whole}


def group_search(pipe: DiffusionPipeline) -> dict:
    """What Q-DiT's search of group sizes cost and had to choose from; nothing for other methods.

    group_tried, group_calls, group_s: assignments, transformer calls for one picture, seconds; all within
    those of the weights. group_mean: size over layers. group_32_layers ...: whose inputs that size divides.
    """
    found = getattr(pipe.transformer, "_adatsq_group_search", None)
    if found is None:
        return {}
    cost = {"group_tried": found.tried, "group_calls": found.calls, "group_s": found.seconds}
    layers = {f"group_{size}_layers": n for size, n in found.possible.items()}
    return {**cost, "group_mean": found.mean, **layers}


@dataclass
class Calls:
    """Transformer calls for one row of a batch: images x timesteps x branches, in whatever batches."""

    rows: int = 0


@contextmanager
def counted_calls(transformer: nn.Module) -> Iterator[Calls]:
    """Count the calls of the transformer, and of copies made meanwhile, which keep the hook. One that is
    ended early, as a calibration does after its last block, counts whole."""
    calls, latents = Calls(), argument_names(transformer)[0]

    def count(module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls.rows += len(bind(module, args, kwargs)[latents])

    hook = transformer.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def peak_memory(device: str, task: str) -> Iterator[dict]:
    """Afterwards, on CUDA, {f"{task}_peak_bytes": most that tensors took at once, all models included}. Those
    that nothing needs any more are not: a quantized transformer refers to itself, and so stays until it is
    collected, which is done first.

    On a CPU {f"{task}_process_bytes": most that the process held since it began}: Python and its libraries
    are in it, and so is what came before; a system that does not tell it (Windows) leaves it out.
    """
    found: dict = {}
    cuda = torch.device(device).type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if cuda:
        found[f"{task}_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    elif resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        found[f"{task}_process_bytes"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
