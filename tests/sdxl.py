"""A small Stable Diffusion XL: true classes and true names of parameters, random weights."""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from palimpsest.models.diffusion import Diffusion, Sampling
from palimpsest.models.loading import load_model
from palimpsest.world import assets
from palimpsest.world.make.networks import copy_tower

_KEPT = tempfile.TemporaryDirectory(prefix="sdxl-")
HOME = Path(_KEPT.name)
"""Where the folders are; gone when the process ends."""
CLIP = HOME / "clip"
WIDTHS = (64, 96)
"""Of the two text encoders; 768 and 1280 in the published model."""
POOLED = 48


def tower_config(tokenizer: CLIPTokenizer, width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act=activation,
        projection_dim=POOLED,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=sum(WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + POOLED,
    )


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=64,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        scaling_factor=0.13025,
        force_upcast=True,
    )


def pipeline(seed: int = 0, **settings: Any) -> StableDiffusionXLPipeline:
    """Build one; its tokenizers have the world's vocabulary, and the second pads with `!`."""
    place = assets.stable_diffusion() / "tokenizer"
    first = CLIPTokenizer.from_pretrained(place)
    second = CLIPTokenizer.from_pretrained(place, pad_token="!")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            "text_encoder": CLIPTextModel(tower_config(first, WIDTHS[0], "quick_gelu")),
            "text_encoder_2": CLIPTextModelWithProjection(tower_config(second, WIDTHS[1], "gelu")),
            "unet": unet(),
            "vae": vae(),
        }
    table = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",  # explicit, so that it stays for the next scheduler
    )
    return StableDiffusionXLPipeline(
        **parts,
        tokenizer=first,
        tokenizer_2=second,
        scheduler=EulerDiscreteScheduler.from_config(table.config),
        add_watermarker=False,
        **settings,
    )


@cache
def folder(zeros: bool = True) -> Path:
    """Write one as a Diffusers folder, once."""
    place = HOME / ("zeros" if zeros else "text")
    pipeline(force_zeros_for_empty_prompt=zeros).save_pretrained(place)
    return place


@cache
def write_clip() -> None:
    """Write a CLIP whose text tower is the first text encoder."""
    made = pipeline()
    config = CLIPConfig(
        text_config=made.text_encoder.config.to_dict(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
        },
        projection_dim=POOLED,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        clip = CLIPModel(config)
    copy_tower(made.text_encoder, clip.text_model, "text_model.")
    clip.save_pretrained(CLIP)
    made.tokenizer.save_pretrained(CLIP)
    shutil.copy(assets.clip() / "preprocessor_config.json", CLIP)


def load(dtype: str = "float32", zeros: bool = True, **how: Any) -> Diffusion:
    """Load one, and see that its first tower's CLIP is there."""
    write_clip()
    sampling = Sampling(steps=2, guidance=3.0)
    return load_model(str(folder(zeros)), **{"dtype": dtype, "sampling": sampling, **how})


if __name__ == "__main__":
    (place,) = sys.argv[1:]
    pipeline(force_zeros_for_empty_prompt=True).save_pretrained(place)
