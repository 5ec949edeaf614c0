"""The world's models as plain Hugging Face classes, and how they are written to disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedModel,
)

from palimpsest.world.captions import all_captions

WINDOW = 16
"""Tokens of a prompt, begin and end included."""
TEXT_WIDTH = 256


def make_tokenizer() -> CLIPTokenizer:
    """A byte-level BPE in CLIP's form, its merges learnt from the world's captions."""
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    model.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model.decoder = decoders.BPEDecoder(suffix="</w>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    model.train_from_iterator(all_captions(), trainer)
    learnt = json.loads(model.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    pieces += ["".join(pair) for pair in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=WINDOW)  # pyright: ignore[reportArgumentType]


def clip_config(vocabulary: int) -> CLIPConfig:
    """A small CLIP: text 3 layers of 256, vision 4 layers of 128 on 8 × 8 patches."""
    return CLIPConfig(
        projection_dim=128,
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": WINDOW,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
            "projection_dim": 128,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
            "projection_dim": 128,
        },
    )


def image_processor() -> CLIPImageProcessorPil:
    """What turns a picture into CLIP's input."""
    size = {"shortest_edge": 64}
    crop = {"height": 64, "width": 64}
    return CLIPImageProcessorPil(
        size=size, crop_size=crop, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(n, window) token ids, padded and cut."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=WINDOW, return_tensors="pt"
    ).input_ids


def autoencoder() -> AutoencoderKL:
    """Three levels, 16 × 16 latents of 4 channels, no attention."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        block_out_channels=(24, 48, 96),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def unet_model() -> UNet2DConditionModel:
    """A U-Net with cross-attention at 8 × 8 and 4 × 4."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Pictures in [0, 1] to unscaled latents: the posterior's mean, on the CPU."""
    return vae.encode((2 * images - 1).to(vae.device)).latent_dist.mean.cpu()  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Pictures as the autoencoder gives them back, (n, 3, 64, 64) in [0, 1]."""
    parts = [vae.decode(encode(vae, x).to(vae.device)).sample.cpu() for x in images.split(50)]  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def save_model(model: torch.nn.Module, folder: Path) -> None:
    """Half-precision weights under a configuration that asks for float32.

    Transformers and Diffusers otherwise disagree on the type they load, and generation fails.
    """
    half = {name: p.data for name, p in model.named_parameters()}
    model.half().save_pretrained(folder)  # type: ignore[operator]
    for name, parameter in model.named_parameters():
        parameter.data = half[name].float()
    config = folder / "config.json"
    settings = json.loads(config.read_text())
    for key in ("dtype", "_name_or_path"):
        settings.pop(key, None)
    if isinstance(model, PreTrainedModel):  # Transformers' own; Diffusers keeps no type
        settings["dtype"] = "float32"
        for tower in ("text_config", "vision_config"):
            if tower in settings:
                settings[tower]["dtype"] = "float32"
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """CLIP's text tower, value for value, as the model class that Stable Diffusion uses."""
    encoder = CLIPTextModel(clip.config.text_config)  # pyright: ignore[reportArgumentType]
    tower = clip.text_model.state_dict()
    own = encoder.state_dict()
    prefix = "text_model." if any(name.startswith("text_model.") for name in own) else ""
    encoder.load_state_dict({f"{prefix}{name}": tensor for name, tensor in tower.items()})
    return encoder.eval()


def assemble(
    folder: Path,
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> None:
    """Write a Stable Diffusion pipeline in half precision that loads without a dtype."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    for name in ("vae", "text_encoder", "unet"):
        save_model(getattr(pipeline, name), folder / name)
    index = folder / "model_index.json"
    settings = json.loads(index.read_text())
    settings.pop("_name_or_path", None)
    index.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
