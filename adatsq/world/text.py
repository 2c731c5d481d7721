"""Small text encoders of the very classes that Flux uses, taught to parse captions, then frozen.

The real Flux gets its text features from a T5 and a CLIP that learned language elsewhere. Ours learn only
what captions of this world mean: from every position of T5, and from CLIP's pooled output, linear heads
must read off the number of objects, each one's shape and colour, and the relation. The heads are thrown
away; the features stay.
"""

import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from adatsq.world.scenes import COLORS, KINDS, MAX_OBJECTS, RELATIONS, SHAPES, Scenes, sample_scenes

WIDTH = 128
MAX_LENGTH = 16  # tokens; the longest caption has 9 words
_FIELDS = {  # what the heads read: name -> number of classes ("+ 1": not mentioned)
    "count": MAX_OBJECTS,
    "shape_1": len(SHAPES),
    "color_1": len(COLORS) + 1,
    "shape_2": len(SHAPES) + 1,
    "color_2": len(COLORS) + 1,
    "relation": len(RELATIONS) + 1,
}


def build_tokenizers(captions: list[str]) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Real tokenizers with one token for each word of the world, and letters for all others."""
    words = sorted({w for c in captions for w in c.split()})
    t5_pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    t5_pieces += [(chr(c), -8.0) for c in range(33, 127)] + [(f"▁{w}", -1.0) for w in words]
    t5 = T5Tokenizer(vocab=t5_pieces, extra_ids=0, model_max_length=MAX_LENGTH)

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in _merges(bpe)]
    tokens = alphabet + [a + "</w>" for a in alphabet] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    clip = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    return clip, t5


def _merges(bpe: Tokenizer):
    return json.loads(bpe.to_str())["model"]["merges"]


def build_encoders(clip: CLIPTokenizer, t5: T5Tokenizer) -> tuple[CLIPTextModel, T5EncoderModel]:
    clip_config = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=WIDTH,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    t5_config = T5Config(
        vocab_size=len(t5),
        d_model=WIDTH,
        d_kv=WIDTH // 4,
        d_ff=2 * WIDTH,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return CLIPTextModel(clip_config), T5EncoderModel(t5_config)


def tokenize(clip_tokenizer, t5_tokenizer, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, 18) for CLIP and (B, MAX_LENGTH) for T5.

    FluxPipeline pads CLIP's to 77. CLIP's attention is causal and its pooled output is the first end
    token's, so the padding behind it changes nothing, and training need not pay for it.
    """
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    clip_ids = clip_tokenizer(captions, max_length=MAX_LENGTH + 2, **options).input_ids
    return clip_ids, t5_tokenizer(captions, max_length=MAX_LENGTH, **options).input_ids


def parse_targets(scenes: Scenes) -> torch.Tensor:
    """What each caption says, (B, fields) int64, as _FIELDS; the last class is what it leaves open."""
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


def train_text(
    seed: int = 0, steps: int = 2000, batch_size: int = 512, scenes: int = 40_000, device: str = "cpu"
):
    """(clip, clip_tokenizer, t5, t5_tokenizer, share of held-out captions parsed right); 45 s on a GPU."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = sample_scenes(scenes, generator)
    captions, targets = data.captions(), parse_targets(data).to(device)
    unseen = set(captions[: scenes // 20])  # whole sentences, most of the short ones among them
    train = torch.tensor([i for i, c in enumerate(captions) if c not in unseen], device=device)
    test = torch.arange(scenes // 20, device=device)
    clip_tokenizer, t5_tokenizer = build_tokenizers(captions)
    clip, t5 = (m.to(device) for m in build_encoders(clip_tokenizer, t5_tokenizer))
    clip_ids, t5_ids = (ids.to(device) for ids in tokenize(clip_tokenizer, t5_tokenizer, captions))
    heads = nn.ModuleList([nn.Linear(WIDTH, sum(_FIELDS.values())) for _ in range(2)]).to(device)
    word_head = nn.Linear(WIDTH, len(t5_tokenizer)).to(device)
    parameters = [p for m in (clip, t5, heads, word_head) for p in m.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="text encoders"):
        rows = train[torch.randint(len(train), (batch_size,), generator=generator).to(device)]
        pooled, tokens = clip(clip_ids[rows]).pooler_output, t5(t5_ids[rows])[0]
        loss = _parse_loss(heads[0](pooled)[:, None], targets[rows]) + _parse_loss(
            heads[1](tokens), targets[rows]
        )
        loss = loss + nn.functional.cross_entropy(word_head(tokens).flatten(0, 1), t5_ids[rows].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        pooled, tokens = clip(clip_ids[test]).pooler_output, t5(t5_ids[test])[0]
        right = [_parse_right(h, targets[test]) for h in (heads[0](pooled), heads[1](tokens).mean(1))]
    for module in (clip, t5):
        module.eval().requires_grad_(False)
    return clip, clip_tokenizer, t5, t5_tokenizer, min(right)


def _parse_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over fields and positions. logits: (B, positions, classes of all fields)."""
    parts = logits.split(list(_FIELDS.values()), dim=-1)
    losses = [
        nn.functional.cross_entropy(p.flatten(0, 1), t[:, None].expand(p.shape[:2]).flatten())
        for p, t in zip(parts, targets.unbind(1), strict=True)
    ]
    return torch.stack(losses).mean()


def _parse_right(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Share of captions whose every field is read right. logits: (B, classes of all fields)."""
    parts = logits.split(list(_FIELDS.values()), dim=-1)
    return torch.stack([p.argmax(-1) for p in parts], 1).eq(targets).all(1).float().mean().item()
