"""flux-schnell-mini: flux-dev-mini's picture in four steps, without a guidance input.

As the real FLUX.1-schnell it is distilled from the dev model, has no guidance embedding, and samples with
sigmas 1, 3/4, 1/2, 1/4. It shares all other parts with flux-dev-mini.
"""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from adatsq.world import flux
from adatsq.world.flux import PARTS, make_data, velocity  # noqa: F401  (the trainer's)

START = "flux-dev-mini"
STAGES = ("steps", "assemble", "score")
STEPS = 4
SIGMAS = [1 - i / STEPS for i in range(STEPS + 1)]
SUBSTEPS = 5  # of the teacher for one of the student's
SAMPLING = {**flux.SAMPLING, "num_inference_steps": STEPS, "guidance_scale": 0.0}
TEACHER_GUIDANCE = flux.SAMPLING["guidance_scale"]


def teacher() -> FluxTransformer2DModel:
    return flux.build_transformer()


def student(teacher: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The teacher at its guidance scale: what its guidance input adds becomes part of a bias."""
    embed = teacher.time_text_embed
    scale = torch.tensor([1000 * TEACHER_GUIDANCE])
    with torch.no_grad():
        added = embed.guidance_embedder(embed.time_proj(scale))[0]
    state = {k: v for k, v in teacher.state_dict().items() if "guidance_embedder" not in k}
    state["time_text_embed.timestep_embedder.linear_2.bias"] = (
        state["time_text_embed.timestep_embedder.linear_2.bias"] + added
    )
    model = build_transformer(
        layers=len(teacher.transformer_blocks), single=len(teacher.single_transformer_blocks)
    )
    model.load_state_dict(state)
    return model


def build_transformer(layers: int = 2, single: int = 5) -> FluxTransformer2DModel:
    return flux.build_transformer(layers=layers, single_layers=single, guidance=False)


def target_velocity(teacher, data, x, sigma, caption) -> torch.Tensor:
    return flux.velocity(teacher, data, x, sigma, caption, torch.full_like(sigma, TEACHER_GUIDANCE))


def pipeline(parts: dict, transformer: FluxTransformer2DModel) -> FluxPipeline:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    return FluxPipeline(scheduler=scheduler, transformer=transformer, **parts)
