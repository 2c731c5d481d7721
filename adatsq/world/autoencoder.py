"""The image autoencoder: 64x64x3 pixels to 16x16x8 latents and back, of diffusers' AutoencoderKL class."""

import time

import torch
from diffusers import AutoencoderKL
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


def images(n: int, generator: torch.Generator) -> torch.Tensor:
    """Fresh renders in [-1, 1], (n, 3, 64, 64), on the generator's device."""
    return render(sample_scenes(n, generator)) * 2 - 1


def train_autoencoder(
    seed: int = 0,
    steps: int = 6000,
    batch_size: int = 128,
    scenes: int = 2**16,
    kl_weight: float = 3e-4,
    device: str = "cpu",
    max_seconds: float = float("inf"),
) -> tuple[AutoencoderKL, float]:
    """(autoencoder with shift_factor and scaling_factor set, PSNR in dB on fresh renders).

    Loss: absolute + squared error + a light KL term, so that latents stay smooth but keep all detail. If
    max_seconds runs out first, the learning rate has fallen to zero by then all the same: it follows the
    larger of the two progresses.
    """
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    pool = images(scenes, generator)
    model = build_autoencoder().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    start, progress = time.monotonic(), 0.0
    bar = tqdm(total=steps, desc="autoencoder")
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, bar.n / 100, 2 * (1 - progress))
        x = pool[torch.randint(len(pool), (batch_size,), generator=generator, device=device)]
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            posterior = model.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
            y = model.decode(posterior.sample()).sample
        error = y.float() - x
        loss = (
            error.abs().mean()
            + error.square().mean()
            + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.update()
        progress = max(bar.n / steps, (time.monotonic() - start) / max_seconds)
    bar.close()
    model.eval().requires_grad_(False)
    return set_statistics(model, generator, min(scenes, 512))


@torch.no_grad()
def set_statistics(
    model: AutoencoderKL, generator: torch.Generator, n: int = 512
) -> tuple[AutoencoderKL, float]:
    """Write the latents' mean and spread into the config; also return the PSNR of n renders."""
    x = images(n, generator)
    latents = model.encode(x).latent_dist.mode()
    model.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    error = (model.decode(latents).sample.clamp(-1, 1) - x).square().mean(dim=(1, 2, 3)) / 4
    return model, (-10 * error.log10()).mean().item()
