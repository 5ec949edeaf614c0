"""A campaign as commands: one an erasure, one an attack on it, each as a person could say it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from palimpsest.cli.again import UntoldError, stamps
from palimpsest.cli.bench.campaign import Campaign, Model, Variant, seeds_of, variant_title
from palimpsest.cli.bench.work import Work
from palimpsest.cli.machine import choose_preset
from palimpsest.cli.named import kind_and_name
from palimpsest.cli.tree import read_flags
from palimpsest.cli.verbs.erase import Erase
from palimpsest.cli.verbs.recover import Recover
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import model_kind
from palimpsest.core.registry import nearest
from palimpsest.erase import ERASERS
from palimpsest.recover import RECOVERIES
from palimpsest.runs.folder import Run

WORKS = ".bench"
"""The folder within that of the runs which holds a folder for each command."""
OWN = (
    *("concept", "concepts", "model", "runs", "seed", "attack_seed"),
    *("judge", "preset", "dry_run", "erasure"),
)
"""Flags that keys of the file's own stand for."""
LONGEST = 255
"""Characters of a word that may name a file."""
HELD = {"concept": "concepts", "model": "models", "judge": "judges", "attack_seed": "seeds"}


@dataclass(frozen=True)
class Planned:
    """A command, and its place in the comparison."""

    work: Work
    eraser: str
    """The title of the erasure's variant."""
    model: str
    """The model's title."""
    concepts: tuple[str, ...]
    """Those that are erased together."""
    group: str
    """Of the concepts."""
    seed: int
    """Of the erasure."""
    method: Any
    """The eraser or the recovery with all its settings."""
    recovery: str = ""
    """The title of the recovery's variant; empty of an erasure."""
    part: str = ""
    """The concept that a recovery brings back, where several were erased together."""
    attack_seed: int | None = None
    """The recovery's seed, where it has its own."""

    @property
    def runs(self) -> dict[str, Run]:
        """Its runs, of an attack by whom it attacked; none of a command that is not done."""
        found = self.work.answer or {}
        if not self.recovery:
            return found
        front = "on "  # what it started from stands beside them
        return {n.removeprefix(front): run for n, run in found.items() if n.startswith(front)}

    @property
    def attack(self) -> str:
        """What a recovery is called where it stands beside others."""
        return f"{self.recovery} of {self.part}" if self.part else self.recovery

    @property
    def concept(self) -> str:
        """The concepts in a row."""
        return " + ".join(self.concepts)


def plan(campaign: Campaign) -> list[Planned]:
    """Return the commands of a campaign: its erasures, one of every concept in turn, then attacks.

    Raises:
        PalimpsestError: a setting or a flag that there is not, or a value out of bounds.
    """
    erasures = [*_erasures(campaign)]
    planned = [*erasures, *_attacks(campaign, erasures)]
    known: dict[str, Planned] = {}
    for one in planned:
        if (other := known.setdefault(one.work.key, one)) is not one:
            told = f"{other.work.title!r} and {one.work.title!r} are the same"
            raise PalimpsestError(f"{told}; leave one of the two out")
    return planned


def _erasures(campaign: Campaign) -> Iterator[Planned]:
    known: list[Erase] = []
    for variant in campaign.erasers:
        title, kind = variant_title(variant), ERASERS.load(variant.method)
        seeds = _seeds(kind, campaign.seeds if variant.seeds is None else variant.seeds)
        for model in campaign.models:
            flags = _flags(campaign, Erase, model.flags, variant.flags, where=title)
            method, words = _settled(kind, variant, _world(campaign, model), Erase, title)
            some = [(g, names) for g, held in campaign.groups.items() for names in held]
            front = ["--model", model.name] if model.name != "world" else []
            front += _common(campaign, variant)
            asked = _read(Erase, ["erase", variant.method, *front, *words, *flags], title)
            for _, names in some:
                if (own := replace(asked, concept=names)) not in known:
                    known.append(own)
                    _refuse(own, f"{title}, {' + '.join(names)}")
            for seed, (group, names) in product(seeds, some):
                argv = ["erase", variant.method, "--concept", *names, *front]
                argv += ["--seed", str(seed)] if seed else []
                argv += [*words, *flags]
                told = [title, *([model.called] if len(campaign.models) > 1 else [])]
                told += [" + ".join(names), *([f"seed {seed}"] if len(seeds) > 1 else [])]
                work = _work(campaign, argv, method, told)
                yield Planned(work, title, model.called, names, group, seed, method)


def _attacks(campaign: Campaign, erasures: Sequence[Planned]) -> Iterator[Planned]:
    for variant in campaign.recoveries:
        title, kind = variant_title(variant, "recoveries"), RECOVERIES.load(variant.method)
        if variant.method in Recover.apart:
            raise PalimpsestError(f"{title}: {variant.method} attacks nothing; say it by itself")
        flags = _flags(campaign, Recover, variant.flags, where=title)
        _read(Recover, ["recover", variant.method, "run", *flags], title)
        for model in campaign.models:
            own = _world(campaign, model)
            budget = campaign.budget if variant.budget is None else variant.budget
            method, words = _settled(kind, variant, own, Recover, title, budget)
            for erased in erasures:
                if erased.model != model.called or (
                    variant.only and erased.eraser not in variant.only
                ):
                    continue
                if variant.method == "restoration" and erased.method.name == "gold":
                    continue
                for seed, concept in product(
                    _attack_seeds(campaign, kind, variant, erased),
                    erased.concepts if len(erased.concepts) > 1 else ("",),
                ):
                    name = kind_and_name(concept)[1]
                    argv = ["recover", variant.method, f"{{{erased.work.key}}}"]
                    argv += ["--concept", name] if name else []
                    argv += ["--preset", variant.preset] if variant.preset != "auto" else []
                    argv += ["--attack-seed", str(seed)] if seed is not None else []
                    argv += [*words, *flags]
                    told = [f"{title} of {name}" if name else title, "on " + erased.work.title]
                    told += [f"attack's seed {seed}"] if seed is not None else []
                    work = _work(campaign, argv, method, told, erased.work.key)
                    where = erased.eraser, erased.model, erased.concepts, erased.group, erased.seed
                    yield Planned(work, *where, method, title, name, seed)


def _seeds(kind: type[Any], said: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return the seeds that a method is tried with: the first where all of them give the same."""
    return seeds_of(said)[: 1 if kind.seedless else None]


def _attack_seeds(
    campaign: Campaign, kind: type[Any], variant: Variant, erased: Planned
) -> tuple[int | None, ...]:
    """Return a recovery's seeds on an erasure; None is the erasure's own.

    An erasure that is the same with every seed stands for all of them, and is attacked with each.
    """
    if variant.seeds is not None:
        return _seeds(kind, variant.seeds)
    if not erased.method.seedless:
        return (None,)
    said = next(v.seeds for v in campaign.erasers if variant_title(v) == erased.eraser)
    seeds = _seeds(kind, campaign.seeds if said is None else said)
    return seeds if len(seeds) > 1 else (None,)


def _read(verb: type[Any], argv: Sequence[str], title: str) -> Any:
    """Return a command's flags, which are refused before any is begun.

    Raises:
        PalimpsestError: naming the flag.
    """
    try:
        return read_flags(verb, argv)
    except PalimpsestError as error:
        raise PalimpsestError(f"{title}: flags: {error}") from None


def _refuse(asked: Erase, title: str) -> None:
    """Refuse an erasure whose concept, judge or prompts there are not.

    Raises:
        PalimpsestError: naming it.
    """
    try:
        if not model_kind(asked.model)[0]:
            asked.asked(asked.model)
    except PalimpsestError as error:
        raise PalimpsestError(f"{title}: {error}") from None


def _work(
    campaign: Campaign, argv: Sequence[str], method: Any, told: Sequence[str], *after: str
) -> Work:
    """Return a command under a key that is another one as soon as it would do something else.

    That is when its words, a value of its preset, or a file that it names has changed.
    """
    found = {}
    for word in argv[2:]:
        if word != str(campaign.runs) and len(word) < LONGEST and Path(word).exists():
            with suppress(UntoldError, OSError):
                found |= stamps(Path(word))
    rests = "\0".join((*argv, repr(method), repr(sorted(found.items()))))
    key = hashlib.sha256(rests.encode()).hexdigest()[:12]
    folder = (campaign.runs / WORKS / key).absolute()
    return Work(key, tuple(argv), folder, after, ", ".join(told))


def _common(campaign: Campaign, variant: Variant) -> list[str]:
    words = ["--runs", str(campaign.runs)]
    words += ["--judge", *campaign.judges] if campaign.judges != ("auto",) else []
    return words + (["--preset", variant.preset] if variant.preset != "auto" else [])


def _world(campaign: Campaign, model: Model) -> bool:
    """Return whether the world's presets are taken, as `erase` finds out."""
    return Erase(judge=campaign.judges).for_world(model.name)


def _settled(
    kind: type[Any], variant: Variant, world: bool, verb: type[Any], title: str, budget: Any = None
) -> tuple[Any, list[str]]:
    """Return a method with a variant's settings, and the flags that say what differs from a preset.

    Raises:
        PalimpsestError: a setting or a preset that there is not, or a value that it cannot take.
    """
    try:
        preset = choose_preset(variant.preset, world, kind.presets)
        plain = kind(**kind.presets.get(preset, {}))
        chosen = plain.changed(_known(plain, variant.settings or {}))
        method = chosen.within(budget) if budget else chosen
    except PalimpsestError as error:
        raise PalimpsestError(f"{title}: {error}") from None
    before, wanted, after = (_flat(asdict(each)) for each in (plain, chosen, method))
    for name in variant.settings or {}:
        own = _field(name, wanted)
        if after.get(own, math.nan) != wanted[own]:
            told = f"settings: {name}: the budget decides it; leave one of the two out"
            raise PalimpsestError(f"{title}: {told}")
    shared = {f.name for f in fields(verb)} & {f.name for f in fields(kind)}
    front = f"{variant.method}." if shared else ""
    words: list[str] = []
    for name, value in after.items():
        if name not in before or before[name] != value:
            words += said(front + name, value)
    return method, words


def _known(method: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, lists as tuples, once it is sure that the method has them.

    Raises:
        PalimpsestError: naming the setting that was probably meant.
    """
    known = _flat(asdict(method))
    return {
        _field(name, known): tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
    }


def _field(name: Any, known: Mapping[str, Any]) -> str:
    """Return a setting's field, which ends with an underscore where it is a word of Python's.

    Raises:
        PalimpsestError: naming the setting that was probably meant.
    """
    for own in (str(name), f"{name}_"):
        if own in known:
            return own
    told = nearest(str(name), [each.rstrip("_") for each in known])
    raise PalimpsestError(f"settings: no setting {name!r}{told}")


def _flags(
    campaign: Campaign, verb: type[Any], *own: Mapping[str, Any] | None, where: str
) -> list[str]:
    """Return the words of flags: those of the campaign that the verb has, then its own.

    Raises:
        PalimpsestError: a flag that there is not, or one that another key stands for.
    """
    every = {name for each in (Erase, Recover) for name in _defaults(each)}
    held: dict[str, Any] = {}
    for place, some in (("flags", campaign.flags), *((f"{where}: flags", each) for each in own)):
        known = _defaults(verb)
        for name, value in (some or {}).items():
            field = str(name).replace("-", "_")
            if field in OWN:
                told = f"{HELD.get(field, field)} is a key of its own"
                raise PalimpsestError(f"{place}: {name}: {told}")
            if field not in (every if place == "flags" else known):
                raise PalimpsestError(f"{place}: no flag {name!r}{nearest(field, sorted(known))}")
            if field in known and value is not None:
                held[field] = value
    words: list[str] = []
    for field, value in held.items():
        if value != _defaults(verb)[field]:
            words += said(field, value)
    return words


def _defaults(verb: type[Any]) -> dict[str, Any]:
    """Return a verb's flags with their defaults; `draw.steps` names one inside another."""
    own = {f.name: f.default for f in fields(verb)}
    return _flat({n: asdict(v) if is_dataclass(v) else v for n, v in own.items()})  # type: ignore[arg-type]


def _flat(held: Mapping[str, Any], front: str = "") -> dict[str, Any]:
    """Return nested settings by names with dots."""
    found: dict[str, Any] = {}
    for name, value in held.items():
        found |= (
            _flat(value, f"{front}{name}.") if isinstance(value, dict) else {front + name: value}
        )
    return found


def said(name: str, value: Any) -> list[str]:
    """Return a flag as words of a command line.

    Args:
        name: of the field; `latents.steps` is one inside another.
        value: a text, a number, a path, None, a truth or several of such.
    """
    outer, dot, inner = name.rpartition(".")
    spelt = f"{outer}{dot}{inner.rstrip('_')}".replace("_", "-")
    if isinstance(value, bool):
        return [f"--{spelt}" if value else f"--{outer}{dot}no-{inner}".replace("_", "-")]
    if isinstance(value, list | tuple):
        return [f"--{spelt}", *map(_word, value)]
    return [f"--{spelt}", _word(value)]


def _word(value: Any) -> str:
    return str(value) if not isinstance(value, Path) else value.as_posix()
