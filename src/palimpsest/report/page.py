"""The page: run folders in, one HTML file out that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palimpsest.core.atomic import write_text
from palimpsest.core.concepts import says
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.provenance import now
from palimpsest.report import prose as words
from palimpsest.report.arrange import Section, arrange
from palimpsest.report.naming import apart, contents, headline, title
from palimpsest.report.sections import figures, grid, lessons, table
from palimpsest.report.sections.answers import answers
from palimpsest.report.sections.audit import audit
from palimpsest.report.sections.compared import compared
from palimpsest.report.sections.layers import layers
from palimpsest.report.sections.notes import notes
from palimpsest.report.sections.profile import profile, when
from palimpsest.report.sections.transfer import transfers
from palimpsest.report.templates import fill


def write_report(runs: list[Path], out: Path) -> Path:
    """Write one HTML page about runs; it is made from their folders alone.

    Every erasing run becomes a section, with the recoveries that attack it and the original that
    both refer to, which may lie beside them unnamed. A folder that holds runs stands for all the
    finished ones in it.

    Args:
        runs: run folders, or folders that hold some.
        out: the file to write, such as `runs/report.html`.

    Returns:
        `out`.

    Raises:
        PalimpsestError: a path is no run, a run has nothing to show, or `out` cannot be written.
    """
    out = Path(out)
    if out.is_dir():
        raise PalimpsestError(f"{out}: is a folder; name a file such as {out / 'report.html'}")
    sections = arrange(runs)
    write_text(out, render(sections))
    return out


def render(sections: Sequence[Section]) -> str:
    """Return the page's text."""
    told = [_tell(section, f"s{i}", sections) for i, section in enumerate(sections, 1)]
    lines = [line for part in told for line in part["lines"]]
    taught = [(part["id"], part["section"].lead) for part in told if part["section"].lesson]
    return fill(
        "template.html",
        title=title(sections),
        sections=told,
        contents=contents(sections, [part["id"] for part in told]),
        meanings=table.meanings(lines),
        transfers=transfers(sections),
        paired=compared(sections),
        compared=lessons.compared(taught) if len(sections) > 1 else [],
        album=grid.Album(),
        told_by_two=any(m.record.judges for section in sections for m in section.runs),
        says=says,
        made=now(),
        words=words,
        table=table,
        lessons=lessons,
        when=when,
    )


def _tell(section: Section, place: str, sections: Sequence[Section]) -> dict[str, Any]:
    shown, folded = grid.blocks(section)
    return {
        "id": place,
        "section": section,
        "headline": headline(section),
        "apart": apart(section, sections),
        "blocks": shown,
        "folded": folded,
        "curve": figures.curve(section),
        "layers": layers(section.lead.record.search),
        "answers": answers(section.lead) if section.lesson else None,
        "profile": profile(section),
        "audit": audit(section),
        "notes": notes(section),
        "heads": table.heads(section),
        "lines": table.lines(section),
    }
