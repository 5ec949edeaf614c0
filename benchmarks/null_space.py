"""The basis that SRS-ME shifts along: by SVD, and by symbolic elimination as published.

    python benchmarks/null_space.py          # prints, and writes benchmarks/null_space.md

e_m stacks the tokens of the empty prompt and of n held ones, all with one begin token in common:
77·(n + 1) × 768 for Stable Diffusion. The SVD is measured at that size; the elimination on smaller
matrices of the same form, and extrapolated, which is no measurement and is labelled so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sympy
import torch
from torch import Tensor

from palimpsest.core.atomic import write_text
from palimpsest.core.provenance import commit
from palimpsest.toolbox.null_space import null_space

WINDOW, WIDTH, HELD = 77, 768, 8
TOLERANCE = 1e-6
WIDTHS = (20, 40, 60, 80)
"""Widths that the elimination is measured at, with windows a tenth as long."""
OUT = Path(__file__).parent / "null_space.md"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--held", type=int, default=HELD, help="prompts held beside the empty one")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    full = stacked(WINDOW, WIDTH, chosen.held)
    seconds, S = timed(lambda: null_space(full, TOLERANCE), chosen.repeats)
    expected = WIDTH - WINDOW - (WINDOW - 1) * chosen.held  # all share their begin token
    assert len(S) == expected, f"the rank is wrong: {len(S)} dimensions, not {expected}"
    residual = float((full.double() @ S.T).abs().max() / full.abs().max())
    rows = [(width, *eliminated(width, chosen)) for width in chosen.widths]
    text = page(full, seconds, S, residual, rows, load, chosen)
    print(text)
    write_text(chosen.out, text)


def stacked(window: int, width: int, held: int) -> Tensor:
    """(window·(held + 1), width) float32 rows, the first of every prompt the same."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(held + 1, window, width, generator=g)
    hidden[:, 0] = hidden[0, 0]
    return hidden.flatten(0, 1)


def eliminated(width: int, chosen: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the symbolic elimination, and of the SVD, at a small size."""
    rows = stacked(width // 10, width, chosen.held)
    symbolic, basis = timed(lambda: sympy.Matrix(rows.numpy()).nullspace(), 1)
    svd, S = timed(lambda: null_space(rows, TOLERANCE), chosen.repeats)
    assert len(basis) == len(S), "the two bases differ in size"
    found = np.array([np.array(b, dtype=np.float64).ravel() for b in basis])
    inside = found @ S.T.numpy() @ S.numpy()
    assert np.allclose(inside, found, atol=1e-3 * np.abs(found).max()), "the two bases differ"
    return symbolic, svd


def timed(work: Callable, repeats: int) -> tuple[float, object]:
    """Median seconds, and what came out last."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        out = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), out


def page(full, seconds, S, residual, rows, load, chosen) -> str:
    """Everything that was measured, and the extrapolation."""
    widths, symbolic = np.log([r[0] for r in rows]), np.log([r[1] for r in rows])
    power, level = np.polyfit(widths, symbolic, 1)
    fitted = float(np.exp(level + power * np.log(WIDTH)))
    cubic = rows[-1][1] * (WIDTH / rows[-1][0]) ** 3
    where = f"{os.cpu_count()} CPU cores, no GPU, torch {torch.__version__}"
    return "\n".join(
        [
            "# The null space of what is held",
            "",
            "Made by `python benchmarks/null_space.py`, commit "
            f"{commit().get('commit', 'unknown')}; {where}, sympy {sympy.__version__}; load "
            f"average {load:.1f} before the start.",
            "",
            f"**SVD, measured at full size**: e_m of {len(full)} × {full.shape[1]} ({chosen.held} "
            f"prompts held beside the empty one), float64: **{seconds:.2f} s** (median of "
            f"{chosen.repeats}), {len(S)} dimensions as counted by hand, largest entry of e_m·Sᵀ "
            f"{residual:.0e} of e_m's.",
            "",
            "**Symbolic elimination** (`sympy.Matrix.nullspace`, as the published program calls "
            "it), measured at small sizes; both spaces were checked to be the same:",
            "",
            "| e_m | symbolic, s | SVD, s |",
            "|---|---|---|",
            *(
                f"| {width // 10 * (chosen.held + 1)} × {width} | {a:.2f} | {b:.4f} |"
                for width, a, b in rows
            ),
            "",
            f"*Extrapolated, not measured*, to {len(full)} × {full.shape[1]}: {span(fitted)} by "
            f"the fitted power of the width ({power:.2f}); {span(cubic)} if it grows as the cube "
            f"from the last row on. That is {fitted / seconds:,.0f} and {cubic / seconds:,.0f} "
            "times the SVD.",
            "",
        ]
    )


def span(seconds: float) -> str:
    """A length of time."""
    return f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds / 60:.1f} minutes"


if __name__ == "__main__":
    main()
