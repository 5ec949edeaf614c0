"""What the page and its sections are called, and where a reader finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.report import prose
from palimpsest.report.arrange import Section
from palimpsest.report.load import few
from palimpsest.report.sections import lessons


@dataclass(frozen=True)
class Entry:
    """A section in the table of contents."""

    place: str
    """Its id on the page."""
    title: str
    apart: str
    """What tells it from others of the same title; empty if nothing must."""


def title(sections: Sequence[Section]) -> str:
    """Return what happened, for the whole page: one line, however many runs there are."""
    if len(sections) == 1:
        return headline(sections[0])
    runs = [s.erasure for s in sections if s.erasure]
    if not runs:
        return f"{len(sections)} attempts"
    concepts = [few(names) for names in dict.fromkeys(run.record.names for run in runs) if names]
    methods = list(dict.fromkeys(run.title for run in runs))
    count = f", {len(runs)} erasures" if len(runs) > max(len(methods), 2) else ""
    return f"Erasing {few(concepts)}: {few(methods, 'methods')}{count}"


def headline(section: Section) -> str:
    """Return what happened in a section, in one line."""
    return lessons.headline(section.lead) if section.lesson else prose.headline(section)


def apart(section: Section, sections: Sequence[Section]) -> str:
    """Return what tells a section's run from others of its method and concepts."""
    kin = [s.lead for s in sections if _about(s) == _about(section)]
    return prose.apart(section.lead, kin)


def contents(sections: Sequence[Section], places: Sequence[str]) -> dict[str, list[Entry]]:
    """Return the sections by what they are about, in the page's order; of no erasure come last.

    Args:
        sections: those of the page.
        places: their ids.
    """
    found: dict[str, list[Entry]] = {}
    for section, place in zip(sections, places, strict=True):
        lead = section.lead
        name = lead.title if section.erasure else headline(section)
        notes = [lessons.model(lead)] if section.lesson else []
        entry = Entry(place, name, ", ".join(filter(None, [*notes, apart(section, sections)])))
        found.setdefault(few(lead.record.names) if section.erasure else "", []).append(entry)
    return {about: found[about] for about in sorted(found, key=lambda about: not about)}


def _about(section: Section) -> tuple[object, ...]:
    lead = section.lead
    return lead.kind, lead.title, lead.record.names
