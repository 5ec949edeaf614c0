"""What a person sees: progress on stderr, tables on stdout."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from palimpsest.cli import telling
from palimpsest.core import progress as core_progress
from palimpsest.core.legend import KEY, arrow, headed, legend
from palimpsest.core.pace import duration as duration
from palimpsest.methods import Number
from palimpsest.metrics import rates, relearning
from palimpsest.runs.folder import Run

LEGEND = 100
"""Letters of a legend's line."""
MOST_FOUND = 12
"""Found prompts that are shown; the run's record holds all."""


def console() -> Console:
    """Return where results go; wide enough for a table where there is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 150, highlight=False, emoji=False)


def say(text: str) -> None:
    """Print a line of result."""
    if telling.say(text):
        _print(text)


def step(text: str) -> None:
    """Say what begins now; where results are a document, on stderr."""
    if telling.now.json and not telling.now.quiet:
        sys.stderr.write(f"{text}\n")
    elif not telling.now.quiet:
        _print(text)


def made(path: Path | str, text: str = "") -> None:
    """Print what was made: its path, or a text about it where more is told than paths."""
    if telling.made(path):
        _print(str(path) if telling.now.quiet or not text else text)


def _print(text: str) -> None:
    console().print(text, markup=False, soft_wrap=True)


WARNED: list[str] = []
"""What this process has warned of."""


def warn(sentence: str) -> None:
    """Print one line on stderr; the work goes on."""
    WARNED.append(sentence)
    sys.stderr.write(f"palimpsest: warning: {sentence}\n")


def fell_short(sentence: str | None) -> int:
    """Return an erasure's exit code: 3, with the sentence on stderr, if its search fell short."""
    if not sentence:
        return 0
    warn(sentence)
    return 3


def progress() -> core_progress.Progress:
    """Bars on a terminal, a line now and then elsewhere; nothing where quiet was asked for."""
    if telling.now.quiet:
        return core_progress.Silent()
    from palimpsest.core import bars

    return bars.progress()


# --- tables ---


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    meanings: Mapping[str, str] | None = None,
) -> None:
    """Print a table, and a legend of the measures in it.

    Args:
        title: stands above it.
        columns: their heads.
        rows: of numbers of runs, figures, texts (no markup is read in them) and None.
        meanings: first cell of a row → what its measure means.
    """
    meanings = meanings or {}
    if not telling.table(title, columns, rows, meanings):
        return
    shown = Table(box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        shown.add_column(Text(column), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        name, *cells = row
        name = headed(name, meanings.get(name, "")) if isinstance(name, str) else name
        shown.add_row(*map(_cell, (name, *cells)))
    _print(title)
    console().print(shown)
    if known := legend(meanings.items()):
        _explain(known, any(arrow(*each) for each in meanings.items()))


def _explain(known: Mapping[str, str], arrows: bool) -> None:
    """Print a legend: which way is good, then a measure a line."""
    page, out = Table.grid(padding=(0, 2, 0, 0)), console()
    for name, meaning in known.items():
        page.add_row(Text(name), Text(meaning), style="dim")
    if arrows:
        out.print(Text(f"  {KEY}", style="dim"))
    out.print(Padding(page, (0, 0, 1, 2), expand=False), width=min(out.width, LEGEND))


def _cell(value: Any) -> Text:
    """Return whatever stands in a table as it is shown."""
    text = cell(value) if value is None or isinstance(value, Number) else said(value)
    return Text(text) if isinstance(text, str) else text


def figure(value: float, digits: int = 4) -> str:
    """Return a number to so many digits; a dash where there is none."""
    return "–" if value != value else f"{value:.{digits}g}"


def cell(number: Number | None) -> str | Text:
    """Return a number over its interval: 93.8 % [83.2, 97.9]."""
    if number is None or math.isnan(number.value) or not number.n:
        return "–"
    scale, spec = (100, ".1f") if number.unit in ("%", "points") else (1, form(number))
    unit = f" {number.unit}" if scale == 100 else ""
    sign = "+" if number.unit == "points" else ""
    text = f"{scale * number.value:{sign}{spec}}{unit}"
    if math.isnan(number.low):
        few = rates.too_few(number.n, number.value, number.low)
        return Text.assemble(f"{text}\n", ("too few", "dim")) if few else text
    low, high = (f"{scale * end:{spec}}" for end in (number.low, number.high))
    between = "–" if number.low >= 0 else " … "
    return Text.assemble(f"{text}\n", (f"{low}{between}{high}", "dim"))


def form(number: Number) -> str:
    """Return the form in which a number's first digit that is not sure is seen."""
    width = number.high - number.low
    digits = -math.floor(math.log10(width)) if 0 < width < math.inf else 2
    return f".{max(digits, 2)}f" if digits < 5 else ".2g"


def numbers(title: str, told: Sequence[tuple[str, Run]], only: Sequence[str] = ()) -> None:
    """Print the numbers of runs side by side, the unedited model's first; `only` some, if named."""
    records = [run.record() for _, run in told]
    every = [records[0].baseline, *(record.each for record in records)]
    if telling.now.json:
        folders = [None, *(str(run.folder) for _, run in told)]
        names = ["unedited", *(name for name, _ in told)]
        for name, folder, rows in zip(names, folders, every, strict=True):
            own = {"title": title, "name": name, "folder": folder, "numbers": rows}
            telling.now.runs.append(telling.plain(own))
        return
    columns = [{row.name: row for row in rows} for rows in every]
    names = list(dict.fromkeys(name for column in columns for name in column))
    if not names:
        hint = f"palimpsest judge {told[0][1].folder} --judge NAME (docs/judges.md)"
        return say(f"{title}: no numbers, since no judge looked; let one do so with {hint}")
    shown = [name for name in names if not only or name in only]
    means = {row.name: row.meaning for rows in every for row in rows if row.name in shown}
    rows = [across(name, [column.get(name) for column in columns]) for name in shown]
    table(title, ["", "n", "unedited", *(name for name, _ in told)], rows, means)


def across(name: Any, found: Sequence[Number | None]) -> list[Any]:
    """Return a row: a name or a step, over how many pictures, and a number each."""
    counts = dict.fromkeys(_count(row) for row in found if row and (row.n or row.missing))
    return [name, ", ".join(counts) or "–", *found]


def _count(row: Number) -> str:
    return f"{row.n} ({row.missing} not judged)" if row.missing else str(row.n)


def curves(told: Sequence[tuple[str, Run]]) -> None:
    """Relearning curves side by side: how often the judge says the concept after so many steps.

    Where one of the runs was on gold, the first stands against it in a column of its own.
    """
    records = [run.record() for _, run in told]
    found = [{p.step: Number.of("", p.rate) for p in record.curve} for record in records]
    steps = sorted({step for points in found for step in points})
    columns = [name for name, _ in told]
    rows = [across(step, [points.get(step) for points in found]) for step in steps]
    golds = {record.gold for record in records if record.gold}
    gold = next((record for record in records if record.subject in golds), None)
    if gold is not None and gold is not records[0]:
        above = dict(relearning.at_each_step(records[0].curve, gold.curve))
        columns.append("above gold")
        for step, row in zip(steps, rows, strict=True):
            row.append(Number.of("", above[step], "points") if step in above else None)
    if rows:
        spent = max(record.evaluations for record in records)
        budget = f" ({spent:,} gradient evaluations)" if spent else ""
        title = f"How often the judge says the concept while the recovery learns{budget}"
        table(title, ["step", "n", *columns], rows)


def notes(told: Sequence[tuple[str, Run]]) -> None:
    """Print what recoveries noted besides their curves: figures in a line, rows as a table."""
    for name, run in told:
        for title, note in run.record().notes.items():
            if isinstance(note, dict):
                figures(
                    f"{name}, {title}", {k: "never" if v is None else v for k, v in note.items()}
                )
            elif not isinstance(note, list) or not all(isinstance(row, dict) for row in note):
                say(f"{name}, {title}: {said(note)}")
            elif note:
                columns = list(dict.fromkeys(key for row in note for key in row))
                rows = [[_noted(row, key) for key in columns] for row in note]
                table(f"{name}, {title}", columns, rows)


def _noted(row: Mapping[str, Any], key: str) -> Any:
    return ("never" if row[key] is None else row[key]) if key in row else ""


def figures(title: str, named: Mapping[str, Any]) -> None:
    """Print figures with their names in a line; the document has them as a table of one row."""
    if telling.table(title, [*named], [[*named.values()]]):
        _print(f"{title}: " + ", ".join(f"{name} {said(value)}" for name, value in named.items()))


def said(value: Any) -> str:
    """Return a value as a person reads it: a number to four digits, a list's ends by a dash."""
    if isinstance(value, list):
        return "–".join(map(said, value))
    if value is None:
        return "never"
    return figure(value) if isinstance(value, float) else str(value)


def found(title: str, run: Run) -> None:
    """Return the prompts that a recovery found, beside the plain ones, and what the judge says.

    Nothing in them is read as markup: they are whatever an optimiser made of the vocabulary.
    """
    record, scores = run.record(), {r["file"]: r["labels"] for r in run.rows("scores.jsonl")}
    prompts, asked = list(record.found), run.rows("images.jsonl")
    if not prompts or not record.answers or record.concept is None:
        return
    kind = record.concept.kind
    said = [scores.get(row["file"], {}).get(kind) or "–" for row in asked]
    plain = [row["prompt"] for row in asked]
    if len(prompts) != len(asked):  # one for all, say
        plain, said = ["–"] * len(prompts), ["–"] * len(prompts)
    rows = [list(map(verbatim, row)) for row in zip(plain, prompts, said, strict=True)]
    more = f" (the first {MOST_FOUND} of {len(rows)})" if len(rows) > MOST_FOUND else ""
    table(f"{title}: what it found{more}", ["plain prompt", "found", "judge"], rows[:MOST_FOUND])
    say(f"{record.evaluations:,} gradient evaluations, {record.queries:,} queries")


def verbatim(text: str) -> str:
    """Return text in which nothing steers a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
