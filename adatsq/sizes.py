"""How much memory the real models take, counted from their shapes: no weights, no download, no run.

torch's meta device builds a model of any size without its numbers. The configurations are those of the
published checkpoints; where a diffusers class has them as its defaults, nothing is repeated here.
"""

import json
import math
from pathlib import Path

import diffusers
import pandas as pd
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FluxTransformer2DModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from adatsq import fits
from adatsq.integer import effective_bits
from adatsq.models import Layer, quantizable
from adatsq.replacement import MODULATION_GROUP
from adatsq.rotation import operations

T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
IMAGE_VAE = {
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
FLUX_TEXT = {
    "CLIP-L text encoder": lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L)),
    "T5-XXL text encoder": lambda: T5EncoderModel(T5Config(vocab_size=32128, **T5_XXL)),
}
VAE = {"image autoencoder": lambda: AutoencoderKL(**IMAGE_VAE)}
# hub name: {part: builds it}; the first part is the transformer
REAL = {
    "black-forest-labs/FLUX.1-dev": {
        "transformer": lambda: FluxTransformer2DModel(guidance_embeds=True),
        **FLUX_TEXT,
        **VAE,
    },
    "black-forest-labs/FLUX.1-schnell": {"transformer": FluxTransformer2DModel, **FLUX_TEXT, **VAE},
    "Tongyi-MAI/Z-Image-Turbo": {
        "transformer": ZImageTransformer2DModel,
        "Qwen3-4B text encoder": lambda: Qwen3Model(Qwen3Config(**QWEN3_4B)),
        **VAE,
    },
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {
        "transformer": lambda: WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30),
        "UMT5-XXL text encoder": lambda: UMT5EncoderModel(UMT5Config(vocab_size=256384, **T5_XXL)),
        "video autoencoder": AutoencoderKLWan,
    },
}


def memory(model: str, w_bits: tuple[int, ...] = (4, 3)) -> pd.DataFrame:
    """Bytes of the parameters of a real pipeline: a row per part, and their sum as "all".

    Columns: parameters; GB (10^9 bytes) with all in 16 bit, and with the transformer's block linears at each
    of `w_bits` (adaLN layers at 4 bits or more in groups, scales included, the rest in 16 bit). Activations
    and what the libraries allocate come on top and are not counted. ValueError for a model not in REAL.
    """
    if model not in REAL:
        raise ValueError(f"no configuration of {model!r} here: choose one of {', '.join(REAL)}")
    rows = {}
    with torch.device("meta"):
        for part, build in REAL[model].items():
            module = build()
            parameters = sum(p.numel() for p in module.parameters())
            rows[part] = {"parameters": parameters, "16 bit, GB": 2e-9 * parameters}
            for bits in w_bits:
                saved = _saved_bytes(module, bits) if part == "transformer" else 0
                rows[part][f"W{bits}, GB"] = 2e-9 * parameters - 1e-9 * saved
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.loc["all"] = table.sum()
    return table.astype({"parameters": int})


def hessian_bytes(model: str) -> int:
    """Float32 bytes of the Hessians of the block that needs most: what calibration holds at once."""
    with torch.device("meta"):
        layers = quantizable(next(iter(REAL[model].values()))())
    blocks: dict[str, int] = {}
    for layer in layers:
        blocks[layer.block] = blocks.get(layer.block, 0) + 4 * layer.in_features**2
    return max(blocks.values())


def room(model: str) -> dict[str, float]:
    """GB (10^9 bytes) that a GPU needs at least for a real pipeline in 16 bit, all of it on the device.

    "load": the parameters and some room to run, as `load_pipeline` asks for it (`fits.check`). "quantize":
    the parameters, a byte per weight of the blocks, which is held beside them until the last one is done, and
    the Hessians of one block (`blocks_per_pass=1`). Activations come on top of both.
    """
    whole = memory(model, w_bits=()).at["all", "16 bit, GB"]
    with torch.device("meta"):
        layers = quantizable(next(iter(REAL[model].values()))())
    integers = sum(layer.in_features * layer.out_features for layer in layers)
    return {"load": fits.ROOM * whole, "quantize": whole + 1e-9 * (integers + hessian_bytes(model))}


def room_needed(model: str) -> str:
    """`room` in a sentence or two, for a page."""
    needed, whole = room(model), memory(model, w_bits=()).at["all", "16 bit, GB"]
    return (
        f"{whole:.1f} GB of parameters in 16 bit, so a GPU with at least {needed['load']:.1f} GB free, which "
        f"is what `adatsq.load_pipeline` asks for before it loads a folder. `adatsq.quantize` also holds a "
        "byte per weight of the blocks until the last one is done, and the Hessians of one block, at most "
        f"{1e-9 * hessian_bytes(model):.1f} GB: {needed['quantize']:.1f} GB. Activations come on top, most "
        "of all for the Fisher information, which keeps those of a whole step."
    )


def branch_bits(model: str | Path, rank: int) -> float:
    """Bits per weight that a 16-bit branch of this rank adds to layers with quantized activations.

    model: a name in REAL, or a folder, of which only the transformer's configuration is read.
    FileNotFoundError if that is not there.
    """
    return branch_bits_of(_shapes(model), rank)


def branch_bits_of(transformer: nn.Module, rank: int) -> float:
    """`branch_bits` of a transformer as it stands: sum_l 16 r (in_l + out_l) / sum_l in_l out_l."""
    layers = [layer for layer in quantizable(transformer) if layer.role == "act"]
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    return sum(16 * rank * (layer.in_features + layer.out_features) for layer in layers) / weights


def rotation_bits(model: str | Path) -> tuple[float, float]:
    """By how much rotations would raise activation bits by multiplications, which do not count them: each
    operation as one in 16 bits, sum_l 16 k_l in_l / sum_l in_l out_l over layers with quantized activations.

    k_l are the two numbers of `rotation.operations`: (fast transform, products of matrices). Each layer
    rotates its own inputs; where several share one rotation, it is less. model: as in `branch_bits`.
    """
    layers = [layer for layer in quantizable(_shapes(model)) if layer.role == "act"]
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    counted = [(layer.in_features, *operations(layer.in_features)) for layer in layers]
    fast, products = (sum(16 * row[0] * row[k] for row in counted) / weights for k in (1, 2))
    return fast, products


def rank_of_equal_bits(transformer: nn.Module, rank: int, model: str) -> int:
    """The lowest rank whose branch adds as many bits per weight as one of `rank` adds to `model`, or more.

    model: a name in REAL. A branch's bits grow with its rank and fall with the width of a layer, so the same
    rank is a larger part of a narrow model.
    """
    return math.ceil(branch_bits(model, rank) / branch_bits_of(transformer, 1) - 1e-9)


def rank_for(model: str | Path, rank: int, other: str) -> int:
    """`rank_of_equal_bits` of a name in REAL or a folder."""
    return rank_of_equal_bits(_shapes(model), rank, other)


def _shapes(model: str | Path) -> nn.Module:
    """A transformer without its numbers."""
    with torch.device("meta"):
        if str(model) in REAL:
            return next(iter(REAL[str(model)].values()))()
        config = json.loads((Path(model) / "transformer" / "config.json").read_text())
        return getattr(diffusers, config["_class_name"]).from_config(config)


def _saved_bytes(transformer: nn.Module, w_bits: int) -> float:
    """What quantized weights save against 16 bit."""
    return sum(
        layer.in_features * layer.out_features * (16 - _stored_bits(layer, w_bits)) / 8
        for layer in quantizable(transformer)
    )


def _stored_bits(layer: Layer, w_bits: int) -> float:
    """Bits per weight, scales included, as `quantize` stores them."""
    if layer.role == "act":
        return effective_bits(w_bits, layer.in_features)
    group = MODULATION_GROUP if layer.in_features % MODULATION_GROUP == 0 else layer.in_features
    return effective_bits(max(4, w_bits), layer.in_features, group)
