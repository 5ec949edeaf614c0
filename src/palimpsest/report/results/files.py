"""Results as files: rows as CSV, tables as Markdown and LaTeX, everything as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from palimpsest.core.atomic import write_text
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.legend import KEY
from palimpsest.core.provenance import now
from palimpsest.core.typed import plain
from palimpsest.methods import Number
from palimpsest.report.forms import markdown
from palimpsest.report.results.rows import COLUMNS, Row, rows
from palimpsest.report.results.summaries import Summary, summaries
from palimpsest.report.results.tables import Line, Table, measures, points, tables
from palimpsest.report.sections.table import entry
from palimpsest.runs.folder import Run

SPLIT = ("seeds", "SD of seeds", "SD of pictures", "SD of the rest", "of the variance, seeds")
SPLITS = (
    "Variance over seeds: standard deviations of seeds, of pictures and of the rest, of shares in "
    "points, and which part of the mean's variance more seeds would take away."
)


def write_results(runs: Sequence[Path], out: Path) -> Path:
    """Write the numbers of runs; the file's suffix says in which form.

    Args:
        runs: run folders, or folders that hold some.
        out: `.csv` with a line for every number of every run, `.md` or `.tex` with tables over
            seeds, `.json` with all of it.

    Returns:
        `out`.

    Raises:
        PalimpsestError: a path is no run, no number stands in any, or `out` cannot be written.
    """
    out = Path(out)
    if out.is_dir():
        raise PalimpsestError(f"{out}: is a folder; name a file such as {out / 'results.csv'}")
    found = rows(runs)
    if not found:
        raise PalimpsestError("no number stands in these runs; name a run that was judged")
    write_text(out, RESULTS[out.suffix](found))
    return out


def as_csv(found: Sequence[Row]) -> str:
    """Return a line for each row; what is NaN or not there is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in found:
        data = row.data.items()
        writer.writerow({name: "" if value != value else value for name, value in data})
    return file.getvalue()


def as_json(found: Sequence[Row]) -> str:
    """Return rows, summaries and the runs' whole records, with their curves."""
    folders = dict.fromkeys(Path(row.folder) for row in found if row.folder)
    about = {
        "made": now(),
        "rows": [_plain(row.data) for row in found],
        "summaries": [_plain(summary.data) for summary in summaries(found)],
        "runs": {folder.name: plain(Run(folder).record()) for folder in folders},
    }
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in data.items()}


# --- Markdown ---


def as_markdown(found: Sequence[Row]) -> str:
    """Return a table for each concept, model and judge."""
    told = tables(summaries(found))
    means = [f"- {name}: {text}." for name, text in measures(told).items()]
    lines = [line for table in told for line in _markdown(table)]
    return "\n".join([*lines, "## Measures", "", f"{KEY}.", "", *means, ""])


def _markdown(table: Table) -> list[str]:
    rows = [
        [f"{line.title}{line.mark}", *_each(table, line, _said), _count(line)]
        for line in table.lines
    ]
    lines = [f"## {table.caption}", ""]
    lines += [*markdown(["", *table.heads, "seeds"], rows), ""]
    lines += [f"- {note}" for note in table.notes]
    if table.splits:
        split = [[title, name, *_split(cell)] for title, name, cell in table.splits]
        lines += ["", SPLITS, "", *markdown(["", "", *SPLIT], split)]
    return [*lines, ""]


def _each(table: Table, line: Line, say: Callable[[Summary], str]) -> list[str]:
    """Return a row's numbers in words, a dash where there is none."""
    return [say(line.cells[name]) if name in line.cells else "–" for name in table.columns]


def _number(s: Summary) -> Number:
    return Number(s.measure, s.value, s.low, s.high, s.n, s.unit)


def _said(s: Summary) -> str:
    shown = entry(_number(s))
    return shown.text if s.took else f"{shown.text} {shown.interval}".strip()


def _count(line: Line) -> str:
    return str(line.seeds) if line.seeds else "–"


def _split(s: Summary) -> list[str]:
    """Return what stands in a row of the variance over seeds."""
    deviations = (points(v, s.share) for v in (s.sd_seeds, s.sd_pictures, s.sd_rest))
    of_seeds = "–" if math.isnan(s.of_seeds) else f"{100 * s.of_seeds:.0f} %"
    return [f"{s.seeds} ({s.seed_list})", *deviations, of_seeds]


# --- LaTeX ---

SPECIAL = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "κ": r"$\kappa$",
    "σ": r"$\sigma$",
    "\u202f": r"\,",
    "\u00a0": "~",
}
"""What is written otherwise in LaTeX."""
OF_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL)))


def escaped(text: str) -> str:
    """Return a text as LaTeX sets it, on one line."""
    return OF_SPECIAL.sub(lambda found: SPECIAL[found[0]], _line(text))


def _line(text: str) -> str:
    return re.sub(r"[\r\n\t]+", " ", text)


def as_latex(found: Sequence[Row]) -> str:
    r"""Return a `table` for each concept, model and judge, to be read by `\input`."""
    told = tables(summaries(found))
    means = [f"% {_line(name)}: {_line(text)}" for name, text in measures(told).items()]
    lines = [line for table in told for line in _latex(table)]
    return "\n".join(["% needs \\usepackage{booktabs}", *dict.fromkeys(means), *lines, ""])


def _latex(table: Table) -> list[str]:
    columns = zip(table.heads, table.columns, strict=True)
    heads = [f"{escaped(head)}{_unit(table, name)}" for head, name in columns]
    rows = [
        [escaped(f"{line.title}{line.mark}"), *_each(table, line, _set), _count(line)]
        for line in table.lines
    ]
    lines = _tabular(["", *heads, "seeds"], rows)
    if table.splits:
        told = ([title, name, *_split(cell)] for title, name, cell in table.splits)
        split = _tabular(["", "", *map(escaped, SPLIT)], [[*map(escaped, row)] for row in told])
        lines += ["", r"\medskip", _small(SPLITS), "", *split]
    begin = [r"\begin{table}", r"\centering", f"\\caption{{{escaped(table.caption)}.}}"]
    return ["", *begin, *lines, *map(_small, table.notes), r"\end{table}"]


def _small(text: str) -> str:
    return f"{{\\footnotesize {escaped(text)}\\par}}"


def _tabular(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    body = [f"{' & '.join(row).replace('–', '--')} \\\\" for row in rows]
    top = [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
    return [*top, f"{' & '.join(head)} \\\\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]


def _unit(table: Table, name: str) -> str:
    units = {line.cells[name].unit for line in table.lines if name in line.cells} - {""}
    return f" ({escaped(units.pop())})" if len(units) == 1 else ""


def _set(s: Summary) -> str:
    """Return a number without its unit, which stands in the head."""
    if math.isnan(s.value):
        return "--"
    form, factor = (".1f", 100) if s.share else (".3g", 1)
    told = [f"{factor * each:{form}}" for each in (s.value, s.low, s.high)]
    if s.took or math.isnan(s.low + s.high):
        return told[0]
    value, low, high = (text.replace("-", "$-$") for text in told)
    return f"{value} {{\\scriptsize [{low}, {high}]}}"


RESULTS: dict[str, Callable[[Sequence[Row]], str]] = {
    ".csv": as_csv,
    ".md": as_markdown,
    ".tex": as_latex,
    ".json": as_json,
}
"""Forms of the results by the file's suffix."""
