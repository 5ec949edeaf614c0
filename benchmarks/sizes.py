"""The models that are timed, and the pictures that they train on; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from palimpsest.models.diffusion import Diffusion, Sampling
from palimpsest.models.families.sd import StableDiffusion
from palimpsest.models.loading import load_model
from palimpsest.world.render import render


@dataclass(frozen=True)
class Shape:
    """A model in Stable Diffusion 1.x's form, with random weights."""

    sample: int
    """Height and width of a latent; pictures are eight times as large."""
    unet: tuple[int, int, int, int]
    """Channels of the U-Net's levels; 320, 640, 1280, 1280 in Stable Diffusion."""
    vae: tuple[int, int, int, int]
    """Channels of the autoencoder's levels."""
    text: int
    """Width of the text encoder."""
    text_layers: int
    """Depth of the text encoder."""


SHAPES = {
    "medium": Shape(32, (64, 128, 256, 256), (32, 64, 128, 128), 256, 6),
    "sd": Shape(64, (320, 640, 1280, 1280), (128, 256, 512, 512), 768, 12),
}
"""`sd` is Stable Diffusion 1.x's own shape."""

SIZES = ("world", *SHAPES)


def build(size: str, device: str) -> Diffusion:
    """The model of a size, in float32; all but the world's have random weights."""
    world = load_model("world", device=device)
    if size == "world":
        return world
    shape, tokenizer = SHAPES[size], world.tokenizer
    tokenizer.model_max_length = 77
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"unet": _unet(shape), "vae": _vae(shape), "text_encoder": _text(shape, tokenizer)}
    for name, part in parts.items():
        part.to(device)
        if name != "text_encoder":  # as `load_model` lays them
            part.to(memory_format=torch.channels_last)
    return StableDiffusion(
        name=size, tokenizer=tokenizer, scheduler=world.scheduler, sampling=Sampling(), **parts
    )


def _unet(shape: Shape) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=shape.sample,
        block_out_channels=shape.unet,
        cross_attention_dim=shape.text,
        attention_head_dim=8,
    )


def _vae(shape: Shape) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=shape.vae,
        layers_per_block=2,
        latent_channels=4,
        sample_size=8 * shape.sample,
    )


def _text(shape: Shape, tokenizer) -> CLIPTextModel:
    """With Stable Diffusion's vocabulary, of which the world's tokenizer says the first."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=shape.text,
            intermediate_size=4 * shape.text,
            num_hidden_layers=shape.text_layers,
            num_attention_heads=shape.text // 64,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pictures(folder: Path, n: int, pixels: int) -> Path:
    """A folder of `n` pictures of the parachute, drawn by the world's renderer."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        image = Image.fromarray(render("parachute", "photo", 3_000_000 + i))
        image.resize((pixels, pixels), Image.Resampling.BICUBIC).save(folder / f"{i:04}.png")
    return folder
