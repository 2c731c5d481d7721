"""Write a mini model's card from what was logged and measured:

python -m adatsq.world.card data/models/flux-dev-mini
"""

import json
import math
import sys
from pathlib import Path

import pandas as pd
from safetensors import safe_open

from adatsq.files import write_text
from adatsq.world.scenes import COLORS, SHAPES

CARD = """---
license: apache-2.0
pipeline_tag: text-to-image
library_name: diffusers
---

# {name}

A complete diffusers `FluxPipeline` in miniature: the classes of FLUX.1-dev (`FluxTransformer2DModel` with
guidance embeddings, `AutoencoderKL`, T5, CLIP, flow-match Euler scheduler with dynamic shifting), trained
from nothing on 64x64 pictures of coloured shapes. It is for studying quantization where every picture can
be checked exactly and every experiment runs on a laptop CPU. It knows nothing but that world, and is no
model of natural images.

    pipe = adatsq.load_pipeline("data/models/{name}")
    pipe("a red circle left of a blue square", **adatsq.sampling(pipe)).images[0]

Words: {shapes}; {colors}; two, three, four; left of, right of, above, below; and.

## Parts

{parts}

{bytes:.1f} MB on disk in bfloat16.

## Data and recipe

Scenes, captions and pictures are drawn by `adatsq/world/`, seed {seed}; nothing else was used. The text
encoders learn to parse captions, the autoencoder to reproduce pictures; both are then frozen. The
transformer learns flow matching with a tenth of the captions dropped, then to do in one call what
classifier-free guidance does in two (`adatsq/world/flux.py`). On one {device}, each line a call of `python
-m adatsq.world.train --work WORK`; a line goes on from the checkpoint of the one before it. Training stops
by the clock, so a repetition is close, not bit-identical.

held_out_parse is the share of whole sentences kept out of the text encoders' training, nearly all of the
short ones among them, that their training heads parse right; psnr_db is of the autoencoder on fresh scenes.

{recipe}

## Scores

Share of pictures that show what the prompt says, at the settings of `sampling.json`, with bootstrap 95%
intervals over prompts ({n} pictures of {prompts} prompts, `data/results/{name}.csv`, commit {commit},
{device}).

{scores}
"""
COMPONENTS = ("transformer", "vae", "text_encoder", "text_encoder_2")


def card(folder: Path, results: Path) -> str:
    """The card's text. Raises FileNotFoundError if the training log or the results are missing."""
    training = json.loads((folder / "training.json").read_text())
    table = pd.read_csv(results / f"{folder.name}.csv").query("method == 'fp' and n > 1")
    pictures = pd.read_csv(results / f"{folder.name}-images.csv").query("method == 'fp'")
    recipe = pd.DataFrame(training["parts"]).T.rename_axis("part").fillna("")
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != "README.md"]
    scores = table.set_index("metric")[["value", "ci_low", "ci_high"]]
    return CARD.format(
        name=folder.name,
        shapes=", ".join(SHAPES),
        colors=", ".join(COLORS),
        parts=_markdown(["component", "class", "parameters"], _components(folder)),
        bytes=sum(f.stat().st_size for f in files) / 1e6,
        seed=training["seed"],
        device=training["device"],
        recipe=_markdown(
            ["part", *recipe.columns], [[i, *row] for i, row in zip(recipe.index, recipe.values)]
        ),
        n=len(pictures),
        prompts=pictures.prompt.nunique(),
        commit=table.commit.iloc[0],
        scores=_markdown(
            ["category", "score", "95% interval"],
            [[m, f"{r.value:.3f}", f"{r.ci_low:.3f} to {r.ci_high:.3f}"] for m, r in scores.iterrows()],
        ),
    )


def _components(folder: Path) -> list[list[str]]:
    """Class and parameter count of each component, read from its weights' headers."""
    rows = []
    for name in COMPONENTS:
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
