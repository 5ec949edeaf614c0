"""The table of numbers, and how each run was made."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from palimpsest.metrics import relearning
from palimpsest.metrics.rates import Rate
from palimpsest.report.arrange import Section
from palimpsest.report.load import Material
from palimpsest.report.prose import THIN, as_row, attempt_label, interval, percent, value

MEANINGS = {
    "UA": "unlearning accuracy: asked for the erased concept, the share of pictures in which the "
    "judge no longer sees it. High is thorough.",
    "IRA": "in-domain retain accuracy: asked for other concepts of the same domain, the share that "
    "the judge names right. High is gentle.",
    "CRA": "cross-domain retain accuracy: concepts of all other domains, the share that the judge "
    "names right. High is gentle.",
    "CLIP cosine": "how well pictures fit their prompts: cosine of CLIP's picture and text "
    "features. Higher fits better.",
    "world-FID": "distance of these pictures from the built-in world's, on features of its own "
    "judge. Lower is closer. It must not be compared with an Inception FID.",
    "world-FID to gold": "distance of these pictures from those of the model that never knew the "
    "concept, on features of the built-in world's own judge: an eraser is as good as it is close "
    "to gold. Lower is closer.",
    "FID": "Fréchet distance of two sets of pictures. Lower is closer.",
    "forget accuracy @1": "pictures of what is to be forgotten that are still named right. Low is "
    "thorough.",
    "forget accuracy @5": "pictures of what is to be forgotten whose name is still among the first "
    "five. Low is thorough.",
    "retain accuracy @1": "pictures of everything else that are named right. High is gentle.",
    "retain accuracy @5": "pictures of everything else whose name is among the first five.",
    "membership inference": "how well a threshold on the loss tells pictures that the model was "
    "trained on from others of the same thing. 50 % is chance.",
    "name said": "pictures of what is to be forgotten of which any answer says the name. Low is "
    "thorough.",
    "others named": "pictures of everything else of which all answers say what they show. High is "
    "gentle.",
    "Concept shown": "asked for the concept, the share of pictures in which the judge sees it.",
}


@dataclass(frozen=True)
class Entry:
    """One number of one run, ready to be shown."""

    text: str
    interval: str
    n: str
    bar: tuple[float, float, float] | None
    """Low end, width and value in per cent, for shares."""


@dataclass
class Line:
    """One number across the section's runs; runs with another spec stand on another line."""

    name: str
    meaning: str
    spec: str
    entries: list[Entry | None] = field(default_factory=list)


def heads(section: Section) -> list[tuple[str, str]]:
    """Title and small print of the table's columns."""
    return [_head(run, section) for run in section.runs]


def _head(run: Material, section: Section) -> tuple[str, str]:
    if run is section.original:
        return "original", "unedited"
    if run is section.erasure:
        return run.title, "erased"
    if run is section.gold:
        return "gold", "never knew it"
    if run in section.taught:
        return attempt_label(run, section.taught), "taught to gold"
    if run in section.controls:
        return attempt_label(run, section.controls), "on the unedited model"
    if run in section.recoveries:
        return attempt_label(run, section.recoveries), "recovered"
    return run.title, run.kind


def lines(section: Section) -> list[Line]:
    """The section's numbers: first what its scores say themselves, then those of the records."""
    table: dict[tuple[str, str], Line] = {}
    runs = section.runs
    for i, run in enumerate(runs):
        numbers = run.record.get("numbers") or []
        for row in [*_shown(run, section.target), *numbers, *_cost(run)]:
            name, spec = str(row.get("name", "")), str(row.get("spec") or "")
            meaning = MEANINGS.get(name.partition(",")[0], "")
            line = table.setdefault((name, spec), Line(name, meaning, spec, [None] * len(runs)))
            line.entries[i] = entry(row)
    return list(table.values())


def _shown(run: Material, target: tuple[str, str]) -> list[dict[str, Any]]:
    rate = run.shown(*target)
    if not rate.n or run.answered:  # the record says it, with the prompts that it holds for
        return []
    judge = run.record.get("judge") or {}
    said = f"{judge.get('name', 'judge')} v{judge.get('version', '?')}, {target[0]} head"
    return [{"name": "Concept shown", "spec": said, "unit": "%", **as_row(rate)}]


def _cost(run: Material) -> list[dict[str, Any]]:
    """What an edit or an attack took; nothing for the unedited model."""
    record = run.record
    if not record.get("patch_bytes") and not run.answered:
        return []
    size, found = (record.get("patch_bytes") or 0) / 1000 or None, record.get("seconds") or {}
    rows = [
        ("Edit norm", record.get("edit_norm"), "", "Frobenius norm of all shifts together"),
        ("Training time", found.get("train"), "s", f"on {record.get('device', 'cpu')}"),
        ("Peak memory", record.get("peak_memory_mb"), "MB", "above what the libraries take"),
        ("Patch", size, "kB", "the edit as a file"),
        ("Gradient evaluations", record.get("evaluations") or None, "", "latents, or per prompt"),
        ("Queries", record.get("queries") or None, "", "pictures that it had judged on its way"),
    ]
    return [{"name": n, "value": v, "unit": u, "spec": s} for n, v, u, s in rows if v is not None]


def entry(row: dict[str, Any]) -> Entry:
    """A number as text; `–` where it is absent or not a number."""
    share = row.get("unit") == "%"
    found, low, high = value(row), value(row, "low"), value(row, "high")
    n = f"n = {row['n']}" if row.get("n") else ""
    if math.isnan(found):
        return Entry("–", "", n, None)
    if share:
        bar = None if math.isnan(low + high) else (100 * low, 100 * (high - low), 100 * found)
        return Entry(percent(found), interval(low, high), n, bar)
    unit = f"{THIN}{row['unit']}" if row.get("unit") else ""
    between = "" if math.isnan(low + high) else f"[{low:.3g}, {high:.3g}]"
    digits = f"{found:,.0f}" if found >= 1000 else f"{found:.3g}"
    return Entry(f"{digits}{unit}", between, n, None)


def against_gold(section: Section) -> list[dict[str, Any]]:
    """For each recovery with a twin on gold: both, and the difference, at every step."""
    told = []
    for run in section.recoveries:
        twin = section.twin(run)
        if twin is None:
            continue
        ours, theirs = (r.record.get("curve") or [] for r in (run, twin))
        by_step = [{int(p["step"]): p for p in curve} for curve in (ours, theirs)]
        rows = [
            (step, [entry({**c[step], "unit": "%"}) for c in by_step], points(rate))
            for step, rate in relearning.at_each_step(ours, theirs)
        ]
        if rows:
            told.append({"name": attempt_label(run, section.recoveries), "rows": rows})
    return told


def lead(section: Section, recovery: Material) -> Entry | None:
    """A recovery's relearning advantage over its twin on gold."""
    twin = section.twin(recovery)
    if twin is None:
        return None
    area = relearning.advantage(*(r.record.get("curve") or [] for r in (recovery, twin)))
    return points(area) if area else None


def points(rate: Rate) -> Entry:
    """A difference of two shares, in points of per cent."""
    low, high = (f"{100 * end:+.0f}" for end in (rate.low, rate.high))
    return Entry(f"{100 * rate.value:+.0f} points", f"[{low}, {high}]", f"n = {rate.n}", None)


def facts(run: Material) -> list[tuple[str, str]]:
    """What a person needs to repeat a run or to trust it."""
    record = run.record
    model, git = record.get("model") or {}, record.get("git") or {}
    state = "" if record.get("status") == "done" else " · not finished"
    seconds = (f"{v:.1f}{THIN}s {k}" for k, v in (record.get("seconds") or {}).items() if v)
    memory, size = record.get("peak_memory_mb"), record.get("patch_bytes")
    dirty = " with changes not committed" if git.get("dirty") else ""
    said = {
        "Folder": run.run.name + state,
        "Model": " · ".join(filter(None, [model.get("name"), model.get("identity")])),
        "Sampling": model.get("sampling"),
        "Forgets": _set(record.get("forget")),
        "Retains": _set(record.get("retain")),
        "Chosen by": f"{record['validation']} pictures" if record.get("validation") else "",
        "Measured on": f"{record['test']} others" if record.get("test") else "",
        "Preset": record.get("preset"),
        "Seed": record.get("seed"),
        "Judge": _judge(record.get("judge") or {}),
        "Time": " · ".join(seconds),
        "Peak memory": f"{memory:,.0f}{THIN}MB" if memory else "",
        "Patch": f"{size / 1000:,.0f}{THIN}kB" if size else "",
        "Norm of the edit": f"{record['edit_norm']:.4g}" if record.get("edit_norm") else "",
        "Started": record.get("started"),
        "Code": f"commit {git['commit']}{dirty}" if git.get("commit") else "",
        "Packages": ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items()),
    }
    return [(k, str(v)) for k, v in said.items() if v not in (None, "")]


def _set(about: Any) -> str:
    """Where a set of captioned pictures came from, how many they are, and what was skipped."""
    if not isinstance(about, dict):
        return ""
    skipped = len(about.get("skipped") or [])
    left_out = f", {skipped} skipped" if skipped else ""
    return f"{about.get('pictures')} pictures, {about.get('source')}{left_out}"


def _judge(judge: dict[str, Any]) -> str:
    if not judge:
        return ""
    parts = [f"{judge.get('name', '')} v{judge.get('version', '?')}"]
    parts += [f"{judge['resolution']} px"] if judge.get("resolution") else []
    parts += [f"threshold {judge['threshold']}"] if judge.get("threshold") is not None else []
    return ", ".join([*parts, *filter(None, [judge.get("note")])])


def arguments(run: Material) -> list[tuple[str, str, bool]]:
    """Name, value, and whether a person gave it."""
    given = run.record.get("given") or {}
    resolved = run.record.get("arguments") or {}
    return [
        (k, v if isinstance(v, str) else json.dumps(v), k in given) for k, v in resolved.items()
    ]
