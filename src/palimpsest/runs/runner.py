"""Carry a method through its run: train, make pictures, judge, write down; resume where it broke.

What a method did is known here only through its dataclass and its patch.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
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
from palimpsest.erase.gold import Gold
from palimpsest.judge.clip import WORLD
from palimpsest.methods import Context, Eraser, Recovery, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.runs import images, store
from palimpsest.runs.folder import Run
from palimpsest.runs.scoring import Panel
from palimpsest.toolbox.checks import check_concepts
from palimpsest.world import assets


@dataclass
class Bench:
    """A model, those who judge it, and the folder where runs go."""

    root: Path
    model: Diffusion
    panel: Panel = field(default_factory=Panel)
    progress: Progress = field(default_factory=Silent)
    command: str = ""
    """The command that repeats the run."""
    seed: int = 0

    # --- the three kinds of run ---

    def original(self, prompts: Sequence[Prompt]) -> Run:
        """The unedited model's pictures of these prompts; all suites share one folder.

        So do all commands that run at the same time: one waits until another is done with it.
        """
        config = {"kind": "original", "model": self._model()}
        run = Run.place(self.root, "original", config)
        with FileLock(self.root / f".{run.name}.lock"):
            if not run.record():
                run.update(**self._start("original", config), concept=None)
            known = {images.picture_name(p): p for p in (*images.asked(run), *prompts)}
            self._look(run, list(known.values()), "original pictures")
            run.update(status="done")
        return run

    def erase(
        self,
        name: str,
        method: Eraser,
        concept: Concept,
        prompts: Sequence[Prompt],
        *,
        preset: str = "",
        force: bool = False,
        gold: Run | None = None,
    ) -> Run:
        """Erase a concept and judge what is left.

        Args:
            name: the method's name, for the folder and the record.
            method: the eraser with its hyperparameters.
            concept: what to erase.
            prompts: what to judge it by.
            preset: the preset that the hyperparameters came from, for the record.
            force: erase even what the model hardly knows.
            gold: the run of the model that never knew the concept, to be compared with.

        Raises:
            PalimpsestError: the unedited model cannot read the concept's name whole, or does not
                know the concept, unless `force`.
        """
        self.panel.classes(prompts)
        config = self._config("erase", name, method, concept, prompts)
        run = Run.place(self.root, f"{name}-{concept.name}", config)
        if self._finished(run, gold):
            return run
        self.check(method, concept)
        original = self.original(prompts)
        if not force:
            self.panel.knows(original, concept, prompts)
        self._open(run, config, method, (original, gold), preset)
        patch = self._train(run, lambda c: method(self.model, [concept], context=c))
        return self._judge(run, concept, prompts, [patch])

    def check(self, method: Eraser, concept: Concept) -> None:
        """Refuse what a method cannot do, before anything is spent.

        Raises:
            PalimpsestError: the model cannot read the concept's name whole, a folder of pictures
                that cannot be used, or whatever the method's own `check` refuses.
        """
        check_concepts(self.model, [concept])
        for field_ in fields(method):  # pyright: ignore[reportArgumentType]
            folder = getattr(method, field_.name)
            if field_.name.endswith("folder") and isinstance(folder, str):
                own = Path(folder) / concept.name
                look_into(own if own.is_dir() else Path(folder))
        method.refuse(self.model, Task((concept,)))

    def gold(self, concept: Concept, prompts: Sequence[Prompt]) -> Run | None:
        """The run of the gold model that never knew the concept; None where there is none."""
        if self.model.name != "world" or concept.name not in assets.golds():
            return None
        return self.erase("gold", Gold(), concept, prompts)

    def recover(
        self,
        name: str,
        method: Recovery,
        concept: Concept,
        prompts: Sequence[Prompt],
        *,
        subject: Run | None,
        preset: str = "",
        gold: Run | None = None,
    ) -> Run:
        """Try to bring a concept back to the subject of a run, or to the unedited model.

        Args:
            name: the method's name, for the folder and the record.
            method: the recovery with its hyperparameters.
            concept: what to bring back.
            prompts: what to judge it by.
            subject: the erasing run; None is the unedited model.
            preset: the preset that the hyperparameters came from, for the record.
            gold: the run of the model that never knew the concept, to be compared with.

        A recovery that changes what is asked brings its own prompts and the answers to them, and is
        judged by these alone.

        Raises:
            PalimpsestError: the subject's patch belongs to another model.
        """
        config = self._config("recover", name, method, concept, prompts)
        config["subject"] = subject and subject.name
        clip = self.panel.clip
        if clip is not None and (self.panel.judge is None or clip.spec.name != WORLD):
            config["clip"] = asdict(clip.spec)  # thresholds and figures are its own
        on = subject.name.split("-")[0] if subject else "unedited"
        run = Run.place(self.root, f"{name}-{concept.name}-on-{on}", config)
        if self._finished(run, gold):
            return run
        erased = self._patch_of(subject) if subject else None
        original = self.original(prompts)
        self._open(run, config, method, (original, gold), preset)

        def attempt(context: Context) -> Result:
            found = method(self.model, concept, erased, context=context)
            store.keep(run, found, method)
            return found

        patch = self._train(run, attempt)
        if store.answered(run.record()):
            return self._judge_answers(run, concept)
        return self._judge(run, concept, prompts, [erased, patch])

    def _patch_of(self, subject: Run) -> Patch:
        """The subject's patch, refused before anything is spent if it is of another model."""
        path = subject.path("patch.safetensors")
        patch = Patch.load(path)
        try:
            self.model.accepts(patch)
        except PalimpsestError as error:
            raise PalimpsestError(f"{path}: {error}") from error
        return patch

    def rejudge(self, run: Run, concept: Concept) -> None:
        """Judge a run's pictures afresh and write its numbers down again."""
        for each in filter(None, (*self._beside(run), run)):
            each.write_rows("scores.jsonl", [])
            self.panel.score(each)
        self._count(run, concept, images.asked(run))
        run.update(**self.panel.entries())

    # --- what the record says ---

    def _model(self) -> dict[str, str]:
        model, dtype = self.model, str(self.model.dtype).removeprefix("torch.")
        sampling = str(model.sampling)
        return {
            "name": model.name,
            "identity": model.identity,
            "sampling": sampling,
            "dtype": dtype,
        }

    def _config(
        self, kind: str, name: str, method: Any, concept: Concept, prompts: Sequence[Prompt]
    ) -> dict[str, Any]:
        """All that a run depends on; the folder's name hashes it."""
        return {
            "kind": kind,
            "method": name,
            "arguments": asdict(method),
            "concept": asdict(concept),
            "seed": self.seed,
            "model": self._model(),
            "prompts": images.digest(prompts),
            "judge": asdict(self.panel.judge.spec) if self.panel.judge else None,
        }

    def _start(self, title: str, config: dict[str, Any]) -> dict[str, Any]:
        sampling = self.model.sampling
        return {
            **config,
            "title": title,
            "status": "running",
            "started": provenance.now(),
            "command": self.command,
            "versions": provenance.versions(),
            "git": provenance.commit(),
            "device": str(self.model.device),
            "sampling": {"steps": sampling.steps, "guidance": sampling.guidance},
        }

    def _open(
        self,
        run: Run,
        config: dict[str, Any],
        method: object,
        beside: tuple[Run, Run | None],
        preset: str,
    ) -> None:
        original, gold = beside
        if not run.record():
            started = self._start(type(method).__name__, config) | self.panel.entries()
            run.update(**started, preset=preset)
        run.update(original=original.name, gold=gold and gold.name)

    @staticmethod
    def _finished(run: Run, gold: Run | None) -> bool:
        """Whether nothing is left to do, the comparison with gold included."""
        return run.done and (gold is None or run.record().get("gold") == gold.name)

    def _beside(self, run: Run) -> tuple[Run, Run | None]:
        """The runs of the unedited and of the gold model that a run is compared with."""
        record = run.record()
        gold = record.get("gold")
        return Run.open(self.root / record["original"]), gold and Run.open(self.root / gold)

    # --- the stretches of a run ---

    def _train(self, run: Run, make: Callable[[Context], Result]) -> Patch | None:
        """The run's patch: the one it already has, or a new one, timed and weighed.

        None of a recovery that changed what is asked: then the record says what came out.
        """
        path, checkpoints = run.path("patch.safetensors"), run.path("checkpoints")
        if path.exists():
            return Patch.load(path)
        if store.answered(run.record()):
            return None
        context = Context(
            seed=self.seed,
            judge=self.panel.judge,
            clip=self.panel.clip,
            folder=checkpoints,
            progress=self.progress,
            log=lambda row: run.append("log.jsonl", row),
        )
        try:
            with measured(run, "train"):
                result = make(context)
        except WriteError:
            raise
        except PalimpsestError:
            run.discard()
            raise
        patch = result.patch
        if result.search:
            run.update(search=dict(result.search), short=result.short)
        if patch is not None:
            about = {**patch.about, "concepts": [run.record()["concept"]["name"]], "run": run.name}
            about |= {"seed": self.seed, "versions": provenance.versions()}
            replace(patch, about=about).save(path)
        log = {(row["label"], row["step"]): row for row in run.rows("log.jsonl")}
        run.write_rows("log.jsonl", log.values())  # steps taken again after a kill stand once
        shutil.rmtree(checkpoints, ignore_errors=True)
        return None if patch is None else Patch.load(path)

    def _judge_answers(self, run: Run, concept: Concept) -> Run:
        """Judge what the model under attack answered, beside the unedited one's plain answers."""
        asked = images.asked(run)
        self.panel.score(run)
        self.original(asked)
        self._count(run, concept, asked)
        run.update(status="done", finished=provenance.now())
        return run

    def _judge(
        self,
        run: Run,
        concept: Concept,
        prompts: Sequence[Prompt],
        patches: Sequence[Patch | None],
    ) -> Run:
        """Make the edited model's pictures, judge them, and close the record."""
        with self.model.patched(*patches):
            self._look(run, prompts, "pictures of the edited model")
        self._count(run, concept, prompts)
        last = patches[-1]
        norm = math.nan if last is None else last.norm()
        run.update(
            status="done",
            finished=provenance.now(),
            patch_bytes=run.path("patch.safetensors").stat().st_size,
            edit_norm=None if math.isnan(norm) else norm,
            components=list(dict.fromkeys(c for p in patches if p for c in p.components)),
        )
        return run

    def _look(self, run: Run, prompts: Sequence[Prompt], label: str) -> None:
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

    def _count(self, run: Run, concept: Concept, prompts: Sequence[Prompt]) -> None:
        """The run's numbers, beside those of the unedited model on the same prompts."""
        beside, sampling = self._beside(run), str(self.model.sampling.recorded(run.record()))
        if store.answered(run.record()):
            numbers, baseline = (
                self.panel.shown(each, concept, prompts, f"{sampling}; {how}")
                for each, how in ((run, "answers to what was found"), (beside[0], "plain prompts"))
            )
            return run.update(numbers=numbers, baseline=baseline)
        numbers, baseline = (
            self.panel.numbers(each, beside, concept, prompts, sampling)
            for each in (run, beside[0])
        )
        run.update(numbers=numbers, baseline=baseline)


@contextmanager
def measured(run: Run, stretch: str) -> Iterator[None]:
    """Add a stretch's seconds and peak memory to the run's record."""
    start = time.perf_counter()
    with Peak() as peak:
        yield
    record = run.record()
    seconds, memory = record.get("seconds", {}), record.get("memory_mb", {})
    seconds[stretch] = round(seconds.get(stretch, 0) + time.perf_counter() - start, 2)
    memory[stretch] = round(max(memory.get(stretch, 0), peak.megabytes), 1)
    run.update(seconds=seconds, memory_mb=memory, peak_memory_mb=max(memory.values()))
