"""A run step by step, decoded: what a model was given, and the finished picture it had in mind there.

With flow matching the latents are x_t = (1 - sigma_t) x_0 + sigma_t z and the model answers v = z - x_0, so

    x0_hat = x_t - sigma_t v

is the picture that it would stop at if it were right already. At the last step it is the finished one.
"""

import html

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from adatsq import scrub, svg
from adatsq.colors import method_color
from adatsq.trace import Trace

TIMES = 4  # the difference is brightened so much


def predicted_clean(trace: Trace) -> Tensor:
    """x0_hat (T, N, ...), float32, in the place of the latents. ValueError for a scheduler of no flow."""
    config = trace.scheduler.config
    if not config.get("use_flow_sigmas", "FlowMatch" in type(trace.scheduler).__name__):
        raise ValueError(f"{type(trace.scheduler).__name__} is no flow-matching scheduler: v says no x_0")
    steps = len(trace.timesteps)
    sigmas = torch.as_tensor(trace.scheduler.sigmas[:steps], dtype=torch.float32, device="cpu")
    return trace.latents[:-1] - sigmas.view(-1, *[1] * (trace.latents.ndim - 1)) * trace.velocity


def decode(pipe: DiffusionPipeline, trace: Trace, latents: Tensor) -> np.ndarray:
    """Latents (N, ...) of a trace's kind as the pipeline's autoencoder paints them, (N, H, W, 3) uint8.

    ValueError for clips: their autoencoder takes whole ones.
    """
    if trace.images.ndim != 4:
        raise ValueError(f"the trace holds clips {trace.images.shape[1:]}: only pictures are decoded")
    height, width = trace.images.shape[1:3]
    if hasattr(pipe, "_unpack_latents"):  # Flux: tokens of 2x2 pixels of the latent image
        latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    vae = pipe.vae
    latents = (latents / vae.config.scaling_factor + vae.config.shift_factor).to(vae.device, vae.dtype)
    with torch.no_grad():
        found = [vae.decode(one[None], return_dict=False)[0] for one in latents]  # large ones, one by one
    images = pipe.image_processor.postprocess(torch.cat(found), output_type="np")
    return (images * 255).round().astype(np.uint8)


def distances(trace: Trace, fp: Trace, image: int = 0) -> np.ndarray:
    """Squared error over squared size of one image's x0_hat at each step, (T,)."""
    ours, exact = (predicted_clean(run)[:, image].flatten(1).double() for run in (trace, fp))
    return ((ours - exact).square().sum(1) / exact.square().sum(1)).numpy()


def scrubber(pipe: DiffusionPipeline, fp: Trace, runs: dict[str, Trace], image: int = 0) -> str:
    """HTML: a slider over the steps of one image's full-precision run and of quantized ones beside it.

    runs: by the method's name (`colors.method_color`), the same prompts and noise as fp. ValueError if not.
    """
    for name, run in runs.items():
        if run.timesteps != fp.timesteps or not torch.equal(run.latents[0], fp.latents[0]):
            raise ValueError(f"run {name!r} has other timesteps or starts from other noise than fp")
    everyone, steps = {"full precision": fp, **runs}, len(fp.timesteps)
    given, clean = {}, {}
    for name, run in everyone.items():
        given[name] = decode(pipe, run, run.latents[:-1, image])
        clean[name] = decode(pipe, run, predicted_clean(run)[:, image])
    error = {name: distances(run, fp, image) for name, run in runs.items()}
    ends = svg.limits(np.concatenate(list(error.values())), log=True)
    axes = svg.Axes(
        svg.limits([1, steps]), ends, "step, from noise to image", "error of x̂₀ / its size", True, True
    )
    frames = []
    for t in range(steps):
        where = f"Step {t + 1} of {steps}, timestep {fp.timesteps[t]:.2f}"
        at = {name: f"{values[t]:.2g}" for name, values in error.items()}
        body = scrub.row(
            _pictures({n: given[n][t] for n in everyone}, {n: clean[n][t] for n in everyone}, at, where),
            _curves(axes, error, at, t),
        )
        frames.append(scrub.Frame(where, body))
    prompt = fp.prompts[image]
    return scrub.scrub(
        frames,
        "step",
        f"Denoising of the prompt {prompt!r}, step by step: full precision beside {', '.join(runs)}, what "
        "each is given, the picture it has in mind, and how far that is from full precision's.",
        f"“{prompt}”, from the same noise",
        first=steps // 2,
    )


def _pictures(
    given: dict[str, np.ndarray], clean: dict[str, np.ndarray], at: dict[str, str], where: str
) -> str:
    """A column per run, a row for what it is given, what it has in mind, and the difference of that."""
    exact, cells = clean["full precision"].astype(np.int64), [html.escape(name) for name in given]
    cells += [scrub.picture(seen, f"{name}, {where}: the latents, decoded") for name, seen in given.items()]
    cells += ["latents x_t, decoded", *[""] * len(at)]
    cells += [
        scrub.picture(seen, f"{name}, {where}: the picture it has in mind") for name, seen in clean.items()
    ]
    cells += ["x̂₀, the picture in mind", *(f"error {value}" for value in at.values()), ""]
    for name in at:
        off = (TIMES * np.abs(clean[name] - exact)).clip(0, 255).astype(np.uint8)
        cells.append(scrub.picture(off, f"{name}, {where}: difference of x̂₀ from full precision"))
    return scrub.grid(cells + ["", *[f"difference × {TIMES}"] * len(at)], len(given))


def _curves(axes: svg.Axes, error: dict[str, np.ndarray], at: dict[str, str], t: int) -> str:
    x = np.arange(1, len(next(iter(error.values()))) + 1)
    marks = [svg.line(axes, [t + 1, t + 1], axes.y, "currentColor", 1, "2 3")]
    for i, (name, values) in enumerate(error.items()):
        color, shape = method_color(name), list(svg.SHAPES)[i % len(svg.SHAPES)]
        marks += [svg.line(axes, x, values, color), svg.points(axes, [t + 1], [values[t]], color, shape)]
        marks.append(
            svg.text(axes, x[0] if i else x[-1], values[0 if i else -1], name, "start" if i else "end")
        )
    said = ", ".join(f"{name} {value}" for name, value in at.items())
    return svg.chart(
        axes, marks, f"Error of the picture in mind, relative to its size, at each step; here {said}"
    )
