"""One denoising step of a whole transformer: bfloat16, ours and other libraries, same inputs, one run.

python -m adatsq.cuda.benchmark --steps --model flux-dev    on the GPU; writes data/results/cuda-steps.csv
python -m adatsq.cuda.benchmark --steps --cpu --modes eager  in small, on plain torch: that it runs

The transformer is at its full size with random weights (`full_size_models`), all blocks of it. A row is
written as soon as it is measured; a library that is missing or fails is a row that says why. mode: "graph" is
compiled, and the call a CUDA graph. error: of the answer, relative to bfloat16; weight_bytes: of all tensors
there; peak_bytes: these and what a step needs; tops: operations of the quantized linears alone over the whole
step, so that it is a lower bound. --profile: milliseconds by kind of kernel (`kernel_times`), of a call of
its own.
"""

import argparse
import copy
import gc
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pandas as pd
import torch
from torch import Tensor, nn

import adatsq
from adatsq.call import layer_inputs
from adatsq.cuda import devices, graphs, packing
from adatsq.cuda.full_size_models import build
from adatsq.cuda.kernel_times import kernel_ms
from adatsq.cuda.measuring import Rows, tensor_bytes, versions
from adatsq.cuda.timing import MODES, milliseconds
from adatsq.models import quantizable
from adatsq.peers.steps import NOT_HERE, PEERS, Peer

# Ours, by the end of the name that --only takes: the method's name in the table, and options of `accelerate`.
WAYS = {
    "": ("adatsq", {}),
    " fast": ("adatsq fast sums", {"fast_accumulation": True}),
    " unfused": ("adatsq unfused", {"fuse": False}),
    " separate norm": ("adatsq separate norm", {"fuse": ("activations", "products")}),
    " separate products": ("adatsq separate products", {"fuse": ("activations", "norm_rope")}),
}
FLUX_WAYS = (" separate norm", " separate products")  # elsewhere they are the default
OURS = {4: (4, 8), 3: (3, 4)}  # w_bits: activation bits, all on the same packed weights
SHOWN = [
    "method",
    "w_bits",
    "a_bits",
    "mode",
    "ms",
    "gain",
    "tops",
    "error",
    "weight_bytes",
    "peak_bytes",
    "failed",
]


def inputs(model: str, transformer: nn.Module, device: torch.device, tiny: bool, seed: int = 0) -> dict:
    """Keyword arguments of a step at 1024 x 1024, or 480 x 832 and 81 frames, with 512 tokens of text."""
    config, text = transformer.config, 16 if tiny else 512
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, torch.bfloat16)

    time = torch.full((1,), 0.5, device=device, dtype=torch.bfloat16)
    if model == "flux-dev":
        side = 4 if tiny else 64
        image_ids = torch.zeros(side, side, 3, device=device, dtype=torch.bfloat16)
        image_ids[..., 1] = torch.arange(side)[:, None]
        image_ids[..., 2] = torch.arange(side)[None]
        return {
            "hidden_states": normal(1, side * side, config.in_channels),
            "encoder_hidden_states": normal(1, text, config.joint_attention_dim),
            "pooled_projections": normal(1, config.pooled_projection_dim),
            "timestep": time,
            "guidance": torch.full((1,), 3.5, device=device, dtype=torch.bfloat16),
            "img_ids": image_ids.reshape(-1, 3),
            "txt_ids": torch.zeros(text, 3, device=device, dtype=torch.bfloat16),
            "return_dict": False,
        }
    if model == "z-image":
        side = 8 if tiny else 128
        return {
            "x": [normal(config.in_channels, 1, side, side)],
            "t": time,
            "cap_feats": [normal(text, config.cap_feat_dim)],
            "return_dict": False,
        }
    frames, height, width = (2, 4, 4) if tiny else (21, 60, 104)
    return {
        "hidden_states": normal(1, config.in_channels, frames, height, width),
        "timestep": 1000 * time,
        "encoder_hidden_states": normal(1, text, config.text_dim),
        "return_dict": False,
    }


def answer(transformer: nn.Module, arguments: dict) -> Tensor:
    """The transformer's answer as one tensor."""
    with torch.no_grad():
        output = transformer(**arguments)[0]
    return output if isinstance(output, Tensor) else torch.stack(list(output))


def linear_operations(transformer: nn.Module, arguments: dict) -> int:
    """2 * rows * in * out, over the linears whose activations are quantized."""
    sizes = {layer.name: layer.out_features for layer in quantizable(transformer) if layer.role == "act"}
    found = []
    with layer_inputs(transformer, list(sizes), lambda name, x: found.append(2 * x.numel() * sizes[name])):
        answer(transformer, arguments)
    return sum(found)


class Steps:
    """The rows of one model, method after method; `base` is the bfloat16 transformer that all start from."""

    def __init__(
        self,
        model: str,
        device: torch.device,
        rows: Rows,
        tiny: bool,
        repeats: int,
        modes: tuple[str, ...],
        profiled: bool = False,
    ) -> None:
        self.model, self.device, self.rows, self.repeats = model, device, rows, repeats
        self.modes, self.profiled = modes, profiled
        start = time.perf_counter()
        self.base = build(model, device, tiny).transformer
        self.arguments = inputs(model, self.base, device, tiny)
        self.expected = answer(self.base, self.arguments).float()
        self.operations = linear_operations(self.base, self.arguments)
        self.layers = quantizable(self.base)
        print(f"built in {time.perf_counter() - start:.1f} s", flush=True)

    def bf16(self) -> None:
        self.attempt({"method": "bf16", "w_bits": 16, "a_bits": 16}, lambda module: None)

    def ours(self, w_bits: int, way: str = "") -> None:
        """Hadamard rotation, rounded to nearest: what GPTQ finds has the same form and costs the same.

        Modulation linears have the same bits in their weights, all other weights that are quantized too.
        way: one of WAYS.
        """
        method, options = WAYS[way]

        def quantize(module: nn.Module) -> None:
            pipe = SimpleNamespace(transformer=module)
            adatsq.hadamard(pipe, None, w_bits, 4, modulation_bits=w_bits, progress=False)
            adatsq.accelerate(pipe, verbose=False, **options)

        bits = (w_bits,) if way else OURS[w_bits]
        self.attempt({"method": method, "w_bits": w_bits, "a_bits": w_bits}, quantize, bits)

    def peer(self, name: str, peer: Peer) -> None:
        of = {"method": name, "w_bits": peer.w_bits, "a_bits": peer.a_bits}
        try:
            of["library"] = f"{peer.distribution} {importlib.metadata.version(peer.distribution)}"
        except importlib.metadata.PackageNotFoundError:
            self.add({**of, "mode": "eager", "failed": f"{peer.distribution} is not installed"})
            return
        self.attempt(of, lambda module: peer.quantize(module, self.layers))

    def attempt(self, of: dict, quantize: Callable, a_bits: tuple[int, ...] = ()) -> None:
        """Rows of one method, one for each mode, or one that says what went wrong."""
        torch._dynamo.reset()
        module, mode, compiled = None, self.modes[0], False
        try:
            start = time.perf_counter()
            module = copy.deepcopy(self.base)
            with torch.no_grad():
                quantize(module)
            self.free()
            of = {**of, "quantize_s": time.perf_counter() - start}
            for mode in self.modes:
                start = time.perf_counter()
                if mode != "eager" and not compiled:
                    module.compile_repeated_blocks()
                    compiled = True
                if mode == "graph":
                    graphs.record_calls(module)
                answer(module, self.arguments)
                if mode == "graph" and not all(module._adatsq_graphs.recorded.values()):
                    raise RuntimeError("its call cannot be a CUDA graph")
                of = {**of, "first_call_s": time.perf_counter() - start}
                for found in self.variants(module, of, a_bits):
                    self.add({**found, "mode": mode})
        except Exception as error:  # each library raises its own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self.add({**of, "mode": mode, "failed": reason[:200]})
        finally:
            del module
            self.free()

    def variants(self, module: nn.Module, of: dict, a_bits: tuple[int, ...]) -> Iterator[dict]:
        for bits in a_bits or (of["a_bits"],):
            for layer in self.layers if a_bits else ():
                if layer.role == "act":
                    module.get_submodule(layer.name).a_bits = bits
            yield {**of, "a_bits": bits, **self.measured(module)}

    def measured(self, module: nn.Module) -> dict:
        y = answer(module, self.arguments).float()
        weight_bytes, found = tensor_bytes(module), {}
        if self.device.type == "cuda":
            # the full-precision transformer, and the arguments; the buffer of unpacked weights is ours
            others = torch.cuda.memory_allocated(self.device) - weight_bytes
            others -= packing.buffer_bytes(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            answer(module, self.arguments)
            torch.cuda.synchronize(self.device)
            found["peak_bytes"] = torch.cuda.max_memory_allocated(self.device) - others
        ms = milliseconds(lambda: answer(module, self.arguments), self.device, self.repeats, 2)
        if self.profiled:
            found |= kernel_ms(lambda: answer(module, self.arguments), self.device)
        return {
            "ms": ms,
            "error": float((y - self.expected).norm() / self.expected.norm()),
            "weight_bytes": weight_bytes,
            "tops": self.operations / ms / 1e9,
            **found,
        }

    def add(self, row: dict) -> None:
        """Write a row with its gain over bfloat16 in the same mode, and print it."""
        self.rows.add(**row)
        table = with_gains(self.rows.table)
        self.rows.table = table
        print(shown(table.tail(1)), flush=True)

    def free(self) -> None:
        gc.collect()
        packing.release_buffers()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def with_gains(table: pd.DataFrame) -> pd.DataFrame:
    """gain: how many times as fast as bfloat16 of the same model, device and mode."""
    plain = table[table["method"] == "bf16"].set_index(["model", "device", "mode"])
    if "ms" not in plain:
        return table.assign(gain=float("nan"))
    keys = pd.MultiIndex.from_frame(table[["model", "device", "mode"]])
    return table.assign(gain=plain["ms"].reindex(keys).to_numpy() / table["ms"].to_numpy())


def shown(table: pd.DataFrame) -> str:
    return table.reindex(columns=SHOWN).to_string(index=False, float_format="{:.4g}".format, na_rep="")


def chosen(only: str) -> list[str]:
    """Methods named in "a,b,c"; a part that is no whole name chooses all names that contain it. ValueError if
    none is chosen."""
    ours = (f"adatsq W{w_bits}{way}" for w_bits in OURS for way in WAYS)
    names = ("bf16", *ours, *PEERS, *NOT_HERE)
    parts = only.split(",")
    found = [
        name for name in names if any(part in name for part in parts if part not in names or part == name)
    ]
    if not found:
        raise ValueError(f"no method's name contains {only!r}: choose of {', '.join(names)}")
    return found


def run(options: argparse.Namespace, device: torch.device) -> pd.DataFrame:
    """Measure the methods that options.only asks for, print and write the table."""
    print(devices.note(device), flush=True)
    name = f"{options.model}{'-tiny' if options.cpu else ''}, random weights"
    fixed = {"model": name, "seed": 0, "n": options.repeats, "failed": "", **versions(device, options.commit)}
    rows = Rows(options.output, fixed, keys=("model", "method", "w_bits", "a_bits", "mode", "device"))
    modes = [mode for mode in MODES if mode in options.modes]  # each one changes the transformer for the next
    steps = Steps(options.model, device, rows, options.cpu, options.repeats, modes, options.profile)
    for name in chosen(options.only):
        start = time.perf_counter()
        if name.endswith(FLUX_WAYS) and options.model != "flux-dev":
            continue
        if name == "bf16":
            steps.bf16()
        elif name in PEERS:
            steps.peer(name, PEERS[name])
        elif name in NOT_HERE:
            steps.add({"method": name, "w_bits": 4, "a_bits": 4, "mode": "eager", "failed": NOT_HERE[name]})
        else:
            bits = name.removeprefix("adatsq W")
            steps.ours(int(bits[0]), bits[1:])
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
    rows.write()  # the gains of rows that were measured before bfloat16's
    print(shown(rows.table[rows.table["model"] == fixed["model"]]))
    return rows.table
