"""Captioned pictures from wherever they lie, forget sets cut out of them, and the world's own.

A source is a folder of pictures (captions in `metadata.jsonl`, or each in a `.txt` beside its
picture), a tree `{style}/{object}/{picture}`, a CSV, or webdataset tars (a `.jpg` and a `.txt` of
one stem): one file, a folder of them or a pattern such as `laion/*.tar`.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from palimpsest.concepts import ask, says
from palimpsest.files import whole
from palimpsest.models.pairs import Labelled, Pairs
from palimpsest.models.pictures import ENDINGS, METADATA
from palimpsest.optimise import generator
from palimpsest.types import Kind, PalimpsestError

IMAGE_COLUMNS = ("image", "file_name", "filepath", "path")
TEXT_COLUMNS = ("text", "caption", "title")
TREE = "a {object} image in {style} style"
"""The caption of a picture in a tree of styles and objects (UnlearnCanvas' prompt)."""


@dataclass(frozen=True)
class Record:
    """One picture as it lies there, with its caption."""

    key: str
    data: bytes
    text: str
    ending: str = ".jpg"


@dataclass
class Source:
    """A place of captioned pictures. Reading it counts and names what could not be used."""

    place: str
    skipped: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Record]:
        """The pictures in a fixed order.

        Raises:
            PalimpsestError: nothing lies there that is known here.
        """
        self.skipped.clear()
        path = Path(self.place)
        if path.suffix == ".csv":
            return self._of_csv(path)
        if path.suffix == ".tar" or glob.has_magic(self.place):
            return self._of_tars(sorted(map(Path, glob.glob(self.place))))
        if not path.is_dir():
            raise PalimpsestError(
                f"{self.place}: neither a folder of captioned pictures, nor a .csv, nor a .tar"
            )
        tars = sorted(path.glob("*.tar"))
        if tars:
            return self._of_tars(tars)
        if any(f.suffix.lower() in ENDINGS for f in path.iterdir()):
            return self._of_folder(path)
        return self._of_tree(path)

    def _of_folder(self, folder: Path) -> Iterator[Record]:
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in ENDINGS)
        known = _metadata(folder / METADATA) if (folder / METADATA).is_file() else None
        for file in files:
            beside = file.with_suffix(".txt")
            text = known.get(file.name) if known is not None else _read_text(beside)
            yield from self._record(str(file), file, text)

    def _of_tree(self, root: Path) -> Iterator[Record]:
        files = sorted(f for f in root.glob("*/*/*") if f.suffix.lower() in ENDINGS)
        if not files:
            raise PalimpsestError(
                f"{root}: holds no pictures, no .tar and no tree of style/object/picture"
            )
        for file in files:
            style, thing = (_spoken(part.name) for part in (file.parents[1], file.parents[0]))
            text = TREE.format(object=thing, style=style)
            yield from self._record(str(file), file, text)

    def _of_csv(self, path: Path) -> Iterator[Record]:
        try:
            rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
        except FileNotFoundError:
            raise PalimpsestError(f"{path}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise PalimpsestError(f"{path}: cannot be read as UTF-8 text ({error})") from error
        image, text = (_column(rows, names, path) for names in (IMAGE_COLUMNS, TEXT_COLUMNS))
        for number, row in enumerate(rows, start=2):
            key = f"{path}, row {number}"
            yield from self._record(key, path.parent / (row[image] or ""), row[text])

    def _record(self, key: str, file: Path, text: str | None) -> Iterator[Record]:
        if not text or not text.strip():
            self.skipped.append(f"{key}: no caption")
            return
        try:
            yield Record(key, file.read_bytes(), text.strip(), file.suffix.lower())
        except OSError as error:
            self.skipped.append(f"{key}: {error.strerror or error}")

    def _of_tars(self, paths: Sequence[Path]) -> Iterator[Record]:
        if not paths or not paths[0].is_file():
            raise PalimpsestError(f"{self.place}: no such .tar")
        for path in paths:
            stem, parts = "", {}
            for name, data in self._members(path):
                folder, _, base = name.rpartition("/")
                start, _, ending = base.partition(".")
                if f"{folder}/{start}" != stem:  # a sample's members follow one another
                    yield from self._sample(path, stem, parts)
                    stem, parts = f"{folder}/{start}", {}
                parts["." + ending.lower()] = data
            yield from self._sample(path, stem, parts)

    def _members(self, path: Path) -> Iterator[tuple[str, bytes]]:
        """Names and contents of a tar's files, as far as it can be read."""
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.isfile() else None
                    if file is not None:
                        yield member.name, file.read()
                if not _ended(path):
                    raise EOFError("it is cut short")
        except (tarfile.TarError, EOFError, OSError) as error:
            self.skipped.append(f"{path}: the rest of the tar ({error})")

    def _sample(self, path: Path, stem: str, parts: dict[str, bytes]) -> Iterator[Record]:
        key = f"{path}, {stem.lstrip('/')}"
        ending = next((e for e in ENDINGS if e in parts), None)
        if not parts:
            return
        try:
            text = parts[".txt"].decode() if ".txt" in parts else ""
        except UnicodeDecodeError:
            text = ""
        if ending is None or not text.strip():
            self.skipped.append(f"{key}: no {'picture' if ending is None else 'caption'}")
            return
        yield Record(key, parts[ending], text.strip(), ending)


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
        PalimpsestError: a name that no caption holds, or a file that cannot be written.
    """
    source, met, counts = Source(place), dict.fromkeys(names, 0), [0, 0]
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
            image = _picture(file.read_bytes(), side)
            if image is None:
                raise PalimpsestError(f"{file}: cannot be read as a picture; mend or remove it")
            images.append(image)
            labels.append(_spoken(folder.name))
    names = list(dict.fromkeys(labels))
    if len(names) < 2:
        raise PalimpsestError(
            f"{root}: needs two folders of pictures or more, each named after its class"
        )
    return Labelled(torch.stack(images), tuple(labels), {n: ask(n, kind)[0] for n in names})


# --- the world's own ---


def gather(
    place: str, side: int, names: Sequence[str], n: int, seed: int, *, without: bool = False
) -> Pairs:
    """So many pairs of a source, or the world's own, in an order that the seed fixes.

    Args:
        place: a source, or `world`.
        side: height and width to scale to, in pixels.
        names: for the world: what the pictures show, or what they do not show.
        n: how many at most.
        seed: fixes the order, and the world's captions.
        without: whether `names` are left out instead.
    """
    if place != "world":
        return read_pairs(place, side).shuffled(seed, n)
    pairs = world_pairs(names, n, seed, without=without)
    return replace(pairs, images=resized(pairs.images, side))


def resized(images: Tensor, side: int) -> Tensor:
    """Pictures, bytes or numbers in [0, 1], as bytes of the given size."""
    whole = images.dtype == torch.uint8
    if whole and images.shape[-2:] == (side, side):
        return images
    x = images.float() / 255 if whole else images.float()
    if len(x) and x.shape[-2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True)
    return (255 * x.clamp(0, 1)).round().to(torch.uint8).cpu()


def world_pairs(
    names: Sequence[str], n: int, seed: int = 0, *, without: bool = False, use: str = "train"
) -> Pairs:
    """Pictures of the world, captioned as its CLIP learnt them.

    Args:
        names: what the pictures show and their captions say; or what they do not.
        n: how many, of the subjects in turn. `train` holds the pictures that CLIP was trained on.
        seed: draws the captions.
        without: whether `names` are left out instead.
        use: whose seeds: `train`, `judge` or `test`.
    """
    from palimpsest.world.captions import SUBJECTS, captions
    from palimpsest.world.data import FIRST_SEED
    from palimpsest.world.render import render
    from palimpsest.world.vocabulary import SYNONYMS

    words = [word for name in names for word in (name, *SYNONYMS.get(name, ()))]
    shown = [bool({s.name, s.style} & set(names)) for s in SUBJECTS]
    chosen = [i for i, shows in enumerate(shown) if shows != without]
    g, images, texts = generator(seed, 43), [], []
    order = [chosen[int(k)] for k in torch.randperm(len(chosen), generator=g)]
    for k in range(n if order else 0):
        i = order[k % len(order)]
        every = captions(SUBJECTS[i]).items()
        shares = {t: p for t, p in every if any(says(t, w) for w in words) != without}
        pick = torch.multinomial(torch.tensor([*shares.values()]), 1, generator=g)
        texts.append([*shares][int(pick)])
        seed_of = FIRST_SEED[use] + 1000 * i + k // len(order)
        images.append(_bytes(render(SUBJECTS[i].name, SUBJECTS[i].style, seed_of)))
    empty = torch.zeros(0, 3, 64, 64, dtype=torch.uint8)
    return Pairs(torch.stack(images) if images else empty, tuple(texts), "world")


def world_classes(
    per_class: int, first: int, *, more: Sequence[str] = (), times: int = 4
) -> Labelled:
    """Pictures that nothing was trained on, so many of each name of the world, in all styles.

    Args:
        per_class: pictures of each.
        first: the first seed among those for measuring; ranges that do not meet share no picture.
        more: names that get more.
        times: how many times as many.
    """
    from palimpsest.world.data import FIRST_SEED
    from palimpsest.world.render import render
    from palimpsest.world.vocabulary import DOMAINS, OBJECTS, STYLES

    images, labels, prompts = [], [], {}
    for kind, members in DOMAINS.items():
        for name in members if kind != "style" else ():
            prompts[name] = ask(name, kind)[0]  # type: ignore[arg-type]
            for k in range(per_class * (times if name in more else 1)):
                style = STYLES[k % len(STYLES)] if name in OBJECTS else None
                images.append(_bytes(render(name, style, FIRST_SEED["test"] + first + k)))
                labels.append(name)
    return Labelled(torch.stack(images), tuple(labels), prompts)


# --- helpers ---


def _ended(path: Path) -> bool:
    """Whether a tar has its end mark, two blocks of zeros: tarfile does not ask for it."""
    with path.open("rb") as file:
        file.seek(-min(1024, path.stat().st_size), 2)
        return not any(file.read())


def _picture(data: bytes, side: int) -> Tensor | None:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.fit(opened.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return _bytes(np.array(image))


def _bytes(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def _spoken(folder: str) -> str:
    """A folder's name as a person says it."""
    return folder.replace("_", " ").strip()


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _metadata(path: Path) -> dict[str, str]:
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else {}
            found |= {row["file_name"]: row["text"]} if row else {}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise PalimpsestError(f"{path}, line {number}: no file_name and text") from error
    return found


def _column(rows: csv.DictReader[str], names: Iterable[str], path: Path) -> str:
    for name in names:
        if name in (rows.fieldnames or ()):
            return name
    found = ", ".join(rows.fieldnames or ()) or "nothing"
    raise PalimpsestError(
        f"{path}: has no column named {' or '.join(names)} (its columns: {found})"
    )
