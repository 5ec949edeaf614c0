"""Runs that a command starts from: who judged them, what they are about, and their patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.cli import machine
from palimpsest.cli.machine import clip, silence
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.core.registry import nearest
from palimpsest.judge import Opening, opening, references
from palimpsest.runs.folder import Run
from palimpsest.runs.record import Record
from palimpsest.world import assets

if TYPE_CHECKING:
    from palimpsest.judge.clip import Clip
    from palimpsest.methods import Judge
    from palimpsest.patch import Patch
    from palimpsest.runs.runner import Runner
    from palimpsest.runs.scoring import Panel


def panel_of(run: Run, device: str, look_with: str | None = None) -> Panel:
    """Load the judges that a run's record names; `look_with` names another CLIP than the record.

    Raises:
        PalimpsestError: one of them cannot be loaded.
    """
    silence()
    from palimpsest.runs.scoring import Panel

    record = run.record()
    try:
        judge = references.load_judge(record.judge, device)
        others = tuple(filter(None, (references.load_judge(e, device) for e in record.judges)))
        looks = clip_of(run, device, look_with, (judge, *others))
        return Panel(judge, looks, others)
    except PalimpsestError as error:
        raise PalimpsestError(f"{run.folder}: {error}") from error


def clip_of(
    run: Run, device: str, look_with: str | None = None, judges: Sequence[Judge | None] = ()
) -> Clip | None:
    """Load the CLIP that a run's record names, or another; None where it names none."""
    if look_with is not None:
        return clip(look_with, device)
    return references.load_clip(run.record().clip, device, judges)


def opening_of(run: Run, device: str, class_map: Path | None = None) -> Opening:
    """Return what judges of a run's pictures are opened with."""
    from palimpsest.runs.images import asked

    made = opening(run.record().concepts, asked(run), device)
    return replace(made, class_map=machine.class_map(class_map))


def of_world(record: Record) -> bool:
    """Return whether a run is of the world's model, or was judged by the world's judge."""
    return references.WORLD in (record.model.name, record.judge and record.judge.ref)


def gold_of(
    runner: Runner, concept: Concept, prompts: Sequence[Prompt], force: bool = False
) -> Run | None:
    """Return the run of the gold model that never knew the concept; None where there is none.

    It draws nothing at random, so it is one run for all seeds of a method beside it.
    """
    from palimpsest.erase.gold import Gold
    from palimpsest.runs.asked import On

    if runner.model.name != "world" or concept.name not in assets.golds():
        return None
    return replace(runner, seed=0).run(concept, Gold(), On(prompts), force=force)


def concept_of(run: Run, name: str | None = None) -> Concept:
    """Return the concept that a run was about, the one of that name if there are several.

    Raises:
        PalimpsestError: it was about none, as the pictures of the unedited model are, about
            several, or not about that one.
    """
    record = run.record()
    known = {concept.name: concept for concept in record.concepts if record.concept}
    if not known:
        raise PalimpsestError(f"{run.folder}: this run is about no concept; name another run")
    if name is None and len(known) > 1:
        raise PalimpsestError(
            f"{run.folder}: this run erased {', '.join(known)}; say with --concept which to recover"
        )
    if name is not None and name not in known:
        raise PalimpsestError(
            f"{run.folder}: this run did not erase {name!r}{nearest(name, list(known))}"
        )
    return known[name] if name else next(iter(known.values()))


def erasure(folder: Path) -> Run:
    """Return a finished erasing run.

    Raises:
        PalimpsestError: no run lies there, it is of another kind, or not finished.
    """
    run = Run.open(folder.resolve() if folder.is_symlink() else folder)
    kind = run.record().kind
    if kind != "erase":
        raise PalimpsestError(f"{folder}: a run of kind {kind!r}; name an erasing run")
    return finished(run)


def finished(run: Run) -> Run:
    """Return the run itself.

    Raises:
        PalimpsestError: it did not go to the end.
    """
    if not run.done:
        command = run.record().command or "its command"
        raise PalimpsestError(f"{run.folder}: this run is not finished; go on with: {command}")
    return run


def patches_from(path: Path) -> list[Patch]:
    """Return the patches behind a file or a run; a recovery's lies on that of its subject.

    Raises:
        PalimpsestError: a run without a patch, one that attacked itself, or a file that is none.
    """
    from palimpsest.patch import Patch

    if not path.is_dir():
        return [Patch.load(path)]
    above = [Run.open(run.folder) for run in Run.open(path).lineage()]
    for run in above:
        subject = run.record().subject
        if run.record().answers:
            raise PalimpsestError(
                f"{run.folder}: this recovery changed what is asked and has no patch; name the run "
                f"that it attacked{f', {subject}' if subject else ''}"
            )
    return [Patch.load(run.path("patch.safetensors")) for run in above[::-1]]


def patch_from(*paths: Path) -> Patch:
    """Return all patches behind files or runs as one."""
    from palimpsest.patch.patch import together

    return together([patch for path in paths for patch in patches_from(path)])
