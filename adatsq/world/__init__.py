"""A small world of coloured shapes, at rest and moving: captioned scenes and clips, a renderer, prompts,
exact judges, mini DiTs.

The method (everything outside this folder) never imports it.
"""

from adatsq.world.drawing import render
from adatsq.world.judge import Judge, read_scene
from adatsq.world.motion import Clips, render_clips, sample_clips
from adatsq.world.motion_judge import DIMENSIONS, judge_clips
from adatsq.world.motion_prompts import VideoPrompt, load_video_prompts
from adatsq.world.prompts import CATEGORIES, Prompt, load_prompts
from adatsq.world.scenes import COLORS, SHAPES, Scenes, sample_scenes

__all__ = [
    "CATEGORIES",
    "COLORS",
    "DIMENSIONS",
    "SHAPES",
    "Clips",
    "Judge",
    "Prompt",
    "Scenes",
    "VideoPrompt",
    "judge_clips",
    "load_prompts",
    "load_video_prompts",
    "read_scene",
    "render",
    "render_clips",
    "sample_clips",
    "sample_scenes",
]
