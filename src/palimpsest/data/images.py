"""Decode pictures and resize them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""What counts as a picture in a folder."""


def pictures_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the files below a folder that are pictures by their ending, in the order of names."""
    return sorted(file for file in folder.glob(pattern) if file.suffix.lower() in ENDINGS)


def decode(data: bytes, side: int) -> Tensor | None:
    """Decode a picture, cut it to a square in the middle and scale it by Lanczos' filter.

    Args:
        data: the contents of a file.
        side: height and width to scale to, in pixels.

    Returns:
        (3, side, side) bytes; None if the data is no whole picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.fit(opened.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def resized(images: Tensor, side: int) -> Tensor:
    """Resize square pictures, bytes or numbers in [0, 1], by antialiased bicubic interpolation.

    Returns:
        (n, 3, side, side) of the same sort; the pictures themselves if they have that size.
    """
    if images.shape[-2:] == (side, side) or not len(images):
        return images
    x = F.interpolate(as_floats(images), (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return as_bytes(x) if images.dtype == torch.uint8 else x


def as_floats(images: Tensor) -> Tensor:
    """Return pictures, bytes or numbers in [0, 1], as float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def as_bytes(images: Tensor) -> Tensor:
    """Return pictures in [0, 1] as bytes on the CPU."""
    return (255 * images.float().clamp(0, 1)).round().to(torch.uint8).cpu()
