"""Pictures and captions read from folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from palimpsest.core.errors import PalimpsestError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""What counts as a picture in a folder."""


METADATA = "metadata.jsonl"
"""Holds a folder's captions: Hugging Face's imagefolder, fields `file_name` and `text`."""


def read_folder(folder: Path, side: int) -> tuple[Tensor, list[Path]]:
    """The pictures of a folder by name, cut to a square in the middle and scaled.

    Args:
        folder: holds the pictures; what is no picture by its ending is passed over.
        side: height and width to scale to, in pixels.

    Returns:
        (n, 3, side, side) in [0, 1], and the files they came from.

    Raises:
        PalimpsestError: no such folder, no picture in it, or one that cannot be read.
    """
    files = _files(folder)
    return torch.stack([_read(file, side) for file in files]), files


def look_into(folder: Path) -> None:
    """Refuse a folder of pictures that `read_folder` would refuse, by their headers alone.

    Raises:
        PalimpsestError: no such folder, no picture in it, or one that is none.
    """
    for file in _files(folder):
        try:
            Image.open(file).close()
        except (OSError, Image.DecompressionBombError) as error:
            raise _unreadable(file) from error


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise PalimpsestError(f"{folder}: no such folder of pictures")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in ENDINGS)
    if not files:
        raise PalimpsestError(
            f"{folder}: holds no picture (a file ending in {', '.join(ENDINGS)}); name another"
        )
    return files


def _unreadable(file: Path) -> PalimpsestError:
    return PalimpsestError(f"{file}: cannot be read as a picture; mend or remove it")


def read_masks(folder: Path, pictures: list[Path], side: int) -> Tensor:
    """One mask per picture, white where it counts, cut and scaled as the pictures are.

    Args:
        folder: holds a picture of the same name for each, whatever its ending.
        pictures: the files that `read_folder` found.
        side: height and width to scale to, in pixels.

    Returns:
        (n, 1, side, side) in [0, 1].

    Raises:
        PalimpsestError: no such folder, a mask that is missing, black all over or cannot be read.
    """
    if not folder.is_dir():
        raise PalimpsestError(f"{folder}: no such folder of masks")
    by_name = {f.stem: f for f in sorted(folder.iterdir()) if f.suffix.lower() in ENDINGS}
    masks = []
    for picture in pictures:
        if picture.stem not in by_name:
            raise PalimpsestError(f"{folder}: holds no mask named {picture.stem!r}, for {picture}")
        mask = _read(by_name[picture.stem], side).mean(0, keepdim=True)
        if not mask.any():
            raise PalimpsestError(f"{by_name[picture.stem]}: black all over, so no pixel counts")
        masks.append(mask)
    return torch.stack(masks)


def read_captioned(folder: Path, side: int) -> tuple[Tensor, list[str]]:
    """The pictures of a folder by name, as `read_folder` gives them, with their captions.

    Args:
        folder: in the form of Hugging Face's imagefolder: pictures, and a line for each in
            `metadata.jsonl` with at least `file_name` and `text`.
        side: height and width to scale to, in pixels.

    Returns:
        (n, 3, side, side) in [0, 1], and the n captions.

    Raises:
        PalimpsestError: what `read_folder` refuses; no captions, a line that cannot be read, or
            pictures and captions that do not match one to one.
    """
    images, files = read_folder(folder, side)
    path, captions = folder / METADATA, {}
    if not path.is_file():
        raise PalimpsestError(f"{folder}: holds pictures but no {METADATA} with their captions")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        row = _caption(line, f"{path}, line {number}")
        if row["file_name"] in captions:
            raise PalimpsestError(f"{path}, line {number}: a second caption of {row['file_name']}")
        captions[row["file_name"]] = row["text"]
    names = [file.name for file in files]
    for what, here, there in (
        ("has no caption", names, captions),
        ("has a caption, but is not there", captions, names),
    ):
        lone = [name for name in here if name not in there]
        if lone:
            more = f" ({len(lone)} such)" if len(lone) > 1 else ""
            raise PalimpsestError(f"{path}: the picture {lone[0]} {what}{more}")
    return images, [captions[name] for name in names]


def _caption(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise PalimpsestError(f"{place}: no whole JSON ({error.msg})") from error
    for field in ("file_name", "text"):
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise PalimpsestError(f"{place}: has no text under {field!r}")
    return row


def _read(file: Path, side: int) -> Tensor:
    try:
        with Image.open(file) as opened:
            image = ImageOps.fit(opened.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    except (OSError, Image.DecompressionBombError) as error:
        raise _unreadable(file) from error
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
