"""The value tables of the methods' pages, cell by cell, against the presets of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from palimpsest.erase import ERASERS
from palimpsest.recover import RECOVERIES

PAGES = Path(__file__).parents[1] / "docs" / "methods"
CODE = re.compile(r"`([\w.-]+)`")
SAME = ("the same", "same")
NOTHING = ("–", "no", "none")


def kind_of(page: Path) -> type[Any] | None:
    registry = next((r for r in (ERASERS, RECOVERIES) if page.stem in r.own), None)
    return registry.load(page.stem) if registry else None


def rows(page: Path) -> Iterator[tuple[list[str], list[str]]]:
    """(header, cells) of each row of a page's value tables."""
    header: list[str] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.replace(r"\|", "∣").strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif cells[0] in ("field", "setting"):
            header = cells
        elif header and not set(line) <= set("|-: "):
            yield header, cells


def values(page: Path) -> Iterator[tuple[str, str, str, Any]]:
    """(field, preset, what the page says, what the code says) of every cell."""
    kind = kind_of(page)
    assert kind is not None
    for header, cells in rows(page):
        names = CODE.findall(cells[0].split("(")[0])
        known = [name for name in names if has(kind(), name)]
        assert known, f"{page.name}: the row {cells[0]!r} names no setting of {kind.__name__}"
        said = [""] * len(known)
        for title, cell in zip(header[1:], cells[1:], strict=True):
            preset = CODE.findall(title)
            if not preset or preset[-1] not in kind.presets:
                continue
            method = kind(**kind.presets[preset[-1]])
            parts = cell.split(", ") if len(known) > 1 and cell not in SAME else [cell] * len(known)
            for i, (name, part) in enumerate(zip(known, parts, strict=True)):
                said[i] = said[i] if part in SAME else part
                yield name, preset[-1], said[i], look(method, name)


def look(method: Any, name: str) -> Any:
    for part in name.split("."):
        method = getattr(method, part)
    return method


def has(method: Any, name: str) -> bool:
    try:
        look(method, name)
    except AttributeError:
        return False
    return True


def leaves(settings: Any, prefix: str = "") -> Iterator[str]:
    """The names of all settings, nested ones by `outer.inner`."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def agrees(said: str, value: Any) -> bool | None:
    """Whether a cell says a value; None where it says it in words."""
    text = said.replace("`", "").replace("−", "-").replace(" ", " ")
    text = re.sub(r"\s*\(.*?\)", "", text).strip()
    if isinstance(value, bool):
        return {"yes": True, "no": False}.get(text) is value
    if value in (None, (), ""):
        return text in NOTHING or text == ""
    if isinstance(value, int | float):
        number = re.fullmatch(r"-?[\d.,]+(e-?\d+)?", text)
        return None if number is None else float(text.replace(",", "")) == value
    if isinstance(value, tuple):
        numbers = re.findall(r"-?[\d.]+(?:e-?\d+)?", text)
        flat = [v for v in value for v in (v if isinstance(v, tuple) else (v,))]
        if not numbers or not all(isinstance(v, int | float) for v in flat):
            return text in map(str, value) or None
        got = [float(number) for number in numbers]
        return got == ([*flat[: len(got) - 1], flat[-1]] if "…" in text else flat)
    return text == str(value) or None


METHODS = [page for page in sorted(PAGES.glob("*.md")) if kind_of(page) is not None]


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_a_pages_values_are_the_codes(page: Path):
    wrong = [
        f"{name}, {preset}: the page says {said!r}, the code {value!r}"
        for name, preset, said, value in values(page)
        if agrees(said, value) is False
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_a_setting_that_a_preset_changes_is_in_the_table(page: Path):
    kind, cells = kind_of(page), list(values(page))
    methods = [kind(**kind.presets[name]) for name in {preset for _, preset, *_ in cells}]
    changed = {name for name in leaves(kind()) if len({repr(look(m, name)) for m in methods}) > 1}
    assert changed - {name for name, *_ in cells} == set()


def test_most_cells_are_compared():
    """What is said in words is not compared: it must stay the exception."""
    cells = [(page.stem, *cell) for page in METHODS for cell in values(page)]
    in_words = [cell for cell in cells if agrees(cell[-2], cell[-1]) is None]
    assert len(cells) > 400
    assert len(in_words) < 20, in_words


def test_the_comparison_can_fail():
    assert agrees("1000", 1000)
    assert agrees("1e-5", 1e-5)
    assert agrees("10, 30, …, 990", tuple(range(10, 1000, 20)))
    assert agrees("yes", True)
    assert agrees("–", None)
    assert not agrees("1000", 100)
    assert not agrees("10, 30, …, 970", tuple(range(10, 1000, 20)))
    assert not agrees("no", True)
    assert not agrees("–", 3)
