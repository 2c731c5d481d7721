"""wan2.1-mini: a video DiT with cross-attention to UMT5 and a causal 3D autoencoder, guided in two calls.

As the real Wan2.1-T2V: `WanTransformer3DModel`, `AutoencoderKLWan` (8x in space, 4x in time), and
classifier-free guidance by calling the transformer twice per step.
"""

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor
from transformers import T5Tokenizer, UMT5EncoderModel

from adatsq.world import encoders
from adatsq.world.data import Data
from adatsq.world.motion import FIELDS, FRAMES, parse_targets, render_clips, sample_clips
from adatsq.world.scenes import SIZE
from adatsq.world.text import Reading, fit_encoders
from adatsq.world.video_autoencoder import train_autoencoder  # noqa: F401  (the trainer's)

STAGES = ("text", "autoencoder", "base", "assemble", "score")
PARTS = {"vae": AutoencoderKLWan, "text_encoder": UMT5EncoderModel, "tokenizer": T5Tokenizer}
MAX_LENGTH = 16  # tokens; the longest caption has 13 words
TIME_SHIFT = 3.0  # of the schedule, as the real one's at 480p
SHIFT = 1.1  # its logarithm
SAMPLING = {
    "height": SIZE,
    "width": SIZE,
    "num_frames": FRAMES,
    "num_inference_steps": 25,
    "guidance_scale": 4.0,
    "max_sequence_length": MAX_LENGTH,
}


def train_encoders(seed: int, device: str, scenes: int = 40_000, **options) -> tuple[dict, float]:
    """({component: trained}, share of held-out captions parsed right)."""
    torch.manual_seed(seed)
    data = sample_clips(scenes, torch.Generator().manual_seed(seed))
    captions = data.captions()
    tokenizer = encoders.t5_tokenizer(captions, MAX_LENGTH)
    umt5 = encoders.umt5_encoder(tokenizer).to(device)
    ids, mask = encoders.tokenize(tokenizer, captions, MAX_LENGTH)
    if int(mask.sum(1).max()) == MAX_LENGTH and (ids[:, -1] > 1).any():
        raise ValueError(f"a caption takes more than {MAX_LENGTH} tokens: raise MAX_LENGTH")

    def said(ids):
        return ids != tokenizer.pad_token_id

    def features(ids):
        return umt5(ids, said(ids))[0], said(ids)

    readings = [Reading(umt5, ids.to(device), features, said)]
    right = fit_encoders(readings, parse_targets(data).to(device), FIELDS, captions, seed, **options)
    return {"text_encoder": umt5, "tokenizer": tokenizer}, right


def make_data(parts: dict, n: int, generator: torch.Generator) -> Data:
    """Latents (C, frames, h, w); text: (features,), zero behind the caption's end, as in WanPipeline."""
    vae = parts["vae"]
    mean, std = (
        torch.tensor(v, device=generator.device).reshape(1, -1, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )

    def encode(clips):
        video = render_clips(clips).transpose(1, 2) * 2 - 1  # (B, 3, frames, H, W)
        return (vae.encode(video).latent_dist.mode().float() - mean) / std

    def embed(captions):
        ids, mask = encoders.tokenize(parts["tokenizer"], captions, MAX_LENGTH)
        ids, mask = ids.to(vae.device), mask.to(vae.device)
        return (parts["text_encoder"](ids, mask)[0] * mask[..., None],)

    return Data(sample_clips, encode, embed, n, generator, chunk=512)


def build_transformer(layers: int = 8) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        text_dim=encoders.WIDTH,
        freq_dim=256,
        ffn_dim=1024,
        num_layers=layers,
        rope_max_seq_len=64,
    )


def velocity(model, data: Data, x, sigma, caption, guidance=None) -> Tensor:
    """One call of the transformer, as WanPipeline makes it. x: (B, C, frames, h, w); time runs to 1000."""
    return model(
        hidden_states=x,
        timestep=1000 * sigma,
        encoder_hidden_states=data.text[0][caption],
        return_dict=False,
    )[0]


def pipeline(parts: dict, transformer: WanTransformer3DModel) -> WanPipeline:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=1000,
        flow_shift=TIME_SHIFT,
    )
    return WanPipeline(scheduler=scheduler, transformer=transformer, **parts)
