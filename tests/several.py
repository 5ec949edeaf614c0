"""What each of two processes does in tests/test_several.py; started with a folder.

Every process writes what it came to into `RANK.pt` there. Then the second one ends too early.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from palimpsest.core.errors import PalimpsestError, PeerError
from palimpsest.core.processes import Together
from palimpsest.methods import Context
from palimpsest.toolbox.optimise import Recipe, Trace, optimise

STEPS = 4
RECIPE = Recipe(STEPS, 0.1, clip=0.5)


def fresh() -> dict[str, torch.Tensor]:
    """Parameters; nothing trains `kept`, and `seldom` has a gradient in some losses only."""
    started = {"a": torch.ones(5), "b": torch.full((2,), 2.0), "seldom": torch.ones(1)}
    return {n: p.requires_grad_() for n, p in started.items()} | {"kept": torch.zeros(())}


def trained(context: Context, recipe: Recipe = RECIPE, watch: Any = None, loss: Any = None):
    """Return the parameters after training, and its trace."""
    own = fresh()

    def drawn(g: torch.Generator, step: int) -> torch.Tensor:
        x = torch.randn(5, generator=g)
        value = (own["a"] - x).square().mean() + (own["b"] * x[:2]).sum()
        if x[0] > 0:
            value = value + own["seldom"].square().sum()
        own["kept"].mul_(0.9).add_(0.1 * value.detach())
        return value + (loss(own, step) if loss else 0)

    trace = optimise(drawn, own, recipe, context=context, label="training", watch=watch)
    return {name: p.detach() for name, p in own.items()}, trace


def refused(context: Context) -> str:
    """Return what is said when one process's parameters move by themselves."""

    def loss(own: dict[str, torch.Tensor], step: int) -> float:
        if context.group.rank == 1 and step == STEPS - 1:
            own["a"].data += 1
        return 0.0

    try:
        trained(context, loss=loss)
    except PalimpsestError as error:
        return str(error)
    return ""


def main() -> None:
    place, group = Path(sys.argv[1]), Together()
    context = Context(seed=3, folder=place / "unbroken", group=group)
    whole, trace = trained(context)
    broken = replace(context, folder=place / "broken")
    trained(broken, replace(RECIPE, steps=2))
    resumed, again = trained(broken)
    mine = 2 if group.rank == 0 else 1  # left alone, each would stop at another step

    def watch(trace: Trace) -> bool:
        trace.notes["seen by"] = group.rank
        return trace.step >= mine

    _, stopped = trained(replace(context, folder=None), watch=watch)
    found = {
        "whole": whole,
        "losses": trace.losses,
        "resumed": resumed,
        "losses again": again.losses,
        "stopped": stopped.step,
        "notes": stopped.notes,
        "joined": group.joined([10 * i for i in group.own(range(5))]),
        "refused": refused(replace(context, folder=None)),
    }
    if group.rank == 0:
        found |= {"lost": lost(group), "speaks": [group.speaks(), group.speaks()]}
    torch.save(found, place / f"{group.rank}.pt")


def lost(group: Together) -> str:
    """Return what is said when another process has ended."""
    try:
        group.mean(0.0)
    except PeerError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main()
