"""A quantized pipeline on packed weights."""

from diffusers import DiffusionPipeline

from adatsq.cuda import devices, sharing
from adatsq.cuda.fusing import fuse as fuse_modules
from adatsq.cuda.fusing import norm_and_rotate_together
from adatsq.cuda.graphs import record_calls
from adatsq.cuda.linear import PackedLinear
from adatsq.linear import QuantLinear


def accelerate(
    pipe: DiffusionPipeline,
    fast_accumulation: bool = False,
    verbose: bool = True,
    graphs: bool = False,
    fuse: bool = True,
    norm_rope: bool = False,
) -> DiffusionPipeline:
    """Replace the `QuantLinear`s of pipe.transformer by `PackedLinear`s, in place, and return the pipeline.

    From then on weights take their bits on the device, and products run on low-bit tensor cores where the
    card has some that are exact. Everything else stays as it was: a policy that is applied, `adatsq.apply`,
    `adatsq.save`, `pipe.to(...)`, offloading. The layers are packed one by one where they are, so that memory
    falls from the first on. Without CUDA the same is computed in plain torch.

    fast_accumulation: FP8 products in the tensor cores' fast mode also where that may not be exact: its sums
    are cut off to 14 bits (`exact`). verbose: print what this device uses, and why. graphs: record each call
    of the transformer as a CUDA graph (`graphs`), which pays from the second picture on. fuse: compute
    activation functions of feed-forwards while the next linear's input is rounded (`fusing`); hooks on these
    linears then see what the function is to be applied to (`PackedLinear.activations_of` does it), hooks on
    the functions' modules nothing, and a later call with False leaves it so.
    norm_rope: let Flux's single blocks norm and rotate query and key in one pass (`norm_rope`), without calls
    of the norms' modules; off, because it is not measured on a GPU yet; of other transformers it is nothing.

    Raises ValueError if the pipeline is not quantized.
    """
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
    if fuse:
        fuse_modules(transformer)
    if norm_rope:
        norm_and_rotate_together(transformer)
    if graphs:
        record_calls(transformer)
    if verbose:
        devices.tell(transformer.device, again=True)
    return pipe
