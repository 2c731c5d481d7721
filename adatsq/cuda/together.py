"""One product for linears that read the same activations: their outputs, side by side.

Each alone would unpack its weights and multiply; together they do so once, with the rows of all weights one
below the other. Nothing changes in the numbers: an output is of its own row of weights, scale and bias. Bits
of activations are known in the operator alone, `adatsq::packed_linears`, since a policy changes them from
step to step. Where layers next to each other have different ones, there is a product for each run of equal
bits, which writes its columns of the answer; for these layers too it is one call, one graph of torch.compile.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adatsq.cuda import activations, devices, packing, products, sharing
from adatsq.cuda.exact import e4m3_is_exact, product_of
from adatsq.cuda.linear import PackedLinear, packed_linear
from adatsq.integer import qmax

OPERATOR = "adatsq::packed_linears"
WORD = 32  # codes in a word of a plane, of which a layer's rows must be made for the next layer's to follow


def linears(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """[layer(x) for layer in layers], x (..., in) -> (..., out) each.

    By one operator where all are `PackedLinear`s that can share a product (`fit`); the answers are then views
    of one tensor. Whether x is finite is noted at the first layer, as if it were the only one.
    """
    if not fit(layers, x):
        return [layer(x) for layer in layers]
    first = layers[0]
    y = packed_linears(
        x,
        [layer.planes for layer in layers],
        [layer.scale for layer in layers],
        [layer.bias for layer in layers if layer.bias is not None],
        first.smoothing,
        [layer._bits for layer in layers],
        first.finite,
        first.rotation,
        first.clip_number,
        first.seed,
        first.fast_accumulation,
    )
    return list(y.split([layer.out_features for layer in layers], dim=-1))


def fit(layers: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether the layers can share a product for x, at any activation bits. Not where a gradient may be asked
    for: it depends on a layer's own bits, and `_scaled_mm` cannot write beside what has one."""
    first = layers[0]
    return (
        all(type(layer) is PackedLinear and is_plain(layer) for layer in layers)
        and not (torch.is_grad_enabled() and x.requires_grad)
        and x.shape[-1] == first.in_features
        and first.in_features % WORD == 0
        # A run's columns begin where `_scaled_mm` may write, and no layer is padded for another's sake.
        and all(layer.out_features % products.ALIGNED == 0 for layer in layers)
        and all(_alike(layer, first) for layer in layers)
        and all(layer.planes.device == layer.scale.device == x.device for layer in layers)
    )


def is_plain(module: nn.Module) -> bool:
    """Whether a call of the module is its class's forward and no more: no hooks, no offloading."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _alike(layer: PackedLinear, first: PackedLinear) -> bool:
    """Whether the layers round alike, whatever the bits, and are parts of one product."""
    return (
        layer.integers
        and layer.down is None
        and layer.in_features == first.in_features
        and layer.w_bits == first.w_bits
        and layer.rotation == first.rotation
        and layer.seed == first.seed
        and layer.clip_number == first.clip_number
        and layer.smoothing is first.smoothing
        and layer.fast_accumulation == first.fast_accumulation
        and (layer.bias is None) == (first.bias is None)
        and (layer.bias is None or layer.bias.dtype == first.bias.dtype)
    )


# Defined by its schema, and in any layout, as the operator of `linear` is, and for its reasons. One tensor
# comes out: an operator may not return views.
torch.library.define(
    OPERATOR,
    "(Tensor x, Tensor[] planes, Tensor[] scales, Tensor[] biases, Tensor? smoothing, Tensor[] bits, "
    "Tensor(a!) finite, bool rotation, float a_clip, SymInt? seed, bool fast_accumulation) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
)


@torch.library.impl(OPERATOR, "default")
@devices.falls_back
def _packed_linears(
    x: Tensor,
    planes: list[Tensor],
    scales: list[Tensor],
    biases: list[Tensor],
    smoothing: Tensor | None,
    bits: list[Tensor],
    finite: Tensor,
    rotation: bool,
    a_clip: float,
    seed: int | None,
    fast_accumulation: bool,
) -> Tensor:
    """x (..., in) -> (..., outputs of all). Lists have one tensor for each layer, biases none if no layer has
    one; the other arguments are those of `adatsq::packed_linear`."""
    w_bits, inputs, e4m3_here = len(planes[0]), x.shape[-1], devices.abilities(x.device).e4m3
    rows, known = x.reshape(-1, inputs), [each.tolist() for each in bits]
    ends = list(itertools.accumulate(len(scale) for scale in scales))
    y = torch.empty(len(rows), ends[-1], dtype=x.dtype, device=x.device)
    rounded = {}
    sharing.forget(x.device)  # this ends the turn of any group
    for a_bits, run in _runs([a_bits for a_bits, *_ in known]):
        columns = slice(ends[run.start] - len(scales[run.start]), ends[run.stop - 1])
        product = product_of(w_bits, a_bits, inputs)
        if product == "float":
            for i in range(run.start, run.stop):
                bias = biases[i] if biases else None
                one = x, planes[i], scales[i], bias, None, smoothing, bits[i], finite, len(scales[i])
                how = rotation, a_clip, None, False, 0.0, seed, True, fast_accumulation
                own = slice(ends[i] - len(scales[i]), ends[i])
                y[:, own] = packed_linear(*one, *how).reshape(len(rows), len(scales[i]))
            continue
        e4m3 = product == "e4m3" and e4m3_here
        dtype = torch.float8_e4m3fn if e4m3 else torch.int8
        with torch.cuda.device_of(x):  # where Triton launches its kernels
            if a_bits not in rounded:
                ratio = activations.clip_ratio(a_clip if a_clip >= 0 else True, a_bits, inputs)
                how = a_bits, ratio, rotation, smoothing, seed, dtype, finite
                rounded[a_bits] = activations.quantize(rows, *how)
            weight, scale, bias = weights(planes[run], scales[run], biases[run], dtype)
            fast = e4m3 and all(
                e4m3_is_exact(qmax(a_bits), qmax(w_bits), inputs, promoted=False, row_sum=row_sum)
                for *_, row_sum in known[run]
            )
            fast = fast or fast_accumulation
            products.multiply(*rounded[a_bits], weight, scale, bias, x.dtype, fast, y[:, columns])
    return y.view(*x.shape[:-1], ends[-1])


@torch.library.register_fake(OPERATOR)
def _(x: Tensor, planes: list[Tensor], scales: list[Tensor], *others) -> Tensor:
    return x.new_empty(*x.shape[:-1], sum(scale.shape[0] for scale in scales))


packed_linears = torch.ops.adatsq.packed_linears.default


def _runs(numbers: Sequence[int]) -> list[tuple[int, slice]]:
    """Equal numbers next to each other: the number, and where they are."""
    found, start = [], 0
    for number, run in itertools.groupby(numbers):
        stop = start + len(list(run))
        found.append((number, slice(start, stop)))
        start = stop
    return found


def weights(
    planes: Sequence[Tensor], scales: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weights of layers as one layer's: codes (outputs of all, in) in `dtype`, scales (outputs of all, 1) in
    float32, biases (outputs of all) or None. Layers have equal bits and inputs, these in whole WORDs.

    Unpacked into the shared buffer, and all of it anew at each call, so that no copy is ever out of date.
    """
    outputs = [len(scale) for scale in scales]
    inputs = 8 * planes[0].shape[1] // outputs[0]
    out = packing.shared_buffer(*planes)
    codes = out[: sum(outputs) * inputs].view(dtype).view(-1, inputs)
    if devices.abilities(out.device).triton:
        from adatsq.cuda.unpack_kernel import unpack_layers

        return codes, *unpack_layers(planes, scales, biases, out, dtype is torch.float8_e4m3fn)
    start = 0
    for each, count in zip(planes, outputs):
        packing.unpack(each, (count, inputs), dtype, out[start:])
        start += count * inputs
    return codes, torch.cat(list(scales)).float(), torch.cat(list(biases)) if biases else None
