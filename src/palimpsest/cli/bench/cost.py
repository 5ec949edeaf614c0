"""`bench --dry-run`: the commands of a campaign, and what they would cost on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.cli import console
from palimpsest.cli.bench.campaign import Campaign
from palimpsest.cli.bench.planner import Planned
from palimpsest.cli.plan import speed
from palimpsest.cli.tree import read_flags
from palimpsest.cli.verbs.erase import Erase
from palimpsest.cli.verbs.recover import Recover
from palimpsest.erase.gold import Gold
from palimpsest.world import assets

MOST = 200
"""Commands that are listed."""


@dataclass
class Cost:
    """What some commands take together."""

    commands: int = 0
    done: int = 0
    free: int = 0
    """U-Net evaluations of one latent without gradient, those of pictures included."""
    graded: int = 0
    """The same with gradient."""
    pictures: int = 0
    seconds: float = 0.0

    def add(self, free: int, graded: int, pictures: int, seconds: float) -> None:
        """Add what something takes."""
        self.free, self.graded = self.free + free, self.graded + graded
        self.pictures, self.seconds = self.pictures + pictures, self.seconds + seconds


def tell(campaign: Campaign, planned: Sequence[Planned]) -> None:
    """Print the commands, then what each eraser and each recovery would still cost."""
    for i, one in enumerate(planned):
        if i == MOST:
            console.say(f"  … and {len(planned) - MOST} more")
            break
        console.say(f"  {'done  ' if one.work.answer else 'to do '}{one.work.title}")
    costs = _costs(planned)
    rows = [
        [title, each.commands, each.done, each.free, each.graded, each.pictures, _time(each)]
        for title, each in costs.items()
    ]
    heads = ["", "commands", "done", "U-Net evaluations", "with gradient", "pictures", "time"]
    console.table(f"{campaign.title}: what is left to do", heads, rows)
    whole = sum(each.seconds for each in costs.values())
    left = sum(each.commands - each.done for each in costs.values())
    console.say(
        f"{left} command{'s' * (left != 1)}, about {console.duration(whole)} one after the other "
        "on this machine, by a step of each method timed now; training's own judging is not counted"
    )
    console.say(f"would write to {campaign.runs}/")


def _time(cost: Cost) -> str:
    return console.duration(cost.seconds) if cost.seconds else "–"


def _costs(planned: Sequence[Planned]) -> dict[str, Cost]:
    """Return what is left to do, by title; pictures that several share are their first one's."""
    found: dict[str, Cost] = {}
    drawn: set[Any] = set()
    seen: set[str] = set()
    models: dict[str, tuple[Any, dict[Any, tuple[float, float]]]] = {}
    words = {one.work.key: one.work.argv for one in planned if not one.recovery}
    counts: dict[Any, tuple[Erase, int]] = {}
    left = [one for one in planned if one.work.answer is None]
    with console.progress().task("timing a step of each method", len(left)) as task:
        for one in planned:
            if one.work.key in seen:
                continue
            seen.add(one.work.key)
            cost = found.setdefault(one.recovery or one.eraser, Cost())
            cost.commands += 1
            if one.work.answer is not None:
                cost.done += 1
                continue
            base = words[one.work.after[0] if one.recovery else one.work.key]
            if one.model not in models:
                options = read_flags(Erase, base)
                models[one.model] = options.load(options.model), {}
            model, timed = models[one.model]
            asked = one.model, one.concepts
            if asked not in counts:
                options = read_flags(Erase, base)
                counts[asked] = options, options.pictures(options.model)
            if one.method not in timed:
                moved, batch = one.method.moves(model), one.method.demand(model).graded
                plain, graded = speed(model, list(moved), batch)
                timed[one.method] = plain[0], graded[0]
            _add(cost, one, model, timed[one.method], *counts[asked], drawn)
            task.advance(1)
    return found


def _add(
    cost: Cost,
    one: Planned,
    model: Any,
    seconds: tuple[float, float],
    options: Erase,
    pictures: int,
    drawn: set[Any],
) -> None:
    """Add what a command takes, with what it draws besides that no other has drawn."""
    gold = options.gold and model.name == "world" and one.concept in assets.golds()
    free, graded = one.method.evaluations()
    times, lots = 1, 1
    if one.recovery:
        usual = read_flags(Recover, one.work.argv).subject or one.method.subjects
        for who in {*usual} - {"erased"}:
            key = (one.recovery, one.model, one.concepts, one.seed, one.attack_seed, who)
            if key not in drawn and (who != "gold" or gold):
                drawn.add(key)
                times, lots = times + 1, lots + 1
    else:
        beside = ["unedited", *(["gold"] if gold and one.method.name != Gold().name else [])]
        for who in beside:  # what a table asks for is drawn once for all concepts
            table = options.prompts if who == "unedited" else None
            if (key := (one.model, table or one.concepts, who)) not in drawn:
                drawn.add(key)
                lots += 1
    each = model.sampling.steps * (2 if model.sampling.guidance != 1 else 1)
    shown = lots * pictures
    plain = times * free + shown * each
    cost.add(plain, times * graded, shown, plain * seconds[0] + times * graded * seconds[1])
