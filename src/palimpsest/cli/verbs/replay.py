"""`palimpsest recover replay RUN --on OTHER`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from palimpsest.cli import console, machine, open_run, paths
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Task
from palimpsest.patch import asking
from palimpsest.runs.folder import Run

UNEDITED = "unedited"


@dataclass(frozen=True, kw_only=True)
class Replay(machine.Drawing):
    """Try on other models what a recovery found: its words, embedding, latents, or patch.

    Nothing is trained: the concept of RUN is asked of every other model as RUN found it, by the
    same prompts and seeds, and judged by the same judge. The report shows who found what where,
    and where else it works.

    Example: palimpsest recover replay runs/p4d-parachute-on-esd-8f3a1c2e --on runs/uce-parachute-*
    unedited
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a finished recovery, such as `runs/p4d-parachute-on-esd-…`."""
    on: tuple[str, ...]
    """Where it is tried: folders of erasing runs (that of gold among them), and `unedited` for the
    model that RUN's subject was made from."""
    look_with: str | None = None
    """A CLIP that looks at the pictures: a Transformers folder or a Hub id, such as
    openai/clip-vit-base-patch32. When left out, that of RUN; the world has its own."""
    runs: Path | None = None
    """The folder where runs are kept; that of RUN when left out."""
    dry_run: bool = False
    """Say what would run, and write nothing."""

    def __call__(self, call: Call) -> None:
        """Ask every other model, and show the numbers beside RUN's own."""
        source, others = self._source(), self._others()
        record, concept = source.record(), open_run.concept_of(source)
        root = self.runs or source.folder.resolve().parent
        paths.runs_folder(root)
        machine.check_look_with(self.look_with, open_run.of_world(record))
        from palimpsest.recover.replay import Replay as Method
        from palimpsest.runs.asked import On
        from palimpsest.runs.images import asked

        method, shelf = Method(_found(source)), Shelf(self, source)
        for _, other in others:  # all are refused before any is drawn
            place = other.folder if other else UNEDITED
            try:
                method.refuse(shelf.take(other), Task.of(concept))
            except PalimpsestError as error:
                raise PalimpsestError(f"--on {place}: {error}") from error
        if self.dry_run:
            return self._plan(source, others)
        panel = open_run.panel_of(source, self.device, self.look_with)
        if panel.judge is None:
            console.warn("no judge looks at the pictures: there is nothing to count")
        prompts, told = asked(source), [("found here", source)]
        for name, other in others:
            runner = self.runner(call, root, shelf.take(other), panel, record.seed or 0)
            console.step(f"replay: trying {name} what {source.name} found")
            on = On(prompts, other, source=source)
            told.append((name, runner.run(concept, method, on)))
        console.numbers(f"{concept.name}: {record.title}, tried on others", told)
        for _, run in told[1:]:
            console.made(run.folder)

    def _source(self) -> Run:
        """Return RUN.

        Raises:
            PalimpsestError: it is no finished recovery, or kept nothing that can be tried.
        """
        run = Run.open(self.run.resolve())
        record = run.record()
        if record.kind != "recover":
            raise PalimpsestError(
                f"{self.run}: a run of kind {record.kind!r}; name a recovery's, which found "
                "something, and the erasing runs with --on"
            )
        if record.source is not None:
            raise PalimpsestError(f"{self.run}: itself a replay; name the run {record.source}")
        _found(open_run.finished(run))
        return run

    def _others(self) -> Sequence[tuple[str, Run | None]]:
        """Return the models that it is tried on, each once, with what they are called."""
        found: dict[str, tuple[str, Run | None]] = {}
        for word in self.on:
            if word == UNEDITED and not Path(word).exists():
                found[word] = ("on unedited", None)
                continue
            if not (Path(word) / "run.json").is_file():
                raise PalimpsestError(
                    f"--on {word}: no run; name erasing runs or `unedited`, and make a run of what "
                    "others published by palimpsest patch import FILE --concept NAME"
                )
            run = open_run.erasure(Path(word).resolve())
            found[str(run.folder)] = (f"on {run.record().title}", run)
        if not found:
            raise PalimpsestError("--on names nothing; name erasing runs, or `unedited`")
        names = [name for name, _ in found.values()]
        several = {name for name in names if names.count(name) > 1}
        return [(_named(n, run) if n in several else n, run) for n, run in found.values()]

    def _plan(self, source: Run, others: Sequence[tuple[str, Run | None]]) -> None:
        record = source.record()
        what = "its patch" if _found(source).name != asking.NAME else "what it asks"
        console.say(f"{record.title} ({source.name}): {what} is tried")
        for name, other in others:
            console.say(f"  {name}: {other.folder if other else record.model.name}")
        console.say("Nothing is trained. Nothing was written.")


def _named(name: str, run: Run | None) -> str:
    """Return a name with the end of the run's own, which tells it from another one."""
    return f"{name} ({run.name.rpartition('-')[2]})" if run else name


class Shelf:
    """The base models of what is tried on, one at a time, which draw as RUN did."""

    def __init__(self, replay: Replay, source: Run) -> None:
        self.replay, self.source = replay, source
        self.held: dict[tuple[str, str, str], Any] = {}

    def take(self, other: Run | None) -> Any:
        """Return the model that lies below an erasing run; None is that of RUN itself."""
        run = other or self.source
        own = run.record().model
        key = own.name, own.identity, own.dtype
        if key not in self.held:
            self.held.clear()
            model = machine.drawing(self.replay.load_of(run), self.source.record().drawn)
            self.held[key] = machine.drawing(model, self.replay.draw)
        return self.held[key]


def _found(run: Run) -> Path:
    """Return the file with what a recovery found.

    Raises:
        PalimpsestError: it kept none.
    """
    for name in (asking.NAME, "patch.safetensors"):
        if run.path(name).is_file():
            return run.path(name)
    record = run.record()
    if record.method == "noising":
        why = "it was shown pictures and found nothing; ask the other model itself with recover"
        raise PalimpsestError(f"{run.folder}: nothing to try on others: {why} noising")
    raise PalimpsestError(
        f"{run.folder}: keeps nothing to try on others, as runs of older versions do; take the "
        f"folder away and run it again: {record.command or 'its command'}"
    )
