"""Do a quantized pipeline on packed weights and the reference draw the same pictures?

python -m adatsq.cuda.agreement                 of the models in data/models, on the GPU
python -m adatsq.cuda.agreement --device cpu    that it runs: packed weights in plain torch

Both have the same weights, the same stored policy and the same seeds, in bfloat16 on the same device. They
round in other places, and a run goes on with what was rounded, so that pictures differ as those of one
pipeline in two dtypes do. So two rows stand side by side: "psnr", packed against reference, and
"psnr_bfloat16", the reference in bfloat16 against itself in float32, from the same noise. The first should be
about as high.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils import _pytree as tree

import adatsq
from adatsq.cuda import devices
from adatsq.cuda.measuring import COLUMNS, Rows, versions
from adatsq.evaluate import generate, psnr
from adatsq.judging import task_of

POLICIES = ((4, "w4a4"), (3, "w3a3.1"))  # weight bits, and the end of the policy's file


def quantized(model: Path, policy: Path, w_bits: int, device: str, dtype: torch.dtype):
    pipe = adatsq.load_pipeline(model, torch_dtype=dtype, device=device)
    noise_in_float32(pipe)
    adatsq.hadamard(pipe, None, w_bits, progress=False)
    adatsq.apply(pipe, adatsq.Policy.load(policy))
    return pipe


def noise_in_float32(pipe) -> None:
    """Draw the noise of a bfloat16 pipeline in float32, then round it: in bfloat16 a generator of the same
    seed may draw other numbers, and Flux would begin at another picture."""
    prepare = pipe.prepare_latents

    def prepared(*args, **kwargs):
        given, form = tree.tree_flatten((args, kwargs))
        wide = [torch.float32 if value is torch.bfloat16 else value for value in given]
        args, kwargs = tree.tree_unflatten(wide, form)
        found, narrow = prepare(*args, **kwargs), torch.bfloat16 in given
        return tree.tree_map(lambda t: t.bfloat16() if narrow and isinstance(t, torch.Tensor) else t, found)

    pipe.prepare_latents = prepared


def agreement(
    model: Path, policy: Path, w_bits: int, device: str, prompts: Sequence[str], seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """{metric: dB of each picture}, at most 100."""

    def draw(pipe) -> np.ndarray:
        return generate(pipe, prompts, seeds, len(prompts), progress=False, **adatsq.sampling(pipe))

    exact = draw(quantized(model, policy, w_bits, device, torch.float32))
    pipe = quantized(model, policy, w_bits, device, torch.bfloat16)
    reference = draw(pipe)
    packed = draw(adatsq.accelerate(pipe, verbose=False))
    return {"psnr": psnr(packed, reference), "psnr_bfloat16": psnr(reference, exact)}


def main(arguments: Sequence[str] | None = None) -> Rows:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, nargs="+", help="by default all in data/models")
    parser.add_argument("--prompts", type=int, default=8, help="evaluation prompts, one picture each")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--policies", type=Path, default=Path("data/results"), help="folder of policies")
    parser.add_argument("--output", type=Path, default=Path("data/results/cuda-agreement.csv"))
    parser.add_argument("--commit", help="recorded with each row; by default what git says")
    args = parser.parse_args(arguments)
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device: --device cpu compares the reference with itself")
    models = args.models or sorted(f.parent for f in Path("data/models").glob("*/model_index.json"))
    print(devices.note(args.device), flush=True)
    fixed = {**dict.fromkeys(COLUMNS, np.nan), "method": "adatsq", "seed": 0}
    rows = Rows(args.output, {**fixed, **versions(torch.device(args.device), args.commit)})
    for model in models:
        task = task_of(adatsq.load_pipeline(model))
        prompts = task.load(Path("data/prompts") / task.files[0])[: args.prompts]
        for w_bits, end in POLICIES:
            policy = args.policies / f"{model.name}-policy-adatsq-{end}.json"
            texts, seeds = [p.text for p in prompts], [p.seed for p in prompts]
            found = agreement(model, policy, w_bits, args.device, texts, seeds)
            bits = {"w_bits": w_bits, "a_bits": float(end.split("a")[1])}
            for metric, values in found.items():
                value = float(np.mean(values))
                rows.add(model=model.name, **bits, metric=metric, value=value, n=len(values))
                print(f"{model.name} W{w_bits}A{bits['a_bits']:g} {metric}: {value:.1f} dB", flush=True)
    return rows


if __name__ == "__main__":
    main()
