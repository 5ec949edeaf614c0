"""Carry a method through its run: train, make pictures, measure, write down; resume where it broke.

What a method did is known here only through its dataclass and its patch.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from palimpsest.core import provenance
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, WriteError
from palimpsest.core.memory import Peak
from palimpsest.core.progress import Progress, Silent
from palimpsest.core.prompts import Prompt
from palimpsest.data.read import look_into
from palimpsest.judge.clip import WORLD
from palimpsest.judge.references import Entry, entry_of
from palimpsest.methods import Context, Draw, Measure, Recovery, Result, Seen, Task
from palimpsest.patch import Patch
from palimpsest.runs import images, store
from palimpsest.runs.folder import Run
from palimpsest.runs.record import ModelEntry, PictureSet, Record
from palimpsest.runs.scoring import Panel, Tally, tally, titles
from palimpsest.toolbox.checks import check_concepts


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


@dataclass
class Runner:
    """A model, those who judge it, and the folder where runs go."""

    root: Path
    model: Any
    panel: Panel = field(default_factory=Panel)
    progress: Progress = field(default_factory=Silent)
    command: str = ""
    """The command that repeats the run."""
    seed: int = 0
    tell: Callable[[str], None] = lambda sentence: None
    """Takes a sentence for the person who waits."""

    def run(
        self,
        what: Task | Concept | Sequence[Concept],
        method: Any,
        on: On,
        measures: Sequence[Measure] | None = None,
        *,
        preset: str = "",
        force: bool = False,
    ) -> Run:
        """Make a run, or go on with one; a finished run comes back at once.

        Args:
            what: the concepts, and pictures for the methods that need some.
            method: an eraser or a recovery; None only evaluates.
            on: the subject and the prompts.
            measures: what is counted, all that the panel can when left out; with others than before
                a finished run's pictures are counted afresh.
            preset: the preset that the method's settings came from, for the record.
            force: erase even what the model hardly knows.

        Raises:
            PalimpsestError: the prompts ask for what the judge does not know, the method refuses
                the model or the task, a patch is of another model, or the unedited model does not
                know a concept, unless `force`.
        """
        task = Task.of(what)
        if measures is None:
            measures = self.panel.of_themes if method is None else self.panel.measures
        self.panel.classes(on.prompts)
        if method is not None and not self._draws:
            method.refuse(self.model, task)
        asked = self._asked(task, method, on, measures)
        run = Run.place(self.root, _title(asked, on), asked)
        if self._finished(run, on, measures):
            return run
        below = self._below(on)
        self._say_former(run, _title(asked, on))
        original = self._checked(task, method, on, force)
        self._open(run, asked, method, on, preset)
        run.update(original=original and original.name, gold=on.gold and on.gold.name)
        own = self._train(run, task, method, below) if method is not None else None
        self._close(run, task, on, [*below, own], measures)
        return run

    def original(self, prompts: Sequence[Prompt]) -> Run:
        """Draw the unedited model's pictures of these prompts; all suites share one folder.

        So do all commands that run at the same time: one waits until another is done with it.
        """
        asked = Record(kind="original", model=self._model())
        run = Run.place(self.root, "original", asked)
        with FileLock(self.root / f".{run.name}.lock"):
            if not run.begun:
                run.update(**_set(replace(self._started(asked), title="original")))
            known = {images.picture_name(p): p for p in (*images.asked(run), *prompts)}
            self._draw(run, list(known.values()), "original pictures")
            if not run.done:
                run.update(status="done")
        return run

    def check(self, method: Any, task: Task) -> None:
        """Refuse what a method cannot do, before anything is spent.

        Raises:
            PalimpsestError: the model cannot read a concept's name whole, a folder of pictures
                that cannot be used, or whatever the method's own `check` refuses.
        """
        if not self._draws:
            return
        check_concepts(self.model, task.concepts)
        for setting, folder in paths_of(method):
            if setting.endswith("folder"):
                own = [Path(folder) / concept.name for concept in task.concepts]
                for place in [p for p in own if p.is_dir()] or [Path(folder)]:
                    look_into(place)
        method.refuse(self.model, task)

    # --- what is asked ---

    @property
    def _draws(self) -> bool:
        """Whether the model draws pictures."""
        return hasattr(self.model, "sampling")

    def _model(self) -> ModelEntry:
        sampling = str(self.model.sampling) if self._draws else ""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return ModelEntry(self.model.name, self.model.identity, sampling, dtype)

    def _kind(self, method: Any) -> str:
        if method is None:
            return "evaluate"
        if isinstance(method, Recovery):
            return "recover"
        return "erase" if self._draws else self.model.family

    def _asked(self, task: Task, method: Any, on: On, measures: Sequence[Measure]) -> Record:
        """All that a run depends on; the folder's name hashes it."""
        judge = entry_of(self.panel.judge)
        record = Record(
            kind=self._kind(method),
            concepts=task.concepts,
            seed=self.seed if method is not None else None,
            model=self._model(),
            prompts=images.digest(on.prompts) if on.prompts else "",
            judge=judge and replace(judge, ref=None),
        )
        if method is None:
            digests_ = tuple(patch.digest() for patch in on.patches)
            return replace(record, theme=on.theme, patches=digests_)
        record = replace(
            record,
            method=_name(method),
            title=type(method).__name__,
            arguments=asdict(method),
            files={n: provenance.digest(p) for n, p in paths_of(method) if p.exists()},
        )
        if record.kind == "recover":
            subject = on.subject and on.subject.name
            return replace(record, subject=subject, clip=self._other_clip())
        if task.forget is not None and task.retain is not None and task.validation is not None:
            record = replace(
                record,
                forget=_set_of(task.forget),
                retain=_set_of(task.retain),
                validation=len(task.validation),
                files=record.files | {"validation": task.validation.digest},
            )
        for measure in measures:
            about = getattr(measure, "about", {})
            files = record.files | about.get("files", {})
            record = replace(record, **{**about, "files": files})
        return record

    def _other_clip(self) -> Entry | None:
        """The CLIP as a part of a recovery's configuration: thresholds and figures are its own."""
        clip = self.panel.clip
        if clip is None or (self.panel.judge is not None and clip.spec.name == WORLD):
            return None
        entry = entry_of(clip)
        return entry and replace(entry, ref=None)

    def _finished(self, run: Run, on: On, measures: Sequence[Measure]) -> bool:
        """Whether nothing is left to do, the comparison with gold included."""
        record = run.record()
        compared = on.gold is None or record.gold == on.gold.name
        return record.status == "done" and compared and record.measures == titles(measures)

    def _say_former(self, run: Run, title: str) -> None:
        former = None if run.begun else run.former(title, self.command)
        if former is not None:
            self.tell(
                f"{former.folder}: a finished run of this command in an older format, which stays "
                f"as it is; a new one is made in {run.folder}"
            )

    # --- the stretches of a run ---

    def _below(self, on: On) -> list[Patch]:
        """The patches of the subject, refused before anything is spent if of another model."""
        if on.subject is None:
            return list(on.patches)
        path = on.subject.path("patch.safetensors")
        patch = Patch.load(path)
        try:
            self.model.accepts(patch)
        except PalimpsestError as error:
            raise PalimpsestError(f"{path}: {error}") from error
        return [patch]

    def _checked(self, task: Task, method: Any, on: On, force: bool) -> Run | None:
        """The unedited model's run, once neither method nor judge refuses the task."""
        erases = method is not None and not isinstance(method, Recovery)
        if erases:
            self.check(method, task)
        original = self.original(on.prompts) if method is not None and self._draws else None
        if original and erases and not force:
            for concept in task.concepts:
                self.panel.knows(original, concept, on.prompts)
        return original

    def _started(self, asked: Record) -> Record:
        """The record of a run that begins now."""
        draws = self._draws
        sampling = self.model.sampling if draws else None
        return replace(
            asked,
            status="running",
            started=provenance.now(),
            command=self.command,
            versions=provenance.versions(),
            git=provenance.commit(),
            device=str(self.model.device),
            sampling=Draw(sampling.steps, sampling.guidance, size=sampling.size)
            if sampling
            else None,
        )

    def _open(self, run: Run, asked: Record, method: Any, on: On, preset: str) -> None:
        if run.begun:
            return
        title = asked.title or on.name
        started = replace(self._started(asked), title=title, preset=preset, erased=tuple(on.erased))
        run.update(**_set(replace(started, **self.panel.entries())))

    def _train(self, run: Run, task: Task, method: Any, below: Sequence[Patch]) -> Patch | None:
        """The run's patch: the one it already has, or a new one, timed and weighed.

        None of a recovery that changed what is asked: then the record says what came out.
        """
        path, checkpoints = run.path("patch.safetensors"), run.path("checkpoints")
        if path.exists():
            return Patch.load(path)
        if run.record().answers:
            return None
        context = Context(
            seed=self.seed,
            judge=self.panel.judge,
            clip=self.panel.clip,
            folder=checkpoints,
            cache=None if self._draws else self.root / "gradients",
            progress=self.progress,
            log=lambda row: run.append("log.jsonl", row),
        )
        try:
            with measured(run, "train"):
                result = self._made(run, task, method, below, context)
        except WriteError:
            raise
        except PalimpsestError:
            run.discard()
            raise
        self._keep(run, task, result)
        log = {(row.get("label"), row.get("step")): row for row in run.rows("log.jsonl")}
        if log:
            run.write_rows("log.jsonl", log.values())  # a step taken again after a kill counts once
        shutil.rmtree(checkpoints, ignore_errors=True)
        return Patch.load(path) if result.patch is not None else None

    def _made(
        self, run: Run, task: Task, method: Any, below: Sequence[Patch], context: Context
    ) -> Result:
        if isinstance(method, Recovery):
            erased = below[0] if below else None
            result = method(self.model, task, erased, context=context)
            store.keep(run, result, method)
            return result
        return method(self.model, task, context=context)

    def _keep(self, run: Run, task: Task, result: Result) -> None:
        """Write down what a search tried, then the patch, which says that training is done."""
        if result.search:
            run.update(search=dict(result.search), short=result.short)
        if result.patch is None:
            return
        about = {**result.patch.about, "concepts": list(task.names), "run": run.name}
        about |= {"seed": self.seed, "versions": provenance.versions()}
        replace(result.patch, about=about).save(run.path("patch.safetensors"))

    def _close(
        self,
        run: Run,
        task: Task,
        on: On,
        patches: Sequence[Patch | None],
        measures: Sequence[Measure],
    ) -> None:
        """Draw what is to be drawn, measure, and close the record."""
        if not self._draws:
            found = self._ask(run, task, patches, measures)
        else:
            found = self._look(run, task, on, patches, measures)
        run.update(
            **found.result(run.record().model.sampling),
            **self.panel.entries(),
            **_weighed(run, patches),
            status="done",
            finished=provenance.now(),
        )

    def _look(
        self,
        run: Run,
        task: Task,
        on: On,
        patches: Sequence[Patch | None],
        measures: Sequence[Measure],
    ) -> Tally:
        """Measure pictures: those of the patched model, or those that a recovery brought."""
        if run.record().answers:
            prompts = images.asked(run)
            self.panel.score(run)
            self.original(prompts)
            return tally(run, task, prompts, measures, self.model)
        label = f"{on.name}: {on.theme}" if on.theme else "pictures of the edited model"
        with self.model.patched(*patches):
            self._draw(run, on.prompts, label)
            found = tally(run, task, on.prompts, measures, self.model)
            found.look("run")
        return found

    def _ask(
        self, run: Run, task: Task, patches: Sequence[Patch | None], measures: Sequence[Measure]
    ) -> Tally:
        """Measure a model that draws nothing by asking it, before and after."""
        found = Tally(measures, dict.fromkeys(("unedited", "run"), Seen(task, self.model)))
        with measured(run, "measures"):
            found.look("unedited")
            with self.model.patched(*patches):
                found.look("run")
        for name, kept in found.files():
            if name.endswith(".png"):
                images.save_png(kept, run.path(name))
            else:
                run.write_rows(name, kept)
        return found

    def _draw(self, run: Run, prompts: Sequence[Prompt], label: str) -> None:
        """Make the pictures that are not there yet, then score them."""
        missing = [p for p in prompts if not run.path(images.picture_name(p)).exists()]
        if missing:
            with measured(run, "pictures"):
                self._make(run, missing, label)
        rows = [images.row(p) for p in prompts]
        if run.rows("images.jsonl") != rows:
            run.write_rows("images.jsonl", rows)
        self.panel.score(run)

    def _make(self, run: Run, prompts: Sequence[Prompt], label: str) -> None:
        size = max(self.model.sampling.batch, 1)
        with self.progress.task(label, len(prompts)) as task:
            for start in range(0, len(prompts), size):
                batch = prompts[start : start + size]
                for prompt, image in zip(batch, self.model.generate(batch), strict=True):
                    images.save_png(image, run.path(images.picture_name(prompt)))
                task.advance(len(batch))


def paths_of(settings: Any, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Yield the files and folders that a method's settings name, nested ones by `outer.inner`."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        if isinstance(value, Path):
            yield prefix + each.name, value
        elif is_dataclass(value):
            yield from paths_of(value, f"{prefix}{each.name}.")


def _name(method: Any) -> str:
    return getattr(method, "name", type(method).__module__.rpartition(".")[2])


def _title(asked: Record, on: On) -> str:
    """The readable part of a run's folder name."""
    if asked.kind == "evaluate":
        return images.title(f"{on.theme}-{on.name}")
    title = f"{asked.method}-{'-'.join(asked.names)}"
    if asked.kind != "recover":
        return title
    return f"{title}-on-{on.subject.name.split('-')[0] if on.subject else 'unedited'}"


def _set_of(pairs: Any) -> PictureSet:
    return PictureSet(pairs.source, len(pairs), pairs.digest, tuple(pairs.skipped))


def _set(record: Record) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}


def _weighed(run: Run, patches: Sequence[Patch | None]) -> dict[str, Any]:
    """What an edit weighs; nothing of a run that has none of its own."""
    last = patches[-1] if patches else None
    if last is None:
        return {}
    norm = last.norm()
    return {
        "patch_bytes": run.path("patch.safetensors").stat().st_size,
        "edit_norm": norm if norm == norm else None,
        "components": tuple(dict.fromkeys(c for p in patches if p for c in p.components)),
    }


@contextmanager
def measured(run: Run, stretch: str) -> Iterator[None]:
    """Add a stretch's seconds and peak memory to the run's record."""
    start = time.perf_counter()
    with Peak() as peak:
        yield
    record = run.record()
    seconds, memory = dict(record.seconds), dict(record.memory_mb)
    seconds[stretch] = round(seconds.get(stretch, 0) + time.perf_counter() - start, 2)
    memory[stretch] = round(max(memory.get(stretch, 0), peak.megabytes), 1)
    run.update(seconds=seconds, memory_mb=memory, peak_memory_mb=max(memory.values()))
