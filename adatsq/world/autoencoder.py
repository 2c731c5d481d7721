"""The image autoencoder: 64x64x3 pixels to 16x16x8 latents and back, of diffusers' AutoencoderKL class."""

import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm.auto import tqdm

from adatsq.world.drawing import render
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


def images(n: int, generator: torch.Generator) -> Tensor:
    """Fresh renders in [-1, 1], (n, 3, 64, 64), on the generator's device."""
    return render(sample_scenes(n, generator)) * 2 - 1


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
    pool = images(scenes, generator)

    def batch():
        rows = torch.randint(len(pool), (batch_size,), generator=generator, device=device)
        return pool[rows].contiguous(memory_format=torch.channels_last)

    fit_autoencoder(model, batch, steps, max_seconds)
    latents, psnr = measure(model, images(min(scenes, 512), generator))
    model.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    return model, psnr


def fit_autoencoder(
    model: nn.Module,
    batch: Callable[[], Tensor],
    steps: int,
    max_seconds: float = float("inf"),
    kl_weight: float = 3e-4,
    extra: Callable[[Tensor, Tensor, float], Tensor] | None = None,
) -> None:
    """Train on batch(): pictures (B, 3, H, W) or clips (B, 3, frames, H, W) in [-1, 1].

    Loss: absolute + squared error + a light KL term, so that latents stay smooth but keep all detail, and
    extra(x, mean of the latents, progress in [0, 1]). If max_seconds runs out first, the learning rate has
    fallen to zero by then all the same: it follows the larger of the two progresses.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    start, progress = time.monotonic(), 0.0
    bar = tqdm(total=steps, desc="autoencoder", mininterval=5)
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, bar.n / 100, 2 * (1 - progress))
        x = batch()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample()).sample
        error = y.float() - x
        loss = (
            error.abs().mean()
            + error.square().mean()
            + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        )
        if extra:
            loss = loss + extra(x, posterior.mean.float(), progress)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.update()
        if bar.n % 50 == 0:
            bar.set_postfix(psnr=f"{-10 * (error.square().mean() / 4).log10().item():.1f}", refresh=False)
        progress = max(bar.n / steps, (time.monotonic() - start) / max_seconds)
    bar.close()


@torch.no_grad()
def measure(model: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    """Latents of pictures or clips, and how well they are decoded again: PSNR in dB."""
    model.eval().requires_grad_(False)
    latents, psnr = [], []
    for part in x.split(64):
        z = model.encode(part.float()).latent_dist.mode()
        error = (model.decode(z).sample.clamp(-1, 1) - part).square().flatten(1).mean(1) / 4
        latents.append(z)
        psnr.append(-10 * error.log10())
    return torch.cat(latents), torch.cat(psnr).mean().item()
