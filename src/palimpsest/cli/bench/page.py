"""What came out of a campaign: a row for each eraser and each attack, a column for each group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.cli import console
from palimpsest.cli.bench import curves, sheets
from palimpsest.cli.bench.campaign import Campaign
from palimpsest.cli.bench.planner import Planned
from palimpsest.cli.named import kind_and_name
from palimpsest.core.atomic import write_text
from palimpsest.core.legend import KEY, headed, legend
from palimpsest.core.registry import nearest
from palimpsest.methods import Number
from palimpsest.metrics.rates import Rate
from palimpsest.metrics.strata import mean_of
from palimpsest.report import forms
from palimpsest.report.results import Summary, rows, summaries

AFTER = "Concept shown"
"""The measure of an attack: how often the concept is shown after it."""


@dataclass(frozen=True)
class Line:
    """One eraser, or one attack on what it made, on one model."""

    title: str
    model: str
    attack: str
    part: str
    """Of an attack: the concept that it brings back, where several were erased together."""
    on: str
    """Of an attack: whom it attacked."""
    found: dict[tuple[str, ...], list[Summary]]
    """Concepts → the summaries over seeds."""

    @property
    def seeds(self) -> str:
        """How many seeds it rests on: `3`, `1 to 3` where concepts differ, `–` where any will."""
        counts = sorted({each.seeds for some in self.found.values() for each in some})
        if counts == [0]:
            return "–"
        return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"

    def number(self, measure: str, concepts: Sequence[tuple[str, ...]]) -> Number | None:
        """Return the mean of a measure over those of some concepts that can have it.

        None where none of them has it, and where one of them is not there yet.
        """
        concepts = [names for names in concepts if self._meant_for(names)]
        if any(names not in self.found for names in concepts):
            return None
        some = [self._of(measure, names) for names in concepts]
        known = [each for each in some if each is not None]
        if not known:
            return None
        first = known[0]
        rates = [Rate(s.value, s.low, s.high, s.n, s.missing) for s in known]
        rate = rates[0] if len(rates) == 1 else mean_of(rates)
        return Number.of(measure, rate, first.unit)

    def _meant_for(self, names: tuple[str, ...]) -> bool:
        """Return whether an attack is one on these: those together, of which it brings one back."""
        if not self.attack or not self.part:
            return not self.attack or len(names) == 1
        return len(names) > 1 and self.part in [kind_and_name(name)[1] for name in names]

    def _of(self, measure: str, names: tuple[str, ...]) -> Summary | None:
        own = (s for s in self.found.get(names, ()) if s.measure == measure and not s.concept)
        return next(own, None)


def lines(planned: Sequence[Planned]) -> list[Line]:
    """Return what is there of a campaign's runs, in the order of its file."""
    by_run: dict[str, tuple[Planned, str]] = {}
    folders: list[Path] = []
    for one in planned:
        for who, run in one.runs.items():
            by_run.setdefault(run.name, (one, who))
            folders.append(run.folder)
    if not folders:
        return []
    found: dict[tuple[str, ...], Line] = {}
    for summary in summaries(rows(list(dict.fromkeys(folders)))):
        if not summary.runs or summary.runs[0] not in by_run or summary.kind == "original":
            continue
        one, who = by_run[summary.runs[0]]
        shared = bool(one.recovery) and who != "erased"  # gold and the unedited model: of them all
        title = "" if shared else one.eraser
        key = title, one.model, one.attack, one.part, who if one.recovery else ""
        line = found.setdefault(key, Line(*key, {}))
        line.found.setdefault(one.concepts, []).append(summary)
    return list(found.values())


def tell(campaign: Campaign, planned: Sequence[Planned], part: bool = False) -> None:
    """Print the tables, and write the page and the sheets that the file names.

    Where only a `part` was asked for, they are written when nothing is left to do.
    """
    made = lines(planned)
    known = {s.measure for line in made for some in line.found.values() for s in some}
    for name in campaign.measures if made else ():
        if name not in known and name not in Campaign.measures:
            console.warn(f"measures: no run says {name!r}{nearest(name, sorted(known))}")
    for title, heads, body, meanings in _tables(campaign, made):
        console.table(title, heads, body, meanings)
    if part and (left := sum(one.work.answer is None for one in planned)):
        console.say(f"no page is written: {left} of {len(planned)} commands are left to do")
        return
    if campaign.page is not None and made:
        write_text(campaign.page, markdown(campaign, planned, made))
        console.made(campaign.page)
    if campaign.sheets is not None:
        for path in sheets.write(planned, campaign.sheets):
            console.made(path)


Table = tuple[str, list[str], list[list[Any]], dict[str, str]]


def _tables(campaign: Campaign, made: Sequence[Line]) -> Iterator[Table]:
    """Yield the table of erasures and that of attacks: title, heads, rows, measure → meaning."""
    groups, known = campaign.groups, _meanings(made)
    for attacks in (False, True):
        some = [line for line in made if bool(line.attack) == attacks]
        if not some:
            continue
        measures = (AFTER,) if attacks else campaign.measures
        heads = [f"{headed(m, known.get(m, ''))}{g and ', '}{g}" for m in measures for g in groups]
        body = []
        for line in some:
            cells = [line.number(m, held) for m in measures for held in groups.values()]
            body.append([_name(line, made), line.seeds, *cells])
        meanings = {m: known[m] for m in measures if m in known}
        yield ("Attacks" if attacks else "Erasures"), ["", "seeds", *heads], body, meanings


def _name(line: Line, made: Sequence[Line]) -> str:
    """Return what a line is called beside others: the model is named where there are several."""
    name = line.title or {"gold": "gold", "unedited": "unedited model"}[line.on]
    name = f"{line.attack} on {name}" if line.attack else name
    return f"{name} ({line.model})" if len({each.model for each in made}) > 1 else name


def markdown(campaign: Campaign, planned: Sequence[Planned], made: Sequence[Line]) -> str:
    """Return the page."""
    command = f"palimpsest bench {campaign.file.as_posix()}"
    text = [f"# {campaign.title}", "", f"Made by `{command}`. {_provenance(made)}", ""]
    text += [campaign.about, ""] if campaign.about else []
    text += [f"- {name}: {_names(held)}." for name, held in campaign.groups.items() if name]
    text += [
        "",
        "Rates in per cent with 95 % intervals, mean over the concepts of a group, each of which "
        "weighs the same; of several seeds they hold for others, too. A row with 1 in the column "
        f"*seeds* rests on one seed; – stands where every seed gives the same. {KEY}. "
        f"{_explained(campaign, made)}",
        "",
    ]
    for title, heads, body, _ in _tables(campaign, made):
        text += [f"## {title}", "", *_table(heads, body), ""]
    text += ["## Each concept", "", *_each(campaign, made), "", *curves.told(planned)]
    if left := [one.work.title for one in planned if one.work.answer is None]:
        text += [f"Not there yet: {', '.join(left[:12])}{' …' if len(left) > 12 else ''}.", ""]
    return "\n".join(text)


def _table(heads: Sequence[str], body: Sequence[Sequence[Any]]) -> list[str]:
    return forms.markdown(heads, [[_cell(cell) for cell in row] for row in body])


def _each(campaign: Campaign, made: Sequence[Line]) -> list[str]:
    """Return a table with a row for every eraser or attack on every concept."""
    attacks = any(line.attack for line in made)
    measures, known = (*campaign.measures, *([AFTER] if attacks else [])), _meanings(made)
    shown = [headed(measure, known.get(measure, "")) for measure in measures]
    heads = ["concept", "", "seeds", *shown, "training s", "σ seeds, σ pictures"]
    body: list[list[Any]] = []
    for names in (names for held in campaign.groups.values() for names in held):
        for line in made:
            if not (own := line.found.get(names)):
                continue
            first = own[0]
            numbers = [line.number(measure, [names]) for measure in measures]
            spread = next((s for s in own if s.measure in ("UA", AFTER)), first)
            seconds = "" if first.seconds is None else f"{first.seconds:.1f}"
            who, seeds = [" + ".join(names), _name(line, made)], str(first.seeds or "–")
            body.append([*who, seeds, *numbers, seconds, _split(spread)])
    return _table(heads, body)


def _split(summary: Summary) -> str:
    """Return how far seeds, and how far pictures, lie apart, in points of a share."""
    pair = summary.sd_seeds, summary.sd_pictures
    if any(map(math.isnan, pair)):
        return "one seed" if summary.seeds else "–"
    return ", ".join(f"{100 * s:.1f}" for s in pair)


def _cell(cell: Any) -> str:
    if cell is None:
        return "–"
    if not isinstance(cell, Number):
        return str(cell)
    if math.isnan(cell.value):
        return "–"
    scale, form = (100, ".1f") if cell.unit == "%" else (1, console.form(cell))
    value, low, high = (f"{scale * v:{form}}" for v in (cell.value, cell.low, cell.high))
    if math.isnan(cell.low):
        return value if cell.unit in ("", "%") else f"{value} {cell.unit}"
    return f"{value} [{low}, {high}] ({cell.n})"


def _names(held: Sequence[tuple[str, ...]]) -> str:
    return ", ".join(" + ".join(names) for names in held)


def _meanings(made: Sequence[Line]) -> dict[str, str]:
    """Return measure → what it counts, as the runs say it."""
    every = (s for line in made for some in line.found.values() for s in some)
    return {s.measure: s.meaning for s in every if s.meaning}


def _explained(campaign: Campaign, made: Sequence[Line]) -> str:
    known = _meanings(made)
    found = legend((name, known.get(name, "")) for name in campaign.measures)
    return " ".join(f"{name}: {said}." for name, said in found.items())


def _provenance(made: Sequence[Line]) -> str:
    """Return the commits that the runs were made at."""
    every = [s for line in made for some in line.found.values() for s in some[:1]]
    counts: dict[str, int] = {}
    for commit in (commit for s in every for commit in s.commits):
        counts[commit[:12]] = counts.get(commit[:12], 0) + 1
    return f"Made at {', '.join(counts) or 'an unknown commit'}."
