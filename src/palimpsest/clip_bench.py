"""Make a CLIP forget, measure what it still names, and write down how it came about."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from palimpsest import metrics, runs
from palimpsest.bench import measured
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.models.contrast import zero_shot
from palimpsest.models.pairs import Labelled, Lesson, Pairs
from palimpsest.patch import Patch
from palimpsest.runs import Run
from palimpsest.types import Context, PalimpsestError, Progress, Rate, Silent


class ClipEraser(Protocol):
    """A frozen dataclass that makes a patch of a CLIP; the model is left as it was."""

    def __call__(self, model: ContrastiveEncoder, lesson: Lesson, *, context: Context) -> Patch:
        """Forget the lesson's names."""
        ...


@dataclass(frozen=True)
class Exam:
    """What an edited CLIP is measured on; no method sees any of it."""

    test: Labelled
    """Pictures of every class, disjoint from those that a method chooses by."""
    outside: Pairs | None = None
    """Captioned pictures of what was forgotten that CLIP was not trained on."""


@dataclass
class ClipBench:
    """A CLIP and the folder where runs go."""

    root: Path
    model: ContrastiveEncoder
    progress: Progress = field(default_factory=Silent)
    command: str = ""
    """The command that repeats the run."""
    seed: int = 0

    def erase(
        self, name: str, method: ClipEraser, lesson: Lesson, exam: Exam, *, preset: str = ""
    ) -> Run:
        """Let a method make the CLIP forget, and measure it before and after.

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
        config = self._config(name, method, lesson, exam)
        run = Run.place(self.root, f"{name}-{'-'.join(lesson.names)}", config)
        if run.done:
            return run
        run.update(
            **config,
            title=type(method).__name__,
            status="running",
            started=runs.now(),
            command=self.command,
            versions=runs.versions(),
            git=runs.commit(),
            preset=preset,
        )
        patch = self._train(run, method, lesson)
        baseline = self.numbers(lesson, exam)
        with self.model.patched(patch):
            numbers = self.numbers(lesson, exam)
        run.update(
            status="done",
            finished=runs.now(),
            baseline=baseline,
            numbers=numbers,
            search=patch.about.get(name, {}),
            short=patch.about.get("short"),
            patch_bytes=run.path("patch.safetensors").stat().st_size,
            edit_norm=patch.norm(),
        )
        return run

    def numbers(self, lesson: Lesson, exam: Exam) -> list[dict[str, Any]]:
        """Zero-shot accuracies of the model as it stands, and membership inference."""
        ranks = zero_shot(self.model, exam.test)
        gone = [label in lesson.names for label in exam.test.labels]
        own = [rank for rank, is_gone in zip(ranks, gone, strict=True) if is_gone]
        rest = [rank for rank, is_gone in zip(ranks, gone, strict=True) if not is_gone]
        spec = f"zero-shot over {len(exam.test.prompts)} classes, {self.model.side} px"
        found = [
            _number("forget accuracy @1", metrics.rate(r < 1 for r in own), spec),
            _number("forget accuracy @5", metrics.rate(r < 5 for r in own), spec),
            _number("retain accuracy @1", metrics.rate(r < 1 for r in rest), spec),
            _number("retain accuracy @5", metrics.rate(r < 5 for r in rest), spec),
        ]
        if exam.outside is not None:
            members, others = self._losses(lesson.forget), self._losses(exam.outside)
            rate = metrics.membership(members, others, seed=self.seed)
            told = "threshold on 1 − cos, 10 halvings, ± one standard deviation"
            found.append(_number("membership inference", rate, told))
        return found

    def _losses(self, pairs: Pairs) -> list[float]:
        """1 − cos of every picture with its own caption."""
        cosine = (self.model.images(pairs.images) * self.model.texts(pairs.texts)).sum(-1)
        return (1 - cosine).tolist()

    def _config(self, name: str, method: ClipEraser, lesson: Lesson, exam: Exam) -> dict[str, Any]:
        return {
            "kind": "clip",
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
            "test": len(exam.test),
        }

    def _train(self, run: Run, method: ClipEraser, lesson: Lesson) -> Patch:
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
        replace(patch, about=about | {"seed": self.seed, "versions": runs.versions()}).save(path)
        shutil.rmtree(run.path("checkpoints"), ignore_errors=True)
        return Patch.load(path)


def _number(name: str, rate: Rate, spec: str) -> dict[str, Any]:
    figures = {k: None if v != v else v for k, v in asdict(rate).items()}
    return {"name": name, **figures, "unit": "%", "spec": spec}


def _about(pairs: Pairs) -> dict[str, Any]:
    return {
        "source": pairs.source,
        "pictures": len(pairs),
        "digest": pairs.digest,
        "skipped": list(pairs.skipped),
    }


def next_best(search: dict[str, Any], n: int = 5) -> list[dict[str, Any]]:
    """The best trial of each layer, the winner first: what the others would have given."""
    found: dict[str, dict[str, Any]] = {}
    for trial in sorted(search.get("trials", []), key=_rank):
        found.setdefault(trial["layer"], trial)
    return list(found.values())[:n]


def _rank(trial: dict[str, Any]) -> tuple[float, ...]:
    return trial["forget"], -trial["keep"], trial["scale"]
