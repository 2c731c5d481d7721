"""Quantized layers as files have them: what JSON says of each, and the layer made of that and its tensors."""

import functools
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from adatsq.cuda import sharing
from adatsq.cuda.linear import PackedLinear
from adatsq.linear import PARTS, QuantLinear, check_finite
from adatsq.packing import check_planes, unpack

# 1 had weights of codes and scales only; 2 had them under another file name, which diffusers does not know.
FORMAT_VERSION = 3
# Arguments of QuantLinear that are no tensors; a file of version 1 has the first two.
OPTIONS = ("rotation", "a_clip", "a_group_size", "a_asymmetric", "shift", "seed")


def check_version(version: object, source: object) -> None:
    """ValueError for a version that this package does not read."""
    if version not in range(1, FORMAT_VERSION + 1):
        raise ValueError(
            f"{source} has format_version {version!r}, this adatsq reads {FORMAT_VERSION}: update it"
        )


def description(layer: QuantLinear, a_bits: int | None = None) -> dict:
    """What JSON says of a layer; a_bits: instead of those that a policy has assigned to it."""
    return {
        "shape": [layer.out_features, layer.in_features],
        "w_bits": layer.w_bits,
        "a_bits": layer.a_bits if a_bits is None else a_bits,
        **{key: getattr(layer, key) for key in OPTIONS},
        "scale_shape": list(layer.scale.shape),
        "tensors": [part for part in (*PARTS, "bias") if getattr(layer, part, None) is not None],
    }


def check_layer(name: str, said: Mapping, transformer: nn.Module, tensors: Collection[str]) -> None:
    """ValueError if the description lacks something, if the full-precision transformer has no such linear, or
    one of another shape, and if a tensor that the layer needs is not among `tensors`, the names in the file.
    """
    lacking = [key for key in ("shape", "w_bits", "a_bits", "scale_shape") if key not in said]
    if lacking:
        raise ValueError(f"the description of layer {name} has no {' and no '.join(lacking)}")
    try:
        linear = transformer.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"layer {name} is in the description, but not in the transformer") from error
    wanted = [linear.out_features, linear.in_features]
    if list(said["shape"]) != wanted:
        raise ValueError(
            f"layer {name} has shape {said['shape']} in its description, but {wanted} in the transformer's "
            "config"
        )
    # files of older versions do not list their tensors
    needed = said.get("tensors", ["bias"] if linear.bias is not None else [])
    missing = [part for part in needed if f"{name}.{part}" not in tensors]
    if missing:
        raise ValueError(f"layer {name} has no {' and no '.join(missing)} in the file")


def layer_of(name: str, said: Mapping, parts: Mapping[str, Tensor], packed: bool) -> QuantLinear:
    """The layer, of its description and its tensors by part; codes and zero points as planes of bits.

    packed: as `PackedLinear`, its weight never unpacked. ValueError, with the layer's name, for tensors that
    are missing or do not fit the description.
    """
    shape, w_bits = tuple(said["shape"]), said["w_bits"]
    parts = {part: parts.get(part) for part in (*PARTS, "bias")}
    planes = None
    try:
        expected = {"scale": tuple(said["scale_shape"]), "bias": shape[:1], "smoothing": shape[1:]}
        branch = [part for part in ("down", "up") if parts[part] is not None]
        rank = parts["down"].shape[:1] if "down" in branch else parts["up"].shape[1:] if branch else ()
        expected |= {"down": (*rank, shape[1]), "up": (shape[0], *rank)}
        for part, wanted in expected.items():
            if parts[part] is not None and parts[part].shape != wanted:
                raise ValueError(f"its {part} has shape {tuple(parts[part].shape)} instead of {wanted}")
        needed = ("codes", "scale", *(("down", "up") if branch else ()))
        missing = [part for part in needed if parts[part] is None]
        if missing:
            raise ValueError(f"its {' and '.join(missing)} are missing")
        if w_bits < 16:
            check_planes(parts["codes"], w_bits, shape)
            if packed:
                planes = parts["codes"]
                parts["codes"] = torch.empty(shape, dtype=torch.int8, device="meta")
            else:
                parts["codes"] = unpack(parts["codes"], w_bits, shape)
            if parts["zero"] is not None:
                parts["zero"] = unpack(parts["zero"], w_bits, tuple(said["scale_shape"]))
        elif parts["codes"].shape != shape:
            raise ValueError(f"its codes have shape {tuple(parts['codes'].shape)} instead of {shape}")
    except ValueError as error:
        raise ValueError(f"layer {name}: {error}") from error
    options = {key: said[key] for key in ("w_bits", "a_bits", *OPTIONS) if key in said}
    layer = QuantLinear(**parts, **options, name=name)
    return layer if planes is None else PackedLinear(layer, planes=planes)


def finish(transformer: nn.Module) -> nn.Module:
    """What every quantized transformer has: a look at NaN after each call, and words for `print`."""
    transformer.register_forward_hook(check_finite)
    sharing.assign(transformer, PackedLinear)
    transformer.extra_repr = functools.partial(said_of, transformer)  # which can be pickled
    return transformer


def said_of(transformer: nn.Module) -> str:
    """One line on what a transformer's layers are, for `print(pipe.transformer)`."""
    kinds: dict[str, int] = {}
    for layer in transformer.modules():
        if isinstance(layer, QuantLinear):
            groups = f"groups of {layer.group_size}" if layer.group_size else "per channel"
            a_bits = "" if layer.a_bits == 16 else f" A{layer.a_bits}"
            kind = f"W{layer.w_bits}{a_bits} {groups}{' packed' if isinstance(layer, PackedLinear) else ''}"
            kinds[kind] = kinds.get(kind, 0) + 1
    said = ", ".join(f"{count} linears {kind}" for kind, count in kinds.items())
    policy = getattr(transformer, "_adatsq_policy", None)
    if policy is None:
        return f"adatsq: {said}; no policy of activation bits"
    return (
        f"adatsq: {said}; activation bits by a policy of {len(policy.timesteps)} timesteps, "
        f"{policy.average:.3g} on average"
    )
