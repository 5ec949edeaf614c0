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


def cells(name: str, model: Diffusion) -> list[str]:
    """Return a method's two cells of a model."""
    found = []
    for memory in ("normal", "low"):
        model.use_memory(memory)
        found.append(cell(count(model, method_of(name))))
    return found


def header() -> list[str]:
    """Return the first two lines of the table."""
    names = [f"{TITLES[s]}{more}" for s in get_args(Shape) for more in ("", ", `low`")]
    return [f"| method | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]


def rows_of(page: str) -> dict[str, list[str]]:
    """Return the cells that a page has, by method."""
    rows = re.findall(r"^\| `(.+?)` \|(.*)\|$", page, re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in rows}


def write(rows: dict[str, list[str]]) -> None:
    """Write the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    lines = [f"| `{name}` | {' | '.join(rows[name])} |" for name in NAMES]
    before, _, rest = page.partition("| method |")
    _, _, after = rest.partition("\n\n")
    write_text(PAGE, "\n".join([f"{before}{header()[0]}", header()[1], *lines, "", after]))


def main(names: list[str]) -> None:
    """Count model by model, and write what is known after each."""
    known = rows_of(PAGE.read_text(encoding="utf-8"))
    rows = {name: known.get(name, ["?"] * 2 * len(TITLES)) for name in NAMES}
    for i, shape in enumerate(get_args(Shape)):
        model = true_shape(shape)
        for name in names or NAMES:
            rows[name][2 * i : 2 * i + 2] = cells(name, model)
            print(shape, name, *rows[name][2 * i : 2 * i + 2], flush=True)
        write(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
