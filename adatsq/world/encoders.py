"""The real models' text encoder classes and tokenizers, small, with one token for each word of the world."""

import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = 128
# As Z-Image's: the user's turn holds the prompt, the features end with the start of the answer.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def words_of(captions: list[str]) -> list[str]:
    return sorted({w for c in captions for w in c.split()})


def t5_tokenizer(captions: list[str], max_length: int) -> T5Tokenizer:
    """A token for each word of the captions, letters for all others. T5 and UMT5 share the class."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(chr(c), -8.0) for c in range(33, 127)] + [(f"▁{w}", -1.0) for w in words_of(captions)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=max_length)


def clip_tokenizer(captions: list[str]) -> CLIPTokenizer:
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        words_of(captions),
        trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", show_progress=False),
    )
    merges = _merges(bpe)
    tokens = alphabet + [a + "</w>" for a in alphabet] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def qwen_tokenizer(captions: list[str], max_length: int) -> Qwen2Tokenizer:
    """Byte-level BPE; a word has one token at a line's start and another one behind a space."""
    words = [*words_of(captions), "user", "assistant"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([*words, *(f" {w}" for w in words)], trainer)
    merges = _merges(bpe)
    tokens = [*alphabet, *(a + b for a, b in merges), "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, model_max_length=max_length)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


def _merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]


def clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(T5Config(**_t5_options(tokenizer), feed_forward_proj="gated-gelu"))


def umt5_encoder(tokenizer: T5Tokenizer) -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(**_t5_options(tokenizer)))


def _t5_options(tokenizer: T5Tokenizer) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "d_model": WIDTH,
        "d_kv": WIDTH // 4,
        "d_ff": 2 * WIDTH,
        "num_layers": 3,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    }


def qwen_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3Model:
    """Z-Image takes the features before the last layer, so the last of these four is never used."""
    return Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=WIDTH // 4,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer, captions: list[str], max_length: int) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), both (B, max_length)."""
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    found = tokenizer(captions, max_length=max_length, **options)
    return found.input_ids, found.attention_mask.bool()


def chat(tokenizer: Qwen2Tokenizer, captions: list[str]) -> list[str]:
    """Captions in the chat template, as ZImagePipeline puts them."""
    turns = [[{"role": "user", "content": c}] for c in captions]
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
    return [tokenizer.apply_chat_template(turn, **options) for turn in turns]


def freeze(*modules: torch.nn.Module) -> None:
    for module in modules:
        module.eval().requires_grad_(False)
