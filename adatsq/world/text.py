"""Teach small text encoders to parse captions; then they are frozen.

The real models get their text features from encoders that learned language elsewhere. Ours learn only what
captions of this world mean: from their features, linear heads must read off the number of objects, each one's
shape and colour, the relation (in the moving world: direction and speed), and each token's own word. The
heads are thrown away; the features stay.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from adatsq.world.scenes import COLORS, KINDS, MAX_OBJECTS, RELATIONS, SHAPES, Scenes

FIELDS = {  # what the heads read in a picture's caption: name -> number of classes ("+ 1": not mentioned)
    "count": MAX_OBJECTS,
    "shape_1": len(SHAPES),
    "color_1": len(COLORS) + 1,
    "shape_2": len(SHAPES) + 1,
    "color_2": len(COLORS) + 1,
    "relation": len(RELATIONS) + 1,
}


@dataclass
class Reading:
    """One encoder in training.

    ids: token ids of all captions, (N, L).  features(ids (B, L)) -> (B, P, width), with a mask (B, P) of the
    positions from which everything must be read.  words(ids): mask (B, P) of those that must also give
    back their own token; None for none.
    """

    module: nn.Module
    ids: Tensor
    features: Callable[[Tensor], tuple[Tensor, Tensor]]
    words: Callable[[Tensor], Tensor] | None = None


def fit_encoders(
    readings: list[Reading],
    targets: Tensor,
    fields: dict[str, int],
    captions: list[str],
    seed: int = 0,
    steps: int = 2000,
    batch_size: int = 512,
) -> float:
    """Train and freeze the encoders; the share of held-out captions whose every field is read right.

    targets: (N, fields) int64.  Held out is every twentieth of the different sentences.
    """
    torch.manual_seed(seed)
    device, classes = targets.device, list(fields.values())
    first_row = {c: i for i, c in reversed(list(enumerate(captions)))}
    unseen = set(sorted(first_row)[::20])
    train = torch.tensor([i for i, c in enumerate(captions) if c not in unseen], device=device)
    test = torch.tensor([first_row[c] for c in sorted(unseen)], device=device)
    generator = torch.Generator().manual_seed(seed)
    widths = [r.features(r.ids[:2])[0].shape[-1] for r in readings]
    heads = nn.ModuleList([nn.Linear(w, sum(classes)) for w in widths]).to(device)
    words = nn.ModuleList([nn.Linear(w, int(r.ids.max()) + 1) for w, r in zip(widths, readings)]).to(device)
    parameters = [p for m in (*(r.module for r in readings), heads, words) for p in m.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="text encoders"):
        rows = train[torch.randint(len(train), (batch_size,), generator=generator).to(device)]
        loss = torch.zeros((), device=device)
        for reading, head, word in zip(readings, heads, words, strict=True):
            ids = reading.ids[rows]
            features, mask = reading.features(ids)
            loss = loss + _parse_loss(head(features), targets[rows], mask, classes)
            if reading.words:
                said = reading.words(ids)
                loss = loss + nn.functional.cross_entropy(word(features[said]), ids[said])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    right = []
    with torch.no_grad():
        for reading, head in zip(readings, heads, strict=True):
            features, mask = reading.features(reading.ids[test])
            logits = (head(features) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            found = torch.stack([p.argmax(-1) for p in logits.split(classes, dim=-1)], 1)
            right.append(found.eq(targets[test]).all(1).float().mean().item())
    for reading in readings:
        reading.module.eval().requires_grad_(False)
    return min(right)


def _parse_loss(logits: Tensor, targets: Tensor, mask: Tensor, classes: list[int]) -> Tensor:
    """Mean cross-entropy over fields and masked positions. logits: (B, P, classes of all fields)."""
    row = mask.nonzero()[:, 0]
    losses = [
        nn.functional.cross_entropy(part, target[row])
        for part, target in zip(logits[mask].split(classes, dim=-1), targets.unbind(1), strict=True)
    ]
    return torch.stack(losses).mean()


def parse_targets(scenes: Scenes) -> torch.Tensor:
    """What each caption says, (B, fields) int64, as FIELDS; the last class is what it leaves open."""
    colored = torch.tensor(["colo" in k for k in KINDS])[scenes.kind]
    counting = torch.tensor([k.startswith("counting") for k in KINDS])[scenes.kind]
    count = (scenes.shape >= 0).sum(1)
    second = (count > 1) & ~counting
    columns = [
        torch.where(counting, count, count.clamp(max=2)) - 1,
        scenes.shape[:, 0],
        torch.where(colored, scenes.color[:, 0], len(COLORS)),
        torch.where(second, scenes.shape[:, 1], len(SHAPES)),
        torch.where(second & colored, scenes.color[:, 1], len(COLORS)),
        torch.where(scenes.relation >= 0, scenes.relation, len(RELATIONS)),
    ]
    return torch.stack(columns, 1)
