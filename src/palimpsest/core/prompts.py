"""Prompts, and the CSV that benchmarks of concept erasure exchange them in.

Columns: `prompt`; optionally `evaluation_seed`, `evaluation_guidance`, `case_number`; and one
column per kind of concept (`object`, `style`, …) that says what the prompt asks for.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, get_args

from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.files import beside, read_table
from palimpsest.core.kinds import Kind

KINDS: tuple[str, ...] = get_args(Kind)

COCO: tuple[str, ...] = tuple(beside(__file__, "coco.txt").splitlines())
"""The 80 classes of COCO (Lin et al. 2014), which several papers retain."""


@dataclass(frozen=True)
class Prompt(Settings):
    """One picture to make: it depends on text, seed, index and guidance alone."""

    text: str
    seed: int = 0
    """Fixes the noise that the picture starts from."""
    index: int = 0
    """Which picture of that seed."""
    guidance: float | None = None
    """Classifier-free guidance; None takes the model's own."""
    case: str = ""
    """The row's name in its CSV."""
    asks: dict[str, str] = field(default_factory=dict, hash=False)
    """Kind → the concept of that kind that the text asks for."""

    def __post_init__(self) -> None:
        try:
            self.text.encode()
        except UnicodeEncodeError:
            raise PalimpsestError(f"the prompt {self.text!a} holds half a character") from None
        if not 0 <= self.seed < 2**63:
            raise PalimpsestError(f"the seed is {self.seed}; it must be 0 to 2^63 - 1")
        if self.guidance is not None and not 0 <= self.guidance < 1e6:
            raise PalimpsestError(f"the guidance is {self.guidance}; it must be a number from 0 up")

    def wants(self, kind: str, name: str) -> bool:
        """Return whether the text asks for this concept."""
        return self.asks.get(kind) == name


def read_csv(path: Path) -> list[Prompt]:
    """Read prompts from a CSV file.

    Raises:
        PalimpsestError: no such file, no table, no column `prompt`, an empty prompt, or a seed or
            guidance that is no number. The sentence names the row, counting the header as row 1.
    """
    columns, rows = read_table(path)
    if "prompt" not in columns:
        found = ", ".join(columns) or "nothing"
        raise PalimpsestError(f"{path}: has no column named 'prompt' (its columns: {found})")
    prompts = [_prompt(row, f"{path}, row {i}") for i, row in rows]
    if not prompts:
        raise PalimpsestError(f"{path}: holds no prompts, only a header")
    return prompts


def _prompt(row: dict[str, str], place: str) -> Prompt:
    cells = {key: value.strip() for key, value in row.items()}
    if not cells["prompt"]:
        raise PalimpsestError(f"{place}: the prompt is empty; fill it in or delete the row")
    return Prompt(
        text=cells["prompt"],
        seed=_whole(cells.get("evaluation_seed") or "0", place),
        guidance=_number(cells.get("evaluation_guidance", ""), place),
        case=cells.get("case_number", ""),
        asks={kind: cells[kind] for kind in KINDS if cells.get(kind)},
    )


def _whole(text: str, place: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise PalimpsestError(
            f"{place}: evaluation_seed is {text!r}; it must be a whole number"
        ) from None
    if not 0 <= value < 2**63:
        raise PalimpsestError(f"{place}: evaluation_seed is {value}; it must be 0 to 2^63 - 1")
    return value


def _number(text: str, place: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < 1e6:
        raise PalimpsestError(
            f"{place}: evaluation_guidance is {text!r}; it must be a number from 0 up"
        )
    return value


def write_csv(prompts: Iterable[Prompt], file: io.TextIOBase) -> None:
    """Write prompts in the form that `read_csv` reads."""
    names = ["case_number", "prompt", "evaluation_seed", "evaluation_guidance", *KINDS]
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for number, prompt in enumerate(prompts):
        guidance = "" if prompt.guidance is None else f"{prompt.guidance:g}"
        writer.writerow(
            {
                "case_number": prompt.case or number,
                "prompt": prompt.text,
                "evaluation_seed": prompt.seed,
                "evaluation_guidance": guidance,
                **prompt.asks,
            }
        )


T = TypeVar("T")


def several(what: T | Sequence[T]) -> list[T]:
    """Return things as a list; one prompt or text alone is the only one, not its letters."""
    return [what] if isinstance(what, str | Prompt) else list(what)  # type: ignore[list-item]


def named(texts: Sequence[str] | str, model: str) -> list[str]:
    """Return the texts that a model is to read, as `several`.

    Raises:
        PalimpsestError: there is none, or one is no text.
    """
    found = several(texts)
    if not found or not all(isinstance(text, str) for text in found):
        raise PalimpsestError(f"{model!r} reads one text or several, and was given {texts!r}")
    return found


def texts(prompts: Sequence[Prompt | str] | Prompt | str) -> list[str]:
    """Return the prompts' texts."""
    return [p if isinstance(p, str) else p.text for p in several(prompts)]
