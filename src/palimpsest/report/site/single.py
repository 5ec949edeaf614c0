"""The page of one run: what happened, its pictures, its numbers, and how to repeat it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jinja2.utils import htmlsafe_json_dumps

from palimpsest.core.concepts import says
from palimpsest.report import prose as words
from palimpsest.report.arrange import Section
from palimpsest.report.load import Material
from palimpsest.report.sections import grid, lessons, table
from palimpsest.report.sections.answers import answers
from palimpsest.report.sections.audit import audit
from palimpsest.report.sections.figures import curve
from palimpsest.report.sections.layers import layers
from palimpsest.report.sections.notes import notes
from palimpsest.report.sections.profile import profile, when
from palimpsest.report.site.figures import others
from palimpsest.report.site.kept import kept
from palimpsest.report.site.kin import kin, link
from palimpsest.report.site.pictures import Pictures
from palimpsest.report.templates import fill
from palimpsest.runs.groups import Compared

if TYPE_CHECKING:
    from markupsafe import Markup

KINDS = {
    "original": "Unedited model",
    "erase": "Erasure",
    "recover": "Recovery",
    "evaluate": "Evaluation",
    "clip": "A CLIP that forgets",
    "llava": "A LLaVA that forgets",
}
"""A run's kind → what its page says above its title."""
TILES = ("UA", "IRA", "CRA")
FIRST = ("original", "erased")
"""The columns that most grids begin with."""


def page(
    run: Material,
    section: Section,
    every: Mapping[str, Material],
    pictures: Pictures,
    compared: Compared,
) -> str:
    """Return the text of a run's page.

    Args:
        run: what the page is about.
        section: the run with what it is held against.
        every: the site's runs by name.
        pictures: where its pictures go.
        compared: what a campaign says of the runs.
    """
    shown, folded = grid.blocks(section)
    own = Section(section.unedited, section.erasure, gold=section.gold)
    if run is not section.lead or not section.erasure:
        own = section
    return fill(
        "site/run.html",
        root="../../",
        run=run,
        s={
            "section": section,
            "notes": notes(section),
            "audit": audit(section) if run is section.erasure else None,
        },
        layers=layers(run.record.search) if run is section.lead else None,
        lessons=lessons,
        section=section,
        kind=KINDS.get(run.kind, run.kind),
        group=compared.group(run.record.names),
        headline=headline(run, section),
        kin=kin(run, every),
        links={m.run.name: link(m, every) for m in every.values()},
        blocks=shown,
        folded=[(block, compact(block, pictures)) for block in folded],
        hero=_hero(shown, run),
        kept=_others(run, section) if run.kind == "erase" else [],
        tiles=tiles(run),
        curve=curve(section) if any(m.record.evaluations for m, *_ in section.attempts) else None,
        attempts=_attempts(section),
        answers=answers(run) if section.lesson else None,
        profile=profile(section) if run.kind == "erase" else None,
        heads=table.heads(own),
        lines=table.lines(own),
        arguments=table.arguments(run),
        pictures=pictures,
        says=says,
        words=words,
        table=table,
        when=when,
    )


def headline(run: Material, section: Section) -> str:
    """Return what happened, in one line."""
    if section.lesson:
        return lessons.headline(run)
    if run.record.theme:
        return f"{run.record.asked}, asked of {run.title}"
    if run.kind == "recover":
        concept, subject = run.target.name, section.erasure
        on = subject.title if subject else "gold" if section.gold else "the unedited model"
        end, _ = words.last(run)
        if not end or math.isnan(end.value) or not subject:
            return f"{run.title} on {on}: {concept}"
        done = "brought back" if end.value >= 0.5 else "brought back some of"
        done = done if end.value >= 0.2 else "could not bring back"
        return f"{run.title} {done} {concept}, erased by {on}"
    return words.headline(section)


def tiles(run: Material) -> list[tuple[str, str, table.Entry]]:
    """Return the numbers at the head of the page: name, what it counts, and its entry."""
    rows = [(name, n) for name in TILES if (n := run.record.number(name)) and run.kind == "erase"]
    if run.kind == "recover" and (end := words.last(run)[0]):
        rows.append(("Concept shown", end))
    return [
        (table.headed(name, table.MEANINGS[name]), table.MEANINGS[name], table.entry(number))
        for name, number in rows
    ]


def _attempts(section: Section) -> list[tuple[str, str, str, table.Entry | None]]:
    """Return every recovery: the run's name, the method's, on which model, and its end."""
    found = []
    for run, among, on in section.attempts:
        end, _ = words.last(run)
        place = "gold" if on == "gold" else f"the {on} model"
        name = words.attempt_label(run, among)
        found.append((run.run.name, name, place, table.entry(end) if end else None))
    return found


def _others(run: Material, section: Section) -> list[tuple[str, Markup]]:
    """Return what is left of other concepts: of the erased one's kind, and of all others."""
    found = kept(run, section.original)
    parts = {"Neighbours": True, "Other kinds": False}
    some = {title: [k for k in found if k.near is near] for title, near in parts.items()}
    return [(title, others(each, title)) for title, each in some.items() if each]


def _hero(blocks: list[grid.Block], run: Material) -> list[tuple[grid.Cell, str]]:
    """Return the two pictures at the head of the page, each with its note; none without two.

    They are the first row's first two; of a recovery, what was erased and what came back.
    """
    for block in blocks:
        for row in block.rows:
            both = [(c, col.note) for c, col in zip(row.cells, block.columns, strict=True) if c]
            if len(both) > 1:
                later = run.kind == "recover" and [c.column for c, _ in both[:2]] == [*FIRST]
                return both[1:3] if later and len(both) > 2 else both[:2]
    return []


def compact(block: grid.Block, pictures: Pictures) -> Markup:
    """Return a block of rows as JSON, which the page turns to pictures when it is opened.

    A row is its prompt, seed, what was found, what was asked for, and a cell a column: a picture
    without `.webp`, what the judge sees and how sure it is in per cent. Words stand in `words`.
    """
    said: dict[str, int] = {}

    def word(text: str) -> int:
        return said.setdefault(text, len(said))

    def cell(cell: grid.Cell | None) -> list[Any] | int:
        if cell is None:
            return 0
        sure = -1 if cell.confidence is None else round(100 * cell.confidence)
        name = pictures.add(cell.picture.file)
        return [name.removesuffix(".webp"), word(cell.said), sure]

    def row(row: grid.Row) -> list[Any]:
        wanted = next((c.wanted for c in row.cells if c), "")
        return [row.prompt, row.seed, row.found, word(wanted), [*map(cell, row.cells)]]

    columns = [[c.title, c.note] for c in block.columns]
    whole = {"columns": columns, "rows": [*map(row, block.rows)], "words": [*said]}
    return htmlsafe_json_dumps(whole, separators=(",", ":"))
