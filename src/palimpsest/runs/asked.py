"""What a run is asked to do: the value that its folder's name hashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from palimpsest.core import provenance
from palimpsest.core.kinds import Optimizer
from palimpsest.core.prompts import Prompt
from palimpsest.judge.clip import WORLD
from palimpsest.judge.references import Entry, entry_of
from palimpsest.methods import Judge, Measure, Recovery, Task, TextJudge
from palimpsest.patch import Patch
from palimpsest.runs import images
from palimpsest.runs.folder import Run
from palimpsest.runs.record import ModelEntry, PictureSet, Record
from palimpsest.runs.scoring import Panel


@dataclass(frozen=True)
class On:
    """What a run is made on: the subject, and what is drawn of it."""

    prompts: Sequence[Prompt] = ()
    """What pictures are drawn and measured by; none of a model that draws nothing."""
    subject: Run | None = None
    """The erasing run whose patch is applied below a recovery; None is the unedited model."""
    gold: Run | None = None
    """The run of a model that never knew the concepts, to be compared with."""
    name: str = ""
    """Of an evaluation: what its subject is called."""
    patches: Sequence[Patch] = ()
    """Of an evaluation: what is applied to the model."""
    theme: str = ""
    """Of an evaluation: what is asked."""
    erased: Sequence[str] = ()
    """Of an evaluation: what the subject was made to forget."""
    source: Run | None = None
    """The recovery's run whose find is tried on the subject, of a replay."""


@dataclass(frozen=True)
class Asked:
    """One run's task, method and subject, and what is measured."""

    model: Any
    panel: Panel
    task: Task
    method: Any
    """An eraser or a recovery; None only evaluates."""
    on: On
    measures: Sequence[Measure]
    seed: int
    optimizer: Optimizer = "own"
    """What the method's training takes its steps by."""
    processes: int = 1
    """How many there are to train."""

    @property
    def recovers(self) -> bool:
        """Whether the method is a recovery."""
        return isinstance(self.method, Recovery)

    @property
    def erases(self) -> bool:
        """Whether the method is an eraser."""
        return self.method is not None and not self.recovers

    @property
    def draws(self) -> bool:
        """Whether the model draws pictures."""
        return hasattr(self.model, "sampling")

    @property
    def title(self) -> str:
        """The readable part of the folder's name."""
        on = self.on
        if self.method is None:
            return images.title(f"{on.theme}-{on.name}")
        title = images.title(f"{self.method.name}-{'-'.join(self.task.names)}")
        if not self.recovers:
            return title
        if on.source is not None:
            title = images.title(f"{self.method.name}-{on.source.name}")
        return f"{title}-on-{on.subject.name.split('-')[0] if on.subject else 'unedited'}"

    @cached_property
    def record(self) -> Record:
        """All that the run depends on, and nothing else."""
        record = Record(
            concepts=self.task.concepts,
            model=model_entry(self.model),
            prompts=images.digest(self.on.prompts) if self.on.prompts else "",
            judge=_spec_of(self.panel.judge),
        )
        if self.method is None:
            digests = tuple(patch.digest() for patch in self.on.patches)
            return replace(record, kind="evaluate", theme=self.on.theme, patches=digests)
        record = replace(
            record,
            kind="recover" if self.recovers else "erase" if self.draws else self.model.family,
            method=self.method.name,
            title=getattr(self.method, "title", type(self.method).__name__),
            arguments=asdict(self.method),
            seed=self.seed,
            optimizer="" if self.optimizer == "own" else self.optimizer,
            processes=self.processes if self.method.trains else 1,
            files={n: provenance.digest(p) for n, p in paths_of(self.method) if p.exists()},
        )
        return self._recovering(record) if self.recovers else self._with_sets(record)

    def _recovering(self, record: Record) -> Record:
        """With the subject, and a CLIP that is not the world's: thresholds are its own."""
        subject, clip = self.on.subject, self.panel.clip
        own = self.panel.judge and clip is not None and clip.spec.name == WORLD
        source = self.on.source
        if source is not None:
            found = source.record()
            place = (found.subject or "unedited").split("-")[0]
            title = f"{found.title} found on {place}"
            known = record.arguments | {"found": self.method.found.name}  # wherever that lies
            record = replace(record, source=source.name, title=title, arguments=known)
        return replace(
            record, subject=subject and subject.name, clip=None if own else _spec_of(clip)
        )

    def _with_sets(self, record: Record) -> Record:
        """With the pictures that are given, and with what measures depend on."""
        task, files = self.task, dict(record.files)
        if task.forget is not None and task.retain is not None:
            record = replace(record, forget=_set_of(task.forget), retain=_set_of(task.retain))
        if task.validation is not None:
            files["validation"] = task.validation.digest
            record = replace(record, validation=len(task.validation))
        for measure in self.measures:
            about = getattr(measure, "about", {})
            files |= about.get("files", {})
            record = replace(record, **about)
        return replace(record, files=files)


def model_entry(model: Any) -> ModelEntry:
    """Return what a record says of a model."""
    dtype, files = str(model.dtype).removeprefix("torch."), getattr(model, "files", {})
    drawn = str(getattr(model, "sampling", ""))
    if getattr(model, "tiled", False):
        drawn += ", decoded in tiles"
    return ModelEntry(model.name, model.identity, drawn, dtype, files)


def paths_of(settings: Any, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Yield the files and folders that settings name, nested ones as `outer.inner`."""
    for each in fields(settings):
        value, name = getattr(settings, each.name), prefix + each.name
        if is_dataclass(value):
            yield from paths_of(value, f"{name}.")
        elif isinstance(value, Path) or (value and name.endswith("folder")):
            yield name, Path(value)


def _spec_of(judge: Judge | TextJudge | None) -> Entry | None:
    entry = entry_of(judge)
    return entry and entry.asked


def _set_of(pairs: Any) -> PictureSet:
    return PictureSet(pairs.source, len(pairs), pairs.digest, tuple(pairs.skipped))
