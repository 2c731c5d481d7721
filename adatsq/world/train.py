"""Train flux-dev-mini from nothing:

    python -m adatsq.world.train --work work/flux-dev-mini --out data/models/flux-dev-mini

Stages: text encoders, autoencoder, base transformer, guidance distillation, assembly of the FluxPipeline
folder, a quick score (one picture a prompt, at several guidance scales). `--stages` runs only some.

A call goes on from what is in the work folder: the first two stages are skipped if they are done, the two of
the transformer start from its checkpoint, which is written every minute, on new scenes and with a new warm-up
of the optimizer. `--seconds` bounds a stage's training by the clock; the learning rate still ends at zero,
unless --cooldown 0 leaves it high for a later call to go on.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from adatsq.world import flux
from adatsq.world.autoencoder import train_autoencoder
from adatsq.world.judge import Judge
from adatsq.world.prompts import CATEGORIES, load_prompts
from adatsq.world.text import train_text

STAGES = ("text", "autoencoder", "base", "distill", "assemble", "score")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, help="pipeline folder that the last stage writes")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=2**20, help="number of cached training scenes")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--cooldown", type=float, default=0.25)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="adamw")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.device != "cpu":
        torch.backends.cuda.enable_cudnn_sdp(False)  # its backward corrupts memory at small head sizes
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(args.seed)
    for stage in args.stages:
        start = time.monotonic()
        globals()[f"run_{stage}"](args)
        print(f"stage {stage}: {time.monotonic() - start:.0f} s", flush=True)


def run_text(args) -> None:
    if (args.work / "text_encoder_2").exists():
        return
    clip, clip_tokenizer, t5, t5_tokenizer, right = train_text(args.seed, device=args.device)
    log(args.work, caption_parse=right)
    parts = {
        "text_encoder": clip,
        "tokenizer": clip_tokenizer,
        "tokenizer_2": t5_tokenizer,
        "text_encoder_2": t5,
    }
    for name, part in parts.items():
        part.save_pretrained(args.work / name)


def run_autoencoder(args) -> None:
    if (args.work / "vae").exists():
        return
    model, psnr = train_autoencoder(args.seed, device=args.device, max_seconds=args.seconds)
    log(args.work, autoencoder_psnr=psnr)
    model.save_pretrained(args.work / "vae")


def run_base(args) -> None:
    path = args.work / "base.safetensors"
    model = flux.build_transformer()
    if path.exists():
        model.load_state_dict(load_file(path))
    train(args, flux.train_base, model, path)


def run_distill(args) -> None:
    path = args.work / "distilled.safetensors"
    model = flux.build_transformer()
    model.load_state_dict(load_file(args.work / "base.safetensors"))
    student = None
    if path.exists():
        student = flux.build_transformer()
        student.load_state_dict(load_file(path))
    train(args, partial(flux.distill_guidance, student=student), model, path)


def train(args, method, model: FluxTransformer2DModel, path: Path) -> None:
    vae, encoders = load_parts(args.work, args.device)
    seen = json.loads((args.work / "log.json").read_text()).get(f"{path.stem}_scenes", 0)
    # a continued run sees new scenes
    generator = torch.Generator(args.device).manual_seed(args.seed + 1 + seen)
    data = flux.Data(vae, encoders, args.scenes, generator, chunk=min(4096, args.scenes))
    print(f"{len(data.latents)} scenes, {len(data.pooled)} captions", flush=True)
    averaged = method(
        model.to(args.device),
        data,
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        max_seconds=args.seconds,
        cooldown=args.cooldown,
        optimizer=args.optimizer,
        compile=args.device != "cpu",
        checkpoint=lambda m: save(m, path),
    )
    save(averaged, path)
    log(args.work, **{f"{path.stem}_scenes": seen + args.scenes})


def run_assemble(args) -> None:
    """bf16, in files of at most 16 MB, with the settings to sample with beside it."""
    vae, (clip, clip_tokenizer, t5, t5_tokenizer) = load_parts(args.work, "cpu")
    transformer = flux.build_transformer()
    transformer.load_state_dict(load_file(args.work / "distilled.safetensors"))
    pipe = FluxPipeline(
        scheduler=flux.build_scheduler(),
        vae=vae,
        text_encoder=clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=transformer,
    )
    pipe.to(dtype=torch.bfloat16).save_pretrained(args.out, max_shard_size="15MB")
    (args.out / "sampling.json").write_text(json.dumps(flux.SAMPLING, indent=2) + "\n")


def run_score(args) -> None:
    pipe = FluxPipeline.from_pretrained(args.out, dtype=torch.float32).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    prompts = load_prompts("data/prompts/evaluation.json")
    for guidance in (1.0, 2.0, 3.5, 5.0):
        generators = [torch.Generator("cpu").manual_seed(p.seed) for p in prompts]
        options = {**flux.SAMPLING, "guidance_scale": guidance, "output_type": "np", "generator": generators}
        passed = Judge()(pipe([p.text for p in prompts], **options).images, prompts)
        share = {
            c: float(np.mean([ok for ok, p in zip(passed, prompts, strict=True) if p.category == c]))
            for c in CATEGORIES
        }
        log(
            args.work,
            **{f"score_guidance_{guidance:g}": {"total": float(np.mean(list(share.values()))), **share}},
        )


def load_parts(work: Path, device: str):
    """(autoencoder, (clip, clip tokenizer, t5, t5 tokenizer)), frozen, on the device."""
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device).eval().requires_grad_(False)
    clip = CLIPTextModel.from_pretrained(work / "text_encoder").to(device).eval().requires_grad_(False)
    t5 = T5EncoderModel.from_pretrained(work / "text_encoder_2").to(device).eval().requires_grad_(False)
    clip_tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    return vae, (clip, clip_tokenizer, t5, T5Tokenizer.from_pretrained(work / "tokenizer_2"))


def save(model, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    save_file({k: v.detach().float().cpu().contiguous() for k, v in model.state_dict().items()}, temporary)
    temporary.replace(path)


def log(work: Path, **facts) -> None:
    """Add facts to the work folder's log.json."""
    path = work / "log.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **facts}, indent=2) + "\n")
    print(facts, flush=True)


if __name__ == "__main__":
    main()
