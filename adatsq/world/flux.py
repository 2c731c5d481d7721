"""flux-dev-mini: what it is made of, and how its transformer is trained.

1. `train_base`: flow matching (arXiv:2210.02747) on latents of fresh scenes, a tenth of the captions
dropped, guidance input 1. 2. `distill_guidance`: the same network learns to give in one call what
classifier-free guidance gives in two, for any
   guidance scale at its guidance input (arXiv:2210.03142, as the real Flux-dev).
"""

import copy
import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tqdm.auto import tqdm

from adatsq.world.drawing import render
from adatsq.world.scenes import SIZE, sample_scenes
from adatsq.world.text import MAX_LENGTH, WIDTH, tokenize

SAMPLING = {
    "height": SIZE,
    "width": SIZE,
    "num_inference_steps": 50,
    "guidance_scale": 3.5,
    "max_sequence_length": MAX_LENGTH,
}
GUIDANCE = (1.0, 5.0)  # the range of scales that distillation covers
CAPTION_DROPOUT = 0.1


def build_transformer(
    latent_channels: int = 8, layers: int = 2, single_layers: int = 5
) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * latent_channels,
        num_layers=layers,
        num_single_layers=single_layers,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(16, 24, 24),
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The real Flux-dev's schedule: its shift grows with the number of image tokens."""
    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256,
        max_image_seq_len=4096,
        base_shift=0.5,
        max_shift=1.15,
        shift=3.0,
        use_dynamic_shifting=True,
    )


class Data:
    """Latents of random scenes with their captions' embeddings, all on one device, drawn in batches."""

    def __init__(self, vae: AutoencoderKL, encoders, n: int, generator: torch.Generator, chunk: int = 4096):
        clip, clip_tokenizer, t5, t5_tokenizer = encoders
        self.generator, device = generator, generator.device
        latents, captions = [], []
        for _ in tqdm(range(0, n, chunk), desc="scenes"):
            scenes = sample_scenes(min(chunk, n), generator)
            captions += scenes.captions()
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
                mode = vae.encode(render(scenes) * 2 - 1).latent_dist.mode().float()
            z = (mode - vae.config.shift_factor) * vae.config.scaling_factor
            latents.append(FluxPipeline._pack_latents(z, *z.shape).bfloat16())
        self.latents = torch.cat(latents)
        unique = sorted(set(captions))
        place = {c: i + 1 for i, c in enumerate(unique)}
        self.caption = torch.tensor([place[c] for c in captions], device=device)
        pooled, tokens = [], []
        ids = tokenize(clip_tokenizer, t5_tokenizer, ["", *unique])  # row 0 is the empty caption
        for clip_ids, t5_ids in zip(*(i.split(1024) for i in ids), strict=True):
            with torch.no_grad():
                pooled.append(clip(clip_ids.to(device)).pooler_output)
                tokens.append(t5(t5_ids.to(device))[0])
        self.pooled, self.tokens = torch.cat(pooled), torch.cat(tokens)

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(latents (B, tokens, channels) float32, row of the caption (B,))."""
        rows = torch.randint(len(self.latents), (size,), generator=self.generator, device=self.latents.device)
        return self.latents[rows].float(), self.caption[rows]


def velocity(model, data: Data, x, sigma, caption, guidance) -> torch.Tensor:
    """One call of the transformer, as FluxPipeline makes it. sigma in [0, 1] and guidance: (B,)."""
    side = SIZE // 8
    ids = FluxPipeline._prepare_latent_image_ids(1, side, side, x.device, x.dtype)
    return model(
        hidden_states=x,
        timestep=sigma,
        guidance=guidance,
        pooled_projections=data.pooled[caption],
        encoder_hidden_states=data.tokens[caption],
        txt_ids=torch.zeros(MAX_LENGTH, 3, device=x.device),
        img_ids=ids,
        return_dict=False,
    )[0]


def noised(data: Data, batch_size: int):
    """x_sigma = (1 - sigma) x_0 + sigma noise, its velocity noise - x_0, sigma and the captions' rows.

    sigma is logit-normal around the schedule's shift.
    """
    x0, caption = data.batch(batch_size)
    noise = torch.randn(x0.shape, generator=data.generator, device=x0.device)
    sigma = torch.sigmoid(torch.randn(batch_size, generator=data.generator, device=x0.device) + 0.47)
    s = sigma[:, None, None]
    return (1 - s) * x0 + s * noise, noise - x0, sigma, caption


def train_base(model, data: Data, **options) -> FluxTransformer2DModel:
    """Flow matching with caption dropout; returns the running average of the weights."""

    def loss(network, batch_size):
        x, target, sigma, caption = noised(data, batch_size)
        dropped = torch.rand(batch_size, generator=data.generator, device=x.device) < CAPTION_DROPOUT
        v = velocity(network, data, x, sigma, caption.masked_fill(dropped, 0), torch.ones_like(sigma))
        return (v.float() - target).square().mean()

    return fit(model, loss, desc="base", **options)


def distill_guidance(
    teacher, data: Data, student: FluxTransformer2DModel | None = None, **options
) -> FluxTransformer2DModel:
    """The student at guidance g matches v_empty + g (v_caption - v_empty) of the frozen teacher.

    It starts as a copy of the teacher, or from an earlier run's student.
    """
    student = copy.deepcopy(teacher) if student is None else student.to(data.latents.device)
    student.requires_grad_(True)
    teacher = teacher.eval().requires_grad_(False)
    if options.get("compile"):
        teacher.compile_repeated_blocks()

    def loss(network, batch_size):
        x, _, sigma, caption = noised(data, batch_size)
        one = torch.ones_like(sigma)
        with torch.no_grad():
            both = velocity(
                teacher,
                data,
                *(torch.cat([a, b]) for a, b in ((x, x), (sigma, sigma), (caption, caption * 0), (one, one))),
            )
            with_caption, without = both.float().chunk(2)
        g = (
            torch.rand(batch_size, generator=data.generator, device=x.device) * (GUIDANCE[1] - GUIDANCE[0])
            + GUIDANCE[0]
        )
        target = without + g[:, None, None] * (with_caption - without)
        v = velocity(network, data, x, sigma, caption, g)
        return (v.float() - target).square().mean()

    return fit(student, loss, desc="guidance", **options)


def fit(
    model,
    loss: Callable,
    desc: str,
    steps: int,
    batch_size: int,
    lr: float,
    max_seconds: float = float("inf"),
    cooldown: float = 0.2,
    warmup: int = 300,
    optimizer: str = "adamw",
    average: float = 0.999,
    compile: bool = False,
    checkpoint: Callable | None = None,
):
    """Minimise loss(model, batch_size); returns the exponential average of the weights.

    The learning rate warms up, stays, and falls linearly to zero over the last `cooldown` share of the
    steps or of max_seconds, whichever is further along; cooldown=0 leaves it high for a later run to go on.
    checkpoint(model) is called with the averaged weights every minute.
    """
    device = next(model.parameters()).device
    optimizers = build_optimizers(model, lr, optimizer)
    averaged = copy.deepcopy(model).requires_grad_(False)
    live, slow = list(model.parameters()), list(averaged.parameters())
    if compile:
        model.compile_repeated_blocks()
    start = saved = time.monotonic()
    progress, smooth = 0.0, None
    bar = tqdm(total=steps, desc=desc, mininterval=5)
    while progress < 1:
        factor = min(1.0, (bar.n + 1) / warmup, (1 - progress) / cooldown if cooldown else 1.0)
        for opt in optimizers:
            for group in opt.param_groups:
                group["lr"] = lr * factor
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            value = loss(model, batch_size)
        value.backward()
        torch.nn.utils.clip_grad_norm_(live, 1.0, foreach=True)
        for opt in optimizers:
            opt.step()
            opt.zero_grad(set_to_none=True)
        torch._foreach_lerp_(slow, live, max(1 - average, 1 / (bar.n + 1)))
        smooth = value.detach() if smooth is None else smooth.lerp(value.detach(), 0.01)
        bar.update()
        if bar.n % 100 == 0:
            bar.set_postfix(loss=f"{smooth.item():.4f}", refresh=False)
        now = time.monotonic()
        progress = max(bar.n / steps, (now - start) / max_seconds)
        if checkpoint and now - saved > 60:
            checkpoint(averaged)
            saved = now
    bar.close()
    print(
        f"{desc}: {bar.n} steps of {batch_size} in {time.monotonic() - start:.0f} s, loss {smooth.item():.4f}"
    )
    return averaged


def build_optimizers(model, lr: float, name: str) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else; or AdamW for all."""
    inside = [
        p for n, p in model.named_parameters() if p.ndim == 2 and "transformer_blocks" in n and name == "muon"
    ]
    ids = {id(p) for p in inside}
    others = [p for p in model.parameters() if id(p) not in ids]
    fused = others[0].is_cuda
    out: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.99), fused=fused)
    ]
    if inside:
        out.append(torch.optim.Muon(inside, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return out
