"""The index: the leaderboard, what forgetting costs, what brings it back, and all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from palimpsest.judge.rates import MEANINGS
from palimpsest.report import prose as words
from palimpsest.report.arrange import Section
from palimpsest.report.load import Material, few, listed
from palimpsest.report.naming import title
from palimpsest.report.sections import lessons, table
from palimpsest.report.sections.transfer import transfers
from palimpsest.report.site.board import RATES, SHOWN, Board, Line
from palimpsest.report.site.figures import curves, paretos
from palimpsest.report.site.kept import Kept, kept
from palimpsest.report.site.kin import link
from palimpsest.report.site.pictures import Pictures
from palimpsest.report.site.strips import strips
from palimpsest.report.templates import fill
from palimpsest.runs.groups import Compared

SORTS = {
    "original": "unedited model",
    "erase": "erasure",
    "recover": "recovery",
    "evaluate": "evaluation",
    "clip": "CLIP",
    "llava": "LLaVA",
}
MEASURES = (
    ("UA", "Forgets", "UA ↑", "descending"),
    ("IRA", "Keeps neighbours", "IRA ↑", "descending"),
    ("CRA", "Keeps the rest", "CRA ↑", "descending"),
    (SHOWN, "Comes back", "by the best recovery ↓", ""),
)
"""The leaderboard's columns: the measure, what it asks, its name, how it is sorted first."""


@dataclass(frozen=True)
class Other:
    """A concept that was not to be forgotten, after each erasure of another."""

    name: str
    kind: str
    n: int
    before: float | None
    cells: list[float | None]


@dataclass(frozen=True)
class Neighbours:
    """Other concepts, each after every erasure of one."""

    name: str
    columns: list[tuple[str, str]]
    rows: list[Other]


def page(
    sections: Sequence[Section],
    runs: Mapping[str, Material],
    groups: Sequence[Sequence[Material]],
    comparisons: Sequence[Mapping[str, Any]],
    pictures: Pictures,
    compared: Compared,
) -> str:
    """Return the text of the index.

    Args:
        sections: what belongs together.
        runs: every run of the site by its name.
        groups: erasures that differ in nothing but their method.
        comparisons: the same side by side, as data.
        pictures: where its pictures go.
        compared: what a campaign says of the runs.
    """
    board = Board(runs, compared)
    lines = sorted(board.lines, key=_order)
    methods = sorted(board.methods, key=_order)
    alike = {line.concepts for line in methods if line.scope == ("", "")}
    taught = [(s.lead.run.name, s.lead) for s in sections if s.lesson]
    parts: dict[str, tuple[str, Any]] = {
        "leaderboard": ("Leaderboard", methods),
        "looks": ("Pictures", strips(sections, groups, board.names)),
        "paired": ("Side by side", comparisons),
        "tradeoff": ("Trade-off", paretos(board.groups, methods)),
        "robustness": ("Robustness", board.matrices()),
        "transfer": ("Transfer", transfers(sections)),
        "relearning": ("Relearning", curves(sections)),
        "neighbours": ("Neighbours", neighbours(sections, board)),
        "runs": ("All runs", runs),
    }
    models, judges = (list(dict.fromkeys(g[i] for g in board.groups)) for i in (0, 1))
    kinds = list(dict.fromkeys(kind for line in lines for kind in line.kinds))
    presets = list(dict.fromkeys(m.record.preset for m in runs.values() if m.record.preset))
    return fill(
        "site/index.html",
        root="",
        title=compared.title or title(sections),
        told=compared.about,
        sections=[(id, name) for id, (name, part) in parts.items() if part],
        summary=summary(runs, board),
        facts=[
            ("Model", listed(models)),
            ("Judge", listed(judges)),
            ("Preset", listed(presets)),
            ("Runs", len(runs)),
            *((f"{g} concepts".capitalize(), _concepts(compared, g)) for g in board.concept_groups),
        ],
        filters=[
            ("method", "Method", sorted({line.method for line in lines}), "all"),
            ("kind", "Kind of concept", kinds, "all"),
            ("group", "Concepts", board.concept_groups, "all"),
            ("model", "Model", models, "all"),
            ("judge", "Judge", judges, "each run's own"),
        ],
        models=models,
        groups=board.groups,
        judges=judges,
        kinds=kinds,
        start="method" if len({line.concepts for line in lines}) > 1 else "concept",
        methods=[line for line in methods if not line.concept_group],
        same=alike.pop() if len(alike) == 1 else (),
        concept_groups=board.concept_groups,
        measures=[m for m in MEASURES if any(m[0] in line.numbers for line in lines)],
        part=board.part,
        lines=lines,
        strips=parts["looks"][1],
        pictures=pictures,
        paired=parts["paired"][1],
        paretos=parts["tradeoff"][1],
        matrices=parts["robustness"][1],
        transfers=parts["transfer"][1],
        curves=parts["relearning"][1],
        neighbours=parts["neighbours"][1],
        lessons=lessons.compared(taught) if taught else [],
        meanings=table.legend((name, MEANINGS[name]) for name in (*RATES, SHOWN)).items(),
        shown=SHOWN,
        runs=runs,
        listed=sorted(runs.values(), key=lambda m: (m.record.started, m.run.name)),
        links={name: link(m, runs) for name, m in runs.items()},
        sorts=SORTS,
        version=metadata.version("palimpsest-ml"),
        table=table,
        words=words,
    )


def _concepts(compared: Compared, group: str) -> str:
    return ", ".join(" + ".join(names) for names in compared.groups[group])


def _order(line: Line) -> tuple[float, str]:
    """Return what lines are sorted by at first: who forgets most comes first."""
    ua = line.numbers.get("UA")
    return (-ua.value if ua else 1.0, line.method)


def summary(runs: Mapping[str, Material], board: Board) -> str:
    """Return what stands out among the methods of the first model and judge, in a few sentences."""
    tried = list(dict.fromkeys(m.title for m in runs.values() if m.kind == "recover"))
    said = f"Attacked by {listed(tried)}. " if tried else ""
    first = [m for m in board.methods if m.scope == ("", "") and m.group == board.groups[0]]
    if len(first) < 2:
        return said
    sides = {
        "forget most": [(m.numbers.get("UA"), m.method) for m in first],
        "keep most": [(m.kept, m.method) for m in first],
        "resist best": [(m.resists, m.method) for m in first],
    }
    parts = []
    for verb, found in sides.items():
        known = [(number.value, name) for number, name in found if number]
        most = max((value for value, _ in known), default=0.0)
        names = [name for value, name in known if value == most]
        if len(names) < len(known):  # all alike tell nothing
            does = verb if len(names) > 1 else verb.replace(" ", "s ", 1)
            parts.append(f"{few(names, 'methods')} {does} ({words.percent(most)})")
    if not parts:
        return said
    model, judge = board.groups[0]
    where = f"On {model}, by {judge}, " if len(board.groups) > 1 else ""
    return f"{said}{where}{listed(parts)}; the intervals say how sure that is."


def neighbours(sections: Sequence[Section], board: Board) -> list[Neighbours]:
    """Return, for each concept that was erased, what every method left of the others."""
    groups: dict[str, dict[tuple[str, str], list[list[Kept]]]] = {}
    for section in sections:
        run = section.erasure
        row = board.row.get(run.run.name) if run else None
        if run is not None and row is not None and row.on == "erased" and run.target:
            found = kept(run, section.original)
            if found:
                method = row.title, row.settings
                groups.setdefault(run.target.brief, {}).setdefault(method, []).append(found)
    return [_neighbours(name, by_method, board) for name, by_method in groups.items()]


def _neighbours(
    name: str, found: Mapping[tuple[str, str], list[list[Kept]]], board: Board
) -> Neighbours:
    each = [{(k.kind, k.name): k for k in some} for seeds in found.values() for some in seeds]
    first = {what: k for some in each for what, k in some.items() if k.before}
    first = {what: k for some in each for what, k in some.items()} | first
    columns = [[{(k.kind, k.name): k for k in some} for some in seeds] for seeds in found.values()]
    rows = []
    for (kind, other), k in first.items():
        cells = [
            _mean([s[kind, other].share.value for s in seeds if (kind, other) in s])
            for seeds in columns
        ]
        before = k.before.value if k.before else None
        rows.append((k.near, Other(other, kind, k.share.n, before, cells)))
    rows.sort(
        key=lambda row: (not row[0], _mean([c for c in row[1].cells if c is not None]) or 0.0)
    )
    return Neighbours(name, [board.names[method] for method in found], [row for _, row in rows])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
