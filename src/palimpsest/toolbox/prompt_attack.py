"""Attacks on prompts: words sought for each of them until the judge says the concept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import TYPE_CHECKING, ClassVar

import torch

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import Settings
from palimpsest.core.prompts import Prompt
from palimpsest.core.streams import generator
from palimpsest.methods import Context, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.asking import answered, in_words
from palimpsest.toolbox.gradients import along, gradient
from palimpsest.toolbox.optimise import Loss, Recipe, Trace, optimise
from palimpsest.toolbox.relearning_curve import own_prompts, point, recognised
from palimpsest.toolbox.soft_tokens import refuse_overlong

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PromptAttack(Settings):
    """Settings of a recovery that seeks words for prompts that ask for the concept."""

    tokens: int = 16
    """Words that are sought for a prompt."""
    prompts: int = 48
    """Prompts attacked, each with a seed of its own."""
    least: ClassVar = dict(tokens=1, prompts=1)

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse more words than the window holds."""
        refuse_overlong(model, [""], self.tokens)

    def targets(
        self, model: Diffusion, concept: Concept, context: Context
    ) -> tuple[list[str], Tensor]:
        """Return the plain prompts, and the pictures of the unedited model for them."""
        prompts = own_prompts(concept, self.prompts)
        images = model.generate(prompts, context, "target pictures")
        return [prompt.text for prompt in prompts], images


@dataclass
class Trials:
    """Attacks on n prompts side by side, each as if it were alone.

    A prompt is attacked until the judge says the concept of the picture that the found words give.
    A prompt that gives such a picture by its own words is not attacked. Without a judge every
    prompt is attacked to the last step.
    """

    model: Diffusion
    """The model under attack."""
    concept: Concept
    context: Context
    """Its judge decides when an attack has succeeded."""
    recipe: Recipe
    """How the words are optimised."""
    every: int
    """Steps after which the found words are judged; after the last step they are in any case."""
    words: Tensor
    """(n, …) what is optimised."""
    found: Callable[[], Tensor]
    """Returns the (n, k) token ids of the words found so far."""
    template: tuple[Tensor, Tensor]
    """(n, window) token ids, and (n, window) true where the found words are put."""

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The plain prompts."""
        return own_prompts(self.concept, len(self.words))

    @cached_property
    def succeeded(self) -> Tensor:
        """(n,) 1 where an attack has succeeded.

        It is among the optimised tensors so that a checkpoint keeps it; no gradient moves it.
        """
        return torch.zeros(len(self.words))

    def run(self, loss: Loss, images: Tensor) -> Result:
        """Minimise `loss` over the words and return what was found.

        Args:
            loss: the loss of a step, made with `loss` of this class.
            images: (n, 3, height, width) target pictures, for the record.
        """
        trained = {"words": self.words, "succeeded": self.succeeded}
        trace = optimise(
            loss, trained, self.recipe, context=self.context, label="attacking", watch=self.watch
        )
        return self._result(trace, images)

    # --- the loss ---

    def loss(
        self, error: Callable[[Tensor, list[torch.Generator]], Tensor], g: torch.Generator
    ) -> Tensor:
        """Return the sum of the losses of the prompts still under attack, computed in batches.

        Args:
            error: (positions of prompts, a generator for each) → their losses.
            g: the step's generator; each prompt gets one of its own from it.
        """
        seeds = torch.randint(2**62, (len(self.words),), generator=g).tolist()
        total, value = torch.zeros_like(self.words), torch.zeros((), device=self.model.device)
        for i in self._remaining.split(self.model.sampling.batch):
            own = [generator(seeds[k]) for k in i.tolist()]
            part = error(i.to(self.model.device), own).sum()
            total += gradient(part, {"words": self.words})["words"]
            value = value + part.detach()
        return along(value, {"words": self.words}, {"words": total})

    @property
    def _remaining(self) -> Tensor:
        return (self.succeeded == 0).nonzero().flatten()

    # --- the judge ---

    def watch(self, trace: Trace) -> bool:
        """Judge the found words, if it is time, and return whether all attacks have succeeded."""
        if trace.step % self.every == 0 or trace.step == self.recipe.steps:
            remaining, notes = self._remaining.tolist(), trace.notes
            words = self.found()[remaining].tolist() if trace.step else [[]] * len(remaining)
            notes.setdefault("words", {}).update(zip(map(str, remaining), words, strict=True))
            if self.context.judge is None:
                return False
            images = self._draw(remaining, notes["words"], f"pictures at step {trace.step}")
            says = recognised(images, self.concept, self.context)
            self.succeeded[remaining] = torch.tensor(says).to(self.succeeded)
            notes["queries"] = notes.get("queries", 0) + len(remaining)
            row = [trace.step, [int(s) for s in self.succeeded.tolist()]]
            notes.setdefault("curve", []).append(row)
        return bool(self.succeeded.all())

    def _result(self, trace: Trace, images: Tensor) -> Result:
        """Return the last words of every prompt and the picture that they give."""
        words = trace.notes["words"]
        ids = torch.cat([self._ids(i, words[str(i)]) for i in range(len(self.words))])
        asking = in_words(self.model, self.prompts, ids)
        # all are drawn again, together: pictures from before an interruption are lost
        answers = answered(self.model, asking, self.context, "pictures of the found prompts")
        return Result(
            curve=tuple(
                point(step, step, says, [p.cluster for p in self.prompts])
                for step, says in trace.notes.get("curve", ())
            ),
            prompts=asking.texts,
            images=images.cpu(),
            asked=tuple(self.prompts),
            answers=answers,
            asking=asking,
            queries=trace.notes.get("queries", 0),
            evaluations=trace.step,
        )

    def _draw(self, which: list[int], words: Mapping[str, list[int]], label: str) -> Tensor:
        """Return pictures of prompts with the words that were found for them, if any."""
        prompts = [self.prompts[i] for i in which]
        each = (self.model.embed_ids(self._ids(i, words[str(i)])) for i in which)
        return self.model.generate(prompts, self.context, label, reduce(add, each))

    def _ids(self, i: int, words: list[int]) -> Tensor:
        """Return (1, window) token ids of a prompt with the words found for it, or its own."""
        if not words:
            return self.model.text.ids([self.prompts[i].text]).to(self.model.device)
        ids, slots = (each[i, None] for each in self.template)
        return ids.masked_scatter(slots, torch.tensor([words]).to(ids))
