"""Captioned pictures of a source or of the world, forget sets cut by name, pictures by class."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from palimpsest.core.atomic import whole
from palimpsest.core.concepts import ask, says
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import Kind
from palimpsest.data.images import ENDINGS
from palimpsest.data.pairs import Labelled, Pairs
from palimpsest.data.sources import Record, Source, spoken


def resized(images: Tensor, side: int) -> Tensor:
    """Pictures, bytes or numbers in [0, 1], as bytes of the given size."""
    whole = images.dtype == torch.uint8
    if whole and images.shape[-2:] == (side, side):
        return images
    x = images.float() / 255 if whole else images.float()
    if len(x) and x.shape[-2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True)
    return (255 * x.clamp(0, 1)).round().to(torch.uint8).cpu()


def read_pairs(place: str, side: int, limit: int | None = None) -> Pairs:
    """Pictures and captions of a source, each picture cut to a square in the middle and scaled.

    Args:
        place: the source.
        side: height and width to scale to, in pixels.
        limit: take no more than so many.

    Raises:
        PalimpsestError: nothing that is known here lies there, or nothing of it can be used.
    """
    source, images, texts = Source(place), [], []
    broken: list[str] = []
    for record in source:
        if limit is not None and len(images) == limit:
            break
        image = _picture(record.data, side)
        if image is None:
            broken.append(f"{record.key}: not a picture")
            continue
        images.append(image)
        texts.append(record.text)
    skipped = (*source.skipped, *broken)
    if not images:
        why = f" (skipped {len(skipped)}, such as {skipped[0]})" if skipped else ""
        raise PalimpsestError(f"{place}: holds no captioned picture that can be used{why}")
    return Pairs(torch.stack(images), tuple(texts), place, skipped)


@dataclass(frozen=True)
class Cut:
    """What a cut took, left and skipped."""

    taken: int
    left: int
    skipped: tuple[str, ...]


def cut(place: str, names: Sequence[str], out: Path, rest: Path | None = None) -> Cut:
    """Cut the pictures whose caption holds one of the names out of a source, into a tar.

    Args:
        place: the source. It stays as it is.
        names: whole words, in any case.
        out: the tar to write, as webdataset's: a picture and a `.txt` each.
        rest: a second tar for all others; None drops them.

    Raises:
        PalimpsestError: a name that no caption holds, or a file that cannot be written or is the
            source itself.
    """
    source, met, counts = Source(place), dict.fromkeys(names, 0), [0, 0]
    for path in {p.resolve() for p in (out, rest) if p} & {p.resolve() for p in source.tars}:
        raise PalimpsestError(f"{path}: is what is cut from; write to another file")
    broken: list[str] = []
    with _tar(out) as taken, _tar(rest) as left:
        for record in source:
            if _picture(record.data, 8) is None:
                broken.append(f"{record.key}: not a picture")
                continue
            held = [name for name in names if says(record.text, name)]
            met |= {name: met[name] + 1 for name in held}
            _write(taken if held else left, counts[not held], record)
            counts[not held] += 1
        lacking = [name for name, n in met.items() if not n]
        if lacking:
            raise PalimpsestError(
                f"{place}: none of {sum(counts)} captions holds {lacking[0]!r}; use the words that "
                "the captions use"
            )
    return Cut(counts[0], counts[1], (*source.skipped, *broken))


@contextmanager
def _tar(path: Path | None) -> Iterator[tarfile.TarFile | None]:
    """A tar that appears whole or not at all; None writes nowhere."""
    if path is None:
        yield None
        return
    with whole(path) as part, tarfile.open(part, "w") as tar:
        yield tar


def _write(tar: tarfile.TarFile | None, number: int, record: Record) -> None:
    if tar is None:
        return
    for ending, data in ((record.ending, record.data), (".txt", record.text.encode())):
        info = tarfile.TarInfo(f"{number:08d}{ending}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def read_classes(root: Path, side: int, kind: Kind = "object") -> Labelled:
    """Pictures by class, in the way of ImageNet or CelebA: one folder a class, named after it.

    Raises:
        PalimpsestError: no such folder, no two classes in it, or a picture that cannot be read.
    """
    folders = sorted(f for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
    images, labels = [], []
    for folder in folders:
        for file in sorted(f for f in folder.iterdir() if f.suffix.lower() in ENDINGS):
            image = _picture(file.read_bytes(), side) if file.is_file() else None
            if image is None:
                raise PalimpsestError(f"{file}: cannot be read as a picture; mend or remove it")
            images.append(image)
            labels.append(spoken(folder.name))
    names = list(dict.fromkeys(labels))
    if len(names) < 2:
        raise PalimpsestError(
            f"{root}: needs two folders of pictures or more, each named after its class"
        )
    return Labelled(torch.stack(images), tuple(labels), {n: ask(n, kind)[0] for n in names})


def _picture(data: bytes, side: int) -> Tensor | None:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.fit(opened.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
