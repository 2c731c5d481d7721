"""One rounding for all linears that read the same activations: queries, keys and values, say.

Each layer rounds what it is given, and layers that are given the same tensor would round it as often as there
are of them. So the codes of the last rounding on a device are kept, and taken by another layer of the same
group if everything that they depend on is the same.

An equal address alone would not do: once a tensor is freed, or torch.compile uses its memory again, other
numbers stand there. Within a group they do not: its layers are called one after the other, and their input is
needed until the last of them. What could come between is excluded here: codes are taken only by layers that
come later in the group than those that had them, so that a second run of the block rounds anew, and any other
layer on the device ends the group's turn.
"""

import itertools
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Linears that are given one tensor, or, as in cross-attention, two that both live on; in the order of calls.
GROUPS = (
    ("proj_mlp", "attn.to_q", "attn.to_k", "attn.to_v"),  # Flux's single blocks; elsewhere without the first
    ("to_q", "to_k", "to_v"),
    ("add_q_proj", "add_k_proj", "add_v_proj"),
    ("w1", "w3"),
)
ALONE = 0
_numbers = itertools.count(ALONE + 1)


@dataclass
class Rounded:
    """Codes and scales of activations; key: all that they follow from; position: of the last layer, in its
    group, that had them."""

    key: Hashable
    codes: Tensor
    scale: Tensor
    position: int


_last: dict[torch.device, Rounded] = {}


def assign(transformer: nn.Module, kind: type[nn.Module]) -> None:
    """Number the groups among the transformer's layers of this kind (`PackedLinear`): each layer's `group` is
    the number, and its position in it."""
    done = set()
    for _, module in transformer.named_modules():
        for names in GROUPS:
            found = [_child(module, name) for name in names]
            layers = [layer for layer in found if isinstance(layer, kind) and id(layer) not in done]
            if len(layers) > 1:
                number = next(_numbers)
                for position, layer in enumerate(layers):
                    layer.group = number, position
                    done.add(id(layer))


def _child(module: nn.Module, name: str) -> nn.Module | None:
    for part in name.split("."):
        module = getattr(module, part, None)
    return module


def key_of(group: int, x: Tensor, *others: Hashable) -> Hashable | None:
    """All that codes follow from; None for a layer without a group."""
    if group == ALONE:
        return None
    version = None if x.is_inference() else x._version
    return group, x.data_ptr(), version, x.dtype, x.shape, x.stride(), others


def take(key: Hashable | None, position: int, device: torch.device) -> Rounded | None:
    """The codes of the last rounding, if they are these, and had only by layers before this one."""
    last = _last.get(device)
    if key is None or last is None or last.key != key or position <= last.position:
        return None
    last.position = position
    return last


def keep(key: Hashable | None, position: int, codes: Tensor, scale: Tensor) -> None:
    """For the other layers of the group; without one, what was kept is dropped."""
    forget(codes.device)
    if key is not None:
        _last[codes.device] = Rounded(key, codes, scale, position)


def forget(device: torch.device | None = None) -> None:
    """Drop what is kept, on all devices if none is given."""
    if device is None:
        _last.clear()
    else:
        _last.pop(device, None)
