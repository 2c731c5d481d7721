"""Do the kernels equal plain torch, and are the products exact, on this machine? Each line is a check.

python -m adatsq.cuda.check            on the GPU, at the models' own shapes: under a minute
python -m adatsq.cuda.check --cpu      plain torch alone, in small: that the checks themselves run
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.transformers import transformer_flux, transformer_z_image
from torch import Tensor, nn

from adatsq import integer
from adatsq.cuda import activations, devices, exact, packing, products, prologue
from adatsq.cuda.check_together import products_together, strided_rounding, unpacking_together
from adatsq.cuda.checking import Check, random_codes
from adatsq.cuda.fusing import fuse
from adatsq.cuda.linear import FEW, PackedLinear
from adatsq.cuda.norm_rope import norm_rope
from adatsq.cuda.shapes import MODULATION, SHAPES, TINY, TINY_MODULATION, Shape
from adatsq.replacement import MODULATION_GROUP
from adatsq.rotation import rotate
from adatsq.scheme import Scheme, quantized


def unpacking(shapes: Sequence[Shape], device: torch.device) -> Iterator[Check]:
    """Packed by plain torch, unpacked by the kernel, compared one by one; the buffer is poisoned before."""
    odd = [Shape("odd", 1, inputs, outputs) for inputs, outputs in ((5, 3), (33, 7), (1000, 1001))]
    for shape in (*{(s.inputs, s.outputs): s for s in shapes}.values(), *odd):
        for bits in (2, 3, 4, 8):
            codes = random_codes((shape.outputs, shape.inputs), integer.qmax(bits), device)
            planes = packing.pack(codes, bits)
            for dtype in (torch.int8, torch.float8_e4m3fn)[: 2 if bits <= 5 else 1]:
                out = torch.full((8 * planes.shape[1],), 0x7F, dtype=torch.uint8, device=device)
                found = packing.unpack(planes, tuple(codes.shape), dtype, out)
                unit = packing.UNIT if dtype is torch.float8_e4m3fn else 1.0
                wrong = int((found.float() != codes.float() * unit).sum())
                name = f"unpack {bits} bit to {str(dtype)[6:]}, {shape.outputs} x {shape.inputs}"
                yield Check(name, wrong == 0, f"{wrong} of {codes.numel()} codes differ")


def sums(shapes: Sequence[Shape], device: torch.device) -> Iterator[Check]:
    """Sums of products against float64, for the inputs that are hardest on an accumulator.

    Promised: what `exact` says. The rest is shown, so that it is known how far off it is.
    """
    e4m3 = device.type == "cpu" or devices.abilities(device).e4m3
    for shape in {s.inputs: s for s in shapes}.values():
        for largest in ((7, 7), (3, 3), (7, 3), (15, 7), (16, 16)) if e4m3 else ():
            for kind, x, w in hard_inputs(shape, *largest, device):
                expected = integer_product(x, w)
                x8 = x.to(torch.float8_e4m3fn)
                w8 = (w.float() * packing.UNIT).to(torch.float8_e4m3fn)
                for fast, dtype in itertools.product((False, True), (torch.float32, torch.bfloat16)):
                    y = products.multiply(x8, ones(x) / packing.UNIT, w8, ones(w), None, dtype, fast)
                    off = float((y.double() - expected.to(dtype).double()).abs().max())
                    promised = exact.e4m3_is_exact(*largest, shape.inputs, promoted=not fast)
                    name = f"{'fast' if fast else 'slow'} {str(dtype)[6:]}"
                    share = off / max(1.0, float(expected.abs().max()))
                    yield Check(
                        f"e4m3 K={shape.inputs} {largest} {kind}, {name}",
                        off == 0 if promised else None,
                        f"off by {off:g} ({share:.1e})",
                    )
        limit = exact.FAST
        for largest in (3, 7) if e4m3 else ():
            for kind, x, w in summing_to(limit // largest, largest, shape.inputs, device):
                w8 = (w.float() * packing.UNIT).to(torch.float8_e4m3fn)
                x8, expected = x.to(torch.float8_e4m3fn), integer_product(x, w)
                y = products.multiply(x8, ones(x) / packing.UNIT, w8, ones(w), None, torch.float32, True)
                off = float((y.double() - expected).abs().max())
                name = f"e4m3 K={shape.inputs} A up to {largest}, sums up to {limit}, {kind}, fast"
                yield Check(name, off == 0, f"off by {off:g}")
        for kind, x, w in hard_inputs(shape, 127, 127, device):
            expected = integer_product(x, w)
            y = products.multiply(x, ones(x), w, ones(w), None, torch.float32)
            off = float(((y.double() - expected).abs() / expected.abs().clamp(min=1)).max())
            limit = 2**-24 if device.type == "cuda" else 1e-5  # int32 sums, rounded once to float32
            yield Check(f"int8 K={shape.inputs} {kind}", off <= limit, f"relative {off:.1e}")


def rounding(shapes: Sequence[Shape], device: torch.device) -> Iterator[Check]:
    """Codes and scales of activations: equal to plain torch's on the CPU; with a rotation, but for ties."""
    for inputs in {s.inputs for s in shapes}:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            x = torch.randn(64, inputs).to(dtype)
            x[0], x[1], x[2, 0] = 0, 0.5, 100
            smoothing = (torch.rand(inputs) + 0.5).bfloat16().float()
            for bits, s in ((3, None), (4, smoothing), (8, None)):
                name = f"activations {bits} bit {str(dtype)[6:]} K={inputs}"
                there = None if s is None else s.to(device)
                codes, scale = activations.quantize(x.to(device), bits, 0.9, False, there)
                expected, expected_scale = activations.quantize(x, bits, 0.9, False, s)
                same = torch.equal(codes.cpu(), expected) and torch.equal(scale.cpu(), expected_scale)
                yield Check(name, same, "equal" if same else "differ")
                codes, _ = activations.quantize(x.to(device), bits, 0.9, True, there)
                z = rotate(x.double() if s is None else x.double() / s.double())
                wanted = integer.round_to_grid(z, integer.absmax_scale(z, bits, clip=0.9).double(), bits)
                off = (codes.cpu() - wanted).abs()
                share = float((off > 0).double().mean())
                right = float(off.max()) <= 1 and share < 1e-3
                yield Check(f"{name} rotated", right, f"{share:.1e} of the codes differ")


def prologues(shapes: Sequence[Shape], device: torch.device) -> Iterator[Check]:
    """Rounding with a prologue against plain torch's prologue, rounded; then modules that use it."""
    for inputs, dtype in itertools.product({s.inputs for s in shapes}, (torch.bfloat16, torch.float32)):
        for kind in prologue.KINDS[1:]:
            first = inputs // 4 // 8 * 8 if kind == prologue.CAT_GELU else inputs
            rest = inputs - first or inputs
            x, second = (3 * torch.randn(64, n, device=device).to(dtype) for n in (first, rest))
            x[0], second[0], second[1] = 0, 0, 0.5
            x[2, 0], second[2, 0] = -100, 100
            for rotation in (False, True):
                how = 4, 0.9, rotation, None, None, torch.int8, None
                codes, scale = activations.quantize(x, *how, second, kind)
                wanted, wanted_scale = activations.quantize(prologue.rows_of(kind, x, second), *how)
                share = float((codes != wanted).double().mean())
                near = torch.allclose(scale, wanted_scale, rtol=2**-7)
                right = near and share < 1e-2 and int((codes - wanted).abs().max()) <= 1
                name = f"{kind} {str(dtype)[6:]} K={inputs}{' rotated' if rotation else ''}"
                yield Check(name, right, f"{share:.1e} of the codes differ")
    small = device.type == "cpu"
    flux, z_image = (32, 32) if small else (3072, 3840)
    modules = {
        "feed-forward with GELU": (FeedForward(flux, activation_fn="gelu-approximate"), flux),
        "feed-forward with SwiGLU": (transformer_z_image.FeedForward(z_image, z_image * 8 // 3), z_image),
        "single block": (transformer_flux.FluxSingleTransformerBlock(flux, flux // 16, 16), flux),
    }
    for name, (module, inputs) in modules.items():
        module.to(device, torch.bfloat16).requires_grad_(False)
        for part, linear in list(module.named_modules()):
            if type(linear) is nn.Linear and "norm" not in part:
                scheme = Scheme(4, 4, rotation=True, a_clip=True)
                module.set_submodule(part, PackedLinear(quantized(linear, scheme)))
        x, text, row = (torch.randn(1, n, inputs, device=device).bfloat16() for n in (100, 7, 1))
        given = (x, text, row[0]) if name == "single block" else (x,)
        expected = module(*given)
        changed = fuse(module)
        off = max(float((y - e).norm() / e.norm()) for y, e in zip(module(*given), expected))
        yield Check(f"fused {name}", changed == 1 and off < 1e-2, f"relative {off:.1e}")


def norms_and_rotations(shapes: Sequence[Shape], device: torch.device) -> Iterator[Check]:
    """Query and key of Flux's heads against float64. A value may be off by the roundings of its pair."""
    shape, size = shapes[0], 16 if device.type == "cpu" else 128
    angles = 100 * torch.rand(shape.tokens, size // 2, device=device).repeat_interleave(2, dim=1)
    cos, sin, weight = angles.cos(), angles.sin(), torch.rand(size, device=device) + 0.5
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        both = torch.randn(1, shape.tokens, 2 * shape.outputs, device=device).to(dtype)
        pair = [part.unflatten(-1, (-1, size)) for part in both.chunk(2, dim=-1)]
        weight = weight.to(dtype)
        texts = shape.tokens // 9
        parts = [x.tensor_split([texts], dim=1) for x in pair]  # each with weights of its own
        found = norm_rope(*parts, [weight.flip(0), weight], [weight.flip(0), weight], cos, sin, 1e-6)
        of_token = weight.expand(shape.tokens, 1, -1).clone()
        of_token[:texts] = weight.flip(0)
        for name, x, y in zip(("query", "key"), pair, found):
            root = (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
            exact = x.double() / root * of_token.double()
            exact = torch.view_as_complex(exact.unflatten(-1, (-1, 2)))
            turned = exact * torch.complex(cos.double(), sin.double())[None, :, None, ::2]
            off = (torch.view_as_real(turned).flatten(-2) - y.double()).abs()
            length = exact.abs().repeat_interleave(2, dim=-1).clamp(min=torch.finfo(dtype).tiny)
            steps = off / (length * torch.finfo(dtype).eps)
            right = float(steps.max()) <= (4 if dtype is torch.float32 else 1.01)
            yield Check(f"norm and rotation, {name}, {str(dtype)[6:]}", right, f"{steps.max():.2f} steps off")


def layers(shapes: Sequence[Shape], device: torch.device) -> Iterator[Check]:
    """A PackedLinear on the device against its QuantLinear on the same device, in float32."""
    for shape in {(s.inputs, s.outputs): s for s in shapes}.values():
        linear = nn.Linear(shape.inputs, shape.outputs, device=device).requires_grad_(False)
        for w_bits in (3, 4):
            reference = quantized(linear, Scheme(w_bits, 4, rotation=True, a_clip=True))
            packed = PackedLinear(reference)
            x = torch.randn(33, shape.inputs).to(device)
            for bits in (3, 4, 8, 16):
                reference.a_bits = packed.a_bits = bits
                expected = reference(x)
                # A code at a tie may be its neighbour: one step of one input's share of the sum.
                off = float((packed(x) - expected).norm() / expected.norm())
                name = f"layer W{w_bits}A{bits} {shape.outputs} x {shape.inputs}"
                yield Check(name, off < 2e-3, f"relative {off:.1e}")
            packed.a_bits = 4
            packed(x * torch.nan)
            yield Check(f"layer W{w_bits}A4 {shape.name} NaN", not packed.finite, "is noted")
    yield from modulation(TINY_MODULATION if device.type == "cpu" else MODULATION, device)


def modulation(shape: Shape, device: torch.device) -> Iterator[Check]:
    """Weights alone, in groups: few rows have a kernel of their own, more go through the reference."""
    limits = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
    for dtype, (w_bits, group) in itertools.product(limits, ((4, MODULATION_GROUP), (3, None))):
        linear = nn.Linear(shape.inputs, shape.outputs, device=device, dtype=dtype).requires_grad_(False)
        reference = quantized(linear, Scheme(w_bits, 16, group_size=group))
        packed, weight = PackedLinear(reference), reference.weight_matrix().double()
        for rows in (1, FEW, FEW + 1):
            x = torch.randn(rows, shape.inputs).to(device, dtype)
            expected = x.double() @ weight.T + linear.bias.double()
            off = float((packed(x) - expected).norm() / expected.norm())
            name = f"{shape.name} W{w_bits}A16, {rows} rows, {str(dtype)[6:]}"
            yield Check(name, off < limits[dtype], f"relative {off:.1e}")


def hard_inputs(
    shape: Shape, x_max: int, w_max: int, device: torch.device
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(what it is, x, w): random of both signs, random of one, all the largest, the largest but one."""
    rows, columns = (shape.tokens, shape.inputs), (shape.outputs, shape.inputs)
    x, w = random_codes(rows, x_max, device), random_codes(columns, w_max, device)
    yield "random", x, w
    yield "one-sided", x.abs(), w.abs()
    yield "all the largest", torch.full_like(x, x_max), torch.full_like(w, w_max)
    yield "odd, of two signs", torch.full_like(x, x_max), torch.full_like(w, -max(1, w_max - 1))


def summing_to(
    total: int, largest: int, inputs: int, device: torch.device
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(what it is, x, w), w with rows whose sizes add up to `total`, as far as 7s do: few large weights, or
    many small ones, that come first, last or anywhere. x = +-largest with w's signs: all sums are largest."""
    for kind, each in (("few", 7), ("many", min(7, -(-total // inputs)))):
        w = torch.zeros(inputs, dtype=torch.int8, device=device)
        w[: total // each] = each
        w[total // each : total // each + 1] = total % each
        for order, sizes in {
            "first": w,
            "last": w.flip(0),
            "anywhere": w[torch.randperm(inputs, device=device)],
        }.items():
            for sign in (torch.ones_like(w), random_codes((1, inputs), 1, device)[0] * 2 + 1):
                x = (largest * sign.sign()).expand(32, -1)
                yield f"{kind} {order}", x, (sizes * sign.sign()).expand(16, -1)


def integer_product(x: Tensor, w: Tensor) -> Tensor:
    """In float64, which is exact up to 2^53."""
    return x.double() @ w.double().T


def ones(codes: Tensor) -> Tensor:
    """Scales that change nothing."""
    return torch.ones(len(codes), 1, device=codes.device)


ALL: tuple[Callable, ...] = (
    unpacking,
    unpacking_together,
    sums,
    rounding,
    strided_rounding,
    prologues,
    norms_and_rotations,
    layers,
    products_together,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the checks, the wrong ones again at the end; returns how many there are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="plain torch alone, small shapes")
    parser.add_argument("--quiet", action="store_true", help="only what is wrong, or promised nothing")
    options = parser.parse_args(arguments)
    if not options.cpu and not torch.cuda.is_available():
        parser.error("no CUDA device: --cpu runs the checks in small, on plain torch")
    device = torch.device("cpu" if options.cpu else "cuda")
    print(devices.note(device), flush=True)
    wrong, total = [], 0
    for checks in ALL:
        start = time.perf_counter()
        for check in checks(TINY if options.cpu else SHAPES, device):
            total += 1
            if not (options.quiet and check.right):
                word = {True: "right", False: "WRONG", None: "     "}[check.right]
                print(f"{word}  {check.name}: {check.seen}", flush=True)
            if check.right is False:
                wrong.append(check)
        print(f"{checks.__name__}: {time.perf_counter() - start:.1f} s", flush=True)
    for check in wrong:
        print(f"WRONG  {check.name}: {check.seen}")
    print(f"{total} checks, {len(wrong)} wrong")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(min(1, main()))
