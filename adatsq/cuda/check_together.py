"""Checks of linears as one product (`together`): each part against the same, layer by layer, to the bit."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from diffusers.models.transformers import transformer_flux
from torch import nn

from adatsq import integer
from adatsq.cuda import activations, fusing, packing, prologue, together
from adatsq.cuda.checking import Check, differing, random_codes
from adatsq.cuda.linear import PackedLinear
from adatsq.cuda.shapes import Shape
from adatsq.scheme import Scheme, quantized


def outputs_of(shape: Shape) -> tuple[int, ...]:
    """As a single block of Flux has them: the feed-forward's, then those of query, key and value."""
    return 4 * shape.outputs, shape.outputs, shape.outputs, shape.outputs


def unpacking_together(shapes: Sequence[Shape], device: torch.device) -> Iterator[Check]:
    """Codes, scales and biases of four layers, packed by plain torch; the buffer is poisoned before."""
    inputs, outputs = shapes[0].inputs, outputs_of(shapes[0])
    scales = [torch.rand(count, 1, device=device) for count in outputs]
    biases = [torch.randn(count, device=device).bfloat16() for count in outputs]
    for bits in (2, 3, 4, 8):
        codes = [random_codes((count, inputs), integer.qmax(bits), device) for count in outputs]
        planes = [packing.pack(each, bits) for each in codes]
        for dtype in (torch.int8, torch.float8_e4m3fn)[: 2 if bits <= 5 else 1]:
            packing.shared_buffer(*planes).fill_(0x7F)
            found, scale, bias = together.weights(planes, scales, biases, dtype)
            unit = packing.UNIT if dtype is torch.float8_e4m3fn else 1.0
            name = f"{len(outputs)} layers, {sum(outputs)} x {inputs}, {bits} bit to {str(dtype)[6:]}"
            yield differing(f"unpack {name}", found.float(), torch.cat(codes).float() * unit)
            yield differing(f"scales of {name}", scale, torch.cat(scales))
            yield differing(f"biases of {name}", bias, torch.cat(biases))


def strided_rounding(shapes: Sequence[Shape], device: torch.device) -> Iterator[Check]:
    """Columns of wider tensors against copies of them: in whole vectors of a kernel, and not."""
    for inputs, kind in itertools.product({s.inputs for s in shapes}, prologue.KINDS):
        first = inputs // 4 // 8 * 8 if kind == prologue.CAT_GELU else inputs
        two = kind in (prologue.CAT_GELU, prologue.SWIGLU)
        sizes = (first, inputs - first or inputs) if two else (first,)
        for dtype, left in itertools.product((torch.bfloat16, torch.float32), (16, 3)):
            wide = [torch.randn(64, left + n + 16, device=device).to(dtype) for n in sizes]
            columns = [each[:, left : left + n] for each, n in zip(wide, sizes)]
            for rotation in (False, True):
                how = 4, 0.9, rotation, None, None, torch.int8, None
                found = activations.quantize(columns[0], *how, columns[1] if two else None, kind)
                copies = [each.contiguous() for each in columns]
                expected = activations.quantize(copies[0], *how, copies[1] if two else None, kind)
                name = f"{kind or 'round'} {str(dtype)[6:]} K={inputs} from column {left}"
                name += " rotated" if rotation else ""
                share = float((found[0] != expected[0]).double().mean())
                # Plain torch may compute a function of columns by other instructions: the last bit is free.
                near = torch.allclose(found[1], expected[1], rtol=1e-6)
                right = near and share < 1e-3 and int((found[0] - expected[0]).abs().max()) <= 1
                yield Check(name, right, f"{share:.1e} of the codes differ")


def products_together(shapes: Sequence[Shape], device: torch.device) -> Iterator[Check]:
    """Answers of four layers, by one operator and one by one: bits that are equal, and bits that are not."""
    shape, outputs = shapes[0], outputs_of(shapes[0])
    for w_bits, dtype in itertools.product((3, 4), (torch.bfloat16, torch.float16, torch.float32)):
        layers = []
        for count in outputs:
            linear = nn.Linear(shape.inputs, count, device=device, dtype=dtype).requires_grad_(False)
            layers.append(PackedLinear(quantized(linear, Scheme(w_bits, 4, rotation=True, a_clip=True))))
        x = torch.randn(1, shape.tokens, shape.inputs, device=device).to(dtype)
        for bits in ((4, 4, 4, 4), (3, 3, 3, 3), (8, 8, 8, 8), (4, 3, 3, 8), (3, 16, 4, 4)):
            for layer, a_bits in zip(layers, bits):
                layer.a_bits = a_bits
            expected = torch.cat([layer(x.clone()) for layer in layers], dim=-1)
            assert together.fit(layers, x)
            found = torch.cat(together.linears(layers, x), dim=-1)
            name = f"W{w_bits}A{'/'.join(map(str, bits))} {sum(outputs)} x {shape.inputs} {str(dtype)[6:]}"
            yield differing(f"layers together {name}", found, expected)
    yield from blocks_together(device)


def blocks_together(device: torch.device) -> Iterator[Check]:
    """Flux's blocks, what is done together against what is done one by one: products to the bit, norms and
    rotations as bfloat16 rounds."""
    width = 32 if device.type == "cpu" else 3072
    given = [torch.randn(1, n, width, device=device).bfloat16() for n in (100, 7)]
    given.append(torch.randn(1, width, device=device).bfloat16())
    angles = torch.rand(107, 8, device=device).repeat_interleave(2, dim=1)
    given.append((angles.cos(), angles.sin()))
    for kind in (transformer_flux.FluxSingleTransformerBlock, transformer_flux.FluxTransformerBlock):
        block = kind(width, width // 16, 16).to(device, torch.bfloat16).requires_grad_(False)
        for part, linear in list(block.named_modules()):
            if type(linear) is nn.Linear and "norm" not in part:
                scheme = Scheme(4, 4, rotation=True, a_clip=True)
                block.set_submodule(part, PackedLinear(quantized(linear, scheme)))
        for norm in (m for m in block.attn.modules() if type(m) is nn.RMSNorm):
            norm.weight.uniform_(0.5, 1.5)
        fusing.fuse(block)
        expected = torch.cat(block(*given), dim=1)
        fusing.multiply_together(block)
        found = torch.cat(block(*given), dim=1)
        yield differing(f"{kind.__name__}, its linears together", found, expected)
        fusing.norm_and_rotate_together(block)
        found = torch.cat(block(*given), dim=1)
        off = float((found - expected).norm() / expected.norm())
        yield Check(f"{kind.__name__}, norms and rotations too", off < 1e-2, f"relative {off:.1e}")
