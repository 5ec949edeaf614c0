"""What it costs to erase one more concept when n are gone: SRS-ME's iterative erasure.

    python recipes/iterative.py          # writes docs/results/iterative.md

Every shift is trained alone with all others held, so seconds and memory must stay flat; trained
jointly, both grow with n. Nothing stops a training early here, so that all take the same steps.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from palimpsest.cli import machine
from palimpsest.core.atomic import write_text
from palimpsest.core.memory import Peak, set_baseline
from palimpsest.core.provenance import commit
from palimpsest.erase import SRSME
from palimpsest.methods import Context, Result
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.world import suite

NAMES = ("parachute", "church", "truck", "cat", "kite", "boat", "umbrella", "castle", "rabbit")
STEPS = 30
JOINT = (1, 4, 8)
"""How many concepts are trained at once, to compare."""
OUT = Path(__file__).parents[1] / "docs" / "results" / "iterative.md"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", help="a tiny setting: proves nothing")
    chosen = parser.parse_args()
    machine.silence()
    set_baseline()
    model = load_model("world")
    changes = {"steps": STEPS, "threshold": -math.inf, "hold_nearest": 0}
    sampling = {"latents.source": "frozen", "latents.steps": 4}
    method = SRSME(**SRSME.presets["world"]).changed({**changes, **sampling})
    names, joint = NAMES, JOINT
    if chosen.quick:
        method, names, joint = method.changed({"steps": 1, "latents.batch": 1}), NAMES[:3], (1, 2)
    concepts = [suite.concept(name) for name in names]
    alone = {c.name: replace(method, hold=(*method.hold, *set(names) - {c.name})) for c in concepts}

    def one(i: int) -> tuple[float, float, Patch]:
        concept = concepts[i]
        return measured(lambda: alone[concept.name](model, concept, context=Context()))

    one(0)  # warm: the first training also pays for what is loaded once
    lines, total = [], None
    for n in range(len(names)):
        seconds, memory, patch = one(n)
        total = patch if total is None else total + patch
        if n:
            lines.append(f"| {n} | {seconds:.1f} | {memory:.0f} | {total.nbytes / 1e6:.1f} |")
    together = replace(method, training="joint")
    at_once = []
    for n in joint:
        seconds, memory, _ = measured(lambda n=n: together(model, concepts[:n], context=Context()))
        at_once.append(f"| {n} | {seconds:.1f} | {memory:.0f} |")
    write_text(chosen.out, page(method.steps, lines, at_once))
    print(f"written: {chosen.out}")


def measured(work: Callable[[], Result]) -> tuple[float, float, Patch]:
    """(seconds, peak megabytes above the libraries, the patch that came out)."""
    with Peak() as peak:
        start = time.perf_counter()
        patch = work().patch
        return time.perf_counter() - start, peak.megabytes, patch


def page(steps: int, lines: list[str], at_once: list[str]) -> str:
    """Both tables."""
    return "\n".join(
        [
            "# One more concept",
            "",
            "Made by `python recipes/iterative.py`; seconds were taken while the machine did other "
            f"work too. {steps} steps a concept. Commit {commit().get('commit', 'unknown')}, cpu.",
            "",
            "Concept n + 1, when n are gone, all declared from the start:",
            "",
            "| n | seconds | peak MB above the libraries | bytes of the sum, MB |",
            "|---|---|---|---|",
            *lines,
            "",
            'The same number of steps with all concepts at once (`training="joint"`):',
            "",
            "| concepts | seconds | peak MB above the libraries |",
            "|---|---|---|",
            *at_once,
            "",
        ]
    )


if __name__ == "__main__":
    main()
