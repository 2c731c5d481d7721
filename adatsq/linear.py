"""A linear layer with integer weights, whose activation bits an assignment changes between two steps."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adatsq import integer
from adatsq.rotation import rotate


class QuantLinear(nn.Module):
    """y = s_x Q(x R / s_x) (codes * scale)^T + bias, with s_x found per token, Q rounding to `a_bits`
    integers.

    codes: (out, in), int8 codes of W R, or W R itself as it is when w_bits is 16;
    scale: (out, groups), float32 values that fit 16 bits;
    rotation: whether R is the Hadamard rotation, or none;
    a_bits: 2..8, or 16 for activations as they come. Assign it at any time, it is all that a policy does;
    a_clip: whether activations are clipped as suits Gaussian rows, rather than at their largest value.
    """

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        w_bits: int,
        a_bits: int = 16,
        rotation: bool = False,
        a_clip: bool = False,
        name: str = "",
    ):
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
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
        return integer.dequantize(self.codes, self.scale.float())

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out), in x's dtype; scales, rotation and rounding in float32.

        Raises FloatingPointError if activations are NaN or infinite: at once on the CPU, elsewhere at the end
        of the transformer's call (`check_finite`), so that no layer waits for the device.
        """
        dtype = x.dtype
        weight = self.weight_matrix().to(dtype)
        if self.rotation:
            x = rotate(x.float())
        if self.a_bits == 16:
            self._look_at(x)
            return F.linear(x.to(dtype), weight, self.bias)
        clip = integer.gaussian_clip(self.a_bits, self.in_features) if self.a_clip else 1.0
        scale = integer.absmax_scale(x, self.a_bits, clip=clip)
        self._look_at(scale)  # one number per token, NaN or infinite if the token is
        codes = integer.round_to_grid(x.float(), scale, self.a_bits)
        # Codes are exact in any floating dtype, so the token's scale waits until after the product.
        y = F.linear(codes.to(dtype), weight) * scale
        return (y if self.bias is None else y + self.bias).to(dtype)

    def _look_at(self, x: Tensor) -> None:
        self.finite = torch.isfinite(x).all()
        if x.device.type == "cpu":
            self.raise_if_not_finite()

    def raise_if_not_finite(self) -> None:
        if self.finite is not None and not self.finite:
            raise FloatingPointError(
                f"NaN or infinity in the activations of layer {self.name or '(unnamed)'}"
            )

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, w_bits={self.w_bits}, a_bits={self.a_bits}"


def check_finite(transformer: nn.Module, args: tuple, output: object) -> None:
    """Forward hook of a transformer: one look, and one wait for the device, at all its layers' flags."""
    layers = [m for m in transformer.modules() if isinstance(m, QuantLinear) and m.finite is not None]
    if layers and not torch.stack([layer.finite for layer in layers]).all():
        for layer in layers:
            layer.raise_if_not_finite()
