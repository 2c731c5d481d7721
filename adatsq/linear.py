"""A linear layer with integer weights, whose activation bits an assignment changes between two steps."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adatsq import integer
from adatsq.rotation import rotate

# What a quantized linear stores for its weight: all but the bias. The last five are there only if used.
PARTS = ("codes", "scale", "zero", "smoothing", "down", "up")


class QuantLinear(nn.Module):
    """y = s_x Q(x R / s_x) (codes * scale)^T + bias, with s_x found per token, Q rounding to `a_bits`
    integers. With all of the optional parts:

        z = x / smoothing,    y = Q(z R) (scale * (codes - zero))^T + (z down^T) up^T + bias

    codes: (out, in), int8 codes of W R, or W R itself as it is when w_bits is 16;
    scale: (out, groups), float32 values that fit 16 bits;
    rotation: whether R is the Hadamard rotation, or none;
    a_bits: 2..8, or 16 for activations as they come. Assign it at any time, it is all that a policy does;
    a_clip: whether activations are clipped as suits Gaussian rows, rather than at their largest value, or the
        ratio to clip at;
    zero: (out, groups) int8, zero points of an asymmetric weight grid (`integer.minmax_scale`);
    smoothing: (in,), divides the inputs; the codes are those of a weight that was multiplied by it;
    down (rank, in), up (out, rank): a low-rank branch in the input's precision, on z before it is rounded;
    a_group_size: inputs that share an activation scale, None for the whole token;
    a_asymmetric: activations from min to max instead of [-max, max];
    shift: added to x to make it unsigned before rounding, and taken off again after it; 0 for none;
    seed: of the rotation's signs, None for the fixed ones.
    """

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        w_bits: int,
        a_bits: int = 16,
        rotation: bool = False,
        a_clip: bool | float = False,
        name: str = "",
        *,
        zero: Tensor | None = None,
        smoothing: Tensor | None = None,
        down: Tensor | None = None,
        up: Tensor | None = None,
        a_group_size: int | None = None,
        a_asymmetric: bool = False,
        shift: float = 0.0,
        seed: int | None = None,
    ):
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        for part, tensor in {"zero": zero, "smoothing": smoothing, "down": down, "up": up}.items():
            self.register_buffer(part, tensor)
        self.a_group_size, self.a_asymmetric, self.shift, self.seed = a_group_size, a_asymmetric, shift, seed
        self.w_bits, self.a_bits, self.rotation, self.a_clip = w_bits, a_bits, rotation, a_clip
        self.name = name
        self.finite: Tensor | None = None  # whether the last activations were; read by `check_finite`

    @property
    def group_size(self) -> int | None:
        """Inputs that share a scale; None: the whole output channel."""
        groups = self.scale.shape[1]
        return None if groups == 1 else self.in_features // groups

    def weight_matrix(self) -> Tensor:
        """The weight (out, in) that the integers stand for, float32, in the rotated basis if there is one."""
        if self.zero is None:
            return integer.dequantize(self.integer_codes(), self.scale.float())
        zero = integer.expand(self.zero, self.in_features)
        return integer.dequantize(self.integer_codes().float() - zero, self.scale.float())

    def integer_codes(self) -> Tensor:
        """The weight's integers, int8 (out, in)."""
        return self.codes

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out), in x's dtype; scales, rotation and rounding in float32.

        Raises FloatingPointError if activations are NaN or infinite: at once on the CPU, elsewhere at the end
        of the transformer's call (`check_finite`), so that no layer waits for the device.
        """
        dtype = x.dtype
        if self.smoothing is not None:
            x = x.float() / self.smoothing.float()
        branch = None
        if self.down is not None:
            branch = F.linear(F.linear(x.to(dtype), self.down.to(dtype)), self.up.to(dtype))
        if self.rotation:
            x = rotate(x.float(), self.seed)
        if self.a_bits == 16:
            self._look_at(x)
            y = F.linear(x.to(dtype), self.weight_matrix().to(dtype), self.bias)
            return y if branch is None else y + branch
        if self.a_group_size or self.a_asymmetric or self.shift:
            x = self._rounded(x.float())
            self._look_at(x)
            # In float32: bfloat16 would round once more what stands for exact integers times their scales.
            return self._sum(F.linear(x, self.weight_matrix()), branch).to(dtype)
        weight, clip = self.weight_matrix().to(dtype), self._clip()
        scale = integer.absmax_scale(x, self.a_bits, clip=clip)
        self._look_at(scale)  # one number per token, NaN or infinite if the token is
        codes = integer.round_to_grid(x.float(), scale, self.a_bits)
        # Codes are exact in any floating dtype, so the token's scale waits until after the product.
        return self._sum(F.linear(codes.to(dtype), weight) * scale, branch).to(dtype)

    def _sum(self, y: Tensor, branch: Tensor | None) -> Tensor:
        y = y if self.bias is None else y + self.bias
        return y if branch is None else y + branch

    def _clip(self) -> float:
        """Where to clip activations, as a share of the largest."""
        if self.a_clip is True:
            return integer.gaussian_clip(self.a_bits, self.a_group_size or self.in_features)
        return self.a_clip or 1.0

    def _rounded(self, x: Tensor) -> Tensor:
        """x (..., in) after a round trip through integers in groups, or on an asymmetric or unsigned grid."""
        if self.a_asymmetric:
            return integer.fake_quant_asymmetric(x, self.a_bits, self.a_group_size)
        if self.shift:
            shift = self.shift if self.smoothing is None else self.shift / self.smoothing.float()
            return integer.fake_quant_unsigned(x + shift, self.a_bits, self.a_group_size) - shift
        return integer.fake_quant(x, self.a_bits, self.a_group_size or "row", self._clip())

    def _look_at(self, x: Tensor) -> None:
        self.finite = torch.isfinite(x).all()
        if x.device.type == "cpu":
            self.raise_if_not_finite()

    def raise_if_not_finite(self) -> None:
        if self.finite is not None and not self.finite:
            self.refuse()

    def refuse(self) -> None:
        raise FloatingPointError(f"NaN or infinity in the activations of layer {self.name or '(unnamed)'}")

    def extra_repr(self) -> str:
        group = f", group_size={self.group_size}" if self.group_size else ""
        return f"{self.in_features}, {self.out_features}, w_bits={self.w_bits}{group}, a_bits={self.a_bits}"


def check_finite(transformer: nn.Module, args: tuple, output: object) -> None:
    """Forward hook of a transformer: one look, and one wait for the device, at all its layers' flags."""
    layers = [m for m in transformer.modules() if isinstance(m, QuantLinear) and m.finite is not None]
    if layers and not torch.stack([layer.finite for layer in layers]).all():
        wrong = [layer for layer in layers if not layer.finite]
        for layer in wrong:  # the next call starts anew
            if "finite" in layer._buffers:  # where a CUDA graph writes to
                layer.finite.fill_(1)
            else:
                layer.finite = torch.ones_like(layer.finite)
        wrong[0].refuse()
