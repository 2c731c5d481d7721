"""A quick look at a finished folder: every evaluation prompt once, at the model's own settings."""

from pathlib import Path

from adatsq.evaluate import category_scores, generate
from adatsq.models import load_pipeline, sampling
from adatsq.world.judge import Judge
from adatsq.world.motion_judge import judge_clips
from adatsq.world.motion_prompts import load_video_prompts
from adatsq.world.prompts import load_prompts

PROMPTS = Path("data/prompts")


def quick_score(folder: Path, device: str) -> dict[str, float]:
    """Score per category, and in total; of a video model, per dimension."""
    pipe = load_pipeline(folder, device=device)
    if "num_frames" in sampling(pipe):
        asked = load_video_prompts(PROMPTS / "video-evaluation.json")
        clips = generate(pipe, [p.text for p in asked], [p.seed for p in asked], batch_size=64)
        return judge_clips(clips, asked).mean().round(4).to_dict()
    asked = load_prompts(PROMPTS / "evaluation.json")
    images = generate(pipe, [p.text for p in asked], [p.seed for p in asked], batch_size=len(asked))
    return category_scores(Judge()(images, asked)[:, None], [p.category for p in asked])
