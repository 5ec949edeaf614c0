"""What a run folder holds, read once: its record, its pictures and what the judge says of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.judge.references import Entry
from palimpsest.metrics import rates
from palimpsest.metrics.clusters import Cluster
from palimpsest.metrics.rates import Rate
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.runs.folder import Run
from palimpsest.runs.groups import titled
from palimpsest.runs.images import scores_file
from palimpsest.runs.record import AuditEntry, Record
from palimpsest.runs.rows import Drawn, Scored

LESSONS = ("clip", "llava")
"""Kinds of run that teach a model to forget names; such a run draws no pictures."""

FEW = 3
"""Names that a line holds."""

Key = tuple[str, int, int, float | None]
"""A picture's prompt, seed, index and guidance: the same in every run of one comparison."""


@dataclass(frozen=True)
class Picture:
    """One picture of a run."""

    file: Path
    prompt: str
    seed: int
    index: int
    asks: dict[str, str] = field(default_factory=dict)
    """Domain → what the prompt asks for."""
    guidance: float | None = None
    """Its own; None where it has the model's."""
    labels: dict[str, str | None] = field(default_factory=dict)
    """Domain → what the judge says, None where it could not; empty where nothing was judged."""
    confidence: dict[str, float] = field(default_factory=dict)
    others: dict[str, dict[str, str | None]] = field(default_factory=dict)
    """Another judge's name → what it says, by domain."""

    @property
    def key(self) -> Key:
        """What the picture shares with its counterparts in other runs."""
        return (self.prompt, self.seed, self.index, self.guidance)

    @property
    def cluster(self) -> Cluster:
        """The prompt and the noise, which other pictures may share."""
        return self.prompt, (self.seed, self.index)


@dataclass(frozen=True)
class Target:
    """What a run was to make a model forget or remember; nothing of the unedited model."""

    concepts: tuple[Concept, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.concepts)

    @property
    def name(self) -> str:
        """What it is, as a sentence names it."""
        return listed([concept.name for concept in self.concepts])

    @property
    def brief(self) -> str:
        """What it is, in few words however many concepts it has."""
        return few([concept.name for concept in self.concepts])

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """What tells it from another, whatever takes the concepts' place."""
        return tuple((concept.kind, concept.name) for concept in self.concepts)

    @property
    def kinds(self) -> list[str]:
        """The concepts' domains, each once."""
        return list(dict.fromkeys(concept.kind for concept in self.concepts))

    def asked(self, picture: Picture) -> list[Concept]:
        """Return the concepts that a picture's prompt asks for."""
        return [c for c in self.concepts if picture.asks.get(c.kind) == c.name]


@dataclass(frozen=True)
class Material:
    """A run folder's contents, as the report needs them."""

    run: Run
    record: Record
    pictures: dict[Key, Picture]
    seen: dict[str, Material] = field(default_factory=dict, repr=False, compare=False)
    """It with what other judges say of its pictures, as far as anybody asked; by who they are."""

    @property
    def kind(self) -> str:
        """`original`, `erase`, `recover`, `clip`, `llava`, or whatever a newer tool wrote."""
        return self.record.kind

    @property
    def lesson(self) -> bool:
        """Whether a CLIP or a LLaVA was made to forget names."""
        return self.kind in LESSONS

    @property
    def names(self) -> str:
        """What a lesson was about, as a sentence names it."""
        return few(self.record.names)

    @property
    def title(self) -> str:
        """The method's name for people."""
        return self.record.title or self.record.method or self.run.name

    @property
    def target(self) -> Target:
        """The concepts; none of the unedited model."""
        return Target(self.record.concepts) if self.record.concept else Target()

    @property
    def model(self) -> str:
        """The model, as a sentence names it."""
        name = self.record.model.name or "the model"
        name = Path(name).name if Path(name).is_absolute() else name
        return name if "/" in name or " " in name else f"the {name} model"

    @property
    def curve(self) -> list[CurvePoint]:
        """The points of its relearning curve at which something was judged."""
        return [p for p in self.record.curve if not math.isnan(p.rate.value)]

    @property
    def answered(self) -> bool:
        """Whether it is a recovery that changed what is asked; its pictures are the answers."""
        return bool(self.record.answers)

    @property
    def found(self) -> list[str]:
        """The prompts it found, one for each picture; empty where they are not that many."""
        prompts = list(self.record.found)
        return prompts if len(prompts) == len(self.pictures) else []

    @property
    def siblings(self) -> list[Path]:
        """The folders beside this one that its record names, as far as they are there."""
        record = self.record
        audit = record.audit or AuditEntry()
        others = (audit.wordings, audit.wordings_unedited)
        names = filter(None, (record.subject, record.source, record.original, record.gold, *others))
        folders = [self.run.folder.absolute().parent / name for name in names]
        return [folder for folder in folders if (folder / "run.json").is_file()]

    def shown(self, target: Target) -> Rate:
        """Return the share of the judged pictures asked for a concept that show it."""
        asked = [(p, c) for p in self.pictures.values() for c in target.asked(p)]
        judged = [(p, c) for p, c in asked if c.kind in p.labels]
        says = (rates.agrees(p.labels[c.kind], c.name) for p, c in judged)
        return rates.rate(says, [p.cluster for p, _ in judged])


def seen_by(material: Material, record: Record) -> Material:
    """Return a run with what another run's judges say of its pictures, as far as they looked."""
    own = material.record
    if (own.judge, own.judges) == (record.judge, record.judges):
        return material
    judges = repr((record.judge, record.judges))
    if judges not in material.seen:  # hundreds of erasures share the unedited model's pictures
        pictures = {p.key: p for p in _pictures(material.run, record)}
        material.seen[judges] = replace(material, pictures=pictures, seen={})
    return material.seen[judges]


def read(folder: Path) -> Material:
    """Read one run folder.

    Raises:
        PalimpsestError: no run lies there, its rows are broken, it attacked itself, or it has
            nothing to show.
    """
    run = Run.open(folder)
    record = titled(run)
    run.lineage()
    pictures = {p.key: p for p in _pictures(run, record)}
    found = Material(run, record, pictures)
    if found.lesson and not record.numbers:
        raise PalimpsestError(
            f"{folder}: this run has no numbers yet; let it finish before it is reported"
        )
    if not found.lesson and not pictures and not record.curve:
        raise PalimpsestError(
            f"{folder}: this run holds no pictures (images.jsonl is missing or empty); "
            "let it finish before it is reported"
        )
    return found


def listed(names: Sequence[str]) -> str:
    """Return names in a row, the last behind an *and*; empty without any."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def few(names: Sequence[str], what: str = "concepts") -> str:
    """Return names in a row, or how many they are where a line does not hold them."""
    return listed(names) if len(names) <= FEW else f"{len(names)} {what}"


def _pictures(run: Run, judged: Record) -> Iterator[Picture]:
    """Yield a run's pictures with what the judges of a record say of them."""
    scores = _scores(run, judged.judge)
    others = {judge.name: _scores(run, judge) for judge in judged.judges}
    for row in run.values(Drawn):
        score = scores.get(row.file, Scored(row.file, {}))
        own = row.prompt, row.seed, row.index, row.asks, row.guidance
        more = {name: some[row.file].labels for name, some in others.items() if row.file in some}
        yield Picture(run.kept(row.file), *own, score.labels, score.confidence, more)


def _scores(run: Run, judge: Entry | None) -> dict[str, Scored]:
    return {row.file: row for row in run.values(Scored, scores_file(run, judge))}
