"""What a transformer trains on: latents of random scenes with their captions' features, on one device."""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm


class Data:
    """Latents (N, ...) bfloat16 and each one's caption, drawn in batches.

    sample(n, generator) -> scenes with `captions()`; encode(scenes) -> latents; embed(captions) -> tensors of
    the text encoders' features with a row per caption. text: these, for all different captions; row 0 is the
    empty caption's.
    """

    def __init__(
        self,
        sample: Callable,
        encode: Callable,
        embed: Callable,
        n: int,
        generator: torch.Generator,
        chunk: int = 4096,
    ):
        self.generator, device = generator, generator.device
        latents, captions = [], []
        for _ in tqdm(range(0, n, chunk), desc="scenes"):
            scenes = sample(min(chunk, n), generator)
            captions += scenes.captions()
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
                latents.append(encode(scenes).bfloat16())
        self.latents = torch.cat(latents)
        unique = sorted(set(captions))
        place = {c: i + 1 for i, c in enumerate(unique)}
        self.caption = torch.tensor([place[c] for c in captions], device=device)
        rows = ["", *unique]
        with torch.no_grad():
            parts = [embed(rows[i : i + 1024]) for i in range(0, len(rows), 1024)]
        self.text: tuple[Tensor, ...] = tuple(torch.cat(p).to(device) for p in zip(*parts, strict=True))

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """(latents (B, ...) float32, row of the caption (B,))."""
        rows = torch.randint(len(self.latents), (size,), generator=self.generator, device=self.latents.device)
        return self.latents[rows].float(), self.caption[rows]
