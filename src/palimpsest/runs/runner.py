"""Carry a method through its run: train, make pictures, measure, write down; resume where it broke.

What a method did is known here only through its dataclass and its patch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from palimpsest.core import provenance
from palimpsest.core.atomic import remove
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, WriteError
from palimpsest.core.files import is_component
from palimpsest.core.kinds import Optimizer
from palimpsest.core.memory import Peak
from palimpsest.core.progress import Progress, Silent
from palimpsest.core.prompts import Prompt
from palimpsest.data.read import look_into
from palimpsest.judge import references
from palimpsest.methods import Context, Measure, Result, Seen, Task
from palimpsest.patch import Patch, precision
from palimpsest.runs import images, store
from palimpsest.runs.asked import Asked, On, model_entry, paths_of
from palimpsest.runs.folder import Run
from palimpsest.runs.loggers import Logger, Logging
from palimpsest.runs.record import Record
from palimpsest.runs.scoring import Panel, Tally, refuse, tally, titles
from palimpsest.toolbox.checks import check_concepts
from palimpsest.toolbox.optimizers import eight_bit


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
    logger: Logger | None = None
    """Takes training rows and final numbers besides the run's folder."""
    _logging: Logging = field(default_factory=Logging, init=False, repr=False)

    def run(
        self,
        what: Task | Concept | Sequence[Concept],
        method: Any,
        on: On,
        measures: Sequence[Measure] | None = None,
        *,
        preset: str = "",
        force: bool = False,
        optimizer: Optimizer = "own",
    ) -> Run:
        """Make a run, or go on with one; a finished run comes back at once.

        Args:
            what: the concepts, and pictures for the methods that need some.
            method: an eraser or a recovery; None only evaluates.
            on: the subject and the prompts.
            measures: what is counted, all that the panel can when left out; with one that was not
                counted before a finished run's pictures are counted afresh.
            preset: the preset that the method's settings came from, for the record.
            force: erase even what the model hardly knows.
            optimizer: what training takes its steps by.

        Raises:
            PalimpsestError: the prompts ask for what the judge does not know, the method refuses
                the model or the task, a patch is of another model, or the unedited model does not
                know a concept, unless `force`.
        """
        if measures is None:
            measures = self.panel.of_themes if method is None else self.panel.measures
        task, seen = Task.of(what), (self.model, self.panel)
        asked = Asked(*seen, task, method, on, measures, self.seed, optimizer)
        if optimizer != "own":
            eight_bit(self.model.device)
        self.panel.classes(on.prompts)
        if method is not None and not asked.draws:
            method.refuse(self.model, asked.task)
        run = Run.place(self.root, asked.title, asked.record)
        self.panel.adopt(run.record())
        if _finished(run, asked):
            return run
        below = self._below(on)
        self._say_former(run, asked)
        original = self._checked(asked, force)
        with run.locked(self.tell):
            if not _finished(run, asked):  # by whom this process may have waited for
                self._go(run, asked, below, original, preset)
        return run

    def _go(
        self, run: Run, asked: Asked, below: Sequence[Patch], original: Run | None, preset: str
    ) -> None:
        """Begin a run that is held, or go on with it where it was left."""
        on = asked.on
        if not run.begun:
            started = replace(self._started(asked.record), preset=preset, erased=tuple(on.erased))
            run.write(replace(started, title=started.title or on.name, **self.panel.entries()))
        run.update(original=original and original.name, gold=on.gold and on.gold.name)
        self._logging = Logging(self.logger, self.tell)
        self._logging.start(run.name, asked.record)
        try:
            own = self._train(run, asked, below) if asked.method is not None else None
            self._close(run, asked, [*below, own])
            self._logging.end(run.record())
        finally:
            self._logging.end()

    def original(self, prompts: Sequence[Prompt]) -> Run:
        """Draw the unedited model's pictures of these prompts; all suites share one folder.

        So do all commands that run at the same time: one waits until another is done with it.
        """
        asked = Record(kind="original", model=model_entry(self.model))
        run = Run.place(self.root, "original", asked)
        with run.locked(self.tell):
            if not run.begun:
                run.write(replace(self._started(asked), title="original"))
            old = {images.picture_name(p): p for p in images.asked(run)}
            new = {images.picture_name(p): p for p in prompts}
            more = [prompt for name, prompt in new.items() if name not in old]
            self._draw(run, [[*old.values()], more], "original pictures")
            self.panel.fit(run, prompts)
            self.panel.score(run, prompts)
            if not run.done:
                run.update(status="done")
        return run

    def check(self, method: Any, task: Task) -> None:
        """Refuse what a method cannot do, before anything is spent.

        Raises:
            PalimpsestError: the model cannot read a concept's name whole, a folder of pictures
                that cannot be used, or whatever the method's own `check` refuses.
        """
        check_concepts(self.model, task.concepts)
        for setting, folder in paths_of(method):
            if setting.endswith("folder"):
                named = [folder / name for name in task.names if is_component(name)]
                own = [place for place in named if place.is_dir()]
                for place in own or [folder]:
                    look_into(place)
        method.refuse(self.model, task)

    def _below(self, on: On) -> list[Patch]:
        """Return the subject's patches, refused before anything is spent if of another model."""
        if on.subject is None:
            return list(on.patches)
        path = on.subject.path("patch.safetensors")
        patch = Patch.load(path)
        try:
            self.model.accepts(patch)
        except PalimpsestError as error:
            raise PalimpsestError(f"{path}: {error}") from error
        return [patch]

    def _say_former(self, run: Run, asked: Asked) -> None:
        former = None if run.begun else run.former(asked.title, self.command)
        if former is not None:
            self.tell(
                f"{former.folder}: a finished run of this command in an older format, which stays "
                f"as it is; a new one is made in {run.folder}"
            )

    def _checked(self, asked: Asked, force: bool) -> Run | None:
        """Return the unedited model's run, once neither method nor judge refuses the task."""
        if asked.method is None or not asked.draws:
            return None
        if asked.erases:
            self.check(asked.method, asked.task)
        original = self.original(asked.on.prompts)
        refuse(original, asked.task, asked.on.prompts, asked.measures)
        for concept in asked.task.concepts if asked.erases and not force else ():
            self.panel.knows(original, concept, asked.on.prompts)
        return original

    def _started(self, asked: Record) -> Record:
        """Return the record of a run that begins now."""
        sampling = getattr(self.model, "sampling", None)
        return replace(
            asked,
            status="running",
            started=provenance.now(),
            command=self.command,
            versions=provenance.versions(),
            git=provenance.commit(),
            device=str(self.model.device),
            threads=torch.get_num_threads(),
            memory=getattr(self.model, "memory", ""),
            sampling=sampling and sampling.recorded,
        )

    # --- the stretches of a run ---

    def _train(self, run: Run, asked: Asked, below: Sequence[Patch]) -> Patch | None:
        """Return the run's patch: the one it already has, or a new one, timed and weighed.

        None of a recovery that changed what is asked: then the record says what came out.
        """
        path, checkpoints = run.path("patch.safetensors"), run.path("checkpoints")
        if not path.exists() and not run.record().answers:
            context = Context(
                seed=self.seed,
                judge=self.panel.judge,
                clip=self.panel.clip,
                optimizer=asked.optimizer,
                folder=checkpoints,
                cache=None if asked.draws else self.root / "gradients",
                progress=self.progress,
                log=lambda row: self._log(run, row),
                tell=self.tell,
            )
            self._tidy_log(run)
            try:
                with measured(run, "train"):
                    result = _made(asked, below, context)
                self._keep(run, asked, result)
            except WriteError:
                raise
            except PalimpsestError:
                run.discard()
                raise
        if checkpoints.exists():
            remove(checkpoints)
        return Patch.load(path) if path.exists() else None

    def _log(self, run: Run, row: dict[str, Any]) -> None:
        """Keep a row, and tell it to the logger."""
        run.append("log.jsonl", row)
        self._logging.row(row)

    def _say_lost(self, share: float | None) -> None:
        if said := precision.told(share, self.model.dtype):
            self.tell(said)

    @staticmethod
    def _tidy_log(run: Run) -> None:
        """Leave out of the log half a row, and a step's rows but for its last."""
        log = {(row.get("label"), row.get("step")): row for row in run.rows("log.jsonl")}
        if run.path("log.jsonl").exists():
            run.write_rows("log.jsonl", log.values())

    def _keep(self, run: Run, asked: Asked, result: Result) -> None:
        """Write down what came out; what comes last says that training is done.

        That is the patch, or the record of a recovery which changed what is asked.
        """
        self._tidy_log(run)
        found = store.keep(run, result, asked.method) if asked.recovers else {}
        if result.search:
            found |= {"search": dict(result.search), "short": result.short}
        run.update(**found)
        if result.patch is not None:
            self._say_lost(precision.share(result.patch.about))
            about = {**result.patch.about, "concepts": list(asked.task.names), "run": run.name}
            about |= {"seed": self.seed, "versions": provenance.versions()}
            about |= {"optimizer": asked.optimizer} if asked.record.optimizer else {}
            replace(result.patch, about=about).save(run.path("patch.safetensors"))

    def _close(self, run: Run, asked: Asked, patches: Sequence[Patch | None]) -> None:
        """Draw what is to be drawn, measure, and close the record."""
        if asked.method is None and (real := [patch for patch in patches if patch is not None]):
            run.update(lost_in_rounding=self.model.lost(*real))
            self._say_lost(run.record().lost_in_rounding)
        found = self._look(run, asked, patches) if asked.draws else self._ask(run, asked, patches)
        run.update(
            **found.result(run.record().model.sampling),
            **self.panel.entries(),
            **_weighed(run, patches),
            status="done",
            finished=provenance.now(),
        )

    def _look(self, run: Run, asked: Asked, patches: Sequence[Patch | None]) -> Tally:
        """Measure pictures: those of the patched model, or those that a recovery brought."""
        on = asked.on
        if run.record().answers:
            prompts = images.asked(run)
            self.panel.score(run)
            self.original(prompts)
            return tally(run, asked.task, prompts, asked.measures, self.model)
        label = f"{on.name}: {on.theme}" if on.theme else "pictures of the edited model"
        if on.theme:
            images.adopt(run, on.prompts)
        with self.model.patched(*patches):
            self._draw(run, [on.prompts], label)
            if not any(patches):
                self.panel.fit(run, on.prompts)
            self.panel.score(run)
            found = tally(run, asked.task, on.prompts, asked.measures, self.model)
            found.look("run")
        return found

    def _ask(self, run: Run, asked: Asked, patches: Sequence[Patch | None]) -> Tally:
        """Measure a model that draws nothing by asking it, before and after."""
        seen = Seen(asked.task, self.model)
        found = Tally(asked.measures, {"unedited": seen, "run": seen})
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

    def _draw(self, run: Run, lots: Sequence[Sequence[Prompt]], label: str) -> None:
        """Make the pictures that are not there yet, a lot after the other."""
        files = [[(run.path(images.picture_name(p)), p) for p in lot] for lot in lots]
        missing = sum(not path.exists() for lot in files for path, _ in lot)
        if missing:
            with measured(run, "pictures"), self.progress.task(label, missing) as task:
                for lot in files:
                    images.draw(self.model, lot, task, self.tell)
        rows = [images.row(p) for lot in lots for p in lot]
        if run.rows("images.jsonl") != rows:
            run.write_rows("images.jsonl", rows)


def _finished(run: Run, asked: Asked) -> bool:
    """Return whether nothing is left to do, the comparison with gold included."""
    record, gold = run.record(), asked.on.gold
    compared = gold is None or record.gold == gold.name
    looked = {entry.key for entry in (record.judge, *record.judges) if entry}
    looks = [references.entry(judge) for judge in asked.panel.judges]
    same = all(entry.key in looked for entry in looks if entry.opened or entry.fitted)
    counted = {*titles(asked.measures)} <= {*record.measures}
    return record.status == "done" and compared and same and counted


def _made(asked: Asked, below: Sequence[Patch], context: Context) -> Result:
    """Return what the method came back with."""
    if asked.recovers:
        erased = below[0] if below else None
        return asked.method(asked.model, asked.task, erased, context=context)
    return asked.method(asked.model, asked.task, context=context)


def _weighed(run: Run, patches: Sequence[Patch | None]) -> dict[str, Any]:
    """Return what an edit weighs; nothing of a run that has none of its own."""
    last = patches[-1] if patches else None
    if last is None:
        return {}
    norm = last.norm()
    return {
        "patch_bytes": run.path("patch.safetensors").stat().st_size,
        "edit_norm": norm if norm == norm else None,
        "lost_in_rounding": precision.share(last.about),
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
    gpu, own = dict(record.gpu_memory_mb), peak.gpu_megabytes
    if own is not None:
        gpu[stretch] = round(max(gpu.get(stretch, 0), own), 1)
    run.update(
        seconds=seconds, memory_mb=memory, peak_memory_mb=max(memory.values()), gpu_memory_mb=gpu
    )
