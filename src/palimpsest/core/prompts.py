"""Prompts, and the tables that benchmarks of concept erasure exchange them in.

Columns as written: `prompt`, `evaluation_seed`, `evaluation_guidance`, `case_number`, and one per
kind of concept (`object`, `style`, …) that says what the prompt asks for. More names are read.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, get_args

from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.files import beside, read_table
from palimpsest.core.kinds import Kind

KINDS: tuple[str, ...] = get_args(Kind)

PROMPTS = ("prompt", "prompts", "text_prompt", "adv_prompt", "adversarial_prompt")
"""What a column of prompts is called, the first choice first; `caption` and `text`, which may be
what stands beside a picture, only by `Part.column`."""

SEEDS = (
    *("evaluation_seed", "eval_seed", "sd_seed", "seed", "seeds", "random_seed"),
    *("generation_seed", "image_seed", "sample_seed"),
)
GUIDANCES = (
    *("evaluation_guidance", "evaluation_guidance_scale", "eval_guidance", "sd_guidance_scale"),
    *("sd_guidance", "guidance_scale", "guidance", "cfg_scale", "cfg"),
)
CASES = ("case_number", "case_num", "case", "index")
LIKE = {"seed": ("seed",), "guidance": ("guidance", "cfg")}
"""What a column looks like → what its name then holds."""

ASKS = {
    **{kind: kind for kind in KINDS},
    **{"artist": "style", "class": "object", "class_name": "object", "celebrity": "identity"},
    **dict.fromkeys(("target", "concept"), ""),
}
"""Column that says what a prompt asks for → the kind of that; none where only the concept tells.

I2P's `categories` are none: no judge sees them, and a wrong one would falsify a rate."""

OF_PERSONS = {"style", "identity"}
"""Kinds of concepts that a surname may name."""

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

    @property
    def cluster(self) -> tuple[str, tuple[int, int]]:
        """What other pictures may share with this one: the text, and the noise."""
        return self.text, (self.seed, self.index)

    def wants(self, kind: str, name: str) -> bool:
        """Return whether the text asks for this concept."""
        return self.asks.get(kind) == name


@dataclass(frozen=True)
class Part(Settings):
    """Which column and which rows of a table of prompts are read."""

    column: str | None = None
    """The column of the prompts; None takes that of a usual name, of `PROMPTS`."""
    first: int = 2
    """The first row; the header is row 1."""
    last: int | None = None
    """The last row, itself included; None goes to the table's end."""


MOST_ROWS = 20
"""Rows that a sentence names."""

EMPTY = "no prompt; skipped"
"""What is said of a row without a prompt."""

Names = Mapping[str, tuple[str, str]]
"""What a concept may be called, as of `folded` → its kind and its name."""


def folded(name: str) -> str:
    """Return the words of a name, whatever stands between them, in lower case."""
    return " ".join(re.findall(r"[^\W_]+", name.casefold())) or name.casefold()


def read_csv(path: Path, tell: Callable[[str], object] = lambda _: None) -> list[Prompt]:
    """Read prompts from a CSV file, as of `read_prompts`."""
    return [*read_prompts(path, tell=tell).values()]


def read_prompts(
    path: Path,
    part: Part = Part(),
    names: Names | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> dict[int, Prompt]:
    """Read a table of prompts as benchmarks and people write it.

    Columns are known by any of their usual names, in any case: see `PROMPTS`, `SEEDS`, `GUIDANCES`,
    `CASES` and `ASKS`. Rows without a prompt are skipped.

    Args:
        path: a CSV; commas, semicolons or tabs part its cells.
        part: which of it is read.
        names: of the concepts that it may ask for; None knows none.
        tell: takes a sentence about rows that are skipped or lack something, and about columns of
            seeds, guidances or concepts that are not used.

    Returns:
        Row → prompt, rows counted as a spreadsheet does: the header is row 1.

    Raises:
        PalimpsestError: no such file, no table, no column of prompts, none in these rows, a
            row that is cut short, or a seed or guidance that is no number. It names the row.
    """
    columns, rows = read_table(path)
    table = _Columns.of(columns, part.column, path)
    found: dict[int, Prompt] = {}
    notes, unknown = defaultdict[str, list[int]](list), defaultdict[str, list[str]](list)
    for row in rows:
        if row.number < part.first or (part.last is not None and row.number > part.last):
            continue
        cells = {name: cell.strip() for name, cell in row.cells.items()}
        place = f"{path}, row {row.number}"
        lost = {*columns[row.given :]} if any(cells.values()) else set()
        for note in table.lacks(cells, lost, place):
            notes[note].append(row.number)
        if not gap(cells[table.prompt]):
            found[row.number] = table.read(cells, place, names or {}, unknown)
    if not found:
        rest = f" from row {part.first} to {part.last or 'its end'}"
        why = ", only a header" if not notes else f" (empty: {said_rows(notes[EMPTY])})"
        whole = part == Part(part.column)
        raise PalimpsestError(f"{path}: holds no prompts{why if whole else rest}")
    for note in table.unused:
        tell(f"{path}: {note}")
    for note, numbers in notes.items():
        tell(f"{path}, {said_rows(numbers)}: {note}")
    for column, said in unknown.items() if names is not None else ():
        others = len({*said}) - 1
        shown = f"{said[0]!r}{f' and {others} more' * bool(others)}"
        tell(
            f"{path}: what its {column!r} says, {shown}, is no concept here by that name; "
            f"it is not counted as asked for, of {len(said)} of the prompts"
        )
    return found


def said_rows(numbers: Sequence[int], noun: str = "row") -> str:
    """Return the numbers of rows in words, the first of very many."""
    shown = ", ".join(map(str, numbers[:MOST_ROWS]))
    more = f" and {len(numbers) - MOST_ROWS} more" * (len(numbers) > MOST_ROWS)
    return f"{noun}{'s' * (len(numbers) > 1)} {shown}{more}"


def gap(cell: str) -> bool:
    """Return whether a cell holds nothing, in the words of pandas, Python or SQL."""
    return cell.lower() in ("", "nan", "none", "null", "<na>", "n/a")


@dataclass(frozen=True)
class _Columns:
    """Which column says what."""

    prompt: str
    seed: str | None
    guidance: str | None
    case: str | None
    asks: dict[str, str]
    """Column → one of `ASKS`."""
    unused: tuple[str, ...]
    """A sentence about each column that one might think is used."""

    @classmethod
    def of(cls, columns: Sequence[str], prompt: str | None, path: Path) -> _Columns:
        keys: dict[str, str] = {}
        for name in columns:
            keys.setdefault(_key(name), name)

        def first(known: Iterable[str]) -> str | None:
            return next((keys[key] for key in known if key in keys), None)

        seed, guidance = first(SEEDS), first(GUIDANCES)
        own = prompt if prompt in columns else keys.get(_key(prompt)) if prompt else first(PROMPTS)
        if not own:
            shown = ", ".join(filter(None, columns)) or "nothing"
            way = "" if prompt else "; name it with --column"
            raise PalimpsestError(
                f"{path}: has no column named {prompt or 'prompt'!r} (its columns: {shown}){way}"
            )
        asks = {keys[key]: key for key in ASKS if key in keys and keys[key] != own}
        unused = _unused(columns, (own, seed, guidance), prompt is None)
        return cls(own, seed, guidance, first(CASES), asks, tuple(unused))

    def lacks(self, cells: dict[str, str], lost: set[str], place: str) -> Iterator[str]:
        """Yield what a row lacks, in words.

        Args:
            cells: of the row.
            lost: the columns that it ends before, unless it is blank.
            place: names the row.

        Raises:
            PalimpsestError: it ends before its prompt, seed or guidance.
        """
        if short := sorted(lost & {self.prompt, self.seed, self.guidance}, key=str):
            raise PalimpsestError(
                f"{place}: is cut short: {len(cells) - len(lost)} of {len(cells)} cells, and no "
                f"{short[0]}; complete it, or delete it"
            )
        if gap(cells[self.prompt]):
            yield EMPTY
        elif self.seed and gap(cells[self.seed]):
            yield f"no {self.seed}; drawn from seed 0"
        if lost & {self.case, *self.asks}:
            yield "fewer cells than columns; the others are read as empty"

    def read(
        self, cells: dict[str, str], place: str, names: Names, unknown: dict[str, list[str]]
    ) -> Prompt:
        """Return a row's prompt; names of no known kind are added to `unknown`, by their column."""
        asks: dict[str, str] = {}
        for column, key in self.asks.items():
            if gap(cells[column]):
                continue
            kind, name = _asked(cells[column], key, names)
            if kind:
                asks.setdefault(kind, name)
            else:
                unknown[column].append(name)
        seed = _number(cells, self.seed, place, "a whole number")
        return Prompt(
            text=cells[self.prompt],
            seed=int(seed or 0),
            guidance=_number(cells, self.guidance, place, "a number from 0 up"),
            case=cells[self.case] if self.case else "",
            asks=asks,
        )


def _unused(
    columns: Sequence[str], used: tuple[str, str | None, str | None], usual: bool
) -> Iterator[str]:
    """Yield a sentence about each column that one might think is used.

    Args:
        columns: all.
        used: those of the prompts, the seeds and the guidances.
        usual: whether that of the prompts was found by its name.
    """
    prompt, kinds = used[0], tuple(LIKE)
    for name in columns:
        key = _key(name)
        if name in used:
            continue
        for kind, taken in zip(kinds, used[1:], strict=True):
            if any(mark in key for mark in LIKE[kind]):
                instead = f"{taken!r} is" if taken else f"to have it used, call it {kind!r}"
                yield f"the column {name!r} looks like a {kind} and is not used; {instead}"
        if usual and (key == _key(prompt) or (_key(prompt) != "prompt" and key.endswith("prompt"))):
            yield f"the column {name!r} is not used, {prompt!r} is; choose with --column"


def _key(name: str) -> str:
    """Return a column's name in small letters and underscores: `CFG scale`, `cfgScale`."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.strip())
    return re.sub(r"[\W_]+", "_", parted).strip("_").lower()


def _asked(cell: str, key: str, names: Names) -> tuple[str, str]:
    """Return the kind, if it is known, and the name of what a cell says is asked for.

    Args:
        cell: what stands there.
        key: the column, of `ASKS`.
        names: of the concepts that are known.
    """
    word = folded(cell)
    known = [names[word]] if word in names else []
    if key in KINDS:
        known = [its for its in known if its[0] == key]
    elif not known and ASKS[key] != "object":  # Vincent van Gogh is van gogh
        surnames = [its for name, its in names.items() if word.endswith(f" {name}")]
        known = [its for its in surnames if its[0] in ({ASKS[key]} - {""} or OF_PERSONS)]
    return known[0] if known else (ASKS[key], cell)


def _number(cells: dict[str, str], column: str | None, place: str, what: str) -> float | None:
    """Return a seed or guidance, None in a gap; `7,5` is 7.5, and 4261553411.0 is whole."""
    if not column or gap(text := cells[column]):
        return None
    whole = what == "a whole number"
    form = (
        r"\d{1,19}(?:[.,](?!000$)0*)?"
        if whole
        else r"\d+|\d*[.,]\d+|\d+[.,]|\d+(?:\.\d+)?[eE][-+]?\d+"
    )
    value = None
    if re.fullmatch(form, text):
        value = int(re.split("[.,]", text)[0]) if whole else float(text.replace(",", "."))
    if value is None or value >= (2**63 if whole else 1e6):
        least = " from 0 to 2^63 - 1" * whole
        raise PalimpsestError(f"{place}: {column} is {text[:40]!r}; it must be {what}{least}")
    return value


def write_csv(prompts: Iterable[Prompt], file: io.TextIOBase) -> None:
    """Write prompts in the form that `read_csv` reads."""
    names = ["case_number", "prompt", "evaluation_seed", "evaluation_guidance", *KINDS]
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for number, prompt in enumerate(prompts):
        guidance = "" if prompt.guidance is None else str(prompt.guidance).removesuffix(".0")
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
