"""The world's models as plain Hugging Face classes, and how they are written to disk."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedModel,
)

from palimpsest.core.atomic import whole_folder, write_text
from palimpsest.core.files import beside, read_object
from palimpsest.models.text import padded
from palimpsest.world.captions import all_captions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        CLIPModel,
    )

SETTINGS: dict[str, dict[str, Any]] = json.loads(beside(__file__, "networks.json"))
"""Network → the settings that its class is made with."""
WINDOW: int = SETTINGS["clip"]["text_config"]["max_position_embeddings"]
"""Tokens of a prompt, begin and end included."""


def make_tokenizer() -> CLIPTokenizer:
    """Return a byte-level BPE in CLIP's form, its merges learnt from the world's captions."""
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
    """Return a small CLIP: text 3 layers of 256, vision 4 layers of 128 on 8 × 8 patches."""
    end = vocabulary - 1
    own = {"vocab_size": vocabulary, "bos_token_id": end - 1}
    own |= {"eos_token_id": end, "pad_token_id": end}
    settings = SETTINGS["clip"]
    return CLIPConfig(**settings | {"text_config": settings["text_config"] | own})


def image_processor() -> CLIPImageProcessorPil:
    """Return what turns a picture into CLIP's input."""
    return CLIPImageProcessorPil(**SETTINGS["image_processor"])


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return (n, window) token ids, padded and cut."""
    return padded(tokenizer, texts, WINDOW)


def autoencoder() -> AutoencoderKL:
    """Return three levels, 16 × 16 latents of 4 channels, no attention."""
    return AutoencoderKL(**SETTINGS["autoencoder"])


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule."""
    return DDIMScheduler(**SETTINGS["scheduler"])


def unet_model() -> UNet2DConditionModel:
    """Return a U-Net with cross-attention at 8 × 8 and 4 × 4."""
    return UNet2DConditionModel(**SETTINGS["unet"])


def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return pictures in [0, 1] to unscaled latents: the posterior's mean, on the CPU."""
    return vae.encode((2 * images - 1).to(vae.device)).latent_dist.mean.cpu()  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return pictures as the autoencoder gives them back, (n, 3, 64, 64) in [0, 1]."""
    parts = [vae.decode(encode(vae, x).to(vae.device)).sample.cpu() for x in images.split(50)]  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def save_model(model: torch.nn.Module, folder: Path) -> None:
    """Half-precision weights under a configuration that asks for float32.

    Transformers and Diffusers otherwise disagree on the type they load, and generation fails.
    """
    deepcopy(model).half().save_pretrained(folder)  # type: ignore[operator]
    _rewrite(folder / "config.json", typed=isinstance(model, PreTrainedModel))


def _rewrite(config: Path, typed: bool = False) -> None:
    """Take the place it was loaded from out of a configuration; if typed, ask for float32."""
    settings = read_object(config)
    settings.pop("_name_or_path", None)
    if typed:  # Transformers' own; Diffusers keeps no type
        towers = [settings[t] for t in ("text_config", "vision_config") if t in settings]
        for own in (settings, *towers):
            own["dtype"] = "float32"
    write_text(config, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """CLIP's text tower, value for value, as the model class that Stable Diffusion uses."""
    encoder = CLIPTextModel(clip.config.text_config)  # pyright: ignore[reportArgumentType]
    copy_tower(clip.text_model, encoder, "text_model.")
    return encoder.eval()


def copy_tower(tower: torch.nn.Module, into: torch.nn.Module, prefix: str) -> None:
    """Copy a tower of CLIP into a model whose names may begin with `prefix`."""
    own = prefix if any(name.startswith(prefix) for name in into.state_dict()) else ""
    into.load_state_dict({f"{own}{name}": t for name, t in tower.state_dict().items()})


def assemble(
    folder: Path,
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> None:
    """Write a Stable Diffusion pipeline in half precision that loads without a dtype."""
    parts = {"vae": vae, "text_encoder": encoder, "unet": unet}
    rest: Any = {"safety_checker": None, "feature_extractor": None, "scheduler": scheduler()}
    pipeline = StableDiffusionPipeline(
        **parts, **rest, tokenizer=tokenizer, requires_safety_checker=False
    )
    with whole_folder(folder) as made:
        pipeline.save_pretrained(made)
        for name, part in parts.items():
            save_model(part, made / name)
        _rewrite(made / "model_index.json")
