"""Numbers and verdicts in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from palimpsest.methods import Number
from palimpsest.metrics import relearning
from palimpsest.metrics.rates import Rate
from palimpsest.report.arrange import Section
from palimpsest.report.load import Material

THIN, FIXED = "\u202f", "\u00a0"  # no-break spaces, narrow and full

ARMS = {"published": "published pictures", "plain": "plain pictures"}


def percent(share: float) -> str:
    """A share as a percentage; never rounded up to all or down to nothing."""
    whole = f"{100 * share:.0f}"
    if (whole == "100" and share < 1) or (whole == "0" and share > 0):
        whole = f"{100 * share:.1f}"
    return f"{whole}{THIN}%"


def interval(low: float, high: float) -> str:
    """A 95 % interval of a share, in per cent: `[90, 99]`; empty if there is none."""
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"[{100 * low:.0f},{FIXED}{100 * high:.0f}]"


def with_interval(row: Number | Rate) -> str:
    """A share with its interval: `97 % [90, 99]`."""
    return f"{percent(row.value)} {interval(row.low, row.high)}".strip()


def last(run: Material) -> tuple[Number | None, int | None]:
    """What a recovery ended with, and after how many steps (None if it has no curve)."""
    curve = [p for p in run.record.curve if not math.isnan(p.rate.value)]
    if curve:
        return Number.of("Concept shown", curve[-1].rate), curve[-1].step
    rate = run.shown(*run.target)
    return (Number.of("Concept shown", rate) if rate.n else None), None


def attempt_label(run: Material, among: Sequence[Material] = ()) -> str:
    """A recovery's name; how its pictures were made is said where it tells two apart."""
    arm = run.record.arm
    alone = not among or len({r.record.arm for r in among}) < 2
    return run.title if alone or not arm else f"{run.title} ({ARMS.get(arm, arm)})"


def headline(section: Section) -> str:
    """What happened, in one line."""
    concept = section.target[1]
    if not section.erasure:
        theme = section.lead.record.theme
        if theme:
            return f"Theme {theme}, asked of {len(section.others)} models"
        if not section.recoveries:
            return section.lead.title if concept else f"What {section.lead.model} shows"
        return f"{section.recoveries[0].title} and {concept}"
    erased = section.erasure.record.number("UA")
    title = section.erasure.title
    if erased is None:
        said = f"{title} and {concept}"
    else:
        ua = erased.value
        verb = "erased" if ua >= 0.3 else "did not erase"
        said = f"{title} {verb} {concept}{' in part' if 0.3 <= ua < 0.8 else ''}"
    return said + _came_back(section.recoveries)


def _came_back(recoveries: Sequence[Material]) -> str:
    ends = [(end.value, run) for run in recoveries if (end := last(run)[0])]
    if not ends:
        return ""
    best, run = max(ends, key=lambda pair: pair[0])
    if best >= 0.5:
        return f", and {run.title} brought it back"
    done = "brought some of it back" if best >= 0.2 else "could not bring it back"
    return f", and {run.title} {done}"


def verdict(section: Section) -> list[Markup]:
    """The section's key numbers in short paragraphs: what went, what came back, and from where."""
    went = [_base(section), _erased(section)]
    came = [_recovered(run, section.recoveries) for run in section.recoveries]
    came += [_control(run, section.controls) for run in section.controls]
    gold = [_gold(section), *(_above_gold(run, section) for run in section.recoveries)]
    gold.append(_shared_text(section))
    told = [Markup(" ").join(s for s in part if s) for part in (went, came, gold)]
    return [paragraph for paragraph in told if paragraph]


def _base(section: Section) -> str | Markup:
    if not section.original or not section.target[1]:
        return ""
    rate = section.original.shown(*section.target)
    if not rate.n:
        return ""
    said = "shows" if rate.value >= 0.5 else "itself shows"
    only = "" if rate.value >= 0.5 else "only "
    return Markup("Asked for <em>{}</em>, {} {} it in {}<b>{}</b> of {} pictures.").format(
        section.target[1], section.original.model, said, only, percent(rate.value), rate.n
    )


def _erased(section: Section) -> str | Markup:
    run = section.erasure
    ua = run.record.number("UA") if run else None
    if run is None or ua is None:
        return ""
    share = ua.value
    did = "made it forget" if share >= 0.3 else "did not make it forget"
    said = Markup("{} {} <em>{}</em>{}: {}<b>{}</b> of {} pictures no longer show it {}").format(
        run.title,
        did if section.original else did.replace(" it ", f" {run.model} "),
        section.target[1],
        " in part" if 0.3 <= share < 0.8 else "",
        "only " if share < 0.3 else "",
        percent(share),
        ua.n or "the",
        interval(ua.low, ua.high),
    )
    own, far = (run.record.number(name) for name in ("IRA", "CRA"))
    kept = [("neighbours", own), ("other domains", far)]
    parts = [(who, with_interval(row)) for who, row in kept if row]
    words = [f"{who} {'kept ' if i == 0 else ''}{share}" for i, (who, share) in enumerate(parts)]
    return Markup("{}{}.").format(said, f"; {', '.join(words)}" if words else "")


def _recovered(run: Material, among: Sequence[Material]) -> str | Markup:
    end, steps = last(run)
    if not end:
        return ""
    did = "brought it back in" if end.value >= 0.2 else "could not bring it back: it is in"
    return Markup("{} {} <b>{}</b> of {} pictures {}{}{}.").format(
        attempt_label(run, among),
        did,
        percent(end.value),
        end.n or "the",
        interval(end.low, end.high),
        f" after {steps} steps" if steps is not None else "",
        _start(run),
    )


def _start(run: Material) -> str:
    curve = run.record.curve
    if len(curve) < 2 or math.isnan(curve[0].rate.value):
        return ""
    return f", from {percent(curve[0].rate.value)}"


def _control(run: Material, among: Sequence[Material]) -> str | Markup:
    end, steps = last(run)
    if not end:
        return ""
    return Markup("For comparison, {} on the unedited model ends at {}{}.").format(
        attempt_label(run, among),
        with_interval(end),
        f" after {steps} steps" if steps is not None else "",
    )


def _gold(section: Section) -> str | Markup:
    if section.gold is None:
        return ""
    rate = section.gold.shown(*section.target)
    if not rate.n:
        return ""
    return Markup(
        "Gold, the same model trained without ever being shown <em>{}</em>, has it in <b>{}</b> of "
        "{} pictures."
    ).format(section.target[1], percent(rate.value), rate.n)


def _above_gold(run: Material, section: Section) -> str | Markup:
    """Whether a recovery beats its twin on gold, by the area between their curves."""
    twin = section.twin(run)
    if twin is None:
        return ""
    curves = [r.record.curve for r in (run, twin)]
    area, (end, steps) = relearning.advantage(*curves), last(twin)
    if area is None or end is None:
        return ""
    if area.low > 0:
        said = "so some of it was hidden, not gone"
    elif area.high < 0:
        said = "so nothing speaks for a hidden rest: the erased model learns it more slowly"
    else:
        said = "so what came back may as well have been learnt anew"
    return Markup(
        "The same {} teaches it to gold in {}{}; over its course the erased model stands {} "
        "above gold, {}."
    ).format(
        attempt_label(run, section.recoveries),
        with_interval(end),
        f" after {steps} steps" if steps is not None else "",
        _lead(area),
        said,
    )


def _lead(area: Rate) -> Markup:
    low, high = (f"{100 * end:+.0f}" for end in (area.low, area.high))
    return Markup("<b>{} points</b> [{},{}{}]").format(f"{100 * area.value:+.0f}", low, FIXED, high)


def _shared_text(section: Section) -> str:
    """Gold's text encoder is the world's own, so it is no control for an edit of that."""
    erased = section.erasure.record.components if section.erasure else ()
    if section.gold is None or "text_encoder" not in erased:
        return ""
    return (
        "This edit is in the text encoder, and gold shares one that has seen the concept: here "
        "gold is no clean control."
    )
