"""Read captioned pictures, pictures by class, plain folders and masks; cut out forget sets."""

from __future__ import annotations

import filecmp
import io
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from palimpsest.core.atomic import whole
from palimpsest.core.concepts import ask, says
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import read_bytes
from palimpsest.core.kinds import Kind
from palimpsest.data.benchmarks import shown
from palimpsest.data.images import (
    ENDINGS,
    as_floats,
    decode,
    look,
    pictures_in,
    read_picture,
    square,
)
from palimpsest.data.pairs import Labelled, Pairs
from palimpsest.data.sources import CaptionedFile, Source

if TYPE_CHECKING:
    from torch import Tensor


def read_pairs(
    place: str | Path, side: int, *, limit: int | None = None, strict: bool = False
) -> Pairs:
    """Read pictures and captions of a source, each picture as `decode` cuts and scales it.

    Args:
        place: the source (see `Source`).
        side: height and width to scale to, in pixels.
        limit: take no more than so many.
        strict: refuse a source with anything that cannot be used; otherwise that is skipped, and
            named in `Pairs.skipped`.

    Raises:
        PalimpsestError: nothing that is known here lies there, nothing of it can be used, or, if
            strict, something cannot.
    """
    source, images, texts = Source(str(place)), [], []
    broken: list[str] = []
    for file in source:
        if limit is not None and len(images) == limit:
            break
        image = decode(file.data, side)
        if image is None:
            broken.append(f"{file.key}: not a picture")
            continue
        images.append(image)
        texts.append(file.text)
    skipped = [*source.skipped, *broken]
    if strict and skipped:
        more = f" ({len(skipped)} such)" if len(skipped) > 1 else ""
        raise PalimpsestError(f"{skipped[0]}{more}; mend it or take it out")
    if not images:
        why = f" (skipped {len(skipped)}, such as {skipped[0]})" if skipped else ""
        raise PalimpsestError(f"{place}: holds no captioned picture that can be used{why}")
    return Pairs(torch.stack(images), tuple(texts), str(place), tuple(skipped))


def read_classes(
    root: Path, side: int, kind: Kind = "object", names: Sequence[str] = ()
) -> Labelled:
    """Read pictures by class: folders named after theirs, ImageNet's synsets, or CelebA.

    Raises:
        PalimpsestError: no such folder, no two classes in it, a picture that cannot be read, or as
            of `benchmarks.shown`.
    """
    found = shown(root, names)
    files, labels = [file for file, _ in found], tuple(name for _, name in found)
    prompts = {name: ask(name, kind)[0] for name in labels}
    if len(prompts) < 2:
        raise PalimpsestError(
            f"{root}: needs two folders of pictures or more, each named after its class"
        )
    return Labelled(torch.stack([_picture(file, side) for file in files]), labels, prompts)


# --- pictures without captions ---


def read_folder(folder: Path, side: int) -> tuple[Tensor, list[Path]]:
    """Read the pictures of a folder in the order of their names, as `decode` cuts and scales them.

    Args:
        folder: contains the pictures; what is no picture by its ending is passed over.
        side: height and width to scale to, in pixels.

    Returns:
        (n, 3, side, side) in [0, 1], and the files they came from.

    Raises:
        PalimpsestError: no such folder, no picture in it, or one that cannot be read.
    """
    files = _files(folder)
    return as_floats(torch.stack([_picture(file, side) for file in files])), files


def look_into(folder: Path) -> None:
    """Refuse a folder of pictures that `read_folder` would refuse, by their headers alone.

    Raises:
        PalimpsestError: no such folder, no picture in it, or one that is none.
    """
    for file in _files(folder):
        try:
            look(read_bytes(file)).close()
        except ValueError as error:
            told = f"{file}: cannot be read as a picture ({error}); mend or remove it"
            raise PalimpsestError(told) from error


def read_masks(folder: Path, pictures: list[Path], side: int) -> Tensor:
    """Read one mask per picture, white where it counts, cut and scaled as the pictures are.

    Args:
        folder: contains a picture of the same name for each, whatever its ending.
        pictures: the files that `read_folder` found.
        side: height and width to scale to, in pixels.

    Returns:
        (n, 1, side, side) in [0, 1].

    Raises:
        PalimpsestError: no such folder, a mask that is missing, black all over or cannot be read.
    """
    if not folder.is_dir():
        raise PalimpsestError(f"{folder}: no such folder of masks")
    by_name = {file.stem: file for file in pictures_in(folder)}
    masks = []
    for picture in pictures:
        if picture.stem not in by_name:
            raise PalimpsestError(f"{folder}: holds no mask named {picture.stem!r}, for {picture}")
        mask = as_floats(_picture(by_name[picture.stem], side)).mean(0, keepdim=True)
        if not mask.any():
            raise PalimpsestError(f"{by_name[picture.stem]}: black all over, so no pixel counts")
        masks.append(mask)
    return torch.stack(masks)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise PalimpsestError(f"{folder}: no such folder of pictures")
    files = pictures_in(folder)
    if not files:
        raise PalimpsestError(
            f"{folder}: holds no picture (a file ending in {', '.join(ENDINGS)}); name another"
        )
    return files


def _picture(file: Path, side: int) -> Tensor:
    """Return (3, side, side) bytes of a file."""
    try:
        return square(read_picture(file), side)
    except PalimpsestError as error:
        raise PalimpsestError(f"{error}; mend or remove it") from error


# --- forget sets ---


@dataclass(frozen=True)
class Cut:
    """What a cut took, left and skipped."""

    taken: int
    left: int
    skipped: tuple[str, ...]


def cut(
    place: str,
    names: Sequence[str],
    out: Path,
    rest: Path | None = None,
    *,
    over: bool = True,
) -> Cut:
    """Cut the pictures whose caption holds one of the names out of a source, into a tar.

    Args:
        place: the source. It stays as it is.
        names: whole words, in any case.
        out: the tar to write, as webdataset's: a picture and a `.txt` each.
        rest: a second tar for all others; None drops them. It comes first, `out` last.
        over: write over tars that exist; without, one may be there that holds the same.

    Raises:
        PalimpsestError: a name that no caption holds, or a file that cannot be written or is the
            source itself.
    """
    source, met, counts = Source(place), dict.fromkeys(names, 0), [0, 0]
    for path in {p.resolve() for p in (out, rest) if p} & {p.resolve() for p in source.tars}:
        raise PalimpsestError(f"{path}: is what is cut from; write to another file")
    broken: list[str] = []
    with _tar(out, over) as taken, _tar(rest, over) if rest else nullcontext() as left:
        for file in source:
            if decode(file.data, 8) is None:
                broken.append(f"{file.key}: not a picture")
                continue
            held = [name for name in names if says(file.text, name)]
            met |= {name: met[name] + 1 for name in held}
            _write(taken if held else left, counts[not held], file)
            counts[not held] += 1
        lacking = [name for name, n in met.items() if not n]
        if lacking:
            raise PalimpsestError(
                f"{place}: none of {sum(counts)} captions holds {lacking[0]!r}; use the words that "
                "the captions use"
            )
    return Cut(counts[0], counts[1], (*source.skipped, *broken))


@contextmanager
def _tar(path: Path, over: bool) -> Iterator[tarfile.TarFile]:
    """Open a tar that appears whole or not at all."""
    with whole(path) as part:
        with tarfile.open(part, "w") as tar:
            yield tar
        if not over and path.exists() and not filecmp.cmp(part, path, shallow=False):
            raise PalimpsestError(f"{path}: exists and holds something else; use --force")


def _write(tar: tarfile.TarFile | None, number: int, file: CaptionedFile) -> None:
    if tar is None:
        return
    for ending, data in ((file.ending, file.data), (".txt", file.text.encode())):
        info = tarfile.TarInfo(f"{number:08d}{ending}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
