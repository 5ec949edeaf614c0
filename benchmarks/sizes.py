"""The models that are timed, and the pictures that they train on; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModel

from palimpsest.models.diffusion import Diffusion
from palimpsest.models.families.sd import StableDiffusion
from palimpsest.models.loading import load_model
from palimpsest.models.shapes import filled, true_shape
from palimpsest.world import assets
from palimpsest.world.make.networks import copy_tower
from palimpsest.world.render import render

SIZES = ("world", "medium", "sd", "sdxl")
"""`medium` lies between the world and `sd`, Stable Diffusion 1.4's own shape; `sdxl` is SDXL's."""


def build(size: str, device: str, dtype: str = "float32") -> Diffusion:
    """The model of a size; all but the world's have random weights."""
    if size == "world":
        return load_model("world", device=device, dtype=dtype)
    if size == "medium":
        return _medium(device)
    return true_shape("sdxl" if size == "sdxl" else "sd14", device=device, dtype=dtype)


def _medium(device: str) -> Diffusion:
    """Latents of 32 × 32, channels 64 to 256, in Stable Diffusion 1.x's form."""
    world = load_model("world")
    tokenizer = world.tokenizer
    tokenizer.model_max_length = 77
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet: Any = UNet2DConditionModel(
            sample_size=32,
            block_out_channels=(64, 128, 256, 256),  # type: ignore[arg-type]
            cross_attention_dim=256,
            attention_head_dim=8,
        )
        vae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 64, 128, 128),  # type: ignore[arg-type]
            layers_per_block=2,
            sample_size=256,
        )
        text_encoder: Any = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,  # the world's tokenizer says the first of them
                hidden_size=256,
                intermediate_size=1024,
                num_hidden_layers=6,
                num_attention_heads=4,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    for part in (unet, vae):  # as `load_model` lays them
        part.to(device=device, memory_format=torch.channels_last)
    parts: Any = {"unet": unet, "vae": vae, "text_encoder": text_encoder.to(device)}
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=world.scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    return StableDiffusion("medium", pipeline, StableDiffusion.usual)


def clip_of(model: Diffusion, folder: Path) -> Path:
    """Write a CLIP of ViT-L/14's shape whose text tower is the model's first; SLUG reads it."""
    encoder: Any = model.component("text_encoder")
    own = encoder.config.to_dict()
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": 768,
    }
    config = CLIPConfig(text_config=own, vision_config=vision, projection_dim=768)
    with torch.device("meta"):
        clip = CLIPModel(config)
    clip = filled(clip.to(encoder.dtype), "cpu")
    copy_tower(encoder, clip.text_model, "text_model.")
    clip.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    looks: Any = CLIPImageProcessor.from_pretrained(assets.clip())
    looks.size, looks.crop_size = {"shortest_edge": 224}, {"height": 224, "width": 224}
    looks.save_pretrained(folder)
    return folder


def pictures(folder: Path, n: int, pixels: int) -> Path:
    """A folder of `n` pictures of the parachute, drawn by the world's renderer."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        image = Image.fromarray(render("parachute", "photo", 3_000_000 + i))
        image.resize((pixels, pixels), Image.Resampling.BICUBIC).save(folder / f"{i:04}.png")
    return folder
