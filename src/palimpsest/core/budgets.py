"""What a budget of gradient evaluations pays for."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

QUARTERS = 4
"""Parts of a recovery's budget after each of which its curve is measured."""


def by_steps(method: Any, budget: int) -> dict[str, Any]:
    """Return the settings with which a method that has `steps` spends a budget; else none.

    Args:
        method: has `evaluations`; where it has `prompts`, the budget is for each of them.
        budget: gradient evaluations.
    """
    known = {f.name for f in fields(method)}
    each = method.evaluations()[1] // getattr(method, "prompts", 1)
    if not each or "steps" not in known:
        return {}
    steps = max(1, budget // (each // method.steps))
    at = tuple(sorted({steps * quarter // QUARTERS for quarter in range(QUARTERS + 1)}))
    if hasattr(getattr(method, "measure", None), "at"):
        return {"steps": steps, "measure.at": at}
    return {"steps": steps, **({"every": max(1, steps // QUARTERS)} if "every" in known else {})}
