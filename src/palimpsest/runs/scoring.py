"""The panel of judges: it scores a run's pictures and turns the scores into numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from palimpsest.metrics import distances, rates
from palimpsest.runs import images
from palimpsest.core.concepts import Concept
from palimpsest.judge.world import Classifier
from palimpsest.metrics import rates
from palimpsest.runs import images
from palimpsest.core.concepts import Concept
from palimpsest.judge import references
from palimpsest.judge.world import Classifier
from palimpsest.judge.clip import Clip
from palimpsest.core.prompts import Prompt
from palimpsest.core.registry import nearest
from palimpsest.runs.folder import Run
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE, Kind
from palimpsest.methods import Spec
from palimpsest.metrics.rates import Rate

KNOWN = 0.5
"""A concept that the judge finds in fewer of the unedited model's pictures is not known to it."""


@dataclass(frozen=True)
class Panel:
    """Those who look. Either may be absent; their numbers are then left out."""

    judge: Classifier | None = None
    clip: Clip | None = None

    def entries(self) -> dict[str, Any]:
        """Return what a record says of both: their specs, and the references that load them."""
        return {"judge": references.entry_of(self.judge), "clip": references.entry_of(self.clip)}

    def score(self, run: Run) -> None:
        """Judge the run's pictures that this judge has not scored yet."""
        if self.judge is None:
            return
        prompts, own = images.asked(run), references.entry_of(self.judge)
        same = run.record().get("judge") == own
        old = {r["file"]: r for r in run.rows("scores.jsonl")} if same else {}
        new = [p for p in prompts if images.picture_name(p) not in old]
        if not new:
            return
        reading = self.judge.read(images.pictures(run, new))
        for i, file in enumerate(map(images.picture_name, new)):
            said = {kind: labels[i] for kind, labels in reading.labels.items()}
            sure = {kind: round(values[i], 4) for kind, values in reading.confidence.items()}
            old[file] = {"file": file, "labels": said, "confidence": sure}
        run.write_rows("scores.jsonl", [old[images.picture_name(p)] for p in prompts])
        if not same:
            run.update(judge=own)

    def classes(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that ask for a class that the judge does not have.

        Raises:
            PalimpsestError: naming the class, the prompt and the nearest class that there is.
        """
        if self.judge is None:
            return
        for prompt in prompts:
            for kind, name in prompt.asks.items():
                known = [n for n in self.judge.heads.get(kind, ()) if n != NONE]
                if name not in known:
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
        if self.judge is None or concept.kind not in self.judge.heads:
            return
        own = [p for p in prompts if p.wants(concept.kind, concept.name)]
        if not own:
            raise PalimpsestError(
                f"no prompt asks for {concept.name!r}, so nobody could tell that it is gone; say "
                f"in a column {concept.kind!r} which prompts do, or use --force"
            )
        known = rates.accuracy(concept.kind, concept.name, images.labels(original, own))
        if known.value < KNOWN:
            raise PalimpsestError(
                f"the model hardly knows {concept.name!r}: the judge finds it in {known} of its "
                "pictures, so forgetting could not be told from never having known; use --force "
                "to erase it all the same"
            )

    def numbers(
        self,
        run: Run,
        beside: tuple[Run, Run | None],
        concept: Concept,
        prompts: Sequence[Prompt],
        sampling: str,
    ) -> list[dict[str, Any]]:
        """UA, IRA, CRA, CLIP cosines and world-FID of a run, each with interval, n and spec.

        Args:
            run: whose pictures are judged.
            beside: the unedited model's run, and that of the gold model if there is one.
            concept: what was erased.
            prompts: the prompts to count.
            sampling: how the pictures were made, for the spec.
        """
        own = [p for p in prompts if p.wants(concept.kind, concept.name)]
        rest = [p for p in prompts if not p.wants(concept.kind, concept.name)]
        found: list[dict[str, Any]] = []
        if self.judge is not None and own:
            said, spec = images.labels(run, prompts), _spec(self.judge.spec, sampling)
            found_rates = rates.unlearning(concept.kind, concept.name, [p.asks for p in prompts], said)
            found += [_number(name, rate, "%", spec) for name, rate in found_rates.items()]
        if self.clip is not None:
            spec = _spec(self.clip.spec, sampling)
            for title, some in (("CLIP cosine, concept", own), ("CLIP cosine, others", rest)):
                if some:
                    cosine = self.clip.cosine(images.pictures(run, some), [p.text for p in some])
                    found.append(_number(title, rates.mean(cosine.tolist()), "", spec))
        original, gold = beside
        if run.name != original.name:
            found += self._distance("world-FID, others", (original, run), rest, sampling)
        if gold is not None and run.name != gold.name:
            found += self._distance("world-FID to gold, others", (gold, run), rest, sampling)
            found += self._distance("world-FID to gold, concept", (gold, run), own, sampling)
        return found

    def shown(
        self, run: Run, concept: Concept, prompts: Sequence[Prompt], how: str
    ) -> list[dict[str, Any]]:
        """How often the judge says the concept, and nothing else; `how` is for the spec."""
        if self.judge is None or concept.kind not in self.judge.heads:
            return []
        said = images.labels(run, prompts)
        rate = rates.accuracy(concept.kind, concept.name, said)
        return [_number("Concept shown", rate, "%", _spec(self.judge.spec, how))]

    def themed(
        self, run: Run, kind: Kind, prompts: Sequence[Prompt], sampling: str
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Accuracy and CLIP cosine over all prompts, and rows of the same for each concept.

        Args:
            run: whose pictures are judged.
            kind: the kind of every concept.
            prompts: the prompts to count, each asking for one concept of that kind.
            sampling: how the pictures were made, for the specs.
        """
        own: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            own.setdefault(prompt.asks[kind], []).append(prompt)
        fits: dict[Prompt, float] = {}
        if self.clip is not None:
            for some in own.values():  # one by one, not to hold every picture at once
                cosine = self.clip.cosine(images.pictures(run, some), [p.text for p in some])
                fits |= zip(some, cosine.tolist(), strict=True)

        def count(some: Sequence[Prompt]) -> list[dict[str, Any]]:
            found = []
            if self.judge is not None:
                pairs = zip(images.labels(run, some)[kind], some, strict=True)
                rate = rates.rate(label == p.asks[kind] for label, p in pairs)
                found.append(_number("accuracy", rate, "%", _spec(self.judge.spec, sampling)))
            if self.clip is not None:
                rate = rates.mean([fits[p] for p in some])
                found.append(_number("CLIP cosine", rate, "", _spec(self.clip.spec, sampling)))
            return found

        rows = [{"concept": name, **row} for name, some in own.items() for row in count(some)]
        return count(prompts), rows

    def _distance(
        self, title: str, pair: tuple[Run, Run], prompts: Sequence[Prompt], sampling: str
    ) -> list[dict[str, Any]]:
        """The Fréchet distance of two runs' pictures of the same prompts."""
        if self.judge is None or len(prompts) < 2:
            return []
        a, b = (self.judge.features(images.pictures(run, prompts)) for run in pair)
        fid = Rate(distances.frechet(a, b), math.nan, math.nan, len(prompts))
        return [_number(title, fid, "", _spec(self.judge.spec, sampling))]


def _spec(spec: Spec, sampling: str) -> str:
    return f"{spec.name} v{spec.version}, {spec.resolution} px, {sampling}"


def _number(name: str, rate: Rate, unit: str, spec: str) -> dict[str, Any]:
    figures = {k: None if math.isnan(v) else v for k, v in asdict(rate).items()}
    return {"name": name, **figures, "unit": unit, "spec": spec}
