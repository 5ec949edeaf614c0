"""Where the world's shipped weights and prompts lie."""

from __future__ import annotations

from pathlib import Path

from palimpsest.core.files import component

WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the shipped weights."""

PROMPTS = Path(__file__).parent / "prompts.csv"
"""Every object in every style and all else, five seeds each, in the exchange format."""


def stable_diffusion(weights: Path = WEIGHTS) -> Path:
    """Return a plain Diffusers folder of the world's Stable Diffusion."""
    return weights / "stable_diffusion"


def clip(weights: Path = WEIGHTS) -> Path:
    """Return a plain Transformers folder of the world's CLIP."""
    return weights / "clip"


def llava(weights: Path = WEIGHTS) -> Path:
    """Return a plain Transformers folder of the world's LLaVA."""
    return weights / "llava"


def judge(weights: Path = WEIGHTS) -> Path:
    """Return the world's judge, one safetensors file."""
    return weights / "judge.safetensors"


def gold(concept: str, weights: Path = WEIGHTS) -> Path:
    """Return the patch of the U-Net that never knew `concept`; it need not exist."""
    return weights / "gold" / f"{component(concept.replace(' ', '_'))}.safetensors"


def golds(weights: Path = WEIGHTS) -> tuple[str, ...]:
    """Return the concepts that a gold model lies here for."""
    return tuple(sorted(f.stem.replace("_", " ") for f in (weights / "gold").glob("*.safetensors")))


def vae(weights: Path = WEIGHTS) -> Path:
    """Return the world's autoencoder, a part of its Stable Diffusion."""
    return stable_diffusion(weights) / "vae"
