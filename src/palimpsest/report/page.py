"""The page: run folders in, one HTML file out that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from palimpsest.core.atomic import write_text
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.provenance import now
from palimpsest.report import prose as words
from palimpsest.report.arrange import Section, arrange
from palimpsest.report.load import listed
from palimpsest.report.sections import figures, grid, lessons, table
from palimpsest.report.sections.answers import answers
from palimpsest.report.sections.layers import layers
from palimpsest.report.sections.notes import notes
from palimpsest.report.sections.profile import profile
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
    """The page's text."""
    album = grid.Album()
    told = [_tell(section, i) for i, section in enumerate(sections, 1)]
    drawn = any(part["curve"] or part["layers"] for part in told)
    return fill(
        "template.html",
        title=title(sections),
        sections=told,
        overview=_overview(sections) if len(sections) > 1 else [],
        compared=_compared(sections) if len(sections) > 1 else [],
        album=album,
        plotly=Markup(_plotly()) if drawn else "",
        made=now(),
    )


def title(sections: Sequence[Section]) -> str:
    """What happened, for the whole page."""
    if len(sections) == 1:
        return _headline(sections[0])
    erasures = [s.erasure for s in sections if s.erasure]
    concepts = list(dict.fromkeys(e.names or e.target[1] for e in erasures))
    if not erasures:
        return f"{len(sections)} attempts"
    if len(concepts) == 1:
        titles = list(dict.fromkeys(e.title for e in erasures))
        return f"Erasing {concepts[0]}: {listed(titles)}"
    return f"{len(erasures)} erasures: {listed(concepts[:6])}{' …' if len(concepts) > 6 else ''}"


def _headline(section: Section) -> str:
    return lessons.headline(section.lead) if section.lesson else words.headline(section)


def _tell(section: Section, place: int) -> dict[str, Any]:
    shown, folded = grid.blocks(section)
    return {
        "id": f"s{place}",
        "headline": _headline(section),
        "verdict": lessons.verdict(section.lead) if section.lesson else words.verdict(section),
        "target": section.target,
        "blocks": shown,
        "folded": folded,
        "curve": figures.curve(section),
        "layers": layers(section.lead.record.search),
        "answers": answers(section.lead) if section.lesson else None,
        "against": table.against_gold(section),
        "profile": profile(section),
        "notes": notes(section),
        "heads": table.heads(section),
        "lines": table.lines(section),
        "made": [
            {
                "title": name,
                "note": note,
                "folder": run.run.name,
                "record": run.record,
                "arguments": table.arguments(run),
            }
            for run, (name, note) in zip(section.runs, table.heads(section), strict=True)
            if not (section.lesson and run is section.original)  # it has no run of its own
        ],
    }


def _overview(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """One line per section: forgotten, kept, the best that came back, and that above gold."""
    rows = []
    for place, section in enumerate(sections, 1):
        if section.lesson:
            continue
        run = section.erasure
        cells = [run.record.number(name) if run else None for name in ("UA", "IRA", "CRA")]
        ends = [(end, r) for r in section.recoveries if (end := words.last(r)[0])]
        best, recovery = max(ends, key=lambda pair: pair[0].value) if ends else (None, None)
        shares = [table.entry(c) if c else None for c in (*cells, best)]
        rows.append(
            {
                "id": f"s{place}",
                "method": run.title if run else section.lead.title,
                "concept": section.target[1],
                "cells": [*shares, table.lead(section, recovery) if recovery else None],
            }
        )
    return rows


def _compared(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """What CLIPs and LLaVAs still know, a table for all that were taught with the same sets."""
    places = [(f"s{i}", s.lead) for i, s in enumerate(sections, 1) if s.lesson]
    return lessons.compared(places)


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
