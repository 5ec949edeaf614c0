"""What shall be forgotten, as flags: one concept or several, with their anchors and neighbours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from palimpsest.cli.machine import world_concept
from palimpsest.core.concepts import Concept, says
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import read_utf8
from palimpsest.core.kinds import Kind
from palimpsest.core.prompts import KINDS
from palimpsest.core.registry import nearest
from palimpsest.methods import TextJudge

Row = tuple[str, Kind | None, str | None]
"""A concept's name, and its kind and anchor where they are said."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """Names of concepts, and what goes with them."""

    concept: tuple[str, ...] = ()
    """What shall be forgotten, as a prompt would say it. Several names are erased together, by one
    patch: `--concept parachute "style:van gogh"`, in which a kind may stand before a name."""
    concepts: Path | None = None
    """A file of more concepts, one a line: `name | kind | anchor`, the last two where wanted."""
    anchor: tuple[str, ...] = ()
    """What takes its place; of several concepts one for each, or one for all. On the world the
    visual kin most alike in CLIP's text space is chosen when this is left out; elsewhere the method
    then has none."""
    kind: Kind | None = None
    """What sort of thing it is: decides the sentences that ask for it. The world knows its own;
    elsewhere `object` when left out."""
    keep: tuple[str, ...] = ()
    """Names or sentences whose meaning must not move, for the methods that hold some; beside those
    that the world names itself."""
    synonyms: tuple[str, ...] = ()
    """Other words for the one concept, to be forgotten with it."""

    def wanted(self, world: bool, clip: TextJudge | None = None) -> tuple[Concept, ...]:
        """Return the concepts.

        Args:
            world: whether they are the world's.
            clip: chooses their anchors on the world, if it is the world's CLIP.

        Raises:
            PalimpsestError: none or one twice, a name that may be several, a kind or an anchor that
                contradicts the world, anchors that do not fit the names, or synonyms of several.
        """
        rows: list[Row] = [self._row(word) for word in self.concept]
        rows += [] if self.concepts is None else read_concepts(self.concepts, self.kind)
        if not all(name for name, _, _ in rows) or not rows:
            raise PalimpsestError("nothing is to be forgotten; name it with --concept")
        if len(self.anchor) not in (0, 1, len(rows)):
            told = f"--anchor: {len(self.anchor)} anchors for {len(rows)} concepts"
            raise PalimpsestError(f"{told}; give one for all, or one for each")
        one = [*self.anchor, None][:1]
        each = self.anchor if len(self.anchor) == len(rows) else one * len(rows)
        rows = [(name, kind, own or a) for (name, kind, own), a in zip(rows, each, strict=True)]
        if self.synonyms and len(rows) > 1:
            raise PalimpsestError("--synonyms are those of one concept; leave them out of several")
        names = [name for name, _, _ in rows]
        if twice := [name for name in names if names.count(name) > 1]:
            raise PalimpsestError(f"the concept {twice[0]!r} is named twice; name it once")
        if both := [word for word in (*(row[2] for row in rows), *self.keep) if word in names]:
            raise PalimpsestError(f"{both[0]!r} is to be forgotten: no anchor, and not to be kept")
        return tuple(self._concept(row, names, world, clip) for row in rows)

    def _row(self, word: str) -> Row:
        kind, name = kind_and_name(word)
        if re.search(r"[;,\n]", name):
            parts = " ".join(repr(part.strip()) for part in re.split("[;,\n]", name))
            raise PalimpsestError(
                f"--concept {name!r}: is that one name or several? Write several apart, "
                f"--concept {parts}; write one with a comma into a file for --concepts"
            )
        return name, kind or self.kind, None

    def _concept(
        self, row: Row, names: Sequence[str], world: bool, clip: TextJudge | None
    ) -> Concept:
        name, kind, anchor = row
        rest = [other for other in names if other != name]
        concept = Concept(name, kind or "object", anchor)
        if world:
            concept = world_concept(name, anchor, clip, rest)
            if kind not in (None, concept.kind):
                told = f"{name!r} is said to be of kind {kind!r} and is of kind {concept.kind!r}"
                raise PalimpsestError(f"{told} in the world; leave the kind out")
        keep = (text for text in (*concept.keep, *self.keep) if not says(text, *rest))
        more = (*concept.synonyms, *self.synonyms)
        return replace(concept, keep=tuple(dict.fromkeys(keep)), synonyms=tuple(more))


def kind_and_name(word: str) -> tuple[Kind | None, str]:
    """Split `style:van gogh`; a colon behind anything but a kind belongs to the name."""
    kind, colon, name = word.partition(":")
    if colon and kind in KINDS:
        return kind, name.strip()  # type: ignore[return-value]
    return None, word.strip()


def read_concepts(path: Path, usual: Kind | None = None) -> list[Row]:
    """Read a file of concepts, one a line: `name | kind | anchor`; `#` begins a remark.

    `style:name` says the kind, too, as in `--concept`.

    Args:
        path: a text file in UTF-8.
        usual: the kind of a line that names none.

    Raises:
        PalimpsestError: no such file, or a line without a name, of no kind, or of too many parts.
    """
    found: list[Row] = []
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not (said := line.partition("#")[0]).strip():
            continue
        word, kind, anchor, *more = [part.strip() for part in said.split("|")] + ["", ""]
        own, name = kind_and_name(word)
        if not name or any(more):
            raise PalimpsestError(f"{path}, line {number}: write `name | kind | anchor`")
        if kind and kind not in KINDS:
            raise PalimpsestError(
                f"{path}, line {number}: no kind {kind!r}{nearest(kind, list(KINDS))}"
            )
        found.append((name, kind or own or usual, anchor or None))  # type: ignore[arg-type]
    return found
