"""What was found on one model and tried on others: the report's transfer matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from palimpsest.methods import Number
from palimpsest.report.arrange import Section
from palimpsest.report.charts import Cell, matrix
from palimpsest.report.load import Material
from palimpsest.report.sections.table import entry

UNEDITED = "the unedited model"


@dataclass
class Row:
    """What one recovery found, and how often the concept showed where it was tried."""

    name: str
    place: str
    """The model that it was found on."""
    cells: list[tuple[Number | None, bool]] = field(default_factory=list)
    """A column each: the share, and whether it was found there."""


@dataclass
class Matrix:
    """All that was tried about one concept."""

    concept: str
    columns: list[str]
    rows: list[Row]

    @property
    def shown(self) -> Markup:
        """The matrix as a table of coloured cells."""
        return matrix(
            [(_head(row), [_cell(*cell) for cell in row.cells]) for row in self.rows],
            [f"tried on {name}" for name in self.columns],
            title=f"{self.concept} shown, where it was tried",
            corner="Found by",
        )


def _head(row: Row) -> Markup:
    return Markup("{}<small>on {}</small>").format(row.name, row.place)


def _cell(share: Number | None, here: bool) -> Cell | None:
    if share is None:
        return None
    found = entry(share)
    note = " · ".join(filter(None, [found.interval, found.n]))
    return Cell(found.text, share.value, note, here)


def transfers(sections: Sequence[Section]) -> list[Matrix]:
    """Return a matrix for each concept about which something was replayed."""
    runs = {m.run.name: m for section in sections for m in section.runs}
    replays = [m for m in runs.values() if m.record.source in runs and _alike(m, runs)]
    by_concept: dict[str, list[Material]] = {}
    for replay in replays:
        by_concept.setdefault(replay.target.name, []).append(replay)
    return [_matrix(some[0].target.brief, some, runs) for some in by_concept.values()]


def _alike(replay: Material, runs: dict[str, Material]) -> bool:
    """Return whether a replay was drawn and judged as its source was: only such are compared."""
    ours, theirs = replay.record, runs[replay.record.source or ""].record
    return (ours.model.sampling, ours.judge) == (theirs.model.sampling, theirs.judge)


def _share(run: Material | None) -> Number | None:
    """Return how often the concept shows in a run's pictures, for a patch and what is asked alike.

    A curve's last point is over prompts of its own, and no part of this.
    """
    rate = run.shown(run.target) if run else None
    return Number.of("Concept shown", rate) if rate is not None and rate.n else None


def _matrix(concept: str, replays: Sequence[Material], runs: dict[str, Material]) -> Matrix:
    sources = list(dict.fromkeys(m.record.source or "" for m in replays))
    tried = {(m.record.source, m.record.subject): m for m in replays}
    own = [runs[name] for name in sources]
    places = list(dict.fromkeys(m.record.subject for m in (*own, *replays)))
    names = _names(places, runs)
    rows = []
    for source in own:
        row = Row(source.title, names[source.record.subject])
        for place in places:
            here = place == source.record.subject
            run = source if here else tried.get((source.run.name, place))
            row.cells.append((_share(run), here))
        rows.append(row)
    return Matrix(concept, [names[place] for place in places], rows)


def _names(places: Sequence[str | None], runs: dict[str, Material]) -> dict[str | None, str]:
    """Return what models are called, by more than the method where that names two of them."""
    plain = {p: runs[p].title if p in runs else p or UNEDITED for p in places}
    twice = {name for name in plain.values() if [*plain.values()].count(name) > 1}
    return {p: f"{n} ({p.rpartition('-')[2]})" if p and n in twice else n for p, n in plain.items()}
