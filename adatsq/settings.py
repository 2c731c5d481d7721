"""What a pipeline is called with, and whether it will do just that: asked before any long work starts."""

import inspect
import math
import warnings
from numbers import Integral, Real

from diffusers import DiffusionPipeline
from torch import nn

from adatsq.models import quantizable, sampling, warn_of_missed

GUIDANCE = {"guidance_scale", "true_cfg_scale"}


def call_settings(pipe: DiffusionPipeline, call: dict) -> dict:
    """What to call the pipeline with: the model's own settings (`sampling`), overruled by `call`.

    Before any work, ValueError for a pipeline that has no transformer with blocks, or two, and for settings
    that it would round or refuse (sizes, frames), that are more than its transformer has positions for, that
    turn guidance on or off, or whose steps are not those of the policy that is applied. A transformer much of
    which the method does not reach is warned of (`warn_of_missed`).

    Whether guidance is on must be as in the run that the applied policy was searched on; without a policy,
    or if it does not know, as in the model's own settings. It is only warned of where `sampling.json` does
    not say (the model has no setting of its own but its pipeline's default), and for `true_cfg_scale` with a
    negative prompt (Flux) at full precision: a method may be calibrated on that from the start. On a
    quantized pipeline that needs a policy from such a run, or the same settings in `sampling.json`.
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
    quantizable(transformer)
    if not _quantized(transformer):
        warn_of_missed(transformer)
    defaults = {name: p.default for name, p in inspect.signature(pipe.__call__).parameters.items()}
    unknown = sorted(call.keys() - defaults.keys())
    if unknown:
        raise ValueError(f"{kind} takes no {', '.join(unknown)}")
    own = sampling(pipe)
    settings = {**own, **call}
    steps = settings.get("num_inference_steps")
    if steps is not None and (not _whole(steps) or steps < 1):
        raise ValueError(f"num_inference_steps is {steps!r}, it must be a whole number of at least 1")
    for name in GUIDANCE & settings.keys():
        _check_number(name, settings[name], defaults[name])
    _check_sizes(pipe, settings)
    _check_guidance(pipe, own, settings, defaults)
    policy = getattr(transformer, "_adatsq_policy", None)
    steps = settings.get("num_inference_steps", defaults.get("num_inference_steps"))
    if policy is not None and not {"sigmas", "timesteps"} & settings.keys():
        policy.check_steps(steps)
    return settings


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_number(name: str, value: object, default: object) -> None:
    """A finite number, or None where the pipeline itself has None for "no such guidance"."""
    if value is None and default is None:
        return
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, it must be a finite number")


def _check_sizes(pipe: DiffusionPipeline, settings: dict) -> None:
    """Height, width and frames: what the pipeline takes as it is, and has positions for.

    Some transformers have a table of positions per axis (frames, height, width), `axes_lens` (Z-Image) or
    `rope_max_seq_len` (Wan, for each axis). Z-Image's first axis is the caption's and no frame's.
    """
    config = pipe.transformer.config
    longest = config.get("rope_max_seq_len")
    axes = [longest] * 3 if longest else [None, *(config.get("axes_lens") or ())[1:]]
    for name, axis in (("height", 1), ("width", 2)):
        if settings.get(name) is not None:
            step = _size_step(pipe)
            largest = axes[axis] * step if len(axes) == 3 else None
            _check_size(pipe, name, settings[name], step, 0, largest)
    frames = _vae_factor(pipe, "temporal")
    if settings.get("num_frames") is not None and frames is not None:
        patch = config.get("patch_size")
        patch = patch[0] if isinstance(patch, (list, tuple)) and len(patch) == 3 else 1
        largest = (axes[0] * patch - 1) * frames + 1 if axes[0] else None
        _check_size(pipe, "num_frames", settings["num_frames"], frames, 1, largest)


def _vae_factor(pipe: DiffusionPipeline, axis: str) -> int | None:
    """Pixels or frames per latent, as most video pipelines, LTX and EasyAnimate, and Mochi call it."""
    names = (f"vae_scale_factor_{axis}", f"vae_{axis}_compression_ratio", f"vae_{axis}_scale_factor")
    return next((getattr(pipe, name) for name in names if hasattr(pipe, name)), None)


def _size_step(pipe: DiffusionPipeline) -> int:
    """What height and width must be a multiple of: pixels of a latent, times latents of a patch."""
    pixels = _vae_factor(pipe, "spatial") or getattr(pipe, "vae_scale_factor", 1)
    # 2 x 2 latents make a token before the transformer sees them (Flux); LTX packs by its own patch size
    if hasattr(pipe, "_pack_latents") and not hasattr(pipe, "transformer_spatial_patch_size"):
        return 2 * pixels
    config = pipe.transformer.config
    patch = config.get("patch_size") or config.get("all_patch_size") or 1
    return pixels * (patch if isinstance(patch, int) else patch[-1])


def _check_size(
    pipe: DiffusionPipeline, name: str, value: object, step: int, offset: int, largest: int | None
) -> None:
    kind = type(pipe).__name__
    if _whole(value) and value >= 1 and value % step == offset % step:
        if largest is not None and value > largest:
            raise ValueError(
                f"{name} is {value}, {type(pipe.transformer).__name__} has no positions for more than "
                f"{largest}: give {name}={largest} or less"
            )
        return
    wanted = f"{step} k + {offset}" if offset else f"a multiple of {step}"
    if not isinstance(value, Real) or isinstance(value, bool) or not 1 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}, for this {kind} it must be {wanted}")
    low = int(value - offset) // step * step + offset
    if low == value:
        raise ValueError(f"{name} is {value!r}, it must be a whole number: give {name}={low}")
    if low < 1:
        raise ValueError(f"{name} is {value}, for this {kind} it must be {wanted}: the least is {low + step}")
    nearest = f"{low} and {low + step}"
    raise ValueError(f"{name} is {value}, for this {kind} it must be {wanted}: the nearest are {nearest}")


def _check_guidance(pipe: DiffusionPipeline, own: dict, settings: dict, defaults: dict) -> None:
    """Whether guidance is on must be as the applied policy, or else the model's own settings, have it."""
    now = _guided(pipe, {**defaults, **settings})
    name = "guidance_scale" if hasattr(type(pipe), "do_classifier_free_guidance") else "true_cfg_scale"
    branches = getattr(getattr(pipe.transformer, "_adatsq_policy", None), "branches", None)
    usual = {**defaults, **own}
    wanted = _guided(pipe, usual) if branches is None else branches > 1
    if None in (now, wanted) or now == wanted:
        return
    value = f"{name} {settings.get(name, defaults.get(name))}"
    if name == "true_cfg_scale":
        value += f" with{'' if _negative(settings) else 'out'} a negative prompt"
    on, off = "on, so that two branches run", "off, so that one branch runs"
    changed, before = (on, off) if now else (off, on)
    if branches is not None:
        of = "in the run that the applied policy was searched on"
    elif name == "true_cfg_scale":
        of = f"in {'this model' if own else type(pipe).__name__}'s own settings"
    else:
        of = f"at {usual[name]}, {'this model' if name in own else type(pipe).__name__}'s own,"
    message = (
        f"{value} switches guidance {changed} at each step; {of} it is {before}. Fisher information, "
        "weights and policies found with the one do not hold for the other"
    )
    if branches is not None:
        raise ValueError(f"{message}: call the pipeline with the settings of that run")
    if name in own and name == "guidance_scale":
        raise ValueError(f"{message}: choose a scale on the side of {usual[name]}")
    if own and name == "true_cfg_scale" and _quantized(pipe.transformer):
        raise ValueError(f"{message}: if the model is meant to run so, say it in its sampling.json")
    warnings.warn(message, stacklevel=4)


def _guided(pipe: DiffusionPipeline, settings: dict) -> bool | None:
    """Whether these settings run two branches a step, as the pipeline itself tells; None if it does not.

    A pipeline either has `do_classifier_free_guidance`, or a `true_cfg_scale` beside the guidance that is an
    input of its transformer (Flux, Qwen-Image) and that counts only with a negative prompt.
    """
    if not hasattr(type(pipe), "do_classifier_free_guidance"):
        scale = settings.get("true_cfg_scale")
        return None if scale is None else bool(scale > 1 and _negative(settings))
    if settings.get("guidance_scale") is None:
        return None
    before = vars(pipe).get("_guidance_scale")
    pipe._guidance_scale = settings["guidance_scale"]
    try:
        return running_guided(pipe)
    finally:
        pipe._guidance_scale = before


def _negative(settings: dict) -> bool:
    names = ("negative_prompt", "negative_prompt_embeds")
    return any(settings.get(name) is not None for name in names)


def _quantized(transformer: nn.Module) -> bool:
    return any(hasattr(module, "a_bits") for module in transformer.modules())


def running_guided(pipe: DiffusionPipeline) -> bool | None:
    """Whether the call that is under way has guidance on; None if the pipeline does not tell."""
    try:
        return bool(pipe.do_classifier_free_guidance)
    except (AttributeError, TypeError):  # none such, or never called: its scale is not set, or None
        return None


def usually_guided(pipe: DiffusionPipeline) -> bool | None:
    """Whether the model's own settings have guidance on; None without a setting of its own."""
    own = sampling(pipe)
    return _guided(pipe, own) if "guidance_scale" in own else None
