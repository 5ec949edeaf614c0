"""Two workers of Ray beside one, and beside the process itself, on the same works.

    python benchmarks/engines.py        # writes benchmarks/engines.md; idle cores, at least two

The works are erasures by ESD on the world, one thread each. Before a clock starts every worker has
carried out one small work, so that it has imported all and loaded the world.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path

import torch

from palimpsest.cli.bench.engines.ray import Ray
from palimpsest.cli.bench.work import Work, carry_out
from palimpsest.core.atomic import write_text
from palimpsest.core.provenance import commit, digest

CONCEPTS = ("parachute", "church", "kite", "lighthouse", "owl", "cat", "neon", "van gogh")
DRAWN = ("--no-gold", "--force", "--draw.steps", "4")
OUT = Path(__file__).parent / "engines.md"


class Here:
    """The works one after the other in this process."""

    def run(self, works: Sequence[Work]) -> Iterator[tuple[str, int]]:
        """Carry out."""
        for work in works:
            yield work.key, carry_out(work.argv, work.folder)

    def close(self) -> None:
        """Do nothing."""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--works", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="of ESD, each")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rows, found = [], []
    with tempfile.TemporaryDirectory() as temporary:
        engines = {"this process": Here(), "Ray, 1": Ray(workers=1), "Ray, 2": Ray(workers=2)}
        for name, engine in engines.items():
            place = Path(temporary) / name
            try:
                begun = time.perf_counter()
                carry(engine, small(place / "warm", 4 if "2" in name else 1))
                warm = time.perf_counter() - begun
                begun = time.perf_counter()
                carry(engine, works(place, chosen.works, chosen.steps))
                rows.append((name, warm, time.perf_counter() - begun))
            finally:
                engine.close()
            found.append(patches(place))
            print(*rows[-1], sep=" | ", flush=True)
    same = all(each == found[0] for each in found)
    text = page(rows, same, load, chosen)
    print(text)
    write_text(chosen.out, text)
    if not same:
        sys.exit("the patches differ")


def carry(engine: Here | Ray, works: Sequence[Work]) -> None:
    """Carry out all; none may fail."""
    failed = {key: code for key, code in engine.run(works) if code}
    if failed:
        logs = [(work.folder / "log.txt").read_text() for work in works if work.key in failed]
        sys.exit(f"{failed}\n{logs[0][-2000:]}")


def works(place: Path, n: int, steps: int) -> list[Work]:
    """ESD of one concept after another, in runs of their own."""
    found = []
    for i, concept in enumerate(islice(cycle(CONCEPTS), n)):
        words = ("erase", "esd", "--concept", concept, "--steps", str(steps), "--seed", str(i))
        where = ("--prompts", str(prompts(place)), "--runs", str(place / "runs"))
        found.append(Work(f"w{i}", words + where + DRAWN, place / f"w{i}", (), concept))
    return found


def small(place: Path, n: int) -> list[Work]:
    """Works that make each worker import and load all that the others need."""
    return works(place, n, 1)


def prompts(place: Path) -> Path:
    """A table of sixteen prompts."""
    path = place / "prompts.csv"
    rows = [f"a picture of a {CONCEPTS[i % 4]},{i},{CONCEPTS[i % 4]}\n" for i in range(16)]
    write_text(path, "prompt,evaluation_seed,object\n" + "".join(rows))
    return path


def patches(place: Path) -> dict[str, str]:
    """Each run's patch by its digest."""
    found = (place / "runs").glob("esd-*/patch.safetensors")
    return {path.parent.name: digest(path) for path in found}


def page(
    rows: list[tuple[str, float, float]], same: bool, load: float, chosen: argparse.Namespace
) -> str:
    """Markdown."""
    one = rows[1][2]
    head = ["engine", "s until warm", "s", "works a minute", "beside one worker"]
    cells = [
        [name, f"{warm:.1f}", f"{s:.1f}", f"{60 * chosen.works / s:.1f}", f"**{one / s:.2f}×**"]
        for name, warm, s in rows
    ]
    return "\n".join(
        [
            "# Engines",
            "",
            "Made by `python benchmarks/engines.py`, commit "
            f"{commit().get('commit', 'unknown')}: {os.cpu_count()} CPU cores, no GPU, one thread "
            f"a work, torch {torch.__version__}, Ray {version('ray')}; load average {load:.1f} "
            "before the start.",
            "",
            f"{chosen.works} erasures by ESD of {chosen.steps} steps on the world, each with its "
            "pictures before and after, by workers that had imported and loaded all. The patches "
            f"of all engines are {'the same, bit by bit' if same else '**not the same**'}.",
            "",
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
            *(f"| {' | '.join(row)} |" for row in cells),
            "",
        ]
    )


if __name__ == "__main__":
    main()
