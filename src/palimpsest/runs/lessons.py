"""Give a model a lesson in forgetting, measure it before and after, and write down how."""

from __future__ import annotations

import shutil
from collections.abc import Sized
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from palimpsest.core import provenance
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.progress import Progress, Silent
from palimpsest.data.pairs import Lesson, Pairs
from palimpsest.methods import Context
from palimpsest.metrics.rates import Rate
from palimpsest.models.editable import Editable
from palimpsest.patch import Patch
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import measured

M = TypeVar("M", bound=Editable)
L = TypeVar("L", bound=Lesson)
X = TypeVar("X", bound=Sized)
M_contra = TypeVar("M_contra", contravariant=True)
L_contra = TypeVar("L_contra", contravariant=True)


class LessonEraser(Protocol[M_contra, L_contra]):
    """A frozen dataclass that makes a patch of a model; the model is left as it was."""

    def __call__(self, model: M_contra, lesson: L_contra, *, context: Context) -> Patch:
        """Forget the lesson's names."""
        ...


@dataclass
class LessonBench(Generic[M, L, X]):
    """A model and the folder where its runs go."""

    kind: ClassVar[str]
    """What its runs are, in their records."""

    root: Path
    model: M
    progress: Progress = field(default_factory=Silent)
    command: str = ""
    """The command that repeats the run."""
    seed: int = 0

    def erase(
        self, name: str, method: LessonEraser[M, L], lesson: L, exam: X, *, preset: str = ""
    ) -> Run:
        """Let a method make the model forget, and measure it before and after.

        Args:
            name: the method's name, for the folder and the record.
            method: with its hyperparameters.
            lesson: what to forget, what to keep, and what to choose by.
            exam: what is reported is measured on this.
            preset: the preset that the hyperparameters came from, for the record.

        Raises:
            PalimpsestError: sets that cannot serve.
        """
        lesson.check()
        config = self.config(name, method, lesson, exam)
        run = Run.place(self.root, f"{name}-{'-'.join(lesson.names)}", config)
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
        patch = self._train(run, method, lesson)
        found = self.measure(run, patch, lesson, exam)
        run.update(
            status="done",
            finished=provenance.now(),
            **found,
            search=patch.about.get(name, {}),
            short=patch.about.get("short"),
            patch_bytes=run.path("patch.safetensors").stat().st_size,
            edit_norm=patch.norm(),
        )
        return run

    def measure(self, run: Run, patch: Patch, lesson: L, exam: X) -> dict[str, Any]:
        """The record's `baseline` and `numbers`: before and after."""
        raise NotImplementedError

    def config(self, name: str, method: LessonEraser[M, L], lesson: L, exam: X) -> dict[str, Any]:
        """All that the run depends on."""
        return {
            "kind": self.kind,
            "method": name,
            "arguments": asdict(method),  # pyright: ignore[reportArgumentType]
            "names": list(lesson.names),
            "seed": self.seed,
            "model": {
                "name": self.model.name,
                "identity": self.model.identity,
                "dtype": str(self.model.dtype).removeprefix("torch."),
            },
            "forget": _about(lesson.forget),
            "retain": _about(lesson.retain),
            "validation": len(lesson.validation),
            "test": len(exam),
        }

    def _train(self, run: Run, method: LessonEraser[M, L], lesson: L) -> Patch:
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
                patch = method(self.model, lesson, context=context)
        except PalimpsestError:
            run.discard()
            raise
        about = {**patch.about, "concepts": list(lesson.names), "run": run.name}
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
