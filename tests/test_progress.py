"""Progress: the time that is left, on a terminal, in a notebook and elsewhere."""

from __future__ import annotations

import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import palimpsest
from palimpsest.core import bars
from palimpsest.core.pace import MEMORY, Pace

COSTS = st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=80)


class Clock:
    """A clock that stands still until it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def walked(costs: list[float], total: int | None = None) -> tuple[Pace, Clock]:
    """A pace after steps of these costs."""
    clock = Clock()
    pace = Pace(len(costs) + 10 if total is None else total, clock=clock)
    for cost in costs:
        clock.now += cost
        pace.advance(1)
    return pace, clock


@given(st.floats(1e-3, 1e4), st.integers(1, 60))
def test_even_steps_leave_what_they_leave(cost: float, n: int):
    pace, _ = walked([cost] * n)
    assert pace.left == pytest.approx(10 * cost)


@given(COSTS, st.floats(1e-3, 1e6))
def test_a_first_step_however_slow_does_not_make_it_absurd(costs: list[float], first: float):
    slow, _ = walked([first, *costs])
    even, _ = walked([costs[0], *costs])
    assert slow.left == pytest.approx(even.left)
    assert min(costs) * 0.999 <= (slow.step or 0) <= max(costs) * 1.001


@given(COSTS)
def test_one_step_moves_the_pace_by_its_share_at_most(costs: list[float]):
    """Of the distance between the pace and the step's own cost: 1/k, k of the steps in the mean."""
    for n in range(2, len(costs)):
        before, after = walked(costs[:n])[0].step or 0, walked(costs[: n + 1])[0].step or 0
        share = 1 / min(n, MEMORY)
        assert abs(after - before) <= share * abs(costs[n] - before) * 1.001 + 1e-9


@given(COSTS, st.floats(0, 1e6))
def test_between_steps_it_runs_down_and_never_below_the_steps_to_come(
    costs: list[float], passed: float
):
    pace, clock = walked(costs)
    before, step = pace.left or 0, pace.step or 0
    clock.now += passed
    left = pace.left or 0
    assert left == pytest.approx(before - min(passed, step), abs=1e-6 * before)
    assert left >= 9 * step * 0.999


def test_nothing_is_left_of_what_is_done_and_nothing_known_of_what_was_not_begun():
    assert Pace(10).left is None
    assert walked([1.0, 2.0, 3.0], total=3)[0].left == 0
    pace, clock = walked([4.0, 2.0], total=4)
    clock.now += 5
    pace.advance(0)
    assert pace.done == 2
    resumed = Pace(10, done=8, clock=Clock())
    assert (resumed.done, resumed.left) == (8, None)


def test_a_terminal_shows_the_smoothed_time_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bars.Left, "max_refresh", None)
    shown = bars.Bars()
    shown.live.live.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with shown.task("steps [b]of[/b] it", 100) as task:
        pace = task.pace
        pace.seconds, pace.steps, pace.size = 30.0, 10.0, 0
        task.advance(0, "loss 0.5 [dim]")
        console = Console(file=io.StringIO(), width=120)
        console.print(shown.live.get_renderable())
    line = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0:05:00" in line
    assert "steps [b]of[/b] it" in line, "a label is text, and no markup"
    assert "loss 0.5 [dim]" in line


class Kernel(ModuleType):
    """What a notebook's kernel lends: a shell, and displays that are changed by their handles."""

    def __init__(self) -> None:
        super().__init__("IPython")
        self.pages: list[str] = []
        self.display: Any = ModuleType("IPython.display")
        self.display.display = self.show

    def get_ipython(self) -> Any:
        return SimpleNamespace(kernel=object())

    def show(self, what: Any, display_id: bool) -> Any:
        assert display_id
        self.update(what)
        return self

    def update(self, what: Any) -> None:
        self.pages.append(what._repr_html_())


def test_a_notebook_shows_one_bar_which_becomes_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    kernel = Kernel()
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", kernel.display)
    monkeypatch.setattr(bars, "FRAME_SECONDS", 0.0)
    with palimpsest.progress().task("<b>pictures</b>", 4) as task:
        task.advance(1, "loss 1")
        task.advance(3)
    first, second, *_, last = kernel.pages
    assert '<progress value="0" max="4">' in first
    assert '<progress value="1" max="4">' in second
    assert "loss 1" in second
    assert "left" in second
    assert "<progress" not in last
    assert "4 of 4 in" in last
    assert all("<b>" not in page for page in kernel.pages), "a label is text"
    assert capsys.readouterr() == ("", "")


def test_elsewhere_it_is_a_line_now_and_then():
    assert isinstance(palimpsest.progress(), bars.Lines)
