"""What one step of a transformer costs, counted from its shapes: nothing is computed, no weights are needed.

The transformer runs once on torch's meta device, whose tensors have a shape and no numbers, under two modes
that look on: one at the calls of linears and attention, whose operations follow from their shapes, one at all
other operators of torch, whose bytes are what they read and write. Views move nothing and do not count.
"""

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adatsq.models import quantizable

KINDS = {"act": "block linears", "weight": "modulation linears", None: "other linears"}
COLUMNS = ["kind", "name", "tokens", "inputs", "outputs", "operations", "bytes"]


class _Products(TorchFunctionMode):
    """Notes linears and attention, and answers them with empty tensors."""

    def __init__(self, roles: dict[int, tuple[str, str]], rows: list[dict]) -> None:
        self.roles, self.rows = roles, rows

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear:
            return self.linear(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self.attention(*args, **kwargs)
        return func(*args, **kwargs)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        (outputs, inputs), tokens = weight.shape, x.numel() // x.shape[-1]
        name, kind = self.roles.get(id(weight), ("", KINDS[None]))
        y = x.new_empty(*x.shape[:-1], outputs)
        moved = x.nbytes + y.nbytes + weight.nbytes
        sizes = {"tokens": tokens, "inputs": inputs, "outputs": outputs}
        done = 2 * tokens * inputs * outputs
        self.rows.append({"kind": kind, "name": name, **sizes, "operations": done, "bytes": moved})
        return y

    def attention(self, query: Tensor, key: Tensor, value: Tensor, *args, **kwargs) -> Tensor:
        """Two products, of queries with keys and of their weights with values."""
        y = query.new_empty(*query.shape[:-1], value.shape[-1])
        heads = query.numel() // (query.shape[-2] * query.shape[-1])
        pairs = heads * query.shape[-2] * key.shape[-2]
        done = 2 * pairs * (query.shape[-1] + value.shape[-1])
        moved = sum(t.nbytes for t in (query, key, value, y))
        self.rows.append({"kind": "attention", "operations": done, "bytes": moved})
        return y


class _Bytes(TorchDispatchMode):
    """Notes what each operator of torch reads and writes."""

    def __init__(self, rows: list[dict]) -> None:
        super().__init__()
        self.rows = rows

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        packet = str(func.overloadpacket).removeprefix("aten.")
        if not func.is_view and packet not in MADE:
            tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, Tensor)]
            moved = sum(t.nbytes for t in tensors)
            self.rows.append({"kind": "rest", "name": packet, "operations": 0, "bytes": moved})
        return found


# Make a tensor without writing it, or answer with what they were given.
MADE = ("empty", "new_empty", "empty_like", "_unsafe_view", "_reshape_alias", "detach", "lift_fresh")


def count(transformer: nn.Module, arguments: dict) -> pd.DataFrame:
    """A row per linear, attention and other operator of one call, in order, all on the meta device.

    kind: "block linears" (whose activations are quantized), "modulation linears" (whose weights alone are),
    "other linears", "attention", "rest". tokens: rows of the product. operations: multiplications and
    additions. bytes: of all that is read and written, once each.
    """
    names = {f"{layer.name}.weight": layer.role for layer in quantizable(transformer)}
    parameters = transformer.named_parameters()
    roles = {id(p): (name.removesuffix(".weight"), KINDS[names.get(name)]) for name, p in parameters}
    rows: list[dict] = []
    with torch.no_grad(), _Products(roles, rows), _Bytes(rows):
        transformer(**arguments)
    return pd.DataFrame(rows, columns=COLUMNS)
