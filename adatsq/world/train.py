"""Train a mini model from nothing:

    python -m adatsq.world.train flux-dev-mini --work work/flux-dev-mini --out data/models/flux-dev-mini

The models are flux-dev-mini, flux-schnell-mini, z-image-mini and wan2.1-mini; each one's recipe is a module
here (`flux`, `schnell`, `zimage`, `wan`) that names its parts, stages and settings:

    text         small encoders of the model's classes learn to read captions
    autoencoder  pixels to latents and back
    base         the transformer learns flow matching
    distill      it learns guidance at an input (flux-dev-mini)
    steps        it learns to take fewer steps (flux-schnell-mini, z-image-mini)
    assemble     the complete pipeline folder
    score        a quick look at what the folder generates

A part that the model does not train itself is taken from the finished model that its recipe names as START,
in the folder --start. A call goes on from what is in the work folder: the first two stages are skipped if
they are done, those of the transformer start from its checkpoint, which is written every minute, on new
scenes and with a new warm-up of the optimizer. `--seconds` bounds a stage's training by the clock; the
learning rate still ends at zero, unless --cooldown 0 leaves it high for a later call to go on.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from adatsq.world import flow, flux, schnell, wan, zimage
from adatsq.world.score import quick_score

RECIPES = {"flux-dev-mini": flux, "flux-schnell-mini": schnell, "z-image-mini": zimage, "wan2.1-mini": wan}
STAGES = ("text", "autoencoder", "base", "distill", "steps", "assemble", "score")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, help="pipeline folder that `assemble` writes")
    parser.add_argument("--start", type=Path, default=Path("data/models/flux-dev-mini"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="by default all of the recipe's")
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
    recipe = RECIPES[args.model]
    stages = args.stages or recipe.STAGES
    foreign = [stage for stage in stages if stage not in recipe.STAGES]
    if foreign:
        parser.error(f"{args.model} has no stage {foreign[0]}: its stages are {', '.join(recipe.STAGES)}")
    args.work.mkdir(parents=True, exist_ok=True)
    if args.device != "cpu":
        torch.backends.cuda.enable_cudnn_sdp(False)  # its backward corrupts memory at small head sizes
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(args.seed)
    for stage in stages:
        start = time.monotonic()
        globals()[f"run_{stage}"](recipe, args)
        print(f"{args.model}, stage {stage}: {time.monotonic() - start:.0f} s", flush=True)


def run_text(recipe, args) -> None:
    names = [name for name in recipe.PARTS if name.startswith("text_encoder")]
    if all((args.work / name).exists() for name in names):
        return
    components, right = recipe.train_encoders(args.seed, args.device)
    log(args.work, caption_parse=right)
    for name, part in components.items():
        part.save_pretrained(args.work / name)


def run_autoencoder(recipe, args) -> None:
    if (args.work / "vae").exists():
        return
    model, psnr = recipe.train_autoencoder(args.seed, device=args.device, max_seconds=args.seconds)
    log(args.work, autoencoder_psnr=psnr)
    model.save_pretrained(args.work / "vae")


def run_base(recipe, args) -> None:
    path = args.work / "base.safetensors"
    model = recipe.build_transformer()
    if path.exists():
        model.load_state_dict(load_file(path))
    model.to(args.device)
    train(recipe, args, partial(flow.train_base, model, velocity=recipe.velocity, shift=recipe.SHIFT), path)


def run_distill(recipe, args) -> None:
    path = args.work / "distilled.safetensors"
    teacher = recipe.build_transformer()
    teacher.load_state_dict(load_file(args.work / "base.safetensors"))
    student = _resumed(recipe.build_transformer, path)
    options = {"velocity": recipe.velocity, "shift": recipe.SHIFT, "scales": recipe.GUIDANCE}
    teacher.to(args.device)
    train(recipe, args, partial(flow.distill_guidance, teacher, student=student, **options), path)


def run_steps(recipe, args) -> None:
    """The teacher is this model's own base, or the finished model that it starts from."""
    path, base = args.work / "steps.safetensors", args.work / "base.safetensors"
    teacher = recipe.teacher()
    if base.exists():
        teacher.load_state_dict(load_file(base))
    else:
        teacher = type(teacher).from_pretrained(args.start / "transformer", dtype=torch.float32)
    student = _resumed(recipe.build_transformer, path) or recipe.student(teacher)
    teacher.to(args.device)
    method = partial(
        flow.distill_steps,
        teacher,
        student=student,
        velocity=recipe.velocity,
        target_velocity=recipe.target_velocity,
        sigmas=recipe.SIGMAS,
        substeps=recipe.SUBSTEPS,
    )
    train(recipe, args, method, path)


def _resumed(build, path: Path):
    if not path.exists():
        return None
    model = build()
    model.load_state_dict(load_file(path))
    return model


def train(recipe, args, method, path: Path) -> None:
    """Run one stage of the transformer's training and write its averaged weights to path."""
    file = args.work / "log.json"
    seen = json.loads(file.read_text()).get(f"{path.stem}_scenes", 0) if file.exists() else 0
    # a continued run sees new scenes
    generator = torch.Generator(args.device).manual_seed(args.seed + 1 + seen)
    data = recipe.make_data(load_parts(recipe, args, args.device), args.scenes, generator)
    print(f"{len(data.latents)} scenes, {len(data.text[0])} captions", flush=True)
    averaged = method(
        data=data,
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


def run_assemble(recipe, args) -> None:
    """bf16, in files of at most 16 MB, with the settings to sample with beside it.

    Its text encoders say float32: that is what diffusers loads all else in, unless it is told otherwise.
    """
    stages = [s for s in recipe.STAGES if s in ("base", "distill", "steps")]
    name = {"base": "base", "distill": "distilled", "steps": "steps"}[stages[-1]]
    transformer = recipe.build_transformer()
    transformer.load_state_dict(load_file(args.work / f"{name}.safetensors"))
    pipe = recipe.pipeline(load_parts(recipe, args, "cpu"), transformer)
    pipe.to(dtype=torch.bfloat16).save_pretrained(args.out, max_shard_size="15MB")
    for file in args.out.glob("*/config.json"):  # not where a part was while it was trained
        config = {k: v for k, v in json.loads(file.read_text()).items() if k != "_name_or_path"}
        if "dtype" in config:
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2) + "\n")
    (args.out / "sampling.json").write_text(json.dumps(recipe.SAMPLING, indent=2) + "\n")


def run_score(recipe, args) -> None:
    log(args.work, score=quick_score(args.out, args.device))


def load_parts(recipe, args, device: str) -> dict:
    """All components but the transformer and the scheduler, frozen, on the device."""
    parts = {}
    for name, kind in recipe.PARTS.items():
        folder = args.work / name if (args.work / name).exists() else args.start / name
        parts[name] = kind.from_pretrained(folder)
        if isinstance(parts[name], torch.nn.Module):
            parts[name] = parts[name].to(device, torch.float32).eval().requires_grad_(False)
    return parts


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
