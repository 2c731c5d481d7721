"""z-image-mini: a single-stream DiT behind a chat-tuned kind of text encoder, ten steps, no guidance.

As the real Z-Image-Turbo: `ZImageTransformer2DModel`, Qwen3 features before the last layer, Flux's
autoencoder (here flux-dev-mini's), and a few-step student of the guided base model.
"""

from functools import partial

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Model

from adatsq.world import encoders
from adatsq.world.data import Data
from adatsq.world.drawing import render
from adatsq.world.flow import guided
from adatsq.world.flux import latents_of
from adatsq.world.scenes import SIZE, sample_scenes
from adatsq.world.text import FIELDS, Reading, fit_encoders, parse_targets

START = "flux-dev-mini"
STAGES = ("text", "base", "steps", "assemble", "score")
PARTS = {"vae": AutoencoderKL, "text_encoder": Qwen3Model, "tokenizer": Qwen2Tokenizer}
MAX_LENGTH = 32  # tokens, the template's included; the transformer pads captions to multiples of 32
TAIL = 5  # tokens of the template behind the prompt: the encoder is causal, only they know all of it
STEPS = 10
TIME_SHIFT = 3.0
SIGMAS = [TIME_SHIFT * s / (1 + (TIME_SHIFT - 1) * s) for s in (1 - i / STEPS for i in range(STEPS + 1))]
SHIFT = 1.1  # log of TIME_SHIFT
SUBSTEPS = 2
TEACHER_GUIDANCE = 3.5
SAMPLING = {
    "height": SIZE,
    "width": SIZE,
    "num_inference_steps": STEPS,
    "guidance_scale": 0.0,
    "max_sequence_length": MAX_LENGTH,
}


def train_encoders(seed: int, device: str, scenes: int = 40_000, **options) -> tuple[dict, float]:
    """({component: trained}, share of held-out captions parsed right)."""
    torch.manual_seed(seed)
    data = sample_scenes(scenes, torch.Generator().manual_seed(seed))
    captions = data.captions()
    tokenizer = encoders.qwen_tokenizer(captions, MAX_LENGTH)
    qwen = encoders.qwen_encoder(tokenizer).to(device)
    ids, mask = encoders.tokenize(tokenizer, encoders.chat(tokenizer, captions), MAX_LENGTH)
    if mask[:, -1].any():
        raise ValueError(f"a caption takes {MAX_LENGTH} tokens or more: raise MAX_LENGTH")
    end = ids.to(device)[0, mask[0].sum() - 1]  # the template's last token, a line break

    def said(ids):  # everything up to the template's last token
        position = torch.arange(ids.shape[1], device=ids.device)
        last = torch.where(ids == end, position, 0).amax(1, keepdim=True)
        return position <= last

    def features(ids):
        mask = said(ids)
        position = torch.arange(ids.shape[1], device=ids.device)
        return _features(qwen, ids, mask), mask & (position >= mask.sum(1, keepdim=True) - TAIL)

    readings = [Reading(qwen, ids.to(device), features, said)]
    right = fit_encoders(readings, parse_targets(data).to(device), FIELDS, captions, seed, **options)
    return {"text_encoder": qwen, "tokenizer": tokenizer}, right


def _features(qwen: Qwen3Model, ids: Tensor, mask: Tensor) -> Tensor:
    """What ZImagePipeline takes: the states before the last layer."""
    return qwen(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]


def make_data(parts: dict, n: int, generator: torch.Generator) -> Data:
    """Latents (C, h, w); text: (features, mask of the caption's own tokens)."""
    encode = lambda scenes: latents_of(parts["vae"], render(scenes) * 2 - 1)  # noqa: E731
    return Data(sample_scenes, encode, partial(embed, parts), n, generator)


def embed(parts: dict, captions: list[str]) -> tuple[Tensor, Tensor]:
    """(features (B, MAX_LENGTH, width), mask) of captions in the chat template."""
    tokenizer, qwen = parts["tokenizer"], parts["text_encoder"]
    ids, mask = encoders.tokenize(tokenizer, encoders.chat(tokenizer, captions), MAX_LENGTH)
    ids, mask = ids.to(qwen.device), mask.to(qwen.device)
    return _features(qwen, ids, mask), mask


def build_transformer(
    latent_channels: int = 8, layers: int = 7, refiners: int = 1
) -> ZImageTransformer2DModel:
    return ZImageTransformer2DModel(
        in_channels=latent_channels,
        dim=256,
        n_layers=layers,
        n_refiner_layers=refiners,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=encoders.WIDTH,
        axes_dims=[16, 24, 24],
        axes_lens=[128, 32, 32],
    )


def velocity(model, data: Data, x, sigma, caption, guidance=None) -> Tensor:
    """The transformer's own forward pass on a dense batch, without its loops over lists of images.

    x: (B, C, h, w). Its time runs from 0 (noise) to 1, and it answers minus the velocity.
    """
    b, c, h, w = x.shape
    features, mask = (t[caption] for t in data.text)
    time = model.t_embedder((1 - sigma) * model.t_scale).type_as(x)
    patches = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    # Positions: a caption, its padding included, counts along the first axis from 1; the image comes behind.
    n = features.shape[1]
    text_at = model.rope_embedder(model.create_coordinate_grid((n, 1, 1), (1, 0, 0), x.device).flatten(0, 2))
    image_at = model.create_coordinate_grid((1, h // 2, w // 2), (n + 1, 0, 0), x.device).flatten(0, 2)
    image_at = model.rope_embedder(image_at)
    text_at, image_at = (at.expand(b, -1, -1) for at in (text_at, image_at))

    image = model.all_x_embedder["2-1"](patches)
    for block in model.noise_refiner:
        image = block(image, None, image_at, time)
    text = torch.where(mask[..., None], model.cap_embedder(features), model.cap_pad_token)
    for block in model.context_refiner:
        text = block(text, None, text_at)
    both, at = torch.cat([image, text.type_as(image)], 1), torch.cat([image_at, text_at], 1)
    for block in model.layers:
        both = block(both, None, at, time)
    out = model.all_final_layer["2-1"](both, c=time)[:, : image.shape[1]]
    out = out.reshape(b, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
    return -out


def teacher() -> ZImageTransformer2DModel:
    return build_transformer()


def student(teacher: ZImageTransformer2DModel) -> ZImageTransformer2DModel:
    model = build_transformer(layers=len(teacher.layers), refiners=len(teacher.noise_refiner))
    model.load_state_dict(teacher.state_dict())
    return model


def target_velocity(teacher, data, x, sigma, caption) -> Tensor:
    return guided(velocity, teacher, data, x, sigma, caption, torch.full_like(sigma, TEACHER_GUIDANCE))


def pipeline(parts: dict, transformer: ZImageTransformer2DModel) -> ZImagePipeline:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=TIME_SHIFT, use_dynamic_shifting=False)
    return ZImagePipeline(scheduler=scheduler, transformer=transformer, **parts)
