"""Prompts under attack: which of them gave way, to what words, and after how many queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.prompts import Prompt
from palimpsest.core.streams import generator
from palimpsest.methods import Attempt, Context
from palimpsest.metrics.rates import rate
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.gradients import along, gradient
from palimpsest.toolbox.optimise import Trace
from palimpsest.toolbox.relearning_curve import SEED
from palimpsest.toolbox.soft_tokens import embed_hard


@dataclass
class Trials:
    """Independent attacks, one a prompt, that are carried on side by side.

    A prompt is attacked until the judge says the concept of the picture that the found words draw;
    one whose own words draw it already is not attacked. What happens to a prompt does not depend on
    which others there are.
    """

    model: Diffusion
    """The model under attack."""
    concept: Concept
    context: Context
    """Its judge decides when a prompt has given way."""
    n: int
    """How many prompts there are."""
    every: int
    """Steps after which what was found is tried out."""
    steps: int
    """The last step; it is tried out in any case."""
    room: tuple[Tensor, Tensor]
    """(n, window) token ids, and (n, window) true where the found words go."""
    found: Callable[[], Tensor]
    """(n, k) ids of the words found so far."""

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The plain prompts."""
        return plain(self.concept, self.n)

    @cached_property
    def closed(self) -> Tensor:
        """(n,) 1 where a prompt gave way, 0 where it holds.

        It stands among what is optimised, so that a checkpoint keeps it; no gradient moves it.
        """
        return torch.zeros(self.n)

    @property
    def holding(self) -> Tensor:
        """Places of the prompts that hold."""
        return (self.closed == 0).nonzero().flatten()

    # --- the loss ---

    def loss(
        self,
        error: Callable[[Tensor, list[torch.Generator]], Tensor],
        parameters: Mapping[str, Tensor],
        g: torch.Generator,
    ) -> Tensor:
        """The sum of what each prompt that holds has to lose, a batch of them at a time.

        Args:
            error: (places, a generator for each) → (places,) losses.
            parameters: what the losses are differentiated by.
            g: the step's generator; each prompt gets one of its own from it.
        """
        seeds = torch.randint(2**62, (self.n,), generator=g).tolist()
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        value = torch.zeros((), device=self.model.device)
        for places in self.holding.split(self.model.sampling.batch):
            own = [generator(seeds[i]) for i in places.tolist()]
            part = error(places.to(self.model.device), own).sum()
            for name, slope in gradient(part, parameters).items():
                total[name] += slope
            value = value + part.detach()
        return along(value, parameters, total)

    # --- the judge ---

    def watch(self, trace: Trace) -> bool:
        """Try out what was found, if it is time; whether no prompt holds. For `optimise`."""
        if trace.step % self.every == 0 or trace.step == self.steps:
            places = self.holding.tolist()
            words = self.found()[places].tolist() if trace.step else [[]] * len(places)
            notes = trace.notes
            notes.setdefault("words", {}).update(zip(map(str, places), words, strict=True))
            images = self._draw(places, notes["words"], f"pictures at step {trace.step}")
            says = (
                self.context.needs_judge().read(images).says(self.concept.kind, self.concept.name)
            )
            self.closed[places] = torch.tensor(says).to(self.closed)
            notes["queries"] = notes.get("queries", 0) + len(places)
            row = [trace.step, [int(c) for c in self.closed.tolist()]]
            notes.setdefault("curve", []).append(row)
        return bool(self.closed.all())

    def attempt(self, trace: Trace, images: Tensor) -> Attempt:
        """What came of it: every prompt's last words and picture, `images` being its targets."""
        words, every = trace.notes["words"], list(range(self.n))
        # all anew and in one go: what was drawn before an interruption is no longer there
        answers = self._draw(every, words, "pictures of the found prompts")
        says = [(step, [bool(s) for s in row]) for step, row in trace.notes["curve"]]
        return Attempt(
            curve=tuple(CurvePoint(step, step, rate(row), tuple(row)) for step, row in says),
            prompts=tuple(self._text(i, words[str(i)]) for i in every),
            images=images.cpu(),
            asked=tuple(self.prompts),
            answers=answers,
            queries=trace.notes["queries"],
            evaluations=trace.step,
        )

    def _draw(self, places: list[int], words: Mapping[str, list[int]], label: str) -> Tensor:
        """Pictures of prompts under the words that were found for them, if any."""
        prompts = [self.prompts[i] for i in places]
        parts = [self._asked(i, words[str(i)]) for i in places]
        cond = sum(parts[1:], parts[0])
        return self.model.generate(prompts, self.context, label, cond)

    def _asked(self, i: int, words: list[int]) -> Conditioning:
        if not words:
            return self.model.embed([self.prompts[i].text])
        ids, slots = self.room
        return embed_hard(self.model, ids[i, None], slots[i, None], torch.tensor([words]))

    def _text(self, i: int, words: list[int]) -> str:
        """The prompt as one would write it."""
        ids = _ids(self._asked(i, words))[0]
        return self.model.text.decode(ids)


def _ids(cond: Conditioning) -> Tensor:
    assert cond.ids is not None  # all that is asked here is words
    return cond.ids


def plain(concept: Concept, n: int) -> list[Prompt]:
    """The prompts that a recovery which changes what is asked puts its own in place of."""
    return concept.prompts(n, seed=SEED)
