"""What a pipeline is called with, and whether it will do just that: asked before any long work starts."""

import inspect
import warnings
from numbers import Integral, Real

from diffusers import DiffusionPipeline
from torch import nn

from adatsq.models import block_names, sampling


def call_settings(pipe: DiffusionPipeline, call: dict) -> dict:
    """What to call the pipeline with: the model's own settings (`sampling`), overruled by `call`.

    Before any work, ValueError for a pipeline that has no transformer with blocks, or two, and for settings
    that it would round or refuse (sizes, frames), that turn guidance on or off against the model's own, or
    whose steps are not those of the policy that is applied. A model without `sampling.json` has no setting of
    its own but its pipeline's default, so that there other guidance is only warned of.
    """
    kind = type(pipe).__name__
    transformer = getattr(pipe, "transformer", None)
    if transformer is None:
        parts = ", ".join(name for name, part in pipe.components.items() if isinstance(part, nn.Module))
        raise ValueError(f"{kind} has no transformer, only {parts}: the method is for diffusion transformers")
    if getattr(pipe, "transformer_2", None) is not None:
        raise ValueError(
            f"{kind} changes to a second transformer on the way (transformer_2): a trace, and a policy, "
            "belong to one. Pipelines with one, as Wan 2.1, work"
        )
    block_names(transformer)
    defaults = {name: p.default for name, p in inspect.signature(pipe.__call__).parameters.items()}
    unknown = sorted(call.keys() - defaults.keys())
    if unknown:
        raise ValueError(f"{kind} takes no {', '.join(unknown)}")
    own = sampling(pipe)
    settings = {**own, **call}
    steps = settings.get("num_inference_steps")
    if steps is not None and (not isinstance(steps, Integral) or steps < 1):
        raise ValueError(f"num_inference_steps is {steps!r}, it must be a whole number of at least 1")
    for name in ("height", "width"):
        if settings.get(name) is not None:
            _check_multiple(kind, name, settings[name], _size_step(pipe), 0)
    if settings.get("num_frames") is not None and hasattr(pipe, "vae_scale_factor_temporal"):
        _check_multiple(kind, "num_frames", settings["num_frames"], pipe.vae_scale_factor_temporal, 1)
    _check_guidance(pipe, own, settings, defaults)
    policy = getattr(transformer, "_adatsq_policy", None)
    steps = settings.get("num_inference_steps", defaults.get("num_inference_steps"))
    if policy is not None and not {"sigmas", "timesteps"} & settings.keys():
        policy.check_steps(steps)
    return settings


def _size_step(pipe: DiffusionPipeline) -> int:
    """What height and width must be a multiple of: pixels of a latent, times latents of a patch."""
    pixels = getattr(pipe, "vae_scale_factor_spatial", getattr(pipe, "vae_scale_factor", 1))
    if hasattr(pipe, "_pack_latents"):  # 2 x 2 latents make a token before the transformer sees them (Flux)
        return 2 * pixels
    config = pipe.transformer.config
    patch = config.get("patch_size") or config.get("all_patch_size") or 1
    return pixels * (patch if isinstance(patch, int) else patch[-1])


def _check_multiple(kind: str, name: str, value: object, step: int, offset: int) -> None:
    if isinstance(value, Integral) and value >= 1 and value % step == offset % step:
        return
    wanted = f"{step} k + {offset}" if offset else f"a multiple of {step}"
    if not isinstance(value, Real) or value < 1:
        raise ValueError(f"{name} is {value!r}, for this {kind} it must be {wanted}")
    low = int(value - offset) // step * step + offset
    nearest = " and ".join(str(v) for v in (low, low + step) if v >= 1)
    raise ValueError(f"{name} is {value}, for this {kind} it must be {wanted}: the nearest are {nearest}")


def _check_guidance(pipe: DiffusionPipeline, own: dict, settings: dict, defaults: dict) -> None:
    """Whether guidance is on, as the pipeline itself tells, must be as the model's own setting has it."""
    name = "guidance_scale"
    if not hasattr(type(pipe), "do_classifier_free_guidance") or settings.get(name) is None:
        return
    usual = own.get(name, defaults.get(name))
    if usual is None or _guided(pipe, settings[name]) == _guided(pipe, usual):
        return
    on, off = "on, so that two branches run", "off, so that one branch runs"
    changed, before = (on, off) if _guided(pipe, settings[name]) else (off, on)
    message = (
        f"guidance_scale {settings[name]} switches guidance {changed} at each step; at {usual}, "
        f"{'this model' if name in own else type(pipe).__name__}'s own, it is {before}. Fisher information, "
        "weights and policies found with the one do not hold for the other"
    )
    if name in own:
        raise ValueError(f"{message}: choose a scale on the side of {usual}")
    warnings.warn(message, stacklevel=4)


def _guided(pipe: DiffusionPipeline, scale: float) -> bool:
    before = vars(pipe).get("_guidance_scale")
    pipe._guidance_scale = scale
    try:
        return bool(pipe.do_classifier_free_guidance)
    finally:
        pipe._guidance_scale = before
