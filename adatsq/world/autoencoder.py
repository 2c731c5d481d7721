"""The autoencoders: 64x64x3 pixels to 16x16x8 latents and back; 17 frames of them to 5x8x8x16."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLWan
from torch import Tensor, nn
from tqdm.auto import tqdm

from adatsq.world.drawing import render
from adatsq.world.motion import render_clips, sample_clips
from adatsq.world.scenes import SIZE, sample_scenes


def build_autoencoder(channels: tuple[int, ...] = (32, 64, 64), latent_channels: int = 8) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def build_video_autoencoder(base_dim: int = 24, dim_mult: tuple[int, ...] = (1, 2, 2, 2)) -> AutoencoderKLWan:
    """8x smaller in space, 4x in time, causal: the first frame is a latent frame of its own."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=16,
        dim_mult=list(dim_mult),
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def images(n: int, generator: torch.Generator) -> Tensor:
    """Fresh renders in [-1, 1], (n, 3, 64, 64), on the generator's device."""
    return render(sample_scenes(n, generator)) * 2 - 1


def videos(n: int, generator: torch.Generator) -> Tensor:
    """Fresh clips in [-1, 1], (n, 3, 17, 64, 64) bfloat16, on the generator's device."""
    parts = [sample_clips(min(256, n - i), generator) for i in range(0, n, 256)]
    return torch.cat([(render_clips(c) * 2 - 1).transpose(1, 2).bfloat16() for c in parts])


def train_autoencoder(
    seed: int = 0,
    steps: int = 6000,
    batch_size: int = 128,
    scenes: int = 2**16,
    device: str = "cpu",
    max_seconds: float = float("inf"),
) -> tuple[AutoencoderKL, float]:
    """(autoencoder with shift_factor and scaling_factor set, PSNR in dB on fresh renders)."""
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    model = build_autoencoder().to(device, memory_format=torch.channels_last)
    _fit(model, images, generator, steps, batch_size, scenes, max_seconds)
    latents, psnr = _measure(model, images, generator, min(scenes, 512))
    model.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    return model, psnr


def train_video_autoencoder(
    seed: int = 0,
    steps: int = 20_000,
    batch_size: int = 16,
    scenes: int = 2**13,
    device: str = "cpu",
    max_seconds: float = float("inf"),
) -> tuple[AutoencoderKLWan, float]:
    """(autoencoder with latents_mean and latents_std per channel set, PSNR in dB on fresh clips).

    From a random start the decoder draws the mean background and ignores the latents, for a long time. So the
    first third of the training is on single frames, with little noise on the latents and with a hint that
    fades: nine of the channels should hold each 8x8 block's mean and slopes.
    """
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    model = build_video_autoencoder().to(device)
    with torch.no_grad():
        model.quant_conv.bias[model.config.z_dim :] = -5.0  # log variance
    _fit(model, videos, generator, steps, batch_size, scenes, max_seconds, frames_first=0.35)
    latents, psnr = _measure(model, videos, generator, min(scenes, 256))
    channels = latents.transpose(0, 1).flatten(1)
    model.register_to_config(latents_mean=channels.mean(1).tolist(), latents_std=channels.std(1).tolist())
    return model, psnr


def _fit(
    model: nn.Module,
    sample: Callable[[int, torch.Generator], Tensor],
    generator: torch.Generator,
    steps: int,
    batch_size: int,
    scenes: int,
    max_seconds: float,
    kl_weight: float = 3e-4,
    frames_first: float = 0.0,
) -> None:
    """Train and freeze. sample(n, generator): pictures or clips in [-1, 1].

    frames_first: share of the training that takes clips apart into single frames, with a hint.
    Loss: absolute + squared error + a light KL term, so that latents stay smooth but keep all detail. If
    max_seconds runs out first, the learning rate has fallen to zero by then all the same: it follows the
    larger of the two progresses.
    """
    pool, device = sample(scenes, generator), generator.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    start, progress = time.monotonic(), 0.0
    bar = tqdm(total=steps, desc="autoencoder", mininterval=5)
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, bar.n / 100, 2 * (1 - progress))
        x = pool[torch.randint(len(pool), (batch_size,), generator=generator, device=device)].float()
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        frames = progress < frames_first
        if frames:
            x = x.transpose(1, 2).flatten(0, 1)[:, :, None]  # (B * frames, 3, 1, H, W)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample()).sample
        error = y.float() - x
        loss = (
            error.abs().mean()
            + error.square().mean()
            + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        )
        if frames:
            hint = _block_means_and_slopes(x[:, :, 0])
            missed = posterior.mean[:, : hint.shape[1], 0].float() - hint
            loss = loss + (1 - progress / frames_first) * missed.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.update()
        progress = max(bar.n / steps, (time.monotonic() - start) / max_seconds)
    bar.close()
    model.eval().requires_grad_(False)


def _block_means_and_slopes(images: Tensor) -> Tensor:
    """Mean, slope to the right and slope downwards of each colour in each 8x8 block, (B, 9, H/8, W/8)."""
    ramp = torch.linspace(-1, 1, 8, device=images.device).expand(8, 8)
    filters = torch.stack([torch.ones_like(ramp), 2 * ramp, 2 * ramp.T])[:, None] / 32
    return (
        F.conv2d(images.flatten(0, 1)[:, None], filters, stride=8)
        .unflatten(0, images.shape[:2])
        .flatten(1, 2)
    )


@torch.no_grad()
def _measure(model: nn.Module, sample: Callable, generator: torch.Generator, n: int) -> tuple[Tensor, float]:
    """Latents of n fresh samples, and how well they are decoded again: PSNR in dB."""
    latents, psnr = [], []
    for x in sample(n, generator).split(64):
        z = model.encode(x.float()).latent_dist.mode()
        error = (model.decode(z).sample.clamp(-1, 1) - x).square().flatten(1).mean(1) / 4
        latents.append(z)
        psnr.append(-10 * error.log10())
    return torch.cat(latents), torch.cat(psnr).mean().item()
