"""Saving a quantized pipeline as a folder, and loading it again: packed integers in safetensors, all else in
JSON.

    model_index.json, vae/, text_encoder/, scheduler/, ...   as diffusers saves them
    transformer/config.json, transformer/diffusion_pytorch_model.safetensors
    adatsq.json     format version, sha256 of all other files and of itself, what each quantized layer is,
                    the applied policy
    sampling.json   the model's call settings, if it has some

A folder is written under a temporary name and renamed when it is complete.
"""

import importlib
import json
import os
import shutil
from pathlib import Path

import diffusers
import pandas as pd
import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adatsq import fits
from adatsq.cuda import devices
from adatsq.files import checksum, sha256
from adatsq.hf_quantizer import to_config  # and diffusers knows of saved transformers from here on
from adatsq.linear import PARTS, QuantLinear
from adatsq.models import QUANTIZED_FILE, SAMPLING_FILE, sampling, without_bars
from adatsq.packing import narrow, pack
from adatsq.policy import Policy, apply
from adatsq.stored_layers import FORMAT_VERSION, check_layer, check_version, description, finish, layer_of

WEIGHTS_FILE = "transformer/diffusion_pytorch_model.safetensors"
OLD_WEIGHTS_FILE = "transformer/quantized.safetensors"  # of versions 1 and 2


def save(pipe: DiffusionPipeline, folder: str | Path) -> pd.DataFrame:
    """Write the quantized pipeline, with the policy applied to it if there is one; returns
    `size_report(folder)`.

    A folder that `save` wrote before is replaced, once the new one is complete. Raises ValueError if the
    pipeline is not quantized, FileExistsError if the folder holds anything else, OSError if it cannot be
    written (a full disk, say); nothing has changed then.
    """
    folder = Path(os.path.abspath(folder))
    if not _quantized_layers(pipe.transformer):
        raise ValueError("this pipeline is not quantized: use pipe.save_pretrained, or quantize it first")
    if (
        folder.exists()
        and not (folder / QUANTIZED_FILE).exists()
        and (folder.is_file() or any(folder.iterdir()))
    ):
        raise FileExistsError(f"{folder} holds something else than a quantized pipeline: choose another name")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        (partial / "transformer").mkdir(parents=True)
        with without_bars():
            _write(pipe, partial)
        _replace(partial, folder)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(partial.parent).free / 2**20 if partial.parent.exists() else 0
        raise OSError(
            f"could not save to {folder} ({free:.0f} MB free), nothing was written: {error}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return size_report(folder)


def _write(pipe: DiffusionPipeline, folder: Path) -> None:
    transformer, layers = pipe.transformer, _quantized_layers(pipe.transformer)
    pipe.save_config(folder)
    components = {name: c for name, c in pipe.components.items() if name != "transformer" and c is not None}
    for name, component in components.items():
        component.save_pretrained(folder / name)
    transformer.save_config(folder / "transformer")
    applied = getattr(transformer, "_adatsq_applied", None)
    before = dict(zip((layer.name for layer in applied.policy.layers), applied.before)) if applied else {}
    said = {name: description(layer, before.get(name)) for name, layer in layers.items()}
    for file in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # where the pipeline was loaded from is nobody's business
        if file.parent.name == "transformer":
            config["quantization_config"] = to_config(said)
        file.write_text(json.dumps(config, indent=2) + "\n")

    tensors, dtypes = {}, {}
    for name, tensor in transformer.state_dict().items():
        if name.endswith(".planes"):  # packed already (`adatsq.accelerate`)
            name = name.removesuffix(".planes")
            tensors[f"{name}.codes"], dtypes[f"{name}.codes"] = layers[name].file_planes(), "int8"
            continue
        layer = layers.get(name.removesuffix(".codes").removesuffix(".zero"))
        packed = layer is not None and layer.w_bits < 16
        tensors[name] = pack(tensor, layer.w_bits, layer.zero is None) if packed else narrow(tensor)
        dtypes[name] = _dtype_name(tensor)
    save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, folder / WEIGHTS_FILE)

    if settings := sampling(pipe):
        (folder / SAMPLING_FILE).write_text(json.dumps(settings))
    files = sorted(file for file in folder.rglob("*") if file.is_file())

    manifest = {
        "format_version": FORMAT_VERSION,
        "pipeline": type(pipe).__name__,
        "files": {
            file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in files
        },
        "layers": said,
        "dtypes": dtypes,
        "components": {name: _dtype_name(c) for name, c in components.items() if isinstance(c, nn.Module)},
        "policy": applied.policy.to_dict() if applied else None,
    }
    manifest["sha256"] = checksum(manifest)
    (folder / QUANTIZED_FILE).write_text(json.dumps(manifest, indent=1))


def _replace(partial: Path, folder: Path) -> None:
    """Put `partial` in the place of `folder`, which may exist; put the old one back if that fails."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(partial, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load(
    folder: str | Path, device: str | torch.device | None = None, packed: bool = False
) -> DiffusionPipeline:
    """The pipeline that `save` wrote, its policy applied: the same numbers, and so the same images on the
    same device. (On a CPU a product's last bit may depend on where in memory a tensor begins.)

    packed: weights stay packed, as `adatsq.accelerate` has them, and are at no time unpacked as a whole.

    Raises FileNotFoundError for a missing folder or file, ValueError for a truncated, edited or inconsistent
    one, for one of a newer format, and, before anything is loaded, for a GPU that is too small.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    _check_fits(folder, manifest, device, packed)
    try:
        transformer = _load_transformer(folder, manifest, packed)
        dtypes = {name: getattr(torch, dtype) for name, dtype in manifest["components"].items()}
        # its own class: only that knows which of its parts are optional, as Wan's transformer is
        kind = getattr(diffusers, manifest["pipeline"], DiffusionPipeline)
        with without_bars():
            pipe = kind.from_pretrained(str(folder), transformer=transformer, dtype=dtypes)
        if manifest["policy"] is not None:
            apply(pipe, Policy.from_dict(manifest["policy"], f"the policy in {folder / QUANTIZED_FILE}"))
    except (KeyError, TypeError, AttributeError, RuntimeError, SafetensorError, OSError) as error:
        raise ValueError(f"{folder} is damaged: {type(error).__name__}: {error}") from error
    if device is None:
        return pipe
    if packed:
        devices.tell(device)
    return pipe.to(device)


def _check_fits(folder: Path, manifest: dict, device: str | torch.device | None, packed: bool) -> None:
    def needed(packed: bool) -> int:
        return fits.quantized_bytes(folder, manifest["layers"], _weights(folder), packed)

    def advice() -> str:
        less = "" if packed else f"packed=True takes {needed(True) / 1e9:.3g} GB; or "
        return (
            f"{less}load it without a device and call pipe.enable_model_cpu_offload(), which holds one "
            "part of the pipeline at a time"
        )

    fits.check(lambda: needed(packed), device, advice)


def _read_manifest(folder: Path) -> dict:
    """adatsq.json, after a check of its version and sha256, and of the size and sha256 of all other files."""
    path = folder / QUANTIZED_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no saved quantized pipeline: it has no {QUANTIZED_FILE}")
    try:
        manifest = json.loads(path.read_text())
        version, signature = manifest["format_version"], manifest.pop("sha256")
        files = [
            (folder / name, entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    check_version(version, folder)
    if checksum(manifest) != signature:
        raise ValueError(f"{path} was edited or damaged: its content does not match its sha256")
    for file, size, digest in files:
        if not file.is_file():
            raise FileNotFoundError(f"{folder} is incomplete: it has no {file.relative_to(folder)}")
        if file.stat().st_size != size:
            raise ValueError(f"{file} has {file.stat().st_size} bytes instead of {size}: copy it again")
        if sha256(file) != digest:
            raise ValueError(f"{file} was edited or damaged: its sha256 is not {digest}")
    return manifest


def _load_transformer(folder: Path, manifest: dict, packed: bool) -> nn.Module:
    library, name = json.loads((folder / "model_index.json").read_text())["transformer"]
    model = getattr(importlib.import_module(library), name)
    with init_empty_weights():
        transformer = model.from_config(model.load_config(folder / "transformer"))

    tensors = load_file(_weights(folder))
    dtypes = {name: getattr(torch, dtype) for name, dtype in manifest["dtypes"].items()}
    tensors = {name: t if t.dtype == torch.uint8 else t.to(dtypes[name]) for name, t in tensors.items()}
    for name, said in manifest["layers"].items():
        try:
            check_layer(name, said, transformer, tensors)
            parts = {part: tensors.pop(f"{name}.{part}", None) for part in (*PARTS, "bias")}
            transformer.set_submodule(name, layer := layer_of(name, said, parts, packed))
        except ValueError as error:
            raise ValueError(f"{folder} is damaged: {error}") from error
        tensors.update({f"{name}.{key}": tensor for key, tensor in layer.state_dict().items()})
    transformer.load_state_dict(tensors, strict=True, assign=True)
    return finish(transformer.eval())


def _weights(folder: Path) -> Path:
    """The transformer's file, under its older name if it has that."""
    old = folder / OLD_WEIGHTS_FILE
    return old if old.exists() else folder / WEIGHTS_FILE


def size_report(folder: str | Path) -> pd.DataFrame:
    """What the parts of a saved folder really take: parameters, bytes, bits per parameter.

    "quantized weights" are packed integers with their scales and all else that stands for a weight (a
    low-rank branch, say); the file's other tensors are the "rest".
    """
    folder = Path(folder)
    layers = json.loads((folder / QUANTIZED_FILE).read_text())["layers"]
    tensors = fits.tensors(_weights(folder))
    packed = {f"{name}.{part}" for name in layers for part in PARTS} & set(tensors)
    rest = [(numel, size) for name, (numel, size) in tensors.items() if name not in packed]
    shapes = [layer["shape"] for layer in layers.values()]
    rows = {
        "transformer: quantized weights": (
            sum(out * inner for out, inner in shapes),
            sum(tensors[name][1] for name in packed),
        ),
        "transformer: rest": (sum(numel for numel, _ in rest), sum(size for _, size in rest)),
    }
    for part in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "transformer"):
        files = [file for file in part.rglob("*") if file.is_file()]
        weights = [t for file in files if file.suffix == ".safetensors" for t in fits.tensors(file).values()]
        rows[part.name] = (sum(numel for numel, _ in weights), sum(file.stat().st_size for file in files))
    table = pd.DataFrame(rows, index=["parameters", "bytes"]).T.rename_axis("part")
    table.loc["total"] = table.sum()
    table["bits_per_parameter"] = 8 * table["bytes"] / table["parameters"].where(table["parameters"] > 0)
    return table


def _quantized_layers(transformer: nn.Module) -> dict[str, QuantLinear]:
    return {name: module for name, module in transformer.named_modules() if isinstance(module, QuantLinear)}


def _dtype_name(x: Tensor | nn.Module) -> str:
    return str(x.dtype).removeprefix("torch.")
