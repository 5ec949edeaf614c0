"""The pictures of a site: each once, under a digest of its file, shrunk and compressed."""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from palimpsest.core.atomic import temporary
from palimpsest.core.errors import PalimpsestError, WriteError
from palimpsest.core.files import read_bytes
from palimpsest.data.images import rgb

SIDE = 768
"""Larger pictures are shrunk to this many pixels."""
RECIPE = b"WebP 90 or PNG, 768"
"""How pictures are compressed; another recipe gives other names."""
NAME = re.compile(r"[0-9a-f]{16}\.(webp|png)")
"""What a picture is called."""


@dataclass
class Pictures:
    """A folder of pictures that fills as pages ask for them."""

    folder: Path
    names: dict[Path, str] = field(default_factory=dict)
    """A run's file → its name here."""

    def __post_init__(self) -> None:
        """Look at what lies there; a file without contents is half of one."""
        inside = self.folder.iterdir() if self.folder.is_dir() else ()
        there = [p.name for p in inside if NAME.fullmatch(p.name) and p.stat().st_size]
        self.there = {name.partition(".")[0]: name for name in there}

    def add(self, file: Path) -> str:
        """Return the name of a picture here, which is made if it is not there.

        Raises:
            PalimpsestError: the file is absent or no picture.
            WriteError: it cannot be written.
        """
        if file not in self.names:
            try:
                data = read_bytes(file)
                digest = hashlib.sha256(RECIPE + data).hexdigest()[:16]
                self.names[file] = self.there.get(digest) or self._write(digest, data)
            except (ValueError, PalimpsestError) as error:
                told = error if isinstance(error, PalimpsestError) else f"{file}: {error}"
                raise PalimpsestError(f"{told}; run `{file.parent.parent.name}` again") from error
        return self.names[file]

    def sweep(self) -> None:
        """Take away what no page shows."""
        used = set(self.names.values())
        for name in [name for name in self.there.values() if name not in used]:
            (self.folder / name).unlink(missing_ok=True)

    def _write(self, digest: str, data: bytes) -> str:
        """Write a picture. Nothing waits for the disk: there may be thousands, made in a moment."""
        ending, small = compressed(data)
        name = f"{digest}.{ending}"
        part = temporary(self.folder / name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(small)
            os.replace(part, self.folder / name)
        except OSError as error:
            part.unlink(missing_ok=True)
            told = error.strerror or error
            raise WriteError(f"{self.folder / name}: cannot be written ({told})") from error
        self.there[digest] = name
        return name


def compressed(data: bytes) -> tuple[str, bytes]:
    """Return a picture as WebP, or as PNG where that is smaller, and the file's ending.

    Raises:
        ValueError: it is no whole picture.
    """
    image = rgb(data)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    webp, png = io.BytesIO(), io.BytesIO()
    image.save(webp, "WEBP", quality=90, method=4, use_sharp_yuv=True)
    image.save(png, "PNG", optimize=True)
    forms = [("webp", webp.getvalue()), ("png", png.getvalue())]
    return min(forms, key=lambda form: len(form[1]))
