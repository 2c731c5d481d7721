"""One training loop for every network of every mini model: AdamW (or Muon), bfloat16 autocast on a GPU."""

import copy
import time
from collections.abc import Callable

import torch
from tqdm.auto import tqdm


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
