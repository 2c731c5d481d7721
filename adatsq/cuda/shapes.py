"""Linears of the models in full size, as (tokens, in, out), at which kernels are checked and timed."""

from typing import NamedTuple


class Shape(NamedTuple):
    name: str
    tokens: int
    inputs: int
    outputs: int


# 1024 x 1024 pixels and 512 tokens of text; 480 x 832 pixels, 81 frames.
SHAPES = (
    Shape("Flux to_q", 4608, 3072, 3072),
    Shape("Flux text to_q", 512, 3072, 3072),
    Shape("Flux qkv", 4608, 3072, 9216),
    Shape("Flux ff in", 4608, 3072, 12288),
    Shape("Flux ff out", 4608, 12288, 3072),
    Shape("Flux single in", 4608, 3072, 21504),
    Shape("Flux single out", 4608, 15360, 3072),
    Shape("Z-Image to_q", 4608, 3840, 3840),
    Shape("Z-Image ff in", 4608, 3840, 10240),
    Shape("Z-Image ff out", 4608, 10240, 3840),
    Shape("Wan 1.3B to_q", 32760, 1536, 1536),
    Shape("Wan 1.3B ff in", 32760, 1536, 8960),
    Shape("Wan 1.3B ff out", 32760, 8960, 1536),
)
# A modulation linear of a double block: a row per image, weights alone quantized, in groups.
MODULATION = Shape("Flux modulation", 1, 3072, 18432)
# What the same code runs in a second on a CPU.
TINY_MODULATION = Shape("tiny modulation", 1, 128, 48)
TINY = (Shape("tiny", 8, 256, 32), Shape("odd", 5, 36, 7))
