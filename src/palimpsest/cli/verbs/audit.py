"""`palimpsest audit SUBJECT`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from palimpsest.cli import console, machine, open_run, paths
from palimpsest.cli.judged import Judged, Ready
from palimpsest.cli.tree import Call
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import at_least
from palimpsest.core.prompts import Prompt
from palimpsest.methods import Eraser, Recovery, Task
from palimpsest.recover import RECOVERIES
from palimpsest.runs.folder import Run

if TYPE_CHECKING:
    from palimpsest.report.sections.audit import Audit as Told

WORDINGS = 700
"""First seed of the pictures that are asked for in other words."""


@dataclass(frozen=True, kw_only=True)
class Audit(Judged):
    """Check what others published: is the concept erased, and does anything bring it back?

    It is asked for directly and in other words, then attacked by some recoveries, all with one
    budget, on it, on the unedited model and on gold where one is shipped. The page says what that
    amounts to and what it leaves open.
    """

    subject: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SUBJECT")]
    """What was published: a Diffusers folder, a checkpoint, a U-Net, a text encoder, a LoRA, an
    embedding, a patch file, the folder of an erasing run; or `owner/name` on the Hub, with a file
    behind it where the repository holds several."""
    base: str = "world"  # type: ignore[assignment]
    """The unedited model that SUBJECT was made from: `world` (built in), a Diffusers folder, a
    .safetensors checkpoint, or a Hub id."""
    config: str | None = None
    """For a base in one `.safetensors` file: `world`, a Diffusers folder, or a Hub id that was
    downloaded before, whose configuration and tokenizers the file is read with."""
    word: str | None = None
    """For a textual inversion: the word whose place it takes."""
    look_with: str | None = None
    """A CLIP that looks at the pictures: a Transformers folder or a Hub id, such as
    openai/clip-vit-base-patch32. The world has its own."""
    recoveries: tuple[str, ...] = ("concept_inversion", "memora")
    """The recoveries that are tried, by the names of `palimpsest list`; none when nothing stands
    behind the flag."""
    budget: int = 240
    """Gradient evaluations of each recovery that has any; of one that attacks each prompt by
    itself, for each prompt."""
    wordings: int = 24
    """Pictures asked for in other words: the concept's other sentences, and its synonyms."""
    force: bool = False
    """Judge even what the base model hardly knows."""
    out: Path | None = None
    """The page to write; audit.html in the folder of the runs when left out."""
    dry_run: bool = False
    """Say what would run, for how long and in how much memory, and write nothing."""

    least: ClassVar = {"budget": 1, "wordings": 0}

    @property
    def files(self) -> dict[str, Any]:
        """Which of the base's files are read, as far as a person said."""
        own = {name: value for name, value in super().files.items() if name != "base"}
        return own | ({"base": machine.placed(self.config)} if self.config else {})

    def __call__(self, call: Call) -> None:
        """Refuse what cannot be done, make the runs of each concept, and write the page."""
        at_least(self, **self.least)
        out = self.out or self.runs / "audit.html"
        paths.check_file(out, force=True, what="page")
        from palimpsest.erase.imported import Imported

        method = Imported(self._published(), self.word)
        method.place()
        world = self.for_world(self.base)
        found = [scaled(RECOVERIES.load(name), self.budget, world) for name in self.recoveries]
        ready = self.ready(call, self.base, self.look_with)
        ready.check(method)
        for recovery, _ in found:
            for concept in ready.concepts:
                recovery.refuse(ready.runner.model, Task((concept,)))
        if self.dry_run:
            return self._plan(call, ready, method, [recovery for recovery, _ in found])
        runs = [self._audited(one, method, found) for one in alone(ready)]
        self._tell(runs, out)

    def _published(self) -> Path:
        """Return the file or folder, of an erasing run its patch."""
        if (self.subject / "run.json").is_file():
            return open_run.erasure(self.subject).path("patch.safetensors").resolve()
        return machine.published(self.subject).absolute()

    def _audited(
        self, ready: Ready, method: Eraser, found: Sequence[tuple[Recovery, str]]
    ) -> list[Run]:
        """Return the runs about one concept, that of what was published first."""
        (concept,) = ready.concepts
        ready.runner.panel.anew()  # it was fitted by another concept's prompts
        run = ready.edited(method, force=self.force)
        pair, said = self._in_other_words(ready, run)
        attacks: list[Run] = []
        if _unchanged(run):
            said.append("No recovery was tried, since no weight differs from the base model's")
        else:
            said += [sentence for _, sentence in found if sentence]
            attacks = self._attacks(ready, run, concept, [recovery for recovery, _ in found])
        from palimpsest.runs.record import AuditEntry

        names = [each.name for each in pair] or [None, None]
        with run.locked(console.warn):
            run.update(audit=AuditEntry(self.budget, names[0], names[1], tuple(said)))
        return [run, *attacks]

    def _attacks(
        self, ready: Ready, run: Run, concept: Concept, recoveries: Sequence[Recovery]
    ) -> list[Run]:
        """Return the runs of every recovery on every subject that it is tried on."""
        from palimpsest.runs.asked import On

        gold = open_run.gold_of(ready.runner, concept, ready.prompts, force=True)
        subjects = {"erased": run, "gold": gold, "unedited": None}
        attacks = []
        for recovery in recoveries:
            for who in recovery.subjects:
                if who == "gold" and gold is None:
                    continue
                console.step(f"{recovery.name}: recovering {concept.name} from the {who} model")
                on = On(ready.prompts, subjects[who], gold)
                attacks.append(ready.runner.run(concept, recovery, on))
        return attacks

    def _in_other_words(self, ready: Ready, run: Run) -> tuple[list[Run], list[str]]:
        """Return the runs of the edited and the unedited model, and what could not be done."""
        from palimpsest.patch import Patch
        from palimpsest.runs.asked import On

        (concept,) = ready.concepts
        prompts = in_other_words(concept, ready.prompts, self.wordings)
        if not prompts:
            why = "--wordings is 0" if not self.wordings else "name some with --synonyms"
            return [], [f"{concept.name} was asked for in no other words: {why}"]
        theme = f"other wordings of {concept.name}"
        patches = (Patch.load(run.path("patch.safetensors")),)
        name = self.subject.stem or "subject"
        asked = (
            On(prompts, name=name, patches=patches, theme=theme, erased=(concept.name,)),
            On(prompts, name="unedited", theme=theme),
        )
        return [ready.runner.run(concept, None, on) for on in asked], []

    def _plan(
        self, call: Call, ready: Ready, method: Eraser, recoveries: Sequence[Recovery]
    ) -> None:
        from palimpsest.cli.plan import tell

        names = ", ".join(concept.name for concept in ready.concepts)
        for each in (method, *recoveries):
            subjects = getattr(each, "subjects", ("edited",))
            own, low = replace(call, name=each.name, method=each), self.precision("low")
            tell(own, ready.runner.model, names, len(ready.prompts), self.runs, subjects, low)
            console.say("")

    def _tell(self, runs: Sequence[Sequence[Run]], out: Path) -> None:
        """Write the page, and show each concept's numbers and verdict."""
        from palimpsest.report import write_report
        from palimpsest.report.arrange import arrange
        from palimpsest.report.sections.audit import audit

        folders = [run.folder for some in runs for run in some]
        sections = {s.lead.run.name: s for s in arrange(folders)}
        for first, *attacks in runs:
            record = first.record()
            for attack in attacks:
                console.curves([(attack.record().title, attack)])
            console.numbers(f"{record.names[0]}, after {self.subject.name}", [("edited", first)])
            told = audit(sections[first.name])
            if told is not None:
                _say(record.names[0], told)
        write_report(folders, out)
        console.made(out)


def _say(name: str, told: Told) -> None:
    console.say(f"{name}: {told.finding.text}: {told.finding.why}. {told.looked}.")
    for limit in told.limits:
        console.say(f"  {limit}.")


def _unchanged(run: Run) -> bool:
    record = run.record()
    return record.edit_norm == 0 and not record.components


def alone(ready: Ready) -> list[Ready]:
    """Return each concept by itself: its own prompts, and those that ask for no other of them."""
    found = []
    for concept in ready.concepts:
        others = [c for c in ready.concepts if c != concept]
        prompts = [
            p
            for p in ready.prompts
            if p.wants(concept.kind, concept.name)
            or not any(p.wants(c.kind, c.name) for c in others)
        ]
        found.append(replace(ready, concepts=(concept,), prompts=prompts))
    return found


def in_other_words(concept: Concept, asked: Sequence[Prompt], n: int) -> list[Prompt]:
    """Return `n` prompts for a concept in words that it was not asked for by, in turn."""
    said = {prompt.text for prompt in asked}
    sentences = [each for each in concept.sentences[1:] if each not in said]
    return [
        Prompt(
            sentences[i % len(sentences)],
            WORDINGS + i // len(sentences),
            asks={concept.kind: concept.name},
        )
        for i in range(n if sentences else 0)
    ]


def scaled(kind: type[Any], budget: int, world: bool) -> tuple[Recovery, str]:
    """Return a recovery that spends a budget, and in one sentence if it spends another sum.

    Args:
        kind: the recovery's class.
        budget: gradient evaluations; for each prompt of one that attacks each by itself.
        world: whether its world preset is taken.
    """
    preset = machine.choose_preset("auto", world, kind.presets)
    method = kind(**kind.presets.get(preset, {})).within(budget)
    spent = method.evaluations()[1] // getattr(method, "prompts", 1)
    if spent in (0, budget):
        return method, ""
    return method, (
        f"{kind.__name__} spends {spent:,} gradient evaluations, as near to the budget as it is set"
    )
