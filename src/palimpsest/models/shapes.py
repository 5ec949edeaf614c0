"""The true shapes of Stable Diffusion 1.4, 2.1 and XL, without weights.

They serve where shapes alone matter: memory is counted on the meta device, and what a method takes
at true size is measured with random weights. Nothing is downloaded.
"""

from __future__ import annotations

from functools import cache
from inspect import signature
from typing import Any, Literal, get_args

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.families import FAMILIES

Shape = Literal["sd14", "sd21", "sdxl"]
VOCABULARY = 49_408
"""Tokens of CLIP."""

UNETS: dict[Shape, dict[str, Any]] = {
    "sd14": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
"""What their U-Nets' configurations say beyond the defaults of the class."""

TOWERS: dict[str, dict[str, Any]] = {
    "ViT-L": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "ViT-H": {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16},
    "ViT-bigG": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20},
}
TOWER: dict[Shape, tuple[str, ...]] = {
    "sd14": ("ViT-L",),
    "sd21": ("ViT-H",),
    "sdxl": ("ViT-L", "ViT-bigG"),
}
"""The text encoders of each."""


@cache
def tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """Return a tokenizer of CLIP's size: every word falls into letters, the rest are fillers."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = [*bytes_to_unicode().values()]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += [f"filler{i}</w>" for i in range(VOCABULARY - len(pieces) - 2)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=77)


def true_shape(
    shape: Shape, *, device: str = "meta", dtype: str = "bfloat16", latent: int | None = None
) -> Diffusion:
    """Return a model of a true shape; on any device but `meta` with small random weights.

    Args:
        shape: whose.
        device: where; on `meta` it has shapes and no numbers.
        dtype: precision of its weights; SDXL's autoencoder is in float32, as it asks for.
        latent: height and width of its latents, the published one when left out; the networks are
            the same.

    Raises:
        PalimpsestError: there is no such shape.
    """
    if shape not in get_args(Shape):
        raise PalimpsestError(f"no shape {shape!r}; there are {', '.join(get_args(Shape))}")
    import diffusers

    kind: Any = FAMILIES.load("sdxl" if shape == "sdxl" else "sd")
    precision: torch.dtype = getattr(torch, dtype)
    own = {**UNETS[shape], **({"sample_size": latent} if latent else {})}
    with torch.device("meta"):
        parts: dict[str, Any] = {"unet": UNet2DConditionModel(**own), "vae": _vae(shape)}
        for i, name in enumerate(TOWER[shape]):
            parts["text_encoder" + (f"_{i + 1}" if i else "")] = _tower(name)
    parts = {n: filled(nn.Module.to(part, precision), device) for n, part in parts.items()}
    parts["tokenizer"] = tokenizer()
    if shape == "sdxl":
        parts["tokenizer_2"] = tokenizer("!")
    predicts = "v_prediction" if shape == "sd21" else "epsilon"
    table = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=predicts,
    )
    pipeline = getattr(diffusers, kind.made_of)(**parts, scheduler=table, **_without(kind))
    return kind(shape, pipeline, kind.usual)


def _without(kind: Any) -> dict[str, Any]:
    """Return the parts that a pipeline of Stable Diffusion is made without."""
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return none if kind.without else {"add_watermarker": False}


def _tower(name: str) -> nn.Module:
    """Return a text encoder; the second of SDXL has a projection."""
    own, big = TOWERS[name], name == "ViT-bigG"
    width = own["hidden_size"]
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        intermediate_size=4 * width,
        projection_dim=width if big else 768,
        hidden_act="quick_gelu" if name == "ViT-L" else "gelu",
        **own,
    )
    return (CLIPTextModelWithProjection if big else CLIPTextModel)(config)


def _vae(shape: Shape) -> AutoencoderKL:
    """Return the autoencoder, which is of one shape in all three."""
    config: dict[str, Any] = {
        "sample_size": 8 * UNETS[shape]["sample_size"],
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 4,
        "scaling_factor": 0.13025 if shape == "sdxl" else 0.18215,
        "force_upcast": shape == "sdxl",
    }
    return AutoencoderKL(**config)


def filled(part: Any, device: str) -> Any:
    """Return a network of the meta device on another one, with random weights of a fixed seed."""
    if device == "meta":
        return part
    tables = {name: buffer for name, buffer in part.named_buffers()}
    part = part.to_empty(device=device)
    g = generator(0, device=device)
    with torch.no_grad():
        for name, p in part.named_parameters():
            if p.ndim > 1:
                p.uniform_(-1, 1, generator=g).mul_(p[0].numel() ** -0.5)
            else:
                p.fill_(float(name.endswith("weight")))
        for name, buffer in part.named_buffers():  # CLIP's positions are the only ones
            if name in tables and buffer.dtype == torch.int64:
                buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand(buffer.shape))
    return part


def shapes_of(model: Any, dtype: torch.dtype | None = None) -> Diffusion | None:
    """Return the same model on the meta device; None of a family that no pipeline is made of.

    Args:
        model: of any device.
        dtype: precision of the weights; the model's own when left out.
    """
    if not model.made_of:
        return None
    pipeline = model.pipeline()
    parts = dict(pipeline.components)
    for name, own in model.networks_by_name.items():
        with torch.device("meta"):
            config: Any = own.config
            made = type(own).from_config(config) if hasattr(own, "from_config") else None  # type: ignore[attr-defined]
            bare = type(own)(config) if made is None else made
        parts[name] = nn.Module.to(bare, dtype or next(own.parameters()).dtype)
    kind: Any = type(pipeline)
    given = {**pipeline.config, **parts}
    made = kind(**{n: given[n] for n in signature(kind).parameters if n in given})
    twin = type(model)(model.name, made, model.sampling)
    twin.use_memory(model.memory)
    return twin
