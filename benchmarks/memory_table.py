"""Write the table of docs/memory.md: what every method takes on true shapes, counted.

python benchmarks/memory_table.py            # ten minutes on one core; no weights, no GPU
python benchmarks/memory_table.py esd uce    # only these rows anew
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, get_args

from palimpsest.core.atomic import write_text
from palimpsest.erase import ERASERS, OF_DIFFUSION
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.shapes import Shape, true_shape
from palimpsest.recover import RECOVERIES
from palimpsest.toolbox.memory_count import CARDS, Count, count, fits

PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
TITLES: dict[Shape, str] = {"sd14": "SD 1.4", "sd21": "SD 2.1", "sdxl": "SDXL"}
VARIANTS: dict[str, dict[str, Any]] = {
    "esd --train noxattn": {"train": "noxattn"},
    "fmn --train xattn": {"train": "xattn"},
}
"""Settings that the papers have a name for: ESD-u, and the light FMN."""
GIVEN = {"imported", "replay"}
"""Methods that apply what is given to them: they take what drawing pictures takes."""
NAMES = [n for n in (*OF_DIFFUSION, *VARIANTS, *RECOVERIES.own) if n not in GIVEN]
"""The rows."""


def method_of(name: str) -> Any:
    """Return a method at its published values, in one of its variants."""
    own = name.partition(" ")[0]
    method = (ERASERS if own in ERASERS else RECOVERIES).load(own)()
    return method.changed(VARIANTS.get(name, {}))


def cell(found: Count) -> str:
    """Return the most GiB at once, and the smallest card that it fits on."""
    card = next(iter(fits(found.peak)), None)
    return f"{found.peak:.1f} ({card or f'>{CARDS[-1]}'})"


def row(name: str, models: dict[Shape, Diffusion]) -> str:
    """Return a method's row."""
    cells = []
    for model in models.values():
        for memory in ("normal", "low"):
            model.use_memory(memory)
            cells.append(cell(count(model, method_of(name))))
    return f"| `{name}` | {' | '.join(cells)} |"


def header() -> list[str]:
    """Return the first two lines of the table."""
    names = [f"{TITLES[s]}{more}" for s in get_args(Shape) for more in ("", ", `low`")]
    return [f"| method | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]


def rows_of(page: str) -> dict[str, str]:
    """Return the rows that a page has, by method."""
    return {found[1]: found[0] for found in re.finditer(r"^\| `(.+?)` \|.*\|$", page, re.MULTILINE)}


def main(names: list[str]) -> None:
    """Count, and write the rows into the page."""
    page = PAGE.read_text(encoding="utf-8")
    rows = rows_of(page)
    models = {shape: true_shape(shape) for shape in get_args(Shape)}
    for name in names or NAMES:
        rows[name] = row(name, models)
        print(rows[name], flush=True)
    table = "\n".join([*header(), *(rows[name] for name in NAMES)])
    before, _, rest = page.partition("| method |")
    _, _, after = rest.partition("\n\n")
    write_text(PAGE, f"{before}{table}\n\n{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
