"""What a LLaVA answered before and after it forgot, as a page with the pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from palimpsest.report.grid import encode
from palimpsest.report.table import entry
from palimpsest.runs import Run, write_text

MOST = 40
"""Answers shown under a heading; `answers.jsonl` holds all."""


def write_answers(run: Run, out: Path) -> Path:
    """Write one HTML page that needs no network: the numbers, and answers before and after.

    Whatever a model said stands there as text: none of it is read as markup.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    record = run.record()
    names = ", ".join(record["names"])
    pairs = zip(record["baseline"], record["numbers"], strict=True)
    page = environment.get_template("answers.html").render(
        title=f"{names}, forgotten by {record['title']}",
        about=f"{record['model']['name']} · {record['search'].get('layer', '')} · "
        f"{record['numbers'][0]['spec']} · {run.name}",
        numbers=[(after["name"], entry(before), entry(after)) for before, after in pairs],
        parts=_parts(run, record["names"]),
    )
    write_text(out, page)
    return out


def _parts(run: Run, names: list[str]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    rows = run.rows("answers.jsonl")
    own = [row for row in rows if row["shows"] in names]
    others = [row for row in rows if row["shows"] not in names]
    first = {row["shows"]: row["file"] for row in reversed(others)}
    one_each = [row for row in others if row["file"] == first[row["shows"]]]
    moved = [row for row in others if row["before"] != row["after"] and row not in one_each]
    return [
        ("What is forgotten", _some(own), _with_pictures(run, own)),
        ("Everything else", "the first picture of each", _with_pictures(run, one_each)),
        ("Other answers that moved", _some(moved), _with_pictures(run, moved)),
    ]


def _some(rows: list[dict[str, Any]]) -> str:
    return f"{min(MOST, len(rows))} of {len(rows)} answers"


def _with_pictures(run: Run, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "picture": encode(run.path(row["file"]))} for row in [*rows][:MOST]]
