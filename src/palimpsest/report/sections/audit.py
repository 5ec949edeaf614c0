"""What an audit found, and what it cannot show: the report's verdict on what others published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from palimpsest.metrics.audit import Asked, Evidence, Finding, finding
from palimpsest.report.arrange import Section
from palimpsest.report.load import Key, Material, Picture, Target, listed, read
from palimpsest.report.prose import attempt_label, second_opinions
from palimpsest.report.sections.profile import profile
from palimpsest.runs.record import AuditEntry


@dataclass(frozen=True)
class Audit:
    """A verdict with its limits."""

    finding: Finding
    looked: str
    """Who looked, at how many pictures."""
    limits: tuple[str, ...]
    """What the verdict does not say, in sentences."""


def audit(section: Section) -> Audit | None:
    """Return the verdict on a run that was audited; None of any other."""
    run = section.erasure
    entry = run.record.audit if run else None
    if run is None or entry is None:
        return None
    before = section.original.pictures if section.original else {}
    told = profile(section)
    seen = Evidence(
        direct=_asked(run.pictures, before, section.target),
        wordings=_wordings(run, entry, section.target),
        lines=told["lines"] if told else (),
        verdict=told["verdict"] if told and section.taught else None,
        same=run.record.edit_norm == 0 and not run.record.components,
    )
    n, judge = len(seen.direct.edited), run.record.judge
    looked = "Nobody looked: no judge read the pictures"
    if judge is not None and n:
        words = f", and {len(seen.wordings.edited)} asked in other words"
        looked = f"{judge.name} looked at {n} pictures{words if seen.wordings.edited else ''}"
        looked += "".join(f"; {told}" for told in second_opinions(run))
    return Audit(finding(seen), looked, (*_limits(section, entry), *entry.notes))


def _asked(edited: Mapping[Key, Picture], unedited: Mapping[Key, Picture], target: Target) -> Asked:
    """Return what the judge said of both models' pictures of each concept."""
    pairs = [
        (ours.labels[c.kind] == c.name, theirs.labels[c.kind] == c.name, ours.cluster)
        for key, ours in edited.items()
        if (theirs := unedited.get(key)) is not None
        for c in target.asked(ours)
        if ours.labels.get(c.kind) is not None and theirs.labels.get(c.kind) is not None
    ]
    return Asked(*zip(*pairs, strict=True)) if pairs else Asked()


def _wordings(run: Material, entry: AuditEntry, target: Target) -> Asked:
    """Return the same of the questions in other words, as far as their runs lie beside it."""
    place = run.run.folder.absolute().parent
    folders: list[Path] = [
        place / name for name in (entry.wordings, entry.wordings_unedited) if name
    ]
    if len(folders) < 2 or not all((folder / "run.json").is_file() for folder in folders):
        return Asked()
    ours, theirs = (read(folder).pictures for folder in folders)
    return _asked(ours, theirs, target)


def _limits(section: Section, entry: AuditEntry) -> list[str]:
    """Return what every audit leaves open, in sentences."""
    tried = dict.fromkeys(attempt_label(run, section.recoveries) for run in section.recoveries)
    free = [run.title for run in section.recoveries if not run.record.evaluations]
    said = []
    if tried:
        said.append(
            f"Tried were {listed([*tried])}, each with one seed, at {entry.budget:,} gradient "
            "evaluations where they take any; another attack or a larger budget may overturn "
            "what was not recovered"
        )
    else:
        said.append("No recovery was tried: what is hidden was not looked for")
    if free:
        said.append(f"{listed(free)} spent no gradient evaluations and has no say in the verdict")
    if section.gold is None:
        said.append(
            "No model that never knew the concept stands beside it, so a concept that is back may "
            "have been taught by the attack, and nothing can be called gone"
        )
    said.append("The verdict holds for these prompts and this way of drawing alone")
    return said
