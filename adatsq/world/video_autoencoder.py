"""The video autoencoder: 17 frames of 64x64x3 pixels to 5x8x8x16 latents and back (AutoencoderKLWan).

It is causal: the first frame has a latent frame of its own, four more share each of the others. Trained on
clips from a random start, the decoder draws the mean background and ignores the latents for a long time. So
it first becomes a codec of single frames, which is quick, and is set up such that this makes it a coarse
codec of clips already (inflation, as in arXiv:1705.07750): a latent frame then holds the last of its frames.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResidualBlock
from torch import Tensor, nn

from adatsq.world.autoencoder import fit_autoencoder, measure
from adatsq.world.motion import FRAMES, render_clips, sample_clips

FRAMES_SHARE = 0.3  # of the training, on single frames
# Frames of a clip that the rest sees: a first, a second and a third latent frame; then all are alike.
WINDOW = 9


def build_autoencoder(base_dim: int = 24, dim_mult: tuple[int, ...] = (1, 2, 2, 2)) -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=16,
        dim_mult=list(dim_mult),
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


@torch.no_grad()
def initialise(model: AutoencoderKLWan) -> None:
    """Weights that keep the variance, quiet residual branches, and nothing from earlier frames.

    Where frames are halved the later one of two is kept, where they are doubled both are the same. The
    latents' noise starts small, so that the decoder can read them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.normal_(
                module.weight, std=(module.in_channels * module.weight[0, 0, -1:].numel()) ** -0.5
            )
            nn.init.zeros_(module.bias)
            if isinstance(module, WanCausalConv3d):
                module.weight[:, :, :-1] = 0
    for name, module in model.named_modules():
        if isinstance(module, WanResidualBlock):
            module.conv2.weight.mul_(0.2)
        if name.endswith("time_conv"):
            n = module.in_channels
            module.weight[:, :, -1, 0, 0] = torch.eye(n).repeat(module.out_channels // n, 1)
    model.quant_conv.weight[model.config.z_dim :] *= 0.01
    model.quant_conv.bias[model.config.z_dim :] = -5.0  # log variance


@contextmanager
def on_single_frames(model: AutoencoderKLWan) -> Iterator[None]:
    """While open, each causal convolution is the two-dimensional one that it is on a clip of one frame."""

    def forward(module: WanCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        if x.shape[2] != 1 or cache_x is not None:
            raise ValueError(f"{x.shape[2]} frames, or some before them: only single frames have no past")
        padding = (module._padding[2], module._padding[0])
        weight = module.weight[:, :, -1].contiguous(memory_format=torch.channels_last)
        return F.conv2d(x[:, :, 0], weight, module.bias, module.stride[1:], padding)[:, :, None]

    convolutions = [module for module in model.modules() if isinstance(module, WanCausalConv3d)]
    for module in convolutions:
        module.forward = forward.__get__(module)
    try:
        yield
    finally:
        for module in convolutions:
            del module.forward


def videos(n: int, generator: torch.Generator) -> Tensor:
    """Fresh clips in [-1, 1], (n, 3, 17, 64, 64) bfloat16, on the generator's device."""
    parts = [sample_clips(min(256, n - i), generator) for i in range(0, n, 256)]
    return torch.cat([(render_clips(c) * 2 - 1).transpose(1, 2).bfloat16() for c in parts])


def train_autoencoder(
    seed: int = 0,
    steps: int = 20_000,
    batch_size: int = 16,
    scenes: int = 2**13,
    device: str = "cpu",
    max_seconds: float = float("inf"),
) -> tuple[AutoencoderKLWan, float]:
    """(autoencoder with latents_mean and latents_std per channel set, PSNR in dB on fresh clips)."""
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    model = build_autoencoder()
    initialise(model)
    model.to(device)
    pool = videos(scenes, generator)

    def draw(high: int, n: int) -> Tensor:
        return torch.randint(high, (n,), generator=generator, device=device)

    def frames() -> Tensor:
        n = batch_size * FRAMES
        return pool[draw(len(pool), n), :, draw(FRAMES, n)].float()[:, :, None]

    def clips() -> Tensor:
        start = int(draw(FRAMES - WINDOW + 1, 1))
        return pool[draw(len(pool), batch_size), :, start : start + WINDOW].float()

    def hint(x: Tensor, latents: Tensor, progress: float) -> Tensor:
        wanted = block_means_and_slopes(x[:, :, 0])
        return (1 - progress) * (latents[:, : wanted.shape[1], 0] - wanted).square().mean()

    first, then = FRAMES_SHARE, 1 - FRAMES_SHARE
    with on_single_frames(model):
        fit_autoencoder(model, frames, max(1, round(first * steps)), first * max_seconds, extra=hint)
    fit_autoencoder(model, clips, max(1, round(then * steps)), then * max_seconds)
    latents, psnr = measure(model, videos(min(scenes, 256), generator))
    channels = latents.transpose(0, 1).flatten(1)
    model.register_to_config(latents_mean=channels.mean(1).tolist(), latents_std=channels.std(1).tolist())
    return model, psnr


def block_means_and_slopes(images: Tensor) -> Tensor:
    """Mean, slope to the right and slope downwards of each colour in each 8x8 block, (B, 9, H/8, W/8).

    A coarse code that nine of the 16 channels are asked to hold at first, which starts the training.
    """
    ramp = torch.linspace(-1, 1, 8, device=images.device).expand(8, 8)
    filters = torch.stack([torch.ones_like(ramp), 2 * ramp, 2 * ramp.T])[:, None] / 32
    blocks = F.conv2d(images.flatten(0, 1)[:, None], filters, stride=8)
    return blocks.unflatten(0, images.shape[:2]).flatten(1, 2)
