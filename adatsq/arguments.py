"""The arguments of a transformer's calls: their names, which have a row per image, rows picked and joined."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def bind(transformer: nn.Module, args: tuple, kwargs: dict) -> dict:
    """The arguments of a call of the transformer by name, however the pipeline passed them."""
    return dict(inspect.signature(transformer.forward).bind(*args, **kwargs).arguments)


def argument_names(transformer: nn.Module) -> tuple[str, str]:
    """(latents, timestep) as the transformer's forward calls them. ValueError if it has no timestep."""
    names = list(inspect.signature(transformer.forward).parameters)
    found = [name for name in ("timestep", "t", "timesteps") if name in names[1:]]
    if not found:
        raise ValueError(
            f"{type(transformer).__name__} has no argument timestep or t among {names}: there is no telling "
            "at which timestep it is called"
        )
    return names[0], found[0]


def same(a: object, b: object) -> bool:
    """Whether two arguments are equal, tensors inside lists and dicts included."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and torch.equal(a, b))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def to_device(value: object, device: torch.device | str) -> object:
    """The value with all tensors in it on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(part, device) for part in value)
    if isinstance(value, dict):
        return {key: to_device(part, device) for key, part in value.items()}
    return value


def pick(value: Tensor | list, rows: Sequence[int]) -> Tensor | list:
    """Some rows of a per-image argument, a tensor or a list."""
    return value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]


def concatenated(name: str, values: Sequence[Tensor | list]) -> Tensor | list:
    """The rows of all. ValueError if tensors differ in length, as texts padded to a batch's longest do."""
    if not isinstance(values[0], Tensor):
        return [row for value in values for row in value]
    shapes = sorted({tuple(value.shape[1:]) for value in values})
    if len(shapes) > 1:
        raise ValueError(
            f"the transformer's argument {name} has rows of shapes {shapes} in different calls, which make "
            "no batch: the pipeline must pad texts to one length, as with max_sequence_length"
        )
    return torch.cat(list(values))


def merged(name: str, calls: list, per_image: bool) -> object:
    values = [arguments.get(name) for arguments, _ in calls]
    if per_image:
        return concatenated(name, values)
    if not all(same(value, values[0]) for value in values):
        raise ValueError(f"the transformer's argument {name} differs between the calls of one step")
    return values[0]


def has_rows(name: str, value: object, rows: int) -> bool:
    """Whether the argument has one row per image. Flux's `img_ids` and `txt_ids` have one row per token."""
    if isinstance(value, Tensor):
        return value.ndim > 0 and len(value) == rows and not name.endswith("_ids")
    return isinstance(value, list) and len(value) == rows
