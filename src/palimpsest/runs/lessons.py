"""Give a model a lesson in forgetting, measure it before and after, and write down how."""

from __future__ import annotations

import shutil
from collections.abc import Sized
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from palimpsest.core import provenance
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.progress import Progress, Silent
from palimpsest.data.pairs import Pairs
from palimpsest.methods import Context, Eraser, Task
from palimpsest.metrics.rates import Rate
from palimpsest.models.editable import Editable
from palimpsest.patch import Patch
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import measured

M = TypeVar("M", bound=Editable)
X = TypeVar("X", bound=Sized)


@dataclass
class LessonBench(Generic[M, X]):
    """A model and the folder where its runs go."""

    kind: ClassVar[str]
    """What its runs are, in their records."""

    root: Path
    model: M
    progress: Progress = field(default_factory=Silent)
    command: str = ""
    """The command that repeats the run."""
    seed: int = 0

    def erase(self, name: str, method: Eraser, task: Task, exam: X, *, preset: str = "") -> Run:
        """Let a method make the model forget, and measure it before and after.

        Args:
            name: the method's name, for the folder and the record.
            method: with its hyperparameters.
            task: what to forget, what to keep, and what to choose by.
            exam: what is reported is measured on this.
            preset: the preset that the hyperparameters came from, for the record.

        Raises:
            PalimpsestError: a model that the method does not edit, or sets that cannot serve.
        """
        config = self.config(name, method, task, exam)
        run = Run.place(self.root, f"{name}-{'-'.join(task.names)}", config)
        if run.done:
            return run
        run.update(
            **config,
            title=type(method).__name__,
            status="running",
            started=provenance.now(),
            command=self.command,
            versions=provenance.versions(),
            git=provenance.commit(),
            preset=preset,
        )
        patch = self._train(run, method, task)
        found = self.measure(run, patch, task, exam)
        run.update(
            status="done",
            finished=provenance.now(),
            **found,
            patch_bytes=run.path("patch.safetensors").stat().st_size,
            edit_norm=patch.norm(),
        )
        return run

    def measure(self, run: Run, patch: Patch, task: Task, exam: X) -> dict[str, Any]:
        """The record's `baseline` and `numbers`: before and after."""
        raise NotImplementedError

    def config(self, name: str, method: Eraser, task: Task, exam: X) -> dict[str, Any]:
        """All that the run depends on."""
        forget, retain, validation = task.sets()
        return {
            "kind": self.kind,
            "method": name,
            "arguments": asdict(method),  # pyright: ignore[reportArgumentType]
            "names": list(task.names),
            "seed": self.seed,
            "model": {
                "name": self.model.name,
                "identity": self.model.identity,
                "dtype": str(self.model.dtype).removeprefix("torch."),
            },
            "forget": _about(forget),
            "retain": _about(retain),
            "validation": len(validation),
            "test": len(exam),
        }

    def _train(self, run: Run, method: Eraser, task: Task) -> Patch:
        """The run's patch: the one it has, or a new one, timed and weighed.

        Gradients are kept beside the runs, where the next search finds them.
        """
        path = run.path("patch.safetensors")
        if path.exists():
            return Patch.load(path)
        context = Context(
            seed=self.seed,
            folder=run.path("checkpoints"),
            cache=self.root / "gradients",
            progress=self.progress,
            log=lambda row: run.append("log.jsonl", row),
        )
        try:
            with measured(run, "train"):
                result = method(self.model, task, context=context)
        except PalimpsestError:
            run.discard()
            raise
        run.update(search=dict(result.search), short=result.short)
        patch = result.patch
        assert patch is not None  # an eraser's call sees to it
        about = {**patch.about, "concepts": list(task.names), "run": run.name}
        replace(patch, about=about | {"seed": self.seed, "versions": provenance.versions()}).save(
            path
        )
        shutil.rmtree(run.path("checkpoints"), ignore_errors=True)
        return Patch.load(path)


def number(name: str, rate: Rate, spec: str) -> dict[str, Any]:
    """A rate as a record holds it; nothing judged is null."""
    figures = {k: None if v != v else v for k, v in asdict(rate).items()}
    return {"name": name, **figures, "unit": "%", "spec": spec}


def _about(pairs: Pairs) -> dict[str, Any]:
    return {
        "source": pairs.source,
        "pictures": len(pairs),
        "digest": pairs.digest,
        "skipped": list(pairs.skipped),
    }
