"""A leaderboard entry: what one method reached on one model, as one small JSON file.

`docs/leaderboard.schema.json` says what it holds; `leaderboard/` keeps those of other people.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palimpsest.core.atomic import write_text
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.provenance import now
from palimpsest.core.typed import plain
from palimpsest.report.load import listed
from palimpsest.report.results.rows import Row, rows
from palimpsest.report.results.summaries import Summary, summaries
from palimpsest.runs.folder import Run
from palimpsest.runs.record import Record

FORMAT = 1
"""Version of the entry's form."""


def write_entry(runs: Sequence[Path], out: Path, by: str) -> Path:
    """Write the leaderboard entry of one method, with all its concepts, seeds and recoveries.

    Args:
        runs: run folders, or folders that hold some: erasures by one method with one choice of
            settings on one model, and recoveries that attacked them; or recoveries by one method.
        out: the file to write, `.json`.
        by: who made the runs.

    Returns:
        `out`.

    Raises:
        PalimpsestError: the runs are of several methods, settings or models, nobody judged them,
            `by` is empty, or `out` cannot be written.
    """
    if out.suffix != ".json" or out.is_dir():
        raise PalimpsestError(f"{out}: an entry is a file that ends in .json; name one")
    if not by.strip():
        raise PalimpsestError("an entry says who made it; name yourself or your group with --by")
    write_text(out, json.dumps(entry(rows(runs), by), indent=1, ensure_ascii=False) + "\n")
    return out


def entry(found: Sequence[Row], by: str) -> dict[str, Any]:
    """Return the entry that some rows make.

    Args:
        found: all rows of the runs.
        by: who made them.

    Raises:
        PalimpsestError: as of `write_entry`.
    """
    told = _chosen(found)
    folders = {row.run: Run(Path(row.folder)) for row in found if row.folder}
    records = {name: run.record() for name, run in folders.items()}
    lead = records[told[0].runs[0]]
    groups: dict[str, list[Summary]] = {}
    for summary in told:
        groups.setdefault(summary.variant, []).append(summary)
    used = {name for s in told for name in s.runs}
    judges = {
        e.key: e
        for name in sorted(used)
        for e in (records[name].judge, *records[name].judges, records[name].clip)
        if e
    }
    return {
        "format": FORMAT,
        "kind": lead.kind,
        "by": by.strip(),
        "made": now(),
        "method": _method(lead, told[0].settings),
        "model": {
            "name": told[0].model,
            "identity": lead.model.identity,
            "dtype": lead.model.dtype,
            "sampling": lead.model.sampling,
            "files": lead.model.files,
        },
        "judges": [
            _filled(
                name=e.name,
                version=e.version,
                resolution=e.resolution,
                ref=e.ref,
                classes=list(e.classes),
                threshold=e.threshold,
                note=e.note,
            )
            for e in judges.values()
        ],
        "results": [_result(group, folders, records, lead.kind) for group in groups.values()],
    }


def _chosen(found: Sequence[Row]) -> list[Summary]:
    """Return the summaries of the one method that the runs are of, and of what attacked it."""
    own = [s for s in summaries(found) if s.kind in ("erase", "recover") and s.value == s.value]
    erased = [s for s in own if s.kind == "erase" and s.on == "erased"]
    lead = erased or own
    if not any(s.judge for s in lead):
        raise PalimpsestError("nobody judged these runs, so that an entry would say nothing")
    for what, names in (
        (
            "methods or settings",
            [(s.settings, f"{s.title} ({s.preset or 'own settings'})") for s in lead],
        ),
        ("models", [(s.identity, s.model) for s in lead]),
    ):
        if len(several := dict(names)) > 1:
            raise PalimpsestError(
                f"these runs are of {len(several)} {what}, {listed([*several.values()])}; an entry "
                "is of one: name its runs alone"
            )
    if not erased:
        return own
    attacked = {name for s in erased for name in s.runs}
    subjects = {row.run: row.subject for row in found}
    return [*erased, *(s for s in own if {subjects[name] for name in s.runs} & attacked)]


def _result(
    group: Sequence[Summary], folders: dict[str, Run], records: dict[str, Record], kind: str
) -> dict[str, Any]:
    """Return what came out of one variant."""
    first = group[0]
    names = dict.fromkeys(name for s in group for name in s.runs)
    own = [records[name] for name in names]
    found: dict[str, Any] = {
        "concepts": [{"name": c.name, "kind": c.kind} for c in own[0].concepts],
        "on": first.on,
        "prompts": first.prompts,
        "seeds": sorted({r.seed for r in own if r.seed is not None}),
    }
    if first.kind == "recover" and kind == "erase":
        found["attack"] = _method(own[0], first.settings)
    elif first.kind == "recover" and first.subject_method:
        under = records.get(own[0].subject or "") or Record()
        known = _method(under, first.subject_settings)
        found["subject"] = known | {"name": first.subject_method, "title": first.subject_title}
    found["numbers"] = [_number(s) for s in group]
    found["runs"] = [_run(folders[name], record) for name, record in zip(names, own, strict=True)]
    return found


def _method(record: Record, digest: str) -> dict[str, Any]:
    """Return a method with its settings; the files that these name by what they hold."""
    settings = {**record.arguments} | {
        n: d for n, d in record.files.items() if n in record.arguments
    }
    return _filled(
        name=record.method,
        title=record.title,
        preset=record.preset,
        optimizer=record.optimizer,
        settings=plain(settings),
        digest=digest,
    )


def _number(s: Summary) -> dict[str, Any]:
    known = {"low": s.low, "high": s.high, "of_seeds": s.of_seeds, "sd_seeds": s.sd_seeds}
    known |= {"sd_pictures": s.sd_pictures, "sd_rest": s.sd_rest}
    return {
        "measure": s.measure,
        "value": s.value,
        **{name: value for name, value in known.items() if value == value},
        "seeds": s.seeds,
        **_filled(
            n=s.n,
            missing=s.missing,
            unit=s.unit,
            judge=s.judge,
            concept=s.concept,
            better=s.better,
            spec=s.spec,
        ),
    }


def _run(run: Run, record: Record) -> dict[str, Any]:
    patch, own = run.path("patch.safetensors"), record.git
    return _filled(
        name=run.name,
        seed=record.seed,
        command=record.command,
        commit=own.get("commit"),
        dirty=own.get("dirty"),
        versions=record.versions,
        device=record.device,
        threads=record.threads,
        started=record.started,
        patch=_sha256(patch) if patch.is_file() else None,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _filled(**own: Any) -> dict[str, Any]:
    """Return what is not empty; 0 and false are something."""
    return {name: value for name, value in own.items() if value not in (None, "", (), [], {})}
