"""CelebA and ImageNet as people have them on the disk: which picture shows whom."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import parse_object, read_utf8
from palimpsest.data.images import pictures_in
from palimpsest.data.sources import spoken

CELEBA = "list_identity_celeba.txt"
"""Picture and name, one a line, with names for numbers: CelebA's authors give it on request."""
FREQUENT = "frequent_celebs.txt"
"""Names, the first the most frequent: whom SLUG measures CelebA by; made by its authors."""
MOST = 100
"""Identities that are taken of CelebA beside those that are asked for, as SLUG does."""
SYNSET = re.compile(r"n\d{8}")
SYNSETS = ("LOC_synset_mapping.txt", "synset_words.txt", "imagenet_class_index.json")
"""Files that say what a synset is called: ImageNet's own, Caffe's, Keras's."""

Shown = list[tuple[Path, str]]
"""Pictures, each with what it shows."""


def shown(root: Path, names: Sequence[str] = ()) -> Shown:
    """Return the pictures of CelebA, of ImageNet, or of folders that are named after their class.

    Args:
        root: holds `list_identity_celeba.txt` beside `img_align_celeba`, or a folder a class.
        names: identities that must not be missing.

    Raises:
        PalimpsestError: a table that cannot be read, a name that CelebA does not have, or synsets
            that nobody gives names to.
    """
    if (root / CELEBA).is_file():
        return _celeba(root, names)
    folders = sorted(f for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
    called = _synsets(root) if any(SYNSET.fullmatch(f.name) for f in folders) else {}
    return [(p, called.get(f.name, spoken(f.name))) for f in folders for p in pictures_in(f)]


def _celeba(root: Path, names: Sequence[str]) -> Shown:
    """Return CelebA's pictures of the names asked for and of the most frequent others."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for line in read_utf8(root / CELEBA).splitlines():
        file, _, name = line.strip().partition(" ")
        if name and Path(file).suffix in (".jpg", ".png") and "/" not in file:
            by_name[spoken(name.strip())].append(root / "img_align_celeba" / file)
    lacking = [name for name in names if name not in by_name]
    if lacking or not by_name:
        told = f"no picture of {lacking[0]!r}" if lacking else "no line with a picture and a name"
        raise PalimpsestError(f"{root / CELEBA}: has {told}")
    most = sorted(by_name, key=lambda name: -len(by_name[name]))
    if (root / FREQUENT).is_file():
        listed = map(spoken, read_utf8(root / FREQUENT).splitlines())
        most = [name for name in listed if name in by_name]
    others = [n for n in most if n not in names and len(by_name[n]) > 1][:MOST]
    return [(file, name) for name in (*names, *others) for file in by_name[name]]


def _synsets(root: Path) -> dict[str, str]:
    """Return synset → its first name, by a file in the folder or in the one above."""
    places = [place / name for place in (root, root.resolve().parent) for name in SYNSETS]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise PalimpsestError(
            f"{root}: folders of synsets, which nobody gives names to; put {SYNSETS[0]} beside them"
        )
    text = read_utf8(found)
    if found.suffix == ".json":
        rows = [r for r in parse_object(text, found).values() if isinstance(r, list)]
        return {str(r[0]): spoken(str(r[1])) for r in rows if len(r) > 1}
    whole = dict(
        line.strip().split(maxsplit=1) for line in text.splitlines() if " " in line.strip()
    )
    first = Counter(said.split(",")[0] for said in whole.values())  # ImageNet has two cranes
    short = {synset: said.split(",")[0] for synset, said in whole.items()}
    return {s: said if first[said] == 1 else whole[s] for s, said in short.items()}
