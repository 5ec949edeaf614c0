"""What a classifier's own labels are called by those who ask for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.core.prompts import folded
from palimpsest.judge import Opening


def called(labels: Sequence[str], opening: Opening, kind: str | None = None) -> dict[str, list]:
    """Return, by kind, the name of each of a classifier's labels, or `none of these`.

    A label such as *parachute, chute* is called by the name that one of its parts is, or is a
    synonym of, in any case and with any marks between its words. The class map decides where it
    has a label or one of its parts. Opened for no names of its kind, each label stands for itself.

    Args:
        labels: the classifier's own, in its order.
        opening: the names that prompts ask for, other words for them, and the class map.
        kind: what sort of thing all labels are; None takes every kind with a name that a label has.

    Raises:
        PalimpsestError: the class map names no label, or a name that prompts ask for has none.
    """
    mapped = _mapped(labels, opening.class_map)
    kinds = [kind] if kind else [*opening.names] or ["object"]
    found = {}
    for each in kinds:
        words = _words(opening.names.get(each, ()), opening.synonyms)
        found[each] = [_name(label, mapped, words) for label in labels]
    met = {each: names for each, names in found.items() if {*names} - {NONE}} or found
    for each, names in met.items():
        for name in opening.names.get(each, ()):
            if name not in names:
                raise PalimpsestError(
                    f"no label of the classifier is called {name!r}; the nearest are "
                    f"{_nearest(name, labels)}: say which one means it with --class-map FILE.json"
                )
    return met


def _words(names: Sequence[str], synonyms: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return what each name and each synonym means; of two meanings that of a name counts."""
    others = {folded(word): name for name in names for word in synonyms.get(name, ())}
    return others | {folded(name): name for name in names}


def _parts(label: str) -> list[str]:
    """Return a label, and what stands between its commas."""
    return [label, *(part.strip() for part in label.split(",") if "," in label)]


def _mapped(labels: Sequence[str], class_map: Mapping[str, str]) -> dict[str, str]:
    """Return what the class map says of whole labels; of a part it speaks for all that have it."""
    found = {}
    for own in sorted(class_map, key=lambda own: own in labels):  # whole ones have the last word
        hits = [own] if own in labels else [label for label in labels if own in _parts(label)]
        if not hits:
            raise PalimpsestError(
                f"the class map names {own!r}, which is no label of the classifier; the nearest "
                f"are {_nearest(own, labels)}"
            )
        found |= dict.fromkeys(hits, class_map[own])
    return found


def _name(label: str, mapped: Mapping[str, str], words: Mapping[str, str]) -> str:
    parts = [mapped[label]] if label in mapped else _parts(label)
    if words:
        return next((words[part] for part in map(folded, parts) if part in words), NONE)
    return NONE if folded(parts[0]) == NONE else parts[0].split(",")[0].replace("_", " ").strip()


def _nearest(name: str, labels: Sequence[str]) -> str:
    """Return the three labels that are spelt most like a name."""
    whole = {folded(part): label for label in labels for part in _parts(label)}
    close = get_close_matches(folded(name), whole, n=3, cutoff=0)
    return ", ".join(map(repr, dict.fromkeys(whole[part] for part in close)))
