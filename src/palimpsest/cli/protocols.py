"""A protocol as something that models are asked: its flags, and the value that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from palimpsest.cli import paths
from palimpsest.cli.named import kind_and_name
from palimpsest.cli.tables import FLAGS, Table, names_of
from palimpsest.core.concepts import Concept
from palimpsest.core.draw import Draw
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import component, only_component
from palimpsest.core.prompts import Prompt
from palimpsest.protocols import PREFIX, PROTOCOLS
from palimpsest.protocols.protocol import TEXTS, Protocol, read_texts, shard
from palimpsest.runs.folder import Run
from palimpsest.world import suite


@dataclass(frozen=True)
class Questions:
    """What every subject is asked."""

    theme: str
    """A theme's name, or a protocol's behind `protocol:`."""
    concepts: tuple[Concept, ...]
    prompts: Sequence[Prompt]
    each: str
    """How many pictures of each concept that makes, in words."""
    how: Protocol | None = None


@dataclass(frozen=True, kw_only=True)
class Flags(Table):
    """What a protocol is told; themes take none of it."""

    prompts: Path | None = None
    """Of a protocol: its prompts, if they are no part of Palimpsest. A table (CSV with a column
    `prompt`, and the columns that the protocol's page names), a .txt with one a line, or COCO's
    captions as .json."""
    mini: bool = False
    """Of a protocol: an even sample, --pictures of each concept."""
    shard: str | None = None
    """Of a protocol: a part of its prompts, such as 1/4. When all parts lie in the same folder of
    runs, the same command without it draws nothing more and counts them together."""
    copies: Path | None = None
    """Of a protocol: also copy the pictures into this folder, under its authors' names of files."""

    def refuse_flags(self) -> None:
        """Refuse, for a theme, what only a protocol takes.

        Raises:
            PalimpsestError: naming the first.
        """
        for name in ("prompts", "mini", "shard", "copies", *FLAGS):
            if getattr(self, name):
                flag = FLAGS.get(name, name)
                raise PalimpsestError(f"--{flag} is of a protocol ({PREFIX}NAME), not of a theme")

    def protocol(
        self, word: str, names: Sequence[str], world: bool, pictures: int, seed: int
    ) -> Questions:
        """Return what a protocol asks.

        Args:
            word: its name behind `protocol:`.
            names: of concepts, a kind before a colon where it is not the protocol's; none takes
                the protocol's own.
            world: whether they are the world's.
            pictures: of each, of a sample.
            seed: where the authors drew theirs at random.

        Raises:
            PalimpsestError: no such concept, prompts that are lacking or cannot be read, or no
                such part of them.
        """
        kind = PROTOCOLS.load(word.removeprefix(PREFIX))
        concepts = tuple(_concept(each, kind, world) for each in names)
        rows = self._rows(concepts, world)
        mini = pictures if self.mini else None
        how: Protocol = kind(concepts, tuple(rows), world, mini, seed)
        asked = shard(how.prompts, self.shard) if self.shard else how.prompts
        some = tuple(c for c in how.everything if any(p.wants(c.kind, c.name) for p in asked))
        if not some:
            raise PalimpsestError(
                f"{word}: none of its prompts says what it asks for; name one concept with "
                "--concepts, or give the table a column of its kind"
            )
        counts = [sum(p.wants(c.kind, c.name) for p in asked) for c in some]
        each = f"{min(counts)} to {max(counts)}" if len({*counts}) > 1 else str(counts[0])
        return Questions(f"{PREFIX}{how.name}", some, asked, f"{each} of each concept", how)

    def _rows(self, concepts: tuple[Concept, ...], world: bool) -> list[Prompt]:
        if self.prompts is not None and self.prompts.suffix in TEXTS:
            return read_texts(self.prompts)
        return [*self.table(self.prompts, "--prompts", names_of(concepts, world)).values()]


def _concept(word: str, kind: type[Protocol], world: bool) -> Concept:
    own, name = kind_and_name(word)
    return suite.concept(name) if world else Concept(name, own or kind.kind)


def drawn(theirs: Draw, own: Draw) -> Draw:
    """Return how a protocol's pictures are drawn, but for what a person says otherwise."""
    said: dict[str, Any] = {name: v for name, v in asdict(own).items() if v is not None}
    return replace(theirs, **said)


def write_copies(how: Protocol, runs: Sequence[Run], folder: Path) -> None:
    """Copy the pictures of runs into a folder each, under the names that the authors gave them.

    Raises:
        PalimpsestError: the folder cannot be made, or two pictures would have one name.
    """
    from palimpsest.runs import images

    for run in runs:
        asked = images.asked(run)
        names = {images.picture_name(p): f"{component(how.file_of(p), 120)}.png" for p in asked}
        if len({*names.values()}) < len(names):
            raise PalimpsestError(
                f"{folder}: two pictures would be called alike; number the table's rows in a "
                "column case_number"
            )
        images.copy(run, folder / only_component(run.record().title), names)


def check_copies(folder: Path | None) -> None:
    """Refuse early a folder for copies that cannot be made."""
    if folder is not None:
        paths.check_out(folder, force=True)
