"""A finished command that is said again: answered from its runs' folders, with nothing loaded.

What decides an answer is the command as it was parsed, the folder where it was said, this program,
and every file that the command names, by its size and its time. Where one of them differs, or
cannot be told, as of a model on the Hub or a judge of another package, the command goes the whole
way.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import Any

import palimpsest
from palimpsest.cli import console
from palimpsest.cli.tree import Call
from palimpsest.core import processes, provenance
from palimpsest.core.atomic import write_text
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import is_component, read_object
from palimpsest.core.typed import build, plain
from palimpsest.erase import ERASERS
from palimpsest.judge import JUDGES, MEASURES
from palimpsest.recover import RECOVERIES
from palimpsest.runs.folder import Run
from palimpsest.runs.record import Record

MOST_FILES = 20_000
"""A command that names more files than these goes the whole way."""
SHIPPED = ("world", "clip:world", "llava:world", "auto", "none")
"""Models and judges that are files of this program, or nobody."""
OURS = ("again-*", "*.html", "*.lock")
"""Files in a run's folder that no command reads."""

Stamps = dict[str, tuple[int, ...]]
"""A file's path → its size in bytes and its time in nanoseconds."""


class UntoldError(Exception):
    """What a command depends on cannot be told from files."""


@dataclass(frozen=True)
class Answer:
    """What a finished command leaves in its first run's folder, as `again-KEY.json`."""

    program: str
    """Digest of this program and of what it is built on."""
    files: str
    """Digest of what the command names, and of the records of its runs."""
    runs: dict[str, str]
    """What each run is called in tables → its folder's name."""


@dataclass(frozen=True)
class Again:
    """A command that may have been said before."""

    root: Path
    """Where its runs are kept."""
    key: str = ""
    """Digest of the command; nothing where its answer is not to be trusted."""
    program: str = ""
    files: Stamps = field(default_factory=dict)
    warned: int = 0
    """How many warnings were said before it."""

    def runs(self) -> dict[Any, Run] | None:
        """Return the runs of a finished command, as `keep` was given them; None if none fits."""
        for path in self.root.glob(f"*/again-{self.key}.json") if self.key else ():
            with suppress(PalimpsestError, TypeError, OSError, UntoldError):
                if (found := self._told(build(Answer, read_object(path)))) is not None:
                    return found
        return None

    def keep(self, runs: Mapping[Any, Run]) -> None:
        """Write down the answer: the runs by what they are called, the first one first.

        A command that warned of something has none: it is to warn again. Nor has one whose run
        another process is at work on: it is done and waits for nobody.
        """
        if not self.key or len(console.WARNED) > self.warned:
            return
        with suppress(PalimpsestError, OSError, UntoldError):
            names = {label: run.name for label, run in runs.items()}
            answer = Answer(self.program, self._stamped(runs), names)
            text = json.dumps(plain(answer)) + "\n"
            first = next(iter(runs.values()))
            path = first.path(f"again-{self.key}.json")
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                with first.locked(_give_up):
                    write_text(path, text)

    def _stamped(self, runs: Mapping[Any, Run]) -> str:
        own = {f"{k}: {run.name}": _stamp(run.path("run.json")) for k, run in runs.items()}
        return _digest(repr(sorted((self.files | own).items())))

    def _told(self, answer: Answer) -> dict[str, Run] | None:
        if answer.program != self.program or not all(map(is_component, answer.runs.values())):
            return None
        runs = {label: Run.open(self.root / name) for label, name in answer.runs.items()}
        if answer.files != self._stamped(runs):
            return None
        needed = [n for r in runs.values() if (own := r.record()) for n in (own.original, own.gold)]
        done = all(Run(self.root / name).done for name in needed if name)
        return runs if done and all(run.done for run in runs.values()) else None


def look(options: Any, call: Call, root: Path, record: Record | None = None) -> Again:
    """Return a command that may have been said before.

    Args:
        options: the verb with its flags.
        call: the method and its preset.
        root: where its runs are kept.
        record: of the run that it starts from, whose model and judges it takes.
    """
    if options.dry_run or getattr(options, "force", False):
        return Again(root)
    try:
        files = _files(options, call, record)
    except (UntoldError, OSError):
        return Again(root)
    said: tuple[Any, ...] = call.words[:1], call.name, call.preset, options, call.method, Path.cwd()
    said += (n,) if (n := processes.here().size) > 1 else ()
    return Again(root, _digest(repr(said)), _program(), files, len(console.WARNED))


def _files(options: Any, call: Call, record: Record | None) -> Stamps:
    """Return all files that a command rests on, besides those of this program.

    Raises:
        UntoldError: one of them may lie elsewhere, or there are too many.
    """
    if not type(call.method).__module__.startswith("palimpsest."):
        raise UntoldError
    found: Stamps = {}
    for name in _names(options, record):
        for part in name.split("+") if name not in SHIPPED else ():
            if part.partition(":")[0] in {*JUDGES} - {*JUDGES.own}:
                raise UntoldError  # another package's, of whose files nothing is known
            places = [p for p in (Path(part), Path(part.partition(":")[2])) if p.exists()]
            places = [place for place in places if place != Path()]
            if not places and part not in SHIPPED:
                raise UntoldError  # on the Hub, perhaps
            for place in places:
                found |= stamps(place)
    for value in (*_values(options), *_values(call.method)):
        if isinstance(value, str) and "/" in value and not _exists(value):
            raise UntoldError
        if value and _exists(value):
            found |= stamps(Path(value))
    return found


def _names(options: Any, record: Record | None) -> Iterator[str]:
    """Yield the models and the judges that a command names, itself or by the run it starts from."""
    named = (getattr(options, name, None) for name in ("model", "base", "look_with"))
    yield from filter(None, (*named, *options.judge))
    if record is not None:
        yield from (record.model.name, *map(str, record.model.files.values()))
        for entry in filter(None, (record.judge, record.clip, *record.judges)):
            if entry.ref is None:
                raise UntoldError
            yield entry.ref


def _values(held: Any) -> Iterator[str | Path]:
    """Yield the texts and the paths among settings."""
    if isinstance(held, str | Path):
        yield held
    elif is_dataclass(held):
        own = (getattr(held, f.name) for f in fields(held) if f.name != "runs")  # where they go
        yield from (each for value in own for each in _values(value))
    elif isinstance(held, Mapping):
        yield from (each for value in held.values() for each in _values(value))
    elif isinstance(held, tuple | list):
        yield from (each for value in held for each in _values(value))


def _exists(value: str | Path) -> bool:
    with suppress(OSError, ValueError):  # too long for a path, say
        return Path(value).exists()
    return False


def stamps(place: Path) -> Stamps:
    """Return the stamps of a file, or of a folder's files; of a run's, those that are read.

    Raises:
        UntoldError: there are too many.
    """
    if place.is_file():
        return {str(place.resolve()): _stamp(place)}
    if (place / "run.json").is_file():
        own = (path for path in place.glob("*.*") if not any(map(path.match, OURS)))
        return {str(path.resolve()): _stamp(path) for path in own if path.is_file()}
    paths = [*islice(_under(place), MOST_FILES + 1)]
    if len(paths) > MOST_FILES:
        raise UntoldError
    return {str(path.resolve()): _stamp(path) for path in paths if path.is_file()}


def _under(place: Path) -> Iterator[Path]:
    """Yield all that lies in a folder and below, through links, each folder once."""
    seen: set[str] = set()
    for root, folders, names in os.walk(place, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root, name) for name in names)


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _program() -> str:
    """Return a digest of this program's files, its libraries' versions and others' members."""
    home = Path(palimpsest.__file__).parent
    own = sorted(path for path in home.rglob("*.*") if path.suffix != ".pyc" and path.is_file())
    files = [(str(path.relative_to(home)), *_stamp(path)) for path in own]
    groups = [registry.group for registry in (ERASERS, RECOVERIES, JUDGES, MEASURES)]
    theirs = [
        (entry.name, entry.value, entry.dist.version if entry.dist else "")
        for group in groups
        for entry in sorted(entry_points(group=group))
    ]
    return _digest(repr((str(home), files, provenance.versions(), theirs)))


def _give_up(sentence: str) -> None:
    raise UntoldError(sentence)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
