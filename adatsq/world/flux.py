"""flux-dev-mini: what it is made of, and how its parts and calls fit together.

Its transformer learns flow matching, then to do in one call what classifier-free guidance does in two, for
any scale at its guidance input, as the real FLUX.1-dev.
"""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from adatsq.world import encoders
from adatsq.world.autoencoder import train_autoencoder  # noqa: F401  (the trainer's)
from adatsq.world.data import Data
from adatsq.world.drawing import render
from adatsq.world.scenes import SIZE, sample_scenes
from adatsq.world.text import FIELDS, Reading, fit_encoders, parse_targets

STAGES = ("text", "autoencoder", "base", "distill", "assemble", "score")
PARTS = {
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
    "text_encoder_2": T5EncoderModel,
    "tokenizer_2": T5Tokenizer,
}
MAX_LENGTH = 16  # tokens; the longest caption has 9 words
SHIFT = 0.47  # of the training's sigmas: the schedule's shift at 64 image tokens
GUIDANCE = (1.0, 5.0)  # the range of scales that distillation covers
SAMPLING = {
    "height": SIZE,
    "width": SIZE,
    "num_inference_steps": 50,
    "guidance_scale": 3.5,
    "max_sequence_length": MAX_LENGTH,
}


def train_encoders(seed: int, device: str, scenes: int = 40_000, **options) -> tuple[dict, float]:
    """({component: trained}, share of held-out captions parsed right)."""
    torch.manual_seed(seed)
    data = sample_scenes(scenes, torch.Generator().manual_seed(seed))
    captions = data.captions()
    clip_tokenizer = encoders.clip_tokenizer(captions)
    t5_tokenizer = encoders.t5_tokenizer(captions, MAX_LENGTH)
    clip, t5 = encoders.clip_encoder(clip_tokenizer).to(device), encoders.t5_encoder(t5_tokenizer).to(device)
    clip_ids, t5_ids = (ids.to(device) for ids in tokenize(clip_tokenizer, t5_tokenizer, captions))

    def pooled(ids):
        return clip(ids).pooler_output[:, None], torch.ones(len(ids), 1, dtype=torch.bool, device=ids.device)

    def tokens(ids):
        return t5(ids)[0], torch.ones_like(ids, dtype=torch.bool)

    readings = [
        Reading(clip, clip_ids, pooled),
        Reading(t5, t5_ids, tokens, lambda ids: torch.ones_like(ids, dtype=torch.bool)),
    ]
    right = fit_encoders(readings, parse_targets(data).to(device), FIELDS, captions, seed, **options)
    components = {"text_encoder": clip, "tokenizer": clip_tokenizer}
    return {**components, "text_encoder_2": t5, "tokenizer_2": t5_tokenizer}, right


def tokenize(clip_tokenizer, t5_tokenizer, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, 18) for CLIP and (B, MAX_LENGTH) for T5.

    FluxPipeline pads CLIP's to 77. CLIP's attention is causal and its pooled output is the first end
    token's, so the padding behind it changes nothing, and training need not pay for it.
    """
    clip_ids, _ = encoders.tokenize(clip_tokenizer, captions, MAX_LENGTH + 2)
    return clip_ids, encoders.tokenize(t5_tokenizer, captions, MAX_LENGTH)[0]


def make_data(parts: dict, n: int, generator: torch.Generator) -> Data:
    """Packed latents (tokens, channels); text: (pooled, tokens)."""
    vae = parts["vae"]

    def encode(scenes):
        z = latents_of(vae, render(scenes) * 2 - 1)
        return FluxPipeline._pack_latents(z, *z.shape)

    def embed(captions):
        ids = tokenize(parts["tokenizer"], parts["tokenizer_2"], captions)
        clip_ids, t5_ids = (i.to(vae.device) for i in ids)
        return parts["text_encoder"](clip_ids).pooler_output, parts["text_encoder_2"](t5_ids)[0]

    return Data(sample_scenes, encode, embed, n, generator)


def latents_of(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Normalised latents (B, C, h, w) of images in [-1, 1]."""
    mode = vae.encode(images).latent_dist.mode().float()
    return (mode - vae.config.shift_factor) * vae.config.scaling_factor


def build_transformer(
    latent_channels: int = 8, layers: int = 2, single_layers: int = 5, guidance: bool = True
) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * latent_channels,
        num_layers=layers,
        num_single_layers=single_layers,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=encoders.WIDTH,
        pooled_projection_dim=encoders.WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(16, 24, 24),
    )


def velocity(model, data: Data, x, sigma, caption, guidance) -> torch.Tensor:
    """One call of the transformer, as FluxPipeline makes it. sigma in [0, 1] and guidance: (B,)."""
    side = SIZE // 8
    pooled, tokens = data.text
    return model(
        hidden_states=x,
        timestep=sigma,
        guidance=guidance if model.config.guidance_embeds else None,
        pooled_projections=pooled[caption],
        encoder_hidden_states=tokens[caption],
        txt_ids=torch.zeros(MAX_LENGTH, 3, device=x.device),
        img_ids=FluxPipeline._prepare_latent_image_ids(1, side, side, x.device, x.dtype),
        return_dict=False,
    )[0]


def pipeline(parts: dict, transformer: FluxTransformer2DModel) -> FluxPipeline:
    """The schedule is the real Flux-dev's: its shift grows with the number of image tokens."""
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256,
        max_image_seq_len=4096,
        base_shift=0.5,
        max_shift=1.15,
        shift=3.0,
        use_dynamic_shifting=True,
    )
    return FluxPipeline(scheduler=scheduler, transformer=transformer, **parts)
