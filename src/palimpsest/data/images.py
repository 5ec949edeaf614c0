"""Decode pictures and resize them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import read_bytes

if TYPE_CHECKING:
    from torch import Tensor

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""What counts as a picture in a folder."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What is decoded, whatever the ending."""
MOST_PIXELS = 1 << 26
"""A picture of more is refused: 8,192 by 8,192."""


def pictures_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the files below a folder that are pictures by their ending, in the order of names."""
    return sorted(file for file in folder.glob(pattern) if file.suffix.lower() in ENDINGS)


def look(data: bytes) -> Image.Image:
    """Open a picture by its header alone, from the contents of a file.

    Raises:
        ValueError: it is none of `FORMATS`, or of more than `MOST_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # broken data raises whatever Pillow's readers stumble over
        raise ValueError(f"no picture ({', '.join(FORMATS)} are read)") from error
    if image.width * image.height > MOST_PIXELS:
        size = f"{image.width} × {image.height}"
        raise ValueError(f"{size} pixels; at most {MOST_PIXELS:,} are read")
    return image


def rgb(data: bytes) -> Image.Image:
    """Return a picture in red, green and blue, from the contents of a file.

    Raises:
        ValueError: it is no whole picture that `look` opens.
    """
    with look(data) as opened:
        try:
            return opened.convert("RGB")
        except Exception as error:  # likewise
            raise ValueError("no whole picture") from error


def read_picture(file: Path) -> Image.Image:
    """Return the picture of a file in red, green and blue.

    Raises:
        PalimpsestError: no such file, no regular one, or no whole picture.
    """
    try:
        return rgb(read_bytes(file))
    except ValueError as error:
        raise PalimpsestError(f"{file}: cannot be read as a picture ({error})") from error


def decode(data: bytes, side: int) -> Tensor | None:
    """Decode a picture, cut it to a square in the middle and scale it by Lanczos' filter.

    Args:
        data: the contents of a file.
        side: height and width to scale to, in pixels.

    Returns:
        (3, side, side) bytes; None if the data is no whole picture, or one that is too large.
    """
    try:
        return square(rgb(data), side)
    except ValueError:
        return None


def square(image: Image.Image, side: int) -> Tensor:
    """Return a picture in red, green and blue as `decode` does."""
    fit = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fit)).permute(2, 0, 1).contiguous()


def resized(images: Tensor, side: int) -> Tensor:
    """Resize square pictures, bytes or numbers in [0, 1], by antialiased bicubic interpolation.

    Returns:
        (n, 3, side, side) of the same sort; the pictures themselves if they have that size.
    """
    if images.shape[-2:] == (side, side) or not len(images):
        return images
    x = torch.nn.functional.interpolate(
        as_floats(images), (side, side), mode="bicubic", antialias=True
    ).clamp(0, 1)
    return as_bytes(x) if images.dtype == torch.uint8 else x


def as_floats(images: Tensor) -> Tensor:
    """Return pictures, bytes or numbers in [0, 1], as float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def as_bytes(images: Tensor) -> Tensor:
    """Return pictures in [0, 1] as bytes on the CPU."""
    return (255 * images.float().clamp(0, 1)).round().to(torch.uint8).cpu()
