"""Captioned pictures wherever they lie.

A source is a folder of pictures (captions in `metadata.jsonl`, or each in a `.txt` beside its
picture), a tree `{style}/{object}/{picture}`, a CSV, or webdataset tars (a `.jpg` and a `.txt` of
one stem): one file, a folder of them or a pattern such as `laion/*.tar`.
"""

from __future__ import annotations

import glob
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import MOST_BYTES, parse_json, read_bytes, read_table, regular
from palimpsest.data.images import ENDINGS, pictures_in

METADATA = "metadata.jsonl"
"""Holds a folder's captions: Hugging Face's imagefolder, fields `file_name` and `text`."""
IMAGE_COLUMNS = ("image", "file_name", "filepath", "path")
TEXT_COLUMNS = ("text", "caption", "title")
TREE = "a {object} image in {style} style"
"""The caption of a picture in a tree of styles and objects (UnlearnCanvas' prompt)."""


@dataclass(frozen=True)
class CaptionedFile:
    """A picture's file with its caption."""

    key: str
    """Where it is, for messages."""
    data: bytes
    """The file's contents."""
    text: str
    """The caption, without spaces around it."""
    ending: str = ".jpg"


@dataclass
class Source:
    """A place of captioned pictures. Reading it counts and names what could not be used."""

    place: str
    skipped: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[CaptionedFile]:
        """Return the pictures in a fixed order.

        Raises:
            PalimpsestError: nothing lies there that is known here.
        """
        self.skipped.clear()
        path = Path(self.place)
        if path.suffix == ".csv":
            return self._of_csv(path)
        if self._pattern or self.tars:
            return self._of_tars(self.tars)
        if not path.is_dir():
            raise PalimpsestError(
                f"{self.place}: neither a folder of captioned pictures, nor a .csv, nor a .tar"
            )
        if pictures_in(path):
            return self._of_folder(path)
        return self._of_tree(path)

    @property
    def tars(self) -> list[Path]:
        """The tars that it stands for; none of a source of another form."""
        found = glob.glob(self.place) if self._pattern else Path(self.place).glob("*.tar")
        return sorted(map(Path, found))

    @property
    def _pattern(self) -> bool:
        if self.place.endswith(".tar"):
            return True
        return glob.has_magic(self.place) and not Path(self.place).exists()

    def _of_folder(self, folder: Path) -> Iterator[CaptionedFile]:
        files, path = pictures_in(folder), folder / METADATA
        known = self._captions(path) if path.is_file() else None
        for name in sorted({*(known or ())} - {file.name for file in files}):
            self.skipped.append(f"{path}: {name} has a caption, but is not there")
        for file in files:
            text = known.get(file.name) if known is not None else _beside(file)
            yield from self._captioned(str(file), file, text)

    def _captions(self, path: Path) -> dict[str, str]:
        """File name → caption, by a folder's metadata; of two captions the last counts."""
        found: dict[str, str] = {}
        lines = _text(path).split("\n")
        for number, line in enumerate(lines, start=1):
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            name, text = _caption(line, place)
            if name in found:
                self.skipped.append(f"{place}: a second caption of {name}")
            found[name] = text
        return found

    def _of_tree(self, root: Path) -> Iterator[CaptionedFile]:
        files = pictures_in(root, "*/*/*")
        if not files:
            raise PalimpsestError(
                f"{root}: holds no pictures, no .tar and no tree of style/object/picture"
            )
        for file in files:
            style, thing = (spoken(part.name) for part in (file.parents[1], file.parents[0]))
            text = TREE.format(object=thing, style=style)
            yield from self._captioned(str(file), file, text)

    def _of_csv(self, path: Path) -> Iterator[CaptionedFile]:
        columns, rows = read_table(path)
        image, text = (_column(columns, names, path) for names in (IMAGE_COLUMNS, TEXT_COLUMNS))
        try:
            for number, row, _ in rows:
                key = f"{path}, row {number}"
                yield from self._captioned(key, path.parent / row[image], row[text])
        except PalimpsestError as error:
            self.skipped.append(f"{path}: the rest of the table ({error})")

    def _captioned(self, key: str, file: Path, text: str | None) -> Iterator[CaptionedFile]:
        if not text or not text.strip():
            self.skipped.append(f"{key}: no caption")
            return
        try:
            data = read_bytes(file)
        except PalimpsestError as error:
            self.skipped.append(str(error) if key == str(file) else f"{key}: {error}")
        else:
            yield CaptionedFile(key, data, text.strip(), file.suffix.lower())

    def _of_tars(self, paths: Sequence[Path]) -> Iterator[CaptionedFile]:
        if not paths or not paths[0].is_file():
            raise PalimpsestError(f"{self.place}: no such .tar")
        for path in paths:
            # a sample's members follow one another
            for stem, members in groupby(self._members(path), itemgetter(0)):
                yield from self._sample(path, stem, {ending: data for _, ending, data in members})

    def _members(self, path: Path) -> Iterator[tuple[str, str, bytes]]:
        """Stems, endings and contents of a tar's files, as far as it can be read."""
        try:
            with tarfile.open(regular(path), "r:") as tar:
                for member in tar:
                    file = (
                        tar.extractfile(member)
                        if member.isreg() and not member.issparse()
                        else None
                    )
                    if file is None:
                        continue
                    if not 0 <= member.size <= MOST_BYTES:
                        raise EOFError(f"{member.name!a} is said to have {member.size:,} bytes")
                    folder, _, name = member.name.rpartition("/")
                    start, _, ending = name.partition(".")
                    yield f"{folder}/{start}", f".{ending.lower()}", file.read()
                if not _ended(path):
                    raise EOFError("it is cut short")
        except (tarfile.TarError, EOFError, OSError, ValueError, PalimpsestError) as error:
            self.skipped.append(f"{path}: the rest of the tar ({error})")

    def _sample(self, path: Path, stem: str, parts: dict[str, bytes]) -> Iterator[CaptionedFile]:
        key = f"{path}, {stem.lstrip('/')}"
        ending = next((e for e in ENDINGS if e in parts), None)
        try:
            text = parts.get(".txt", b"").decode()
        except UnicodeDecodeError:
            text = ""
        if ending is None or not text.strip():
            self.skipped.append(f"{key}: no {'picture' if ending is None else 'caption'}")
            return
        yield CaptionedFile(key, parts[ending], text.strip(), ending)


def spoken(folder: str) -> str:
    """Return a folder's name as a person says it."""
    return folder.replace("_", " ").strip()


def _ended(path: Path) -> bool:
    """Return whether a tar has its end mark, two blocks of zeros: tarfile does not ask for it."""
    with path.open("rb") as file:
        file.seek(-min(1024, path.stat().st_size), 2)
        return not any(file.read())


def _beside(file: Path) -> str | None:
    """Return the caption in the `.txt` beside a picture."""
    path = file.with_suffix(".txt")
    return _text(path) if path.is_file() else None


def _text(path: Path) -> str:
    """Return a text of captions; what is no UTF-8 in it is shown as such."""
    return read_bytes(path).decode(errors="replace").replace("\r\n", "\n")


def _caption(line: str, place: str) -> tuple[str, str]:
    """File name and caption of a line of metadata; null is no caption."""
    row = parse_json(line, place)
    for key, kind in (("file_name", str), ("text", str | None)):
        if not isinstance(row, dict) or key not in row or not isinstance(row[key], kind):
            raise PalimpsestError(f"{place}: has no text under {key!r}")
    return row["file_name"], row["text"] or ""


def _column(columns: Sequence[str], names: Iterable[str], path: Path) -> str:
    for name in names:
        if name in columns:
            return name
    found = ", ".join(columns) or "nothing"
    raise PalimpsestError(
        f"{path}: has no column named {' or '.join(names)} (its columns: {found})"
    )
