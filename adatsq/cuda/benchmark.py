"""Milliseconds of each part of a low-bit linear, against bfloat16 and against the two floors.

python -m adatsq.cuda.benchmark --shapes           on the GPU; writes data/results/cuda-shapes.csv
python -m adatsq.cuda.benchmark --shapes --cpu     in small, on plain torch: that it runs
python -m adatsq.cuda.benchmark --steps            whole transformers, beside other libraries (`steps`)

The floor of a part is the larger of its bytes over the bandwidth of a copy, measured in the same run, and its
operations over the peak that --peak gives in TFLOP/s of FP8 (and half as much in bfloat16, as on an H200).
"""

import argparse
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adatsq import integer
from adatsq.cuda import activations, devices, exact, few_rows_table, packing, products, sharing
from adatsq.cuda.linear import PackedLinear, packed_linear
from adatsq.cuda.prologue import GELU, rows_of
from adatsq.cuda.shapes import MODULATION, SHAPES, TINY, TINY_MODULATION, Shape
from adatsq.cuda.timing import MODES, bandwidth, milliseconds
from adatsq.files import write_text
from adatsq.replacement import MODULATION_GROUP
from adatsq.scheme import Scheme, quantized

CASES = ((4, 4), (3, 3), (3, 4), (4, 8), (8, 8))  # weight and activation bits


def shape_rows(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Iterator[dict]:
    """One row per part: its time, and the bytes and operations that it cannot do without."""
    tokens, inputs, outputs = shape.tokens, shape.inputs, shape.outputs
    x = torch.randn(tokens, inputs, device=device).to(dtype)
    weight = torch.randn(outputs, inputs, device=device).to(dtype)
    bias = torch.randn(outputs, device=device).to(dtype)
    operations = 2 * tokens * inputs * outputs
    short = dtype.itemsize
    in_and_out = short * tokens * (inputs + outputs)

    def row(part: str, call: Callable, moved: float, done: float = 0, **more: object) -> dict:
        time = milliseconds(call, device)
        return {**shape._asdict(), "part": part, "ms": time, "bytes": moved, "operations": done, **more}

    yield row("bf16 linear", lambda: F.linear(x, weight, bias), weight.nbytes + in_and_out, operations)
    compiled = torch.compile(_quantize_in_torch) if device.type == "cuda" else _quantize_in_torch
    moved = (short + 1) * tokens * inputs
    yield row("scale and round, torch.compile", lambda: compiled(x), moved, a_bits=4)
    for rotation in (False, True):
        for bits in (4, 8):
            code = _code_dtype(4, bits, inputs, device)
            call = partial(activations.quantize, x, bits, 0.9, rotation, None, None, code)
            yield row("rotate, scale, round" if rotation else "scale, round", call, moved, a_bits=bits)
    how = 4, 0.9, True, None, None, _code_dtype(4, 4, inputs, device), None, None, GELU
    call = partial(activations.quantize, x, *how)
    yield row("gelu, rotate, scale, round", call, moved, a_bits=4)
    yield row("gelu alone", lambda: rows_of(GELU, x), 2 * short * tokens * inputs)

    # One plane of bits after another: random bytes are random codes, but for the one that is none.
    for w_bits, a_bits in CASES:
        codes = torch.randint(
            -integer.qmax(w_bits), integer.qmax(w_bits) + 1, weight.shape, dtype=torch.int8, device=device
        )
        planes = packing.pack(codes, w_bits)
        code = _code_dtype(w_bits, a_bits, inputs, device)
        buffer, size = packing.shared_buffer(planes), tuple(weight.shape)
        bits = {"w_bits": w_bits, "a_bits": a_bits, "codes": str(code)[6:]}
        unpack = partial(packing.unpack, planes, size, code, buffer)
        yield row("unpack", unpack, planes.nbytes + codes.numel(), **bits)
        s_w = torch.rand(outputs, 1, device=device) / 100
        rows, s_x = activations.quantize(x, a_bits, dtype=code)
        w = unpack()
        moved = codes.numel() + tokens * inputs + short * tokens * outputs
        for fast in (False, True) if code is torch.float8_e4m3fn else (False,):
            call = partial(products.multiply, rows, s_x, w, s_w, bias, dtype, fast)
            yield row("product, fast sums" if fast else "product", call, moved, operations, **bits)
            if code is torch.float8_e4m3fn and w_bits == 4:
                part = f"one scale, {'fast' if fast else 'slow'} sums"
                call = partial(_one_scale, rows, w, torch.ones((), device=device), dtype, fast)
                yield row(part, call, moved, operations, **bits)
        eight = {**bits, "codes": "int8"}
        if code is torch.float8_e4m3fn:
            int8 = rows.to(torch.int8), s_x, codes, s_w, bias, dtype
            yield row("product in int8", lambda: products.multiply(*int8), moved, operations, **eight)  # noqa: B023
        if (w_bits, a_bits) == CASES[0]:  # without scales, and in 32 bits: what cuBLAS has for int8
            call, sums = partial(products.int_mm, rows.to(torch.int8), codes), 4 * tokens * outputs
            held = codes.numel() + tokens * inputs + sums
            yield row("sums in int8, cuBLAS", call, held, operations, **eight)
        finite = torch.ones((), dtype=torch.int32, device=device)
        numbers = torch.tensor([a_bits, sharing.ALONE, 0, 0])  # `PackedLinear._bits`
        call = partial(_whole, x, planes, s_w, bias, numbers, finite)
        yield row("linear, whole", call, planes.nbytes + in_and_out, operations, **bits)


def modulation_rows(
    shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Iterator[dict]:
    """The same of a linear that sees a row per image: 4-bit weights in groups, activations as they come."""
    inputs, outputs = shape.inputs, shape.outputs
    linear = nn.Linear(inputs, outputs, device=device, dtype=dtype)
    x = torch.randn(shape.tokens, inputs, device=device).to(dtype)
    operations = 2 * shape.tokens * inputs * outputs

    def row(part: str, call: Callable, held: int, **more: object) -> dict:
        time = milliseconds(call, device)
        return {**shape._asdict(), "part": part, "ms": time, "bytes": held, "operations": operations, **more}

    yield row("bf16 linear", lambda: linear(x), linear.weight.nbytes)
    for w_bits in (4, 3):
        packed = PackedLinear(quantized(linear, Scheme(w_bits, 16, group_size=MODULATION_GROUP)))
        bits = {"w_bits": w_bits, "a_bits": 16}
        held = packed.planes.nbytes + packed.scale.nbytes
        yield row("linear, whole", partial(packed, x), held, **bits)
        can, tensors = devices.abilities(device), (x, packed.planes, packed.scale, packed.bias)
        if can.nvrtc:
            yield row("few rows, tables", partial(few_rows_table.multiply_few, *tensors), held, **bits)
        if can.triton:
            from adatsq.cuda.few_rows_kernel import multiply_few

            yield row("few rows, Triton", partial(multiply_few, *tensors), held, **bits)


def _quantize_in_torch(x: Tensor) -> tuple[Tensor, Tensor]:
    """What torch.compile makes one kernel of: without a rotation."""
    scale = integer.absmax_scale(x, 4, clip=0.9)
    return integer.round_to_grid(x.float(), scale, 4).to(torch.int8), scale


def _one_scale(x: Tensor, w: Tensor, one: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
    """What a scale per row of both operands costs is the difference to this."""
    return torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=dtype, use_fast_accum=fast)


def _whole(x: Tensor, planes: Tensor, s_w: Tensor, bias: Tensor, bits: Tensor, finite: Tensor) -> Tensor:
    """A rotated layer, as `PackedLinear.forward` calls the operator."""
    options = (len(bias), True, 0.9, None, False, 0.0, None, True, False)
    return packed_linear(x, planes, s_w, bias, None, None, bits, finite, *options)


def _code_dtype(w_bits: int, a_bits: int, inputs: int, device: torch.device) -> torch.dtype:
    e4m3 = exact.product_of(w_bits, a_bits, inputs) == "e4m3" and devices.abilities(device).e4m3
    return torch.float8_e4m3fn if e4m3 else torch.int8


def with_floors(rows: Sequence[dict], bytes_per_second: float, peak: float) -> pd.DataFrame:
    """Adds the floor in ms, its share of the time, TOP/s, and for whole linears the gain over bfloat16.

    peak: operations per second in one byte; a product in bfloat16 has half of it.
    """
    table = pd.DataFrame(rows)
    rate = (table["part"] == "bf16 linear").map({True: peak / 2, False: peak})
    moving, computing = table["bytes"] / bytes_per_second, table["operations"] / rate
    table["floor_ms"] = 1000 * moving.where(moving > computing, computing)
    table["floor_share"] = table["floor_ms"] / table["ms"]
    table["tops"] = (table["operations"] / table["ms"] / 1e9).where(table["operations"] > 0)
    plain = table[table["part"] == "bf16 linear"].set_index("name")["ms"]
    whole = table["part"].isin(["linear, whole"])
    table["gain"] = (table["name"].map(plain) / table["ms"]).where(whole)
    return table


def origin(device: torch.device, commit: str | None = None) -> dict:
    """Device, versions and commit (by default what git says), for each row of a stored table."""
    cuda = device.type == "cuda"
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = ""
    here = {"capture_output": True, "text": True, "cwd": Path(__file__).parent}
    try:
        commit = commit or subprocess.run(["git", "rev-parse", "--short", "HEAD"], **here).stdout.strip()
    except OSError:  # there is no git
        commit = ""
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU ({platform.machine()})",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else "",
        "triton": triton_version,
        "commit": commit,
    }


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--shapes", action="store_true", help="linears of the models, by part")
    what.add_argument("--steps", action="store_true", help="a step of a whole transformer, by method")
    parser.add_argument("--only", default="", help="shapes whose name contains this; methods: any of a,b,c")
    parser.add_argument("--cpu", action="store_true", help="plain torch, tiny shapes")
    parser.add_argument("--peak", type=float, default=1979, help="TFLOP/s in FP8 and int8 (H200: 1979)")
    models = ("flux-dev", "z-image", "wan2.1-1.3b")
    parser.add_argument("--model", default=models[0], choices=models, help="of --steps")
    parser.add_argument("--repeats", type=int, default=10, help="of --steps: the median of so many is taken")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="of --steps")
    parser.add_argument("--profile", action="store_true", help="of --steps: the kernels that take longest")
    parser.add_argument("--commit", help="recorded with each row; by default what git says")
    parser.add_argument("--output", type=Path, help="by default data/results/cuda-{shapes,steps}.csv")
    options = parser.parse_args(arguments)
    options.output = options.output or Path(
        f"data/results/cuda-{'shapes' if options.shapes else 'steps'}.csv"
    )
    if not options.cpu and not torch.cuda.is_available():
        parser.error("no CUDA device: --cpu runs tiny shapes on plain torch")
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}, it must be at least 1")
    device = torch.device("cpu" if options.cpu else "cuda")
    if options.steps:
        from adatsq.cuda import steps

        try:
            steps.chosen(options.only)
        except ValueError as error:
            parser.error(str(error))
        return steps.run(options, device)
    few = TINY_MODULATION if options.cpu else MODULATION
    known = (*(TINY if options.cpu else SHAPES), few)
    shapes = [shape for shape in known if options.only in shape.name]
    if not shapes:
        parser.error(f"no shape's name contains {options.only!r}: {', '.join(s.name for s in known)}")
    print(devices.note(device))
    rate, rows = bandwidth(device), []
    origins = {"copy_bandwidth": rate, "peak_tops": options.peak, **origin(device, options.commit)}
    for shape in shapes:
        with torch.inference_mode():
            rows += (modulation_rows if shape is few else shape_rows)(shape, device)
        packing.release_buffers()
        table = with_floors(rows, rate, options.peak * 1e12).assign(**origins)
        write_text(options.output, table.to_csv(index=False, float_format="%.5g"))
        print(f"{shape.name}: measured", flush=True)
    shown = ["name", "part", "w_bits", "a_bits", "ms", "floor_ms", "floor_share", "tops", "gain"]
    print(table[shown].to_string(index=False, float_format="{:.3g}".format, na_rep=""))
    print(f"copy: {rate / 1e12:.2f} TB/s; written to {options.output}")
    return table


if __name__ == "__main__":
    main()
