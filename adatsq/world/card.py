"""Write a mini model's card from what was logged and measured:

python -m adatsq.world.card data/models/flux-dev-mini
"""

import json
import math
import sys
import textwrap
from pathlib import Path

import pandas as pd
from safetensors import safe_open

from adatsq.files import write_text
from adatsq.world.aims import aim
from adatsq.world.motion import SPEEDS
from adatsq.world.scenes import COLORS, SHAPES

CARD = """---
license: apache-2.0
pipeline_tag: text-to-{medium}
library_name: diffusers
---

# {name}

A complete diffusers `{pipeline}` in miniature: {classes}. It was
{made} on {world}. It is for studying
quantization where everything it generates can be checked exactly and every experiment runs on a laptop CPU.
It knows nothing but that world, and is no model of natural images.

    pipe = adatsq.load_pipeline("data/models/{name}")
    pipe("{prompt}", **adatsq.sampling(pipe)).{output}[0]

Words: {words}.

## Parts

{parts}

{bytes:.1f} MB on disk in bfloat16.

## Data and recipe

Scenes, captions and pictures are drawn by `adatsq/world/`, seed {seed}; nothing else was used.
{recipe_text}
Measured on one {device}; each line is a call of `python -m adatsq.world.train {name} --work WORK`, and goes
on from the checkpoint of the one before it. Training stops by the clock, so a repetition is close, not
bit-identical.

{notes}

{recipe}

## Scores

{scores_text}, at the settings of `sampling.json`, with bootstrap 95%
intervals over prompts ({n} {things} of {prompts} prompts, `data/results/{name}.csv`, commit {commit},
{gpu}).

{scores}
"""
PICTURES, SHAPES_WORLD = (
    "Share of pictures that show what the prompt says",
    "64x64 pictures of coloured shapes",
)
PARSED_DISTINCT = (
    "held_out_parse is the share of the sentences kept out of the text encoder's training, every twentieth "
    "of the different ones, that its training heads parse right"
)
PARSED = (
    "held_out_parse is the share of whole sentences kept out of the text encoders' training, nearly all of "
    "the short ones among them, that their training heads parse right"
)
# What differs between the models' cards.
ABOUT = {
    "flux-dev-mini": {
        "classes": "the classes of FLUX.1-dev (`FluxTransformer2DModel` with guidance embeddings, "
        "`AutoencoderKL`, T5, CLIP, flow-match Euler scheduler with dynamic shifting)",
        "recipe_text": "The text encoders learn to parse captions, the autoencoder to reproduce pictures; "
        "both are then frozen. The transformer learns flow matching with a tenth of the captions dropped, "
        "then to do in one call what classifier-free guidance does in two (`adatsq/world/flow.py`).",
        "notes": f"{PARSED}; psnr_db is of the autoencoder on fresh scenes.",
    },
    "flux-schnell-mini": {
        "classes": "the classes of FLUX.1-schnell (`FluxTransformer2DModel` without guidance embeddings, "
        "`AutoencoderKL`, T5, CLIP, flow-match Euler scheduler)",
        "made": "distilled from flux-dev-mini, which was trained from nothing",
        "recipe_text": "It starts from flux-dev-mini and shares all of its parts but the transformer, which "
        "learns to go in one step where the dev model, at guidance 3.5, goes in five "
        "(`distill_steps` in `adatsq/world/flow.py`).",
        "notes": "loss is the mean squared difference of the two velocities.",
    },
    "z-image-mini": {
        "classes": "the classes of Z-Image-Turbo (`ZImageTransformer2DModel`, Qwen3, `AutoencoderKL`, "
        "flow-match Euler scheduler)",
        "recipe_text": "The autoencoder is flux-dev-mini's. The text encoder learns to parse captions in its "
        "chat template and is then frozen. The transformer learns flow matching with a tenth of the captions "
        "dropped, then to go in one step where the guided base model goes in two "
        "(`distill_steps` in `adatsq/world/flow.py`).",
        "notes": f"{PARSED}.",
    },
    "wan2.1-mini": {
        "classes": "the classes of Wan2.1-T2V (`WanTransformer3DModel`, UMT5, `AutoencoderKLWan`, UniPC "
        "scheduler with flow sigmas)",
        "recipe_text": "The text encoder learns to parse captions, the autoencoder to reproduce clips; both "
        "are then frozen. The transformer learns flow matching with a tenth of the captions dropped "
        "(`adatsq/world/flow.py`); it is sampled with classifier-free guidance, two calls per step.",
        "notes": f"{PARSED_DISTINCT}; psnr_db is of the autoencoder on fresh clips.",
    },
}
COMPONENTS = ("transformer", "vae", "text_encoder", "text_encoder_2")


def card(folder: Path, results: Path) -> str:
    """The card's text. Raises FileNotFoundError if the training log or the results are missing."""
    name, about = folder.name, ABOUT[folder.name]
    training = json.loads((folder / "training.json").read_text())
    video = "num_frames" in json.loads((folder / "sampling.json").read_text())
    table = pd.read_csv(results / f"{name}.csv").query("method == 'fp' and n > 1")
    pictures = pd.read_csv(results / f"{name}-images.csv").query("method == 'fp'")
    recipe = pd.DataFrame(training["parts"]).T.rename_axis("part").fillna("")
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != "README.md"]
    scores = table.set_index("metric")[["value", "ci_low", "ci_high"]]
    moving = ", ".join(["moves", "stands still", "left", "right", "up", "down", *SPEEDS])
    still = "two, three, four; left of, right of, above, below"
    text = CARD.format(
        **{"made": "trained from nothing", **about},
        name=name,
        medium="video" if video else "image",
        pipeline=json.loads((folder / "model_index.json").read_text())["_class_name"],
        world="64x64 clips, 17 frames long, of coloured shapes that move" if video else SHAPES_WORLD,
        prompt="a red circle moves left" if video else "a red circle left of a blue square",
        output="frames" if video else "images",
        words=f"{', '.join(SHAPES)}; {', '.join(COLORS)}; {moving if video else still}; and",
        parts=_markdown(["component", "class", "parameters"], _components(folder)),
        bytes=sum(f.stat().st_size for f in files) / 1e6,
        seed=training["seed"],
        device=training["device"],
        recipe=_markdown(
            ["part", *recipe.columns], [[i, *row] for i, row in zip(recipe.index, recipe.values)]
        ),
        scores_text="Mean of each dimension (`adatsq/world/motion_judge.py`)" if video else PICTURES,
        n=len(pictures),
        things="clips" if video else "pictures",
        prompts=pictures.prompt.nunique(),
        commit=table.commit.iloc[0],
        gpu=table.device.iloc[0],
        scores=_markdown(
            ["dimension" if video else "category", "score", "95% interval"],
            [[m, f"{r.value:.3f}", f"{r.ci_low:.3f} to {r.ci_high:.3f}"] for m, r in scores.iterrows()],
        ),
    )
    if said := aim(name, results):
        text += f"\n{said}\n"
    blocks = text.split("\n\n")
    blocks = [textwrap.fill(block, 108) if block[:1].isalpha() else block for block in blocks]
    return "\n\n".join(blocks).rstrip("\n") + "\n"


def _components(folder: Path) -> list[list[str]]:
    """Class and parameter count of each component, read from its weights' headers."""
    rows = []
    for name in COMPONENTS:
        if not (folder / name).exists():
            continue
        config = json.loads((folder / name / "config.json").read_text())
        count = 0
        for file in (folder / name).glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():
                    shape = tensors.get_slice(key).get_shape()
                    count += math.prod(shape)
        rows.append([name, config.get("_class_name") or config["architectures"][0], f"{count / 1e6:.2f} M"])
    return rows


def _markdown(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def main(folder: str, results: str = "data/results") -> None:
    write_text(Path(folder) / "README.md", card(Path(folder), Path(results)))


if __name__ == "__main__":
    main(*sys.argv[1:])
