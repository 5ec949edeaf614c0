"""Charts: what is drawn lies where its numbers say, is told in words too, and is never markup."""

from __future__ import annotations

import math
import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import palimpsest.report
from palimpsest.report.charts import (
    Axis,
    Bar,
    Cell,
    Dot,
    Level,
    Point,
    Series,
    bars,
    front,
    lines,
    look,
    matrix,
    scatter,
)
from palimpsest.report.charts.scatter import HEIGHT, NARROW, WIDE

HOME = Path(palimpsest.report.__file__).parent
EVIL = '<script>alert("x")</script>'
PERCENT = Axis(low=0, high=100, unit="%")
CURVE = [Point(0, 0.0, 0, 10), Point(50, 40, 30, 50), Point(100, 80, 70, 90)]


def parsed(markup: str) -> ElementTree.Element:
    """The chart as a tree; it is well-formed."""
    return ElementTree.fromstring(str(markup))


def marks(chart: str) -> list[tuple[float, float, str]]:
    """Each mark's place in per cent from the lower left, and what hovering tells."""
    found = []
    for place in parsed(chart).iter("svg"):
        group = place.find("g[title]")
        if place.get("y", "").endswith("%") and group is not None:
            x, y = (float(place.get(key, "")[:-1]) for key in ("x", "y"))
            found.append((x, 100 - y, group.findtext("title") or ""))
    return found


def test_points_lie_where_their_numbers_say() -> None:
    """x from 0 to 100 has 4 % free on each side: 0 → 4/108; y is given from 0 to 100."""
    chart = lines([Series("ESD", CURVE)], title="t", x=Axis("evaluations"), y=PERCENT)
    places = [(x, y) for x, y, _ in marks(chart)]
    assert places == [(3.7, 0), (50, 40), (96.3, 80)]
    line = next(p for p in parsed(chart).iter("polyline"))
    assert line.get("points") == "37,1000 500,600 963,200"
    band = next(p for p in parsed(chart).iter("polygon"))
    assert band.get("points") == "37,900 500,500 963,100 963,300 500,700 37,1000"


def test_a_logarithmic_axis_gives_each_decade_the_same_room_and_zero_a_place() -> None:
    scale = Axis(log=True).over([0, 1, 10, 100])
    assert scale.place(0) == 0
    one, ten, hundred = map(scale.place, (1, 10, 100))
    assert ten - one == pytest.approx(hundred - ten, abs=0.02)
    assert one > 8
    assert [text for _, text in scale.ticks][:2] == ["0", "1"]
    with pytest.raises(ValueError, match="no place on a logarithmic axis"):
        Axis(log=True).over([-1.0])


NUMBERS = st.floats(-1e9, 1e9, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-9)


@given(st.lists(NUMBERS, max_size=6), st.booleans())
@example([-723925906.0, -721611732.0], False)
@example([123456.0, 123456.0001], False)
@example([1.0e-9, 1.0000001e-9], False)
@example([0.1, 0.10000000000000002], False)
def test_every_axis_has_ticks_within_it_in_order(values: list[float], log: bool) -> None:
    scale = Axis(log=log).over([abs(v) for v in values] if log else values)
    places = [place for place, _ in scale.ticks]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    assert len({text for _, text in scale.ticks}) == len(places) <= 12
    for value in values:
        assert 0 <= scale.place(abs(value) if log else value) <= 100


def test_a_lone_value_stands_in_the_middle_and_alone_beside_its_axis() -> None:
    """A recovery that spends nothing has all its points at 0 gradient evaluations."""
    for axis, value, text in (
        (Axis(), 0.0, "0"),
        (Axis(), 40.0, "40"),
        (Axis(log=True), 100, "100"),
    ):
        assert axis.over([value, value]).ticks == [(50, text)]


def test_what_was_not_measured_is_not_drawn() -> None:
    nothing = [Point(0, math.nan), Point(1, 50, math.nan, math.nan)]
    chart = lines([Series("a", nothing)], title="t", x=Axis(), y=PERCENT, levels=[Level("b", 9)])
    assert len(marks(chart)) == 1
    assert "nan" not in chart
    assert "<polygon" not in chart
    empty = scatter([Dot(math.nan, 1, "lost"), Dot(1, 1)], title="t", x=Axis(), y=Axis())
    assert len(marks(empty)) == 1
    assert "nan%" not in empty
    assert "lost" in empty, "the table names it all the same"
    assert "nan%" not in bars([Bar("a", math.nan)], title="t")


def test_the_front_is_what_no_other_beats_in_both() -> None:
    a, b, c, d, e = Dot(1, 9), Dot(5, 5), Dot(4, 4), Dot(9, 1), Dot(5, 2)
    assert front([c, e, d, b, a]) == [a, b, d]
    chart = scatter([a, b, c, d], title="t", x=Axis(), y=Axis(), fronts=[front([a, b, c, d])])
    (links,) = parsed(chart).findall(".//g[@class='front hue-1']")
    assert len(links) == 2


def test_text_is_never_markup() -> None:
    x = Axis(EVIL, unit=EVIL)
    point = Point(1, 2, 1, 3, EVIL)
    drawn = [
        lines([Series(EVIL, [point])], title=EVIL, x=x, y=x, levels=[Level(EVIL, 1, EVIL)]),
        scatter([Dot(1, 2, EVIL, told=EVIL)], title=EVIL, x=x, y=x),
        bars([Bar(EVIL, 1, note=EVIL, before=2, text=EVIL)], title=EVIL, before=EVIL),
        matrix([(EVIL, [Cell(EVIL, note=EVIL, told=EVIL)])], [EVIL], title=EVIL, corner=EVIL),
    ]
    for chart in drawn:
        assert "<script" not in chart
        assert "&lt;script&gt;" in chart
        parsed(chart)


def test_a_chart_says_in_words_what_it_shows() -> None:
    chart = lines([Series("ESD", CURVE)], title="How fast", x=Axis("steps"), y=PERCENT)
    (plane,) = parsed(chart).findall(".//svg[@role='img']")
    assert plane.get("aria-label") == "How fast"
    assert plane.findtext("desc") == "ESD: from 0\u202f% to 80\u202f%."
    cells = [cell.text for cell in parsed(chart).iter("td")]
    assert cells == ["0\u202f% [0, 10]", "40\u202f% [30, 50]", "80\u202f% [70, 90]"]
    assert {cell.get("scope") for cell in parsed(chart).iter("th")} == {"row", "col"}
    (_, line) = parsed(bars([Bar("kite", 12.0, 8, 20, 95)], title="t")).iter("li")
    told = "".join(line.itertext())
    assert "kite12\u202f% [8, 20], before 95\u202f%" in told


SPREAD = [((7 * i) % 20, (11 * i) % 19) for i in range(20)]
CORNER = [(9, 99), (84, 96), *[(97 + i % 4, 91 + 3 * (i % 3)) for i in range(12)], (93, 72)]


@pytest.mark.parametrize("width", [NARROW, WIDE, 1200])
@pytest.mark.parametrize(("places", "least"), [(SPREAD, 10), (CORNER, 3)])
def test_names_of_dots_never_lie_over_one_another(
    places: list[tuple[float, float]], least: int, width: int
) -> None:
    """The boxes of the names that are written do not meet, on a phone and on wide screens."""
    dots = [Dot(x, y, f"method {i}", look(i)) for i, (x, y) in enumerate(places)]
    chart = scatter(dots, title="t", x=Axis(), y=Axis())
    boxes = []
    for place in parsed(chart).iter("svg"):
        text = place.find("g[@class='name']/text")
        if text is None and width > NARROW:
            text = place.find("g[@class='name wide']/text")
        if text is None:
            continue
        x = float(place.get("x", "")[:-1]) * width / 100 + float(text.get("x", ""))
        y = float(place.get("y", "")[:-1]) * HEIGHT / 100 + float(text.get("y", ""))
        wide = 6.5 * len(text.text or "")
        left = x - {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor", "")] * wide
        boxes.append((left, y - 6, left + wide, y + 6))
    assert len(boxes) >= least
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] + 2 or b[2] <= a[0] + 2 or a[3] <= b[1] + 2 or b[3] <= a[1] + 2


def test_dots_upon_each_other_share_a_name() -> None:
    dots = [Dot(100, 100, "a"), Dot(9, 9, "d"), Dot(100, 100, "b"), Dot(99.9, 100, "c")]
    chart = parsed(scatter(dots, title="t", x=Axis(), y=Axis()))
    names = {text.text for text in chart.iterfind(".//g[@class='name']/text")}
    assert names == {"a, b, c", "d"}
    many = scatter([Dot(5, 5, str(i)) for i in range(9)], title="t", x=Axis(), y=Axis())
    assert "0, 1, 2 + 6" in many


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_stand_out_from_what_they_lie_on(scheme: int) -> None:
    """WCAG 2.2: text 4.5 to 1, what is drawn 3 to 1, light and dark."""
    style = (HOME / "page.css").read_text() + (HOME / "charts" / "chart.css").read_text()
    found = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", style)
    colour = {name: luminance(pair[scheme]) for name, *pair in found}
    text = [("ink", "paper"), ("soft", "paper"), ("soft", "wash"), ("accent", "paper")]
    text += [("ink", "card"), ("ink", "wash"), ("yes", "yes-bg"), ("no", "no-bg"), ("yes", "paper")]
    drawn = [(f"hue-{i}", "paper") for i in range(7)]
    for pairs, least in ((text, 4.5), (drawn, 3)):
        for pair in pairs:
            dark, light = sorted(colour[name] for name in pair)
            assert (light + 0.05) / (dark + 0.05) >= least, pair
