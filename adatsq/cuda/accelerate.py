"""A quantized pipeline on packed weights."""

from collections.abc import Collection

from diffusers import DiffusionPipeline

from adatsq.cuda import devices, sharing
from adatsq.cuda.fusing import FUSIONS, fusions
from adatsq.cuda.graphs import record_calls
from adatsq.cuda.linear import PackedLinear
from adatsq.linear import QuantLinear


def accelerate(
    pipe: DiffusionPipeline,
    fast_accumulation: bool = False,
    verbose: bool = True,
    graphs: bool = False,
    fuse: bool | Collection[str] = True,
) -> DiffusionPipeline:
    """Replace the `QuantLinear`s of pipe.transformer by `PackedLinear`s, in place, and return the pipeline.

    From then on weights take their bits on the device, and products run on low-bit tensor cores where the
    card has some that are exact. Everything else stays as it was: a policy that is applied, `adatsq.apply`,
    `adatsq.save`, `pipe.to(...)`, offloading. The layers are packed one by one where they are, so that memory
    falls from the first on. Without CUDA the same is computed in plain torch.

    fast_accumulation: FP8 products in the tensor cores' fast mode also where that may not be exact: its sums
    are cut off to 14 bits (`exact`). verbose: print what this device uses, and why. graphs: record each call
    of the transformer as a CUDA graph (`graphs`), which pays from the second picture on, as long as the
    transformer stays where it is. fuse: what to do in fewer kernels (`fusing`), True for all of these, False
    for none, or those that are named:

    "activations": activation functions of feed-forwards, while the next linear's input is rounded. Hooks on
    these linears then see what the function is to be applied to (`PackedLinear.activations_of` does it),
    hooks on the functions' modules nothing.
    "norm_rope": norm and rotation of query and key in Flux's blocks, without calls of the norms' modules:
    hooks on these see nothing.
    "products": queries, keys and values in Flux's blocks, and the feed-forward's first linear in single ones,
    as one product; it includes "activations". Where one of these linears has a hook, all of them are called
    as ever, and so they are with gradients; an attention that has one is given what it always was. A block
    that is compiled does not see a hook that comes later.

    The last two leave an attention with a processor of yours as it is, and other transformers. A later call
    with fewer leaves on what is on.

    Raises ValueError if the pipeline is not quantized, or `fuse` has another name.
    """
    chosen = fusions(fuse)
    transformer = pipe.transformer
    layers = {name: m for name, m in transformer.named_modules() if isinstance(m, QuantLinear)}
    if not layers:
        raise ValueError("this pipeline is not quantized: call adatsq.quantize, or adatsq.load, first")
    for name, layer in layers.items():
        if isinstance(layer, PackedLinear):
            layer.fast_accumulation = fast_accumulation
            if devices.abilities(layer.planes.device).e4m3:
                layer.find_row_sum()
        elif layer.w_bits < 16:
            transformer.set_submodule(name, PackedLinear(layer, fast_accumulation))
    layers.clear()
    sharing.assign(transformer, PackedLinear)
    for name in chosen:
        FUSIONS[name](transformer)
    if graphs or hasattr(transformer, "_adatsq_graphs"):  # what was recorded is of before this call
        record_calls(transformer)
    if verbose:
        devices.tell(transformer.device, again=True)
    return pipe
