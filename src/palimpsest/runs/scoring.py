"""The judges of a run: they score its pictures, and measures turn what they see into numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from palimpsest.core.brief import brief
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.locks import Tell
from palimpsest.core.progress import Progress, Silent
from palimpsest.core.prompts import Prompt
from palimpsest.core.registry import nearest
from palimpsest.judge import checked, references
from palimpsest.judge.agreement import Agreement
from palimpsest.judge.cosine import Cosine, ThemeCosine
from palimpsest.judge.frechet import Frechet
from palimpsest.judge.rates import Rates, ThemeAccuracy
from palimpsest.methods import Judge, Measure, Number, Reading, Seen, Task, TextJudge
from palimpsest.metrics import rates
from palimpsest.runs import images
from palimpsest.runs.folder import Run
from palimpsest.runs.record import Record
from palimpsest.runs.rows import Scored

KNOWN = 0.5
"""A concept that the judge finds in fewer of the unedited model's pictures is not known to it."""


@dataclass(frozen=True)
class Panel:
    """The judges of a run. Either may be absent; their numbers are then left out."""

    judge: Judge | None = None
    """Who looks, and whom methods may ask."""
    clip: TextJudge | None = None
    others: tuple[Judge, ...] = ()
    """Who looks at the same pictures, too; no method learns what they say."""
    force: bool = False
    """Count distances of too few pictures, too."""
    progress: Progress = field(default_factory=Silent)
    """Where to show how far judges have come."""

    def __repr__(self) -> str:
        return brief(self, *self.judges, self.clip)

    def __post_init__(self) -> None:
        for judge in self.judges:
            checked(judge)
        names = [judge.spec.name for judge in self.judges]
        if twice := [name for name in names if names.count(name) > 1]:
            raise PalimpsestError(
                f"two judges are called {twice[0]!r}, so nobody could tell their numbers apart; "
                "name one of them, or rename its folder"
            )

    @property
    def judges(self) -> list[Judge]:
        """All judges, the first one first."""
        return [judge for judge in (self.judge, *self.others) if judge is not None]

    def entries(self) -> dict[str, Any]:
        """Return what a record says of each: its spec, and the reference that loads it."""
        entry = references.entry_of
        others = tuple(map(references.entry, self.others))
        return {"judge": entry(self.judge), "clip": entry(self.clip), "judges": others}

    @property
    def measures(self) -> list[Measure]:
        """What is measured of an erasure and of a recovery, as far as there is a judge for it."""
        found = self._by_each(Rates, Cosine)
        if hasattr(self.judge, "features"):
            found.append(Frechet(self.judge, self.force))
        return [*found, *self._agreements]

    @property
    def of_themes(self) -> list[Measure]:
        """What is measured of a model that is asked for a theme."""
        return [*self._by_each(ThemeAccuracy, ThemeCosine), *self._agreements]

    @property
    def _agreements(self) -> list[Measure]:
        several = len(self.others) > 1
        return [Agreement(self.judge, other, several) for other in self.others if self.judge]

    def _by_each(self, rated: type[Rates], cosine: type[Cosine]) -> list[Measure]:
        """Return a measure by each judge and one by the CLIP, as far as they are there."""
        first: list[Measure] = [rated(judge) for judge in self.judges[:1]]
        clip = [cosine(self.clip)] if self.clip is not None else []
        return [*first, *clip, *(rated(j, f", by {j.spec.name}") for j in self.judges[1:])]

    def fit(self, original: Run, prompts: Sequence[Prompt]) -> None:
        """Fit what judges take from the unedited model's pictures, where they are not fitted.

        Args:
            original: the unedited model's run.
            prompts: of the pictures.
        """
        for judge in self.judges:
            if getattr(judge, "fitted", True) == {}:
                judge.fit(images.Lots(original, prompts))  # type: ignore[attr-defined]

    def anew(self) -> None:
        """Let what was fitted by other prompts be fitted again."""
        for judge in self.judges:
            if getattr(judge, "fitted", None):
                judge.fitted = {}  # type: ignore[attr-defined]

    def adopt(self, record: Record) -> None:
        """Take what was fitted for a run that was begun, where it is not fitted."""
        known = {e.asked.key: e.fitted for e in (record.judge, *record.judges) if e and e.fitted}
        for judge in self.judges:
            if getattr(judge, "fitted", True) == {}:
                judge.fitted = dict(known.get(references.entry(judge).asked.key, {}))  # type: ignore[attr-defined]

    def score(
        self,
        run: Run,
        prompts: Sequence[Prompt] | None = None,
        afresh: bool = False,
        shared: bool = False,
    ) -> None:
        """Judge the run's pictures that a judge has not scored yet, or all of them `afresh`.

        Args:
            run: with its pictures.
            prompts: which pictures; None is all.
            afresh: judge again what was judged.
            shared: whether other runs are compared with it, too: its own judge then stays.
        """
        chosen = images.asked(run) if prompts is None else prompts
        for judge in self.judges:
            self._score(run, judge, chosen, afresh, shared or run.record().kind == "original")

    def _score(
        self, run: Run, judge: Judge, prompts: Sequence[Prompt], afresh: bool, shared: bool
    ) -> None:
        own, record = references.entry(judge), run.record()
        first = judge is self.judge and (record.judge is None or not shared)
        file = Scored.name if first else images.scores_file(run, own)
        same = not first or record.judge == own
        old = {r["file"]: r for r in run.rows(file)} if same else {}
        prompts = prompts if same else images.asked(run)  # whose rows there are is not known
        new = [p for p in prompts if afresh or images.picture_name(p) not in old]
        if not new:
            return
        run.write_rows(file, old.values())  # without half a row that was broken off
        if not same:
            run.update(judge=own)
        with self.progress.task(f"{judge.spec.name} looks", len(new)) as task:
            for pictures, some in images.Lots(run, new):
                rows = [*_rows(judge.read(pictures), some)]
                run.append(file, *rows)  # so that it is not judged again if this is broken off
                old |= {row["file"]: row for row in rows}
                task.advance(len(rows))
        names = map(images.picture_name, images.asked(run))
        run.write_rows(file, [old[name] for name in names if name in old])

    def classes(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that ask for a class that the judge does not have among its kind.

        Raises:
            PalimpsestError: naming the class, the prompt and the nearest class that there is.
        """
        if self.judge is None:
            return
        for prompt in prompts:
            for kind, name in prompt.asks.items():
                known = list(self.judge.classes.get(kind, ()))
                if known and name not in known:
                    raise PalimpsestError(
                        f"the prompt {prompt.text!r} asks for the {kind} {name!r}, which the judge "
                        f"does not know{nearest(name, known)}"
                    )

    def knows(self, original: Run, concept: Concept, prompts: Sequence[Prompt]) -> None:
        """Refuse a concept that the unedited model does not know.

        Raises:
            PalimpsestError: no prompt asks for the concept, or the judge finds it in too few of
                the pictures that were asked for it.
        """
        if self.judge is None or concept.kind not in self.judge.classes:
            return
        own = [p for p in prompts if p.wants(concept.kind, concept.name)]
        if not own:
            raise PalimpsestError(
                f"no prompt asks for {concept.name!r}, so nobody could tell that it is gone; say "
                f"in a column {concept.kind!r} which prompts do, or use --force"
            )
        said = images.labels(original, own, references.entry(self.judge))
        clusters = [p.cluster for p in own]
        known = rates.accuracy(concept.kind, concept.name, said, clusters)
        if known.value < KNOWN:
            raise PalimpsestError(
                f"the model hardly knows {concept.name!r}: the judge finds it in {known} of its "
                "pictures, so forgetting could not be told from never having known; use --force "
                "to erase it all the same"
            )


def _rows(reading: Reading, prompts: Sequence[Prompt]) -> Iterator[dict[str, Any]]:
    """Yield what a judge says of each picture as a line of its file."""
    for i, name in enumerate(map(images.picture_name, prompts)):
        said = {kind: labels[i] for kind, labels in reading.labels.items()}
        sure = {
            kind: round(values[i], 4)
            for kind, values in reading.confidence.items()
            if values[i] == values[i]
        }
        yield {"file": name, "labels": said, "confidence": sure}


@dataclass
class Tally:
    """What measures collect of a run and of the models beside it; each looks at each once."""

    measures: Sequence[Measure]
    seen: Mapping[str, Seen]
    """`run`, and `unedited` and `gold` where there are such."""
    _found: dict[tuple[int, str], Any] = field(default_factory=dict)

    def look(self, who: str) -> None:
        """Let every measure collect what it needs of one model, as that model is now."""
        for i in range(len(self.measures)):
            self._of(i, who)

    def _of(self, i: int, who: str) -> Any:
        if who in self.seen and (i, who) not in self._found:
            self._found[i, who] = self.measures[i].collect(self.seen[who])
        return self._found.get((i, who))

    def numbers(self, who: str, how: str = "") -> list[Number]:
        """Return the numbers of one model, each with its meaning and its spec.

        Args:
            who: of `seen`.
            how: how its pictures were drawn.
        """
        rows = []
        for i, measure in enumerate(self.measures):
            for row in measure.numbers(self.seen[who], self._of(i, who), partial(self._of, i)):
                spec = ", ".join(filter(None, [measure.spec, row.spec, how]))
                meaning = measure.meanings.get(row.name.partition(",")[0], "")
                rows.append(replace(row, spec=spec, meaning=row.meaning or meaning))
        return rows

    def files(self) -> Iterator[tuple[str, Any]]:
        """Yield what measures have to keep, by the name of its file."""
        for i, measure in enumerate(self.measures):
            if hasattr(measure, "files"):
                yield from measure.files(self._of(i, "unedited"), self._of(i, "run"))  # type: ignore[attr-defined]

    def result(self, sampling: str = "") -> dict[str, Any]:
        """Return the record's numbers, those of the unedited model, and those of each concept.

        Args:
            sampling: how the pictures were drawn.
        """
        answered = self.seen["run"].answered
        ours, theirs = (
            f"{sampling}; {how}" if answered else sampling
            for how in ("answers to what was found", "plain prompts")
        )
        rows = self.numbers("run", ours)
        before = self.numbers("unedited", theirs) if "unedited" in self.seen else ()
        names = self.seen["run"].task.names
        named = sorted((r for r in rows if r.concept), key=lambda r: names.index(r.concept))
        return {
            "measures": titles(self.measures),
            "numbers": tuple(row for row in rows if not row.concept),
            "by_concept": tuple(named),
            "baseline": tuple(row for row in before if not row.concept),
        }


def titles(measures: Sequence[Measure]) -> tuple[str, ...]:
    """Return what a record says of measures, to tell whether others were taken."""
    return tuple(f"{', '.join(measure.meanings)}: {measure.spec}" for measure in measures)


def beside(run: Run) -> dict[str, Run]:
    """Return the runs of the unedited and of the gold model that a run is compared with."""
    record = run.record()
    names = {"unedited": record.original, "gold": record.gold}
    return {who: Run.open(run.folder.parent / name) for who, name in names.items() if name}


def tally(
    run: Run,
    task: Task,
    prompts: Sequence[Prompt],
    measures: Sequence[Measure],
    model: Any = None,
) -> Tally:
    """Return what is to be measured of a run's pictures and of those beside it.

    Args:
        run: with its pictures and scores.
        task: what it was about.
        prompts: which pictures count.
        measures: what is counted.
        model: the unedited model, for measures that ask it.
    """
    answered = bool(run.record().answers)
    each = {"run": run, **beside(run)}
    if answered:
        each.pop("gold", None)  # it has no answers to these prompts
    seen = {
        who: Seen(
            task,
            None if who == "gold" else model,
            tuple(prompts),
            partial(images.pictures, other),
            partial(_labels, other),
            answered,
            partial(images.pictures, each["unedited"]) if "unedited" in each else None,
        )
        for who, other in each.items()
    }
    return Tally(measures, seen)


def refuse(run: Run, task: Task, prompts: Sequence[Prompt], measures: Sequence[Measure]) -> None:
    """Refuse measures that cannot count a run's pictures, before anybody looks at them.

    Raises:
        PalimpsestError: as a measure's own `refuse` says.
    """
    seen = Seen(task, None, tuple(prompts), partial(images.pictures, run))
    for measure in measures:
        if hasattr(measure, "refuse"):
            measure.refuse(seen)  # type: ignore[attr-defined]


def plain(run: Run) -> Run:
    """Return the run by whose prompts judges are opened and fitted: what a recovery attacked."""
    record = run.record()
    names = (record.subject, record.gold) if record.answers else ()
    near = (run.folder.parent / name for name in names if name)
    return next((Run(folder) for folder in near if (folder / "run.json").is_file()), run)


def _labels(run: Run, prompts: Sequence[Prompt], judge: Judge | None = None) -> Any:
    return images.labels(run, prompts, references.entry_of(judge))


def rejudge(
    run: Run,
    panel: Panel,
    more: Sequence[Measure] = (),
    tell: Tell = lambda sentence: None,
) -> None:
    """Judge a run's pictures afresh, as they are on the disk, and write its numbers down again.

    Args:
        run: finished.
        panel: its judges.
        more: what is counted beside what the panel can.
        tell: takes a sentence, if another process is at work on the run.
    """
    near, prompts = beside(run), images.asked(run)
    refuse(run, Task(run.record().concepts), prompts, more)
    if "unedited" in near:
        panel.fit(near["unedited"], images.asked(plain(run)))
    for each in (*near.values(), run):
        with each.locked(tell):
            own = [p for p in images.asked(each) if p in prompts]
            panel.score(each, own, afresh=True, shared=each is not run)
    with run.locked(tell):
        record = run.record()
        found = tally(run, Task(record.concepts), prompts, [*panel.measures, *more])
        run.update(**found.result(record.model.sampling), **panel.entries())
