"""A themed evaluation as a page: who still draws which concept, and how well."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from palimpsest.core.atomic import write_text
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.legend import KEY, headed, legend
from palimpsest.core.prompts import folded
from palimpsest.core.typed import plain
from palimpsest.judge.rates import MEANINGS
from palimpsest.methods import Number
from palimpsest.metrics import rates
from palimpsest.protocols import PREFIX
from palimpsest.report.forms import check_form, markdown
from palimpsest.report.sections.grid import encode
from palimpsest.report.sections.table import entry
from palimpsest.report.templates import fill
from palimpsest.runs import images
from palimpsest.runs.folder import Run
from palimpsest.runs.record import Record
from palimpsest.runs.rows import Drawn

COLUMNS = ("accuracy", "on the erased", "on the others", "CLIP cosine")
"""What stands beside each subject."""
OTHERS = ("accuracy, by ", "κ, ")
"""How the names of numbers begin that other judges have a part in."""
JOINT = {
    "joint UA": "asked for the erased object in the erased style, the share of pictures in which "
    "the judge does not see both. High is thorough.",
    "SC": "style consistency: the erased style with other objects, the share in which it is seen. "
    "High is gentle.",
    "OC": "object consistency: the erased object in other styles, the share in which it is seen. "
    "High is gentle.",
    "UP": "unrelated prompting: asked for neither, the share of names that the judge says right. "
    "High is gentle.",
}
OVER = {
    True: "accuracy over the concepts that were to be forgotten. Low is thorough.",
    False: "accuracy over the concepts that were not. High is gentle.",
}
FORGOT = (
    "Erased are the theme's concepts that a subject was made to forget; for the unedited model, "
    "those that any subject of it was."
)


@dataclass(frozen=True)
class Standing:
    """One subject's line."""

    run: Run
    record: Record
    gone: tuple[str, ...]
    """The theme's concepts that count as erased."""

    @property
    def cells(self) -> list[Number | None]:
        """A number for each of `COLUMNS`; None where nobody looked or nothing was erased."""
        found = {row.name: row for row in self.record.numbers}
        accuracy, cosine = (found.get(name) for name in ("accuracy", "CLIP cosine"))
        return [accuracy, self._over(True), self._over(False), cosine]

    @cached_property
    def rates(self) -> dict[str, Number]:
        """UA, IRA and CRA of what counts as erased, of a protocol; of an object and a style, more.

        Pictures that were asked for an erased concept are no part of what was retained.
        """
        asked = [] if not self.record.theme.startswith(PREFIX) else images.asked(self.run)
        said = images.labels(self.run, asked) if self.record.judge else {}
        erased = [(c.kind, c.name) for c in self.record.concepts if c.name in self.gone]
        seen = sorted(kind for kind, _ in erased if kind in said)
        if not seen:
            return {}
        asks, clusters = [p.asks for p in asked], [p.cluster for p in asked]
        found = rates.unlearning(erased, asks, said, clusters)
        if len(erased) == 2 and seen == ["object", "style"]:
            found |= rates.joint(dict(erased), asks, said, clusters)
        like = next((row.spec for row in self.record.numbers if row.name == "accuracy"), "")
        meanings = {**MEANINGS, **JOINT}
        return {
            name: replace(Number.of(name, rate), spec=like, meaning=meanings[name])
            for name, rate in found.items()
        }

    @cached_property
    def more(self) -> dict[str, Number]:
        """What stands beside `COLUMNS`: the rates, what other judges see, how far they agree."""
        others = (row for row in self.record.numbers if row.name.startswith(OTHERS))
        return self.rates | {row.name: row for row in others}

    def shown(self, columns: Sequence[str]) -> list[Number | None]:
        """A number for each of the columns."""
        return [*self.cells, *map(self.more.get, columns[len(COLUMNS) :])]

    def _over(self, gone: bool) -> Number | None:
        """Return the accuracy over the concepts that were erased, or over those that were not."""
        rows = self.concepts("accuracy")
        kinds = {c.name: c.kind for c in self.record.concepts}
        some = [name for name in rows if name in kinds and (name in self.gone) == gone]
        asked = images.asked(self.run) if some else []
        said = images.labels(self.run, asked)
        found = [
            (rates.agrees(said[kinds[name]][i], name), p.cluster)
            for name in some
            for i, p in enumerate(asked)
            if p.wants(kinds[name], name)
        ]
        if not found:
            return None
        over = asdict(rates.rate(*zip(*found, strict=True)))
        return replace(rows[some[0]], **over, meaning=OVER[gone])

    def concepts(self, measure: str) -> dict[str, Number]:
        """Return the numbers of one measure by concept."""
        return {row.concept: row for row in self.record.by_concept if row.name == measure}

    def picture(self, concept: str) -> str:
        """Its first picture of a concept, as data: by order, never by looks."""
        files = [r.file for r in self.run.values(Drawn) if concept in r.asks.values()]
        if not files:
            told = f"names no picture that was asked for {concept!r}"
            raise PalimpsestError(f"{self.run.path(Drawn.name)}: {told}; run it again")
        return encode(self.run.kept(files[0]))


def standings(runs: Sequence[Run]) -> list[Standing]:
    """Return the subjects of one evaluation, in their order."""
    records = [run.record() for run in runs]
    found = []
    for run, record in zip(runs, records, strict=True):
        kin = [r for r in records if r.model == record.model]
        of = [record] if record.patches else kin
        asked = {_key(name): name for name in record.names}
        gone = dict.fromkeys(asked[_key(n)] for r in of for n in r.erased if _key(n) in asked)
        found.append(Standing(run, record, tuple(gone)))
    return found


def _key(name: str) -> str:
    """Return a name without its blanks and capitals: van gogh, Van_Gogh and VanGogh are one."""
    return folded(name).replace(" ", "")


def columns(told: Sequence[Standing]) -> tuple[str, ...]:
    """Return what stands beside each subject."""
    return (*COLUMNS, *dict.fromkeys(name for each in told for name in each.more))


def meanings(told: Sequence[Standing]) -> dict[str, str]:
    """Return what stands beside each subject → what it means."""
    head = columns(told)
    every = [zip(head, each.shown(head), strict=True) for each in told]
    return {name: n.meaning for pairs in every for name, n in pairs if n and n.meaning}


def write_themes(runs: Sequence[Run], out: Path) -> Path:
    """Write what an evaluation found; the file's suffix says in which form.

    Args:
        runs: the runs of all subjects, of one theme and the same prompts.
        out: an .html page with pictures that needs no network, .md, .csv or .json.
    """
    check_form(out, FORMS)
    write_text(out, FORMS[out.suffix](standings(runs)))
    return out


def title(told: Sequence[Standing]) -> str:
    """Return what was asked of how many."""
    concepts = told[0].record.names
    what = concepts[0] if len(concepts) == 1 else f"{len(concepts)} concepts"
    return f"{told[0].record.asked}: {what}, asked of {len(told)} models"


def _specs(told: Sequence[Standing]) -> list[str]:
    rows = [row for e in told for row in (*e.record.numbers, *e.rates.values())]
    return list(dict.fromkeys(f"{row.name}: {row.spec}, n = {row.n}" for row in rows))


def _html(told: Sequence[Standing]) -> str:
    return fill(
        "themes.html",
        title=title(told),
        specs=_specs(told),
        columns=columns(told),
        meanings=meanings(told),
        legend=legend,
        headed=headed,
        key=KEY,
        forgot=FORGOT,
        entry=entry,
        told=told,
        commands=dict.fromkeys(each.record.command for each in told),
    )


def _markdown(told: Sequence[Standing]) -> str:
    lines = [f"# {title(told)}", "", *(f"- {spec}" for spec in _specs(told)), ""]
    head = columns(told)
    rows = [(e.record.title, ", ".join(e.record.erased), *map(_said, e.shown(head))) for e in told]
    means = meanings(told)
    shown = [headed(name, means.get(name, "")) for name in head]
    lines += markdown(["", "erased", *shown], [[cell or "–" for cell in row] for row in rows])
    lines += ["", f"{KEY}. {FORGOT}", ""]
    lines += [f"- {name}: {meaning}." for name, meaning in legend(means.items()).items()]
    for measure in ("accuracy", "CLIP cosine"):
        found = [each.concepts(measure) for each in told]
        if any(found):
            rows = [[name, *(_said(f.get(name)) for f in found)] for name in told[0].record.names]
            lines += ["", f"## {measure[:1].upper()}{measure[1:]} by concept", ""]
            lines += markdown(["", *(each.record.title for each in told)], rows)
    return "\n".join([*lines, ""])


def _said(number: Number | None) -> str:
    shown = entry(number) if number else None
    return f"{shown.text} {shown.interval}".strip() if shown else "–"


def _csv(told: Sequence[Standing]) -> str:
    """Return a line for each number; `concept` is empty where it is over several."""
    names = ["subject", "concept", "measure", "value", "low", "high", "n", "spec"]
    file = io.StringIO()
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for each in told:
        head = columns(told)
        for measure, number in zip(head, each.shown(head), strict=True):
            if number:
                row = plain(number) | {
                    "subject": each.record.title,
                    "concept": "",
                    "measure": measure,
                }
                writer.writerow(row)
        for number in each.record.by_concept:
            writer.writerow(plain(number) | {"subject": each.record.title, "measure": number.name})
    return file.getvalue()


def _json(told: Sequence[Standing]) -> str:
    first, head = told[0].record, columns(told)
    subjects = [
        {
            "subject": each.record.title,
            "run": each.run.name,
            "model": asdict(each.record.model),
            "erased": each.record.erased,
            "numbers": dict(zip(head, map(plain, each.shown(head)), strict=True)),
            "concepts": plain(each.record.by_concept),
        }
        for each in told
    ]
    about = {"theme": first.theme, "concepts": first.names, "subjects": subjects}
    return json.dumps(about, indent=2) + "\n"


FORMS: dict[str, Callable[[Sequence[Standing]], str]] = {
    ".html": _html,
    ".md": _markdown,
    ".csv": _csv,
    ".json": _json,
}
"""Forms of the page by the file's suffix."""
