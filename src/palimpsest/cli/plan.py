"""`--dry-run`: what would run, for how long and in how much memory. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.cli import console
from palimpsest.cli.tree import Call
from palimpsest.core.kinds import Optimizer
from palimpsest.core.memory import Peak
from palimpsest.core.streams import generator

if TYPE_CHECKING:
    from palimpsest.models.diffusion import Diffusion

PROBE = 8
"""Latents of the batch that is timed, at most."""


def tell(
    call: Call,
    model: Diffusion,
    concept: str,
    prompts: int,
    root: Path,
    subjects: Sequence[str] = ("edited",),
    dtype: str | None = None,
    optimizer: Optimizer = "own",
) -> None:
    """Print the plan of an erasing or recovering run, or of several on as many subjects.

    With little memory the model is in `dtype`, its own when that is None.

    A method may say more of itself: `moves(model)` gives the entries it moves by parameter name,
    `evaluations()` its U-Net evaluations without and with gradient, in latents, and `demand(model)`
    what a step holds at once.
    """
    method = call.method
    moves = getattr(method, "moves", lambda _: {})(model)
    count = getattr(method, "evaluations", None)
    plain, graded = speed(model, list(moves), method.demand(model).graded)
    free, trained = count() if count else (0, 0)
    pictures = prompts * model.sampling.steps * (2 if model.sampling.guidance != 1 else 1)
    runs, drawn = len(subjects), (len(subjects) + 1) * pictures
    seconds = runs * (free * plain[0] + trained * graded[0]) + drawn * plain[0]
    each = f", {runs} times: on {', '.join(subjects)}" if runs > 1 else ""
    taken = f"{free:,} without and {trained:,} with gradient{each}"
    sorts = "edited" if runs == 1 else f"{runs} times edited"
    rows = [
        ("method", f"{call.name}, preset {call.preset or '–'}"),
        *((f"  {name.rstrip('_')}", str(value)) for name, value in asdict(method).items()),
        ("concept", concept),
        ("parameters that move", _moved(moves)),
        ("U-Net evaluations", taken if count else "?"),
        ("for the pictures", f"{prompts} prompts, unedited and {sorts}: {drawn:,} more"),
    ]
    more = "" if count else " besides the method's own"
    counted = _counted(model, method, dtype, optimizer)
    _say(rows, seconds, counted or [_megabytes(graded[1])], root, more)


def tell_drawing(
    model: Diffusion, rows: Sequence[tuple[str, str]], pictures: int, root: Path
) -> None:
    """Print the plan of a command that only draws: what it says of itself, and what that takes."""
    count = pictures * model.sampling.steps * (2 if model.sampling.guidance != 1 else 1)
    seconds, memory = speed(model, [])[0]
    drawn = ("pictures", f"{pictures:,}: {count:,} U-Net evaluations")
    _say([*rows, drawn], count * seconds, [_megabytes(memory)], root)


def _megabytes(memory: float) -> tuple[str, str]:
    return "memory", f"about {memory:,.0f} MB above what the libraries take"


def _counted(
    model: Diffusion, method: Any, dtype: str | None, optimizer: Optimizer
) -> list[tuple[str, str]]:
    """Return what the method takes as it is asked for, counted from shapes, and what it could take.

    Nothing is counted of a model that no pipeline is made of.
    """
    from palimpsest.models.shapes import shapes_of
    from palimpsest.toolbox.memory_count import CARDS, count, fits

    rows = []
    for memory in dict.fromkeys((model.memory, "low")):
        precision = getattr(torch, dtype) if dtype and memory == "low" else model.dtype
        shapes = shapes_of(model, precision)
        if shapes is None:
            return []
        shapes.use_memory(memory)
        found = count(shapes, method, optimizer)
        card = next(iter(fits(found.peak)), None)
        room = f"fits a card of {card} GB" if card else f"fits no card of {CARDS[-1]} GB"
        said = f"{found.training:.2f} GiB for the method, {found.pictures:.2f} for its pictures"
        name = "memory" if memory == model.memory else "  with --memory low"
        kind = str(precision).removeprefix("torch.")
        rows.append((name, f"{said}, in {kind}; {room} (counted from shapes)"))
    return rows


def _say(
    rows: Sequence[tuple[str, str]],
    seconds: float,
    memory: Sequence[tuple[str, str]],
    root: Path,
    more: str = "",
) -> None:
    """Print rows, then what the work takes."""
    rows = [
        *rows,
        ("time", f"about {console.duration(seconds)}{more}"),
        *memory,
        ("would write to", f"{root}/"),
    ]
    width = max(len(name) for name, _ in rows)
    console.say("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def _moved(moves: dict[str, int]) -> str:
    if not moves:
        return "?"
    first, *rest = moves
    more = f" and {len(rest)} more" if rest else ""
    return f"{sum(moves.values()):,} entries in {len(moves)} tensors ({first}{more})"


def speed(
    model: Diffusion, names: list[str], batch: int = PROBE
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (seconds per latent, peak megabytes) of the U-Net without and with gradient.

    Args:
        model: what is timed.
        names: the parameters that move.
        batch: latents that the method differentiates together.
    """
    n = min(PROBE, batch) or 1
    x = model.noise(n, generator(0))
    t = torch.full((n,), 500, device=x.device)
    cond = model.embed([""])
    with torch.no_grad():
        model.eps(x[:1], t[:1], cond)
        plain = _measured(lambda: model.eps(x, t, cond), n)
    weights = {**model.parameters("full"), **model.parameters("text")}
    deltas = {
        n: torch.zeros_like(p, dtype=torch.float32, requires_grad=True)
        for n, p in weights.items()
        if n in names
    }
    student = model.student(deltas)
    if not deltas:
        return plain, plain

    def step() -> None:
        student.eps(x, t, student.embed([""])).square().mean().backward()

    return plain, _measured(step, n)


def _measured(work: Callable[[], Any], n: int) -> tuple[float, float]:
    """Return the seconds a latent that the work takes, and its peak in megabytes."""
    with Peak() as peak:
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
    return seconds / n, peak.megabytes
