"""What the method must know of a model: how to load and call it, and which of its linears are quantized.

A diffusion transformer keeps its blocks in `nn.ModuleList`s that are direct children of the model and whose
members attend (Flux: `transformer_blocks`, `single_transformer_blocks`; Z-Image: `noise_refiner`,
`context_refiner`, `layers`; Wan: `blocks`). Linears inside the blocks are quantized; everything around them
(embedders, time and text projections, the last norm and projection) stays in 16 bit: `kept` lists it.
"""

import hashlib
import inspect
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import diffusers
import pandas as pd
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from adatsq import fits

SAMPLING_FILE = "sampling.json"
QUANTIZED_FILE = "adatsq.json"
MODULATION = (
    r"norm|modulation|_mod\b"  # Flux: norm1.linear, Z-Image: adaLN_modulation.0, Qwen-Image: img_mod.1
)


@dataclass(frozen=True)
class Layer:
    """One linear, y = x W^T, with W of shape (out_features, in_features).

    role "act": weight and activations are quantized; role "weight": the weight only. The latter are the adaLN
    modulation linears: they see one row per image, so their products cost next to nothing, and scale every
    token.
    """

    name: str
    in_features: int
    out_features: int
    role: str

    @property
    def block(self) -> str:
        """Name of the transformer block that holds this layer, such as `transformer_blocks.0`."""
        return ".".join(self.name.split(".")[:2])


def block_names(transformer: nn.Module) -> list[str]:
    """Names of the transformer's blocks in the order in which it holds them, and mostly runs them.

    ValueError for a transformer without blocks that are known by an attention inside, and for one that holds
    some of them in another kind of container, where they are not found.
    """
    kind, children = type(transformer).__name__, dict(transformer.named_children())
    attend = {n: c for n, c in children.items() if any("att" in part for part, _ in c.named_modules())}
    others = [
        f"{name} (nn.{'Sequential' if isinstance(child, nn.Sequential) else 'ModuleDict'})"
        for name, child in attend.items()
        if isinstance(child, (nn.Sequential, nn.ModuleDict))
    ]
    if others:
        raise ValueError(
            f"{kind} holds blocks with attention in {', '.join(others)}, and blocks are found in an "
            "nn.ModuleList alone: those linears would stay in 16 bit. It takes a transformer that holds all "
            "its blocks in nn.ModuleLists among its children"
        )
    lists = {name: child for name, child in attend.items() if isinstance(child, nn.ModuleList)}
    names = [f"{name}.{i}" for name, blocks in lists.items() for i in range(len(blocks))]
    if not names:
        raise ValueError(
            f"{kind} has no nn.ModuleList of blocks with attention among its children "
            f"({', '.join(children) or 'none'}), so there is no telling which of its linears to quantize"
        )
    return names


def quantizable(transformer: nn.Module) -> list[Layer]:
    """Every linear inside the transformer's blocks, in the model's order, quantized already or not.

    ValueError for a transformer without blocks (`block_names`), or with blocks that hold no linear.
    """
    layers = []
    for block in block_names(transformer):
        for name, module in transformer.get_submodule(block).named_modules():
            if isinstance(getattr(module, "in_features", None), int):  # nn.Linear and our QuantLinear alike
                role = "weight" if re.search(MODULATION, name) else "act"
                layers.append(Layer(f"{block}.{name}", module.in_features, module.out_features, role))
    if not layers:
        raise ValueError(
            f"the blocks of {type(transformer).__name__} hold no linear layer (nn.Linear): there is nothing "
            "in them that this method quantizes"
        )
    return layers


NO_LINEAR, OUTSIDE = "no linear", "outside the blocks"
MISSED = 0.05  # share of the parameters that may have one of these two reasons without a warning
REASONS = (  # why a part stays in 16 bit, by its name (*: in any block); the first that fits
    (r"\*.*(norm|scale_shift|modulation|_mod\b)", "norm or modulation: vectors"),
    (r"\*.*bias$", "bias of a quantized linear"),
    (r"\*", NO_LINEAR),
    (r"norm_out|final|proj_out|^norm|^scale_shift", "last norm or projection: its error is the answer's"),
    (r"time|guidance|adaln|\bt_embed", "time projection: a row per image, and every block follows it"),
    ("embed|patch|proj|caption|token|norm|_in$", "embedder: few products, and every block follows it"),
)


def kept(transformer: nn.Module) -> pd.DataFrame:
    """What stays in 16 bit: a row per part outside the blocks, and per reason in each list of blocks.

    Columns: module ("layers.*": in any block of `layers`), parameters (numbers in all), reason.
    """
    linears = {layer.name for layer in quantizable(transformer)}
    inside, rows = {name.split(".")[0] for name in block_names(transformer)}, {}
    for name, tensor in transformer.state_dict().items():
        if not name.endswith(".bias") and linears & set(accumulate(name.split("."), "{}.{}".format)):
            continue  # a linear's weight, or whatever stands for it once it is quantized, by others too
        first, *rest = name.split(".")
        full, module = (".".join([first, "*", *rest]), f"{first}.*") if first in inside else (first, first)
        reason = next((why for pattern, why in REASONS if re.search(pattern, full)), OUTSIDE)
        rows[module, reason] = rows.get((module, reason), 0) + tensor.numel()
    table = [(module, parameters, reason) for (module, reason), parameters in rows.items()]
    return pd.DataFrame(table, columns=["module", "parameters", "reason"])


def warn_of_missed(transformer: nn.Module) -> None:
    """A warning if more than MISSED of the parameters stay in 16 bit for no reason but where they are.

    They are in the blocks but in no linear layer (convolutions, experts in one tensor), or outside of them.
    """
    table = kept(transformer)
    total = table.parameters.sum() + sum(l.in_features * l.out_features for l in quantizable(transformer))
    missed = table[table.reason.isin([NO_LINEAR, OUTSIDE])].sort_values("parameters", ascending=False)
    if missed.parameters.sum() > MISSED * total:
        names = ", ".join(
            f"{row.module} ({row.reason}: {row.parameters / total:.1%})"
            for row in missed.itertuples()
            if row.parameters > 0.1 * MISSED * total
        )
        share = missed.parameters.sum() / total
        warnings.warn(
            f"{share:.0%} of the parameters of {type(transformer).__name__} stay in 16 bit, out of this "
            f"method's reach: {names}. Only linear layers in blocks are quantized",
            stacklevel=2,
        )


def load_pipeline(
    model: str | Path, torch_dtype: torch.dtype = torch.float32, device: str | torch.device | None = None
) -> DiffusionPipeline:
    """Load a diffusers pipeline from a local folder or by its hub name, e.g. "black-forest-labs/FLUX.1-dev".

    All of it gets one dtype: left to themselves, diffusers' models load in float32, and transformers' text
    encoders in the dtype of their file, and then do not fit together.

    Raises FileNotFoundError if there is neither such a folder nor such a hub name, ValueError if the folder
    is there but holds no complete pipeline, and if it is more than a GPU holds: before anything is loaded, of
    a hub name as soon as it is on this disk.
    """
    folder = Path(model)
    local = folder.is_dir()
    if local:
        if (folder / QUANTIZED_FILE).exists():
            raise ValueError(f"{folder} holds a quantized pipeline: load it with adatsq.load")
        if not (folder / "model_index.json").exists():
            raise FileNotFoundError(f"{folder} holds no diffusers pipeline: it has no model_index.json")
    elif not _may_be_hub_name(str(model)):
        raise FileNotFoundError(
            f"no folder {str(model)!r}: give a pipeline's folder or its hub name (owner/name)"
        )
    else:
        try:
            folder = Path(DiffusionPipeline.download(str(model)))
        except Exception as error:  # diffusers and the hub client each raise their own
            raise FileNotFoundError(
                f"no pipeline {str(model)!r} on this disk or on the hub: {error}"
            ) from error
    fits.check(lambda: fits.pipeline_bytes(folder, torch_dtype), device, lambda: _advice(torch_dtype))
    try:
        with without_bars() if local else nullcontext():
            pipe = DiffusionPipeline.from_pretrained(str(model), dtype=torch_dtype)
    except Exception as error:  # safetensors raises its own too
        raise ValueError(f"{folder} is not a complete diffusers pipeline: {error}") from error
    _check_whole(folder / "transformer", pipe)
    # once more, of what is there: a part may have come from files of another kind
    fits.check(lambda: fits.part_bytes(pipe), device, lambda: _advice(torch_dtype))
    return pipe if device is None else pipe.to(device)


def _check_whole(folder: Path, pipe: DiffusionPipeline) -> None:
    """ValueError if a tensor of the transformer is in none of its files: diffusers would leave it random."""
    there = {name for file in fits.weight_files(folder) for name in fits.tensors(file)}
    transformer = getattr(pipe, "transformer", None)
    missing = [name for name in transformer.state_dict() if name not in there] if transformer else []
    if there and missing:  # files of other kinds are diffusers' to read
        raise ValueError(
            f"{folder} is incomplete: {len(missing)} of the transformer's tensors are in none of its files, "
            f"the first is {missing[0]}"
        )


def _advice(dtype: torch.dtype) -> str:
    halves = "torch_dtype=torch.bfloat16 takes half of it; " if dtype is torch.float32 else ""
    return (
        f"{halves}load without a device and call pipe.enable_model_cpu_offload(), which holds one part at a "
        "time; or quantize it on a larger device once, and adatsq.load(folder, packed=True) takes about a "
        "quarter of bfloat16 for the transformer"
    )


def _may_be_hub_name(model: str) -> bool:
    """owner/name, unless the owner is a folder here: then a mistyped path is meant, not the hub."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) is not None and not Path(model).parent.is_dir()


@contextmanager
def without_bars() -> Iterator[None]:
    """Local files load in no time: without the progress bars that diffusers and transformers draw."""
    drawing = [m for m in (diffusers.utils.logging, transformers.logging) if m.is_progress_bar_enabled()]
    for library in drawing:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in drawing:
            library.enable_progress_bar()


def prompt_list(prompts: Iterable[str]) -> list[str]:
    """The prompts (or the only one) as a list. ValueError for none, or one that is empty or no string."""
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        prompts = [prompts]
    prompts = list(prompts)
    if not prompts:
        raise ValueError("at least one prompt is needed, the list is empty")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {i} is {prompt!r}, it must be a string")
        if not prompt.strip():
            raise ValueError(f"prompt {i} is empty: {prompt!r}")
    return prompts


def sampling(pipe: DiffusionPipeline) -> dict:
    """Call settings that belong to this model, read from `sampling.json` in its folder; {} for a hub model.

    A small model needs them: a pipeline's defaults (1024x1024 pixels, 512 text tokens) are those of a big
    one.
    """
    file = Path(pipe.name_or_path or "") / SAMPLING_FILE
    if not pipe.name_or_path or not file.exists():
        return {}
    try:
        settings = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    unknown = set(settings) - set(inspect.signature(pipe.__call__).parameters)
    if unknown:
        raise ValueError(f"{file} has settings that {type(pipe).__name__} does not take: {sorted(unknown)}")
    return settings


def fingerprint(transformer: nn.Module) -> str:
    """A name for exactly this model, the same before and after quantization and in float32 or bfloat16.

    Made of its class, its configuration, its layers, and the vectors (biases, scales) outside its blocks,
    which are never quantized and which no two trainings share.
    """
    config = {k: v for k, v in transformer.config.items() if k[0] != "_" and k != "quantization_config"}
    layers = [[layer.name, layer.in_features, layer.out_features] for layer in quantizable(transformer)]
    digest = hashlib.sha256(json.dumps([config, layers], sort_keys=True, default=str).encode())
    blocks = tuple(f"{block}." for block in block_names(transformer))
    for name, parameter in sorted(transformer.named_parameters()):
        if parameter.ndim == 1 and not name.startswith(blocks):
            digest.update(parameter.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return f"{type(transformer).__name__}-{digest.hexdigest()[:16]}"


@contextmanager
def quiet(pipe: DiffusionPipeline) -> Iterator[None]:
    """Without the pipeline's own progress bar, of which there would be one per batch."""
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
