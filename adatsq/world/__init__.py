"""A small world of coloured shapes: captioned scenes, a renderer, prompts, an exact judge, mini DiTs.

The method (everything outside this folder) never imports it.
"""

from adatsq.world.drawing import render
from adatsq.world.judge import Judge, read_scene
from adatsq.world.prompts import CATEGORIES, Prompt, load_prompts
from adatsq.world.scenes import COLORS, SHAPES, Scenes, sample_scenes

__all__ = [
    "CATEGORIES",
    "COLORS",
    "SHAPES",
    "Judge",
    "Prompt",
    "Scenes",
    "load_prompts",
    "read_scene",
    "render",
    "sample_scenes",
]
