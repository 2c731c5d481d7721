"""`PackedLinear`: a `QuantLinear` that holds packed bytes and multiplies integers.

All of it is one operator of torch, `adatsq::packed_linear`, which torch.compile takes as it is: a block has
no graph break, and one graph serves all bits. The bits are a number on the CPU, a tensor of the graph and not
a constant in it, so that a policy's assignment is one store; the operator reads it without asking the GPU,
and chooses among kernels that have been compiled once each.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from adatsq import packing as files
from adatsq.cuda import activations, devices, few_rows_table, packing, products, sharing
from adatsq.cuda.exact import e4m3_is_exact, product_of, row_sum
from adatsq.cuda.prologue import NONE, rows_of, width
from adatsq.integer import qmax
from adatsq.linear import QuantLinear
from adatsq.rotation import rotate

FEW = 16  # rows, up to which a product with weights alone quantized reads them as they are
OPERATOR = "adatsq::packed_linear"


class PackedLinear(QuantLinear):
    """y of a `QuantLinear`, from `planes` instead of `codes`.

    planes: uint8 (w_bits, 4 * ceil(out * in / 32)), `packing.pack`; on a CUDA device the product is exact in
    integers where the layer allows it (`integers`); elsewhere in plain torch. In all else, a policy's a_bits
    above all, it is the QuantLinear that it was made from.
    """

    def __init__(self, linear: QuantLinear, fast_accumulation: bool = False, planes: Tensor | None = None):
        """Of a QuantLinear with 2..8 weight bits; shares its other tensors. Raises ValueError for 16.

        planes: of a file (`file_planes`), so that codes, which may be on the meta device, need no packing.
        """
        if linear.w_bits == 16:
            raise ValueError(f"layer {linear.name or '(unnamed)'} has 16-bit weights: nothing to pack")
        parts = ("codes", "scale", "bias", "zero", "smoothing", "down", "up")
        options = ("w_bits", "a_bits", "rotation", "a_clip", "name")
        options += ("a_group_size", "a_asymmetric", "shift", "seed")
        super().__init__(
            **{part: getattr(linear, part) for part in parts},
            **{key: getattr(linear, key) for key in options},
        )
        self.fast_accumulation = fast_accumulation
        if self.group_size is not None:  # many scales, of 16 bits; one a row is few, and wanted in float32
            self.scale = files.narrow(self.scale)
        if planes is None:
            planes = packing.pack(self.codes, self.w_bits, self.zero is None)
            self._bits[3] = row_sum(self.codes) if self.integers else 0
        else:
            planes = packing.padded(planes)
        del self.codes, self.finite
        self.register_buffer("planes", planes)
        with torch.inference_mode(False):  # written to later, in any mode
            finite = torch.ones((), dtype=torch.int32, device=planes.device)
        self.register_buffer("finite", finite, persistent=False)

    @property
    def a_bits(self) -> int:
        """Activation bits: 2..8, or 16."""
        return int(self._bits[0])

    @a_bits.setter
    def a_bits(self, bits: int) -> None:
        if "_bits" not in self.__dict__:
            with torch.inference_mode(False):
                # what the operator asks for on the CPU: a_bits, group and position, row_sum
                self._bits = torch.zeros(4, dtype=torch.int64, device="cpu")
        self._bits[0] = bits

    @property
    def group(self) -> tuple[int, int]:
        """Number of the layers that may share a rounding of activations (`sharing`; 0: none), and the
        position among them."""
        return int(self._bits[1]), int(self._bits[2])

    @group.setter
    def group(self, number_and_position: tuple[int, int]) -> None:
        self._bits[1], self._bits[2] = number_and_position

    @property
    def integers(self) -> bool:
        """Whether the sum over inputs is one of integers: one scale per output, and one per token."""
        one_scale = self.scale.shape[1] == 1 and self.a_group_size is None
        return one_scale and self.zero is None and not self.a_asymmetric and not self.shift

    @property
    def clip_number(self) -> float:
        """a_clip as the operator has it: the ratio to clip at, or -1 for True."""
        return -1.0 if self.a_clip is True else float(self.a_clip or 1.0)

    @property
    def row_sum(self) -> int:
        """`exact.row_sum` of the codes, by which the tensor cores' fast mode may be exact; 0: not known."""
        return int(self._bits[3])

    def find_row_sum(self) -> None:
        """Of planes that came from a file: unpacks them, and waits for the device."""
        if self.integers and not self.row_sum:
            with torch.cuda.device_of(self.planes):
                shape = self.out_features, self.in_features
                self._bits[3] = row_sum(packing.unpack(self.planes, shape))

    def _load_from_state_dict(self, *args: object) -> None:
        self._bits[3] = 0  # of other planes
        super()._load_from_state_dict(*args)

    def integer_codes(self) -> Tensor:
        """int8 (out, in), unpacked anew at each call."""
        return files.unpack(self.file_planes(), self.w_bits, (self.out_features, self.in_features))

    def file_planes(self) -> Tensor:
        """The planes as a saved file has them (`adatsq.packing.pack`)."""
        return packing.trimmed(self.planes, (self.out_features, self.in_features))

    def activations_of(self, x: Tensor, second: Tensor | None = None, prologue: str = NONE) -> Tensor:
        """What `forward` multiplies by the weights: all that it was given, and x alone without a prologue."""
        return rows_of(prologue, x, second)

    def forward(self, x: Tensor, second: Tensor | None = None, prologue: str = NONE) -> Tensor:
        """x (..., in) -> (..., out), in x's dtype. NaN and infinity are found at the end of the transformer's
        call (`check_finite`). second, prologue: what makes the activations of x (`prologue.rows_of`).
        Raises ValueError if these are not as wide as the weights."""
        if (wide := width(prologue, x, second)) != self.in_features:  # does a hook change what it is given?
            raise ValueError(f"layer {self.name or '(unnamed)'} has {self.in_features} inputs, not {wide}")
        if self.down is not None:  # which reads them too
            x, second, prologue = rows_of(prologue, x, second), None, NONE
        y = packed_linear(
            x,
            self.planes,
            self.scale,
            self.bias,
            self.zero,
            self.smoothing,
            self._bits,
            self.finite,
            self.out_features,
            self.rotation,
            self.clip_number,
            self.a_group_size,
            self.a_asymmetric,
            self.shift,
            self.seed,
            self.integers,
            self.fast_accumulation,
            second,
            prologue,
        )
        if self.down is None:
            return y
        z = x if self.smoothing is None else (x.float() / self.smoothing.float()).to(x.dtype)
        return y + F.linear(F.linear(z, self.down.to(x.dtype)), self.up.to(x.dtype))


# Defined by its schema: `torch.library.custom_op` does the same, but its checks in Python take longer at each
# call (some hundred microseconds) than the product of a layer takes on the GPU. Any layout of x is welcome:
# if one were asked for, torch.compile would write x anew for each layer that reads it.
torch.library.define(
    OPERATOR,
    "(Tensor x, Tensor planes, Tensor scale, Tensor? bias, Tensor? zero, Tensor? smoothing, Tensor bits, "
    "Tensor(a!) finite, SymInt outputs, bool rotation, float a_clip, SymInt? a_group_size, "
    "bool a_asymmetric, float shift, SymInt? seed, bool integers, bool fast_accumulation, "
    "Tensor? second=None, str prologue='') -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
)


@torch.library.impl(OPERATOR, "default")
@devices.falls_back
def _packed_linear(
    x: Tensor,
    planes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    zero: Tensor | None,
    smoothing: Tensor | None,
    bits: Tensor,
    finite: Tensor,
    outputs: int,
    rotation: bool,
    a_clip: float,
    a_group_size: int | None,
    a_asymmetric: bool,
    shift: float,
    seed: int | None,
    integers: bool,
    fast_accumulation: bool,
    second: Tensor | None = None,
    prologue: str = NONE,
) -> Tensor:
    """What `PackedLinear` computes, without its low-rank branch. bits: on the CPU, activation bits, the
    layer's `group` and its `row_sum`. a_clip: -1 for True. finite becomes 0 if x is not."""
    a_bits, group, position, sizes = bits.tolist()
    w_bits, inputs = len(planes), width(prologue, x, second)
    clip = a_clip if a_clip >= 0 else True
    shape = (outputs, inputs)
    product = product_of(w_bits, a_bits, inputs) if integers else "float"
    if product == "float":
        sharing.forget(x.device)
        x = rows_of(prologue, x, second)
        if zero is not None:  # codes that the kernel does not know
            codes = files.unpack(packing.trimmed(planes, shape), w_bits, shape)
        elif a_bits == 16 and _few(x, scale.shape[1]):
            return _times_few(x, planes, scale, bias, smoothing, rotation, seed, finite)
        else:
            with torch.cuda.device_of(x):
                codes = packing.unpack(planes, shape, torch.int8, packing.shared_buffer(planes))
        linear = QuantLinear(
            codes,
            scale,
            bias,
            w_bits,
            a_bits,
            rotation,
            clip,
            zero=zero,
            smoothing=smoothing,
            a_group_size=a_group_size,
            a_asymmetric=a_asymmetric,
            shift=shift,
            seed=seed,
        )
        return _noting(linear, x, finite)
    e4m3 = product == "e4m3" and devices.abilities(x.device).e4m3
    dtype = torch.float8_e4m3fn if e4m3 else torch.int8
    rows, others = (t if t is None else t.reshape(-1, t.shape[-1]) for t in (x, second))
    ratio = activations.clip_ratio(clip, a_bits, inputs)
    smooth = None if smoothing is None else smoothing.data_ptr()
    # What a prologue makes is one layer's own.
    key = None if prologue else sharing.key_of(group, x, a_bits, ratio, rotation, smooth, seed, dtype)
    shared = sharing.take(key, position, x.device)
    with torch.cuda.device_of(x):  # where Triton launches its kernels
        if shared is None:
            how = a_bits, ratio, rotation, smoothing, seed, dtype, finite, others, prologue
            codes, s_x = activations.quantize(rows, *how)
            sharing.keep(key, position, codes, s_x)
        else:
            codes, s_x = shared.codes, shared.scale
        weight = packing.unpack(planes, shape, dtype, packing.shared_buffer(planes))
        fast = e4m3 and e4m3_is_exact(qmax(a_bits), qmax(w_bits), inputs, promoted=False, row_sum=sizes)
        y = products.multiply(codes, s_x, weight, scale.float(), bias, x.dtype, fast or fast_accumulation)
    return y.view(*x.shape[:-1], outputs)


@torch.library.register_fake(OPERATOR)
def _(x: Tensor, planes: Tensor, *others) -> Tensor:
    outputs = others[6]
    return x.new_empty(*x.shape[:-1], outputs)


packed_linear = torch.ops.adatsq.packed_linear.default


def _few(x: Tensor, groups: int) -> bool:
    inputs = x.shape[-1]
    if not 0 < x.numel() <= FEW * inputs or not devices.abilities(x.device).triton:
        return False
    from adatsq.cuda.few_rows_kernel import fits

    return fits(inputs, groups)


def _times_few(
    x: Tensor,
    planes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    smoothing: Tensor | None,
    rotation: bool,
    seed: int | None,
    finite: Tensor,
) -> Tensor:
    """`QuantLinear.forward` with 16-bit activations, few rows of them."""
    from adatsq.cuda import few_rows_kernel

    rows = x.reshape(-1, x.shape[-1])
    if smoothing is not None:
        rows = rows.float() / smoothing.float()
    if rotation:
        rows = rotate(rows.float(), seed)
    rows = rows.to(x.dtype)
    tables = devices.abilities(x.device).nvrtc and few_rows_table.fits(rows, scale, bias)
    with torch.cuda.device_of(x):
        way = few_rows_table if tables else few_rows_kernel
        y = way.multiply_few(rows, planes, scale, bias, finite)
    return y.view(*x.shape[:-1], len(scale))


def _noting(linear: QuantLinear, x: Tensor, finite: Tensor) -> Tensor:
    """linear(x); what is not finite is noted in `finite`, and raised by `check_finite`, on the CPU too."""
    try:
        y = linear(x)
    except FloatingPointError:
        finite.zero_()
        return x.new_full((*x.shape[:-1], linear.out_features), torch.nan)
    finite.logical_and_(linear.finite)
    return y
