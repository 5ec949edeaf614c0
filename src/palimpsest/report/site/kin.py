"""Which runs belong to a run: what it was made from, and what was made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from palimpsest.report.load import Material

FORWARD = {
    "original": "unedited model",
    "gold": "gold",
    "subject": "erased by",
    "source": "found by",
}
"""A field of a record → what the run that it names is to this one."""
BACKWARD = {"subject": "recoveries", "source": "tried elsewhere"}
"""The same, of those that name this one."""


@dataclass(frozen=True)
class Link:
    """A run's page under the name that a person reads."""

    name: str
    text: str

    @property
    def address(self) -> str:
        """Below the folder of runs' pages."""
        return f"{quote(self.name)}/index.html"


def link(run: Material, every: Mapping[str, Material]) -> Link:
    """Return the link to a run's page, among the site's runs by name."""
    record, about = run.record, run.target.name or run.names
    if run.kind == "original":
        return Link(run.run.name, f"{run.model}, {run.run.name}")
    subject = every.get(record.subject or "")
    on = f" on {subject.title if subject else 'the unedited model'}" * (run.kind == "recover")
    seed = f", seed {record.seed}" if record.seed else ""
    return Link(run.run.name, f"{run.title}{on}{': ' if about else ''}{about}{seed}")


def kin(run: Material, every: Mapping[str, Material]) -> dict[str, list[Link]]:
    """Return what a run belongs to, by what it is to it.

    Args:
        run: whose kin.
        every: the site's runs by name.
    """
    found: dict[str, list[Link]] = {}
    for field, what in FORWARD.items():
        other = every.get(getattr(run.record, field) or "")
        if other:
            found.setdefault(what, []).append(link(other, every))
    for field, what in BACKWARD.items():
        for other in every.values():
            if getattr(other.record, field) == run.run.name:
                found.setdefault(what, []).append(link(other, every))
    if run.kind == "original":
        made = [
            m for m in every.values() if m.kind == "erase" and m.record.original == run.run.name
        ]
        found.setdefault("erasures of it", []).extend(link(m, every) for m in made)
    return {what: links for what, links in found.items() if links}
