"""What `run.json` says: one typed record for every kind of run.

Written is format 2. A record of format 1 opens too: it is converted while it is read.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from palimpsest.core.atomic import write_text
from palimpsest.core.concepts import Concept
from palimpsest.core.draw import UNSAID, Draw
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import is_component, parse_object, read_utf8
from palimpsest.core.typed import build, plain
from palimpsest.judge import references
from palimpsest.judge.references import Entry
from palimpsest.methods import Number
from palimpsest.metrics.relearning import CurvePoint

FORMAT = 2
"""Version of the record's form; a newer one is refused."""


@dataclass(frozen=True)
class ModelEntry:
    """The unedited model of a run."""

    name: str = ""
    identity: str = ""
    """Fingerprint of all its weights."""
    sampling: str = ""
    """How it drew the pictures, in words."""
    dtype: str = ""
    files: dict[str, str] = field(default_factory=dict)
    """Which of its files were read, where a person said: `revision`, `variant`, `base`."""


@dataclass(frozen=True)
class PictureSet:
    """Captioned pictures that a model was taught with."""

    source: str = ""
    pictures: int = 0
    digest: str = ""
    skipped: tuple[str, ...] = ()
    """What could not be used, each with its reason."""


@dataclass(frozen=True)
class AuditEntry:
    """What an audit of an erasing run did besides the run itself and recoveries from it."""

    budget: int = 0
    """Gradient evaluations of each recovery."""
    wordings: str | None = None
    """The run in which it was asked in other words."""
    wordings_unedited: str | None = None
    """The same of the unedited model."""
    notes: tuple[str, ...] = ()
    """What was left out or could not be done, in sentences."""


@dataclass(frozen=True)
class Record:
    """What was asked, with what, and what came out. Every field may be absent."""

    format: int = FORMAT
    kind: str = ""
    """`original`, `erase`, `recover`, `evaluate`, `clip` or `llava`."""
    status: str = ""
    """`running` or `done`."""
    title: str = ""
    """The method's name for people, or the subject's."""

    # --- what was asked ---
    method: str = ""
    preset: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    """All of the method's settings."""
    given: dict[str, Any] = field(default_factory=dict)
    """Those of them that a person gave."""
    files: dict[str, str] = field(default_factory=dict)
    """Setting → digest of the file or folder that it names."""
    concepts: tuple[Concept, ...] = ()
    seed: int | None = None
    optimizer: str = ""
    """What training took its steps by, if not by the method's own optimiser: `adam8bit`."""
    processes: int = 1
    """How many processes trained, each on draws of its own: so many times the batch."""
    model: ModelEntry = field(default_factory=ModelEntry)
    prompts: str = ""
    """Digest of the prompts and of what they ask for."""
    forget: PictureSet | None = None
    retain: PictureSet | None = None
    validation: int = 0
    """Pictures that a method chose by."""
    test: int = 0
    """Pictures that were measured on."""
    questions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Class → what was asked about its pictures."""
    theme: str = ""
    erased: tuple[str, ...] = ()
    """Of an evaluation: the concepts that its subject was made to forget."""
    patches: tuple[str, ...] = ()
    """Of an evaluation: digests of the patches that were applied."""
    original: str | None = None
    """The folder with the unedited model's pictures."""
    gold: str | None = None
    """The run of the model that never knew the concept."""
    subject: str | None = None
    """The erasing run that a recovery attacked; None is the unedited model."""
    source: str | None = None
    """Of a replay: the recovery's run whose find was tried on the subject."""
    arm: str = ""
    """Which pictures a recovery trained on."""

    audit: AuditEntry | None = None
    """What an audit did besides the run itself."""

    # --- what came out ---
    judge: Entry | None = None
    clip: Entry | None = None
    judges: tuple[Entry, ...] = ()
    """Who else looked."""
    sampling: Draw | None = None
    """How the pictures were drawn; older records say it in `model` alone: ask `drawn`."""
    measures: tuple[str, ...] = ()
    """The spec of each measure that was taken."""
    numbers: tuple[Number, ...] = ()
    baseline: tuple[Number, ...] = ()
    """The same numbers of the unedited model."""
    by_concept: tuple[Number, ...] = ()
    """Numbers of one concept each."""
    curve: tuple[CurvePoint, ...] = ()
    evaluations: int = 0
    """Gradient evaluations that a recovery spent."""
    queries: int = 0
    answers: int = 0
    """Pictures that answered a recovery which changed what is asked; 0 of one that made a patch."""
    found: tuple[str, ...] = ()
    vectors: dict[str, Any] = field(default_factory=dict)
    """Name → shape of an embedding that was found."""
    notes: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    short: str | None = None
    """In one sentence, what a search did not reach."""
    components: tuple[str, ...] = ()
    edit_norm: float | None = None
    lost_in_rounding: float | None = None
    """Share of that norm which rounding to the model's precision takes; None in float32."""
    patch_bytes: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    memory_mb: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    gpu_memory_mb: dict[str, float] = field(default_factory=dict)
    """Stretch → peak of what lay on a GPU; empty where none was used."""

    # --- how to repeat it ---
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    threads: int = 0
    """Of the processor, among which torch divides its work; 0 where an older record is silent."""
    memory: str = ""
    """How much memory it was computed with, `normal` or `low`; empty where an older record is
    silent."""
    started: str = ""
    finished: str = ""
    more: dict[str, Any] = field(default_factory=dict)
    """Fields that this version does not know."""

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record of format 2 or 1.

        Raises:
            PalimpsestError: it is no record, or of a newer format.
        """
        text = read_utf8(path)
        try:
            data = parse_object(text, "its text")
            form = build(int, data.get("format"))
            if form <= FORMAT:
                data = _upgraded(data) if form < FORMAT else data
                known = {f.name for f in fields(cls)}
                more = {n: v for n, v in (data.get("more", {}) | data).items() if n not in known}
                whole = {**data, "format": form, "more": more}
                return _coherent(build(cls, whole))
        except (ValueError, LookupError, TypeError, AttributeError, PalimpsestError) as error:
            raise PalimpsestError(
                f"{path}: not a run record ({error}); take the folder away and run it again"
            ) from error
        raise PalimpsestError(
            f"{path}: written by a newer Palimpsest (format {form}, this one reads up to "
            f"{FORMAT}); update Palimpsest"
        )

    def write(self, path: Path) -> None:
        """Write the record in this version's format; what is absent is left out."""
        data = {"format": FORMAT, **plain(self)}
        more = data.pop("more", {})
        write_text(path, json.dumps({**data, "format": FORMAT, **more}, indent=2) + "\n")

    @property
    def concept(self) -> Concept | None:
        """The first concept that was erased or brought back; None of any other run."""
        about = self.kind not in ("original", "evaluate", "clip", "llava")
        return self.concepts[0] if about and self.concepts else None

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts' names."""
        return tuple(concept.name for concept in self.concepts)

    @property
    def asked(self) -> str:
        """What an evaluation asked, in words: `Theme object`, `Protocol i2p`."""
        name = self.theme.removeprefix("protocol:")
        return f"{'Theme' if name == self.theme else 'Protocol'} {name}"

    @property
    def drawn(self) -> Draw:
        """How its pictures were drawn; what the record does not say is None.

        Raises:
            PalimpsestError: an older record whose text cannot be read.
        """
        text, said = self.model.sampling, self.sampling
        if said is not None:
            return replace(said, **{n: getattr(said, n) or old for n, old in UNSAID.items()})
        if not text:
            return Draw()
        found = re.fullmatch(r"DDIM (\d{1,9}) steps, guidance (\d{1,9}(?:\.\d+)?)", text)
        if found is None:
            raise PalimpsestError(f"the record's sampling {text!r} cannot be read; run it again")
        return Draw(int(found[1]), float(found[2]), **UNSAID)

    @property
    def each(self) -> list[Number]:
        """The numbers over all concepts, then those of each of several, named by it."""
        named = (replace(row, name=f"{row.name}, {row.concept}") for row in self.by_concept)
        return [*self.numbers, *(named if len(self.concepts) > 1 and self.concept else ())]

    def number(self, name: str) -> Number | None:
        """Return the first number of that name that has a value."""
        return next((n for n in self.numbers if n.name == name and n.value == n.value), None)


def _coherent(record: Record) -> Record:
    """Return a record again; ValueError if its parts do not fit, or it names another place."""
    if len({len(point.says) for point in record.curve if point.says}) > 1:
        raise ValueError("curve: its points are not over the same pictures")
    for point in record.curve:
        if len(point.clusters) not in (0, len(point.says)) or {*map(len, point.clusters)} - {2}:
            raise ValueError("curve: clusters are not a prompt and a seed for every picture")
    audit = record.audit or AuditEntry()
    others = (audit.wordings, audit.wordings_unedited)
    for name in (record.original, record.gold, record.subject, record.source, *others):
        if name is not None and not is_component(name):
            raise ValueError(f"{name!a} is no name of a folder beside it")
    return record


# --- format 1 ---


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """Return a record of format 1 in the form of format 2."""
    new = {**data, "concepts": [data["concept"]] if data.get("concept") else []}
    if data.get("names"):
        new["concepts"] = [{"name": name} for name in data["names"]]
    if data.get("kind") == "evaluate":
        kind = {"unsafe": "hazard"}.get(data.get("theme", ""), data.get("theme"))
        new["concepts"] = [{"name": name, "kind": kind} for name in data.get("asked", ())]
        new["by_concept"] = data.get("concepts")
    new["curve"] = [
        {**p, "evaluations": p.get("evaluations", p["step"]), "rate": p}
        for p in data.get("curve") or ()
    ]
    judge, clip = (data.get(who) and _entry(data[who]) for who in ("judge", "clip"))
    if "clip" not in data and judge and judge["ref"] == references.WORLD:
        clip = _entry({"name": "world CLIP"})
    new |= {"judge": judge, "clip": clip}
    return {name: value for name, value in new.items() if name not in ("concept", "names", "asked")}


def _entry(old: Any) -> dict[str, Any]:
    """Return a judge's entry with its reference; the oldest have none, or are a text."""
    if isinstance(old, str):
        name, version, resolution = old.rsplit(", ", 2)
        old = {"name": name, "version": version, "resolution": int(resolution)}
    return asdict(references.named(str(old.get("name", "")))) | old
