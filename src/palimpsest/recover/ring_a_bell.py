"""Ring-A-Bell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.methods import Context, Recovery, Result
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.toolbox.asking import answered, in_words
from palimpsest.toolbox.prompt_attack import PromptAttack
from palimpsest.toolbox.relearning_curve import judged, own_prompts
from palimpsest.toolbox.soft_tokens import embed_hard, prefixed_ids, vocabulary

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RingABell(PromptAttack, Recovery):
    """Search words whose text embedding is the prompt's with more of the concept added.

    Tsai et al., "Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?", ICLR
    2024, arXiv:2310.10012. With E the unedited text encoder and ĉ the mean of E(p⁺) − E(p⁻) over
    pairs of prompts with and without the concept, a genetic search over prompts of K words and
    nothing else minimises ‖E(words) − (E(p) + η·ĉ)‖² (eq. 4). The model under attack is not asked.

    Traps: an erasure of the text encoder is attacked with prompts for the unedited one. Equal texts
    share one search, so their pictures differ by seed alone. The best prompt ever seen is kept; the
    authors take the best of the last round.
    """

    eta: float = 3.0
    """Strength of the concept, η."""
    generations: int = 3000
    """Rounds of the search."""
    population: int = 200
    """Prompts in the first round; the better half of each round survives."""
    crossover: float = 0.5
    """Probability that a survivor has two children with another one."""
    mutation: float = 0.25
    """Probability that one word of a prompt changes."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of prompts with and without the concept. When left out: the sentences that ask for it,
    and the same with its name left out."""
    measure: bool = True
    """Let the judge, if there is one, see pictures of the plain prompts and of the found ones."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "violence": {"tokens": 75, "eta": 5.5},
        "world": {"tokens": 8, "generations": 200, "population": 100, "prompts": 36},
    }
    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "a CLIP text encoder", "text inputs"})
    bibtex: ClassVar[str] = cite("tsai2024ringabell")
    least: ClassVar = dict(eta=0, generations=1, population=2, crossover=0, mutation=0)
    most: ClassVar = dict(crossover=1, mutation=1)

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Search prompts of the concept, then ask `model` as edited by `erased` for them."""
        prompts = own_prompts(concept, self.prompts)
        texts = [prompt.text for prompt in prompts]
        found = self._found(model, concept, texts, context)
        ids, slots = prefixed_ids(model, [""] * len(prompts), self.tokens)
        with model.patched(erased):
            words = torch.stack([found[text] for text in texts])
            asking = in_words(model, prompts, ids.masked_scatter(slots, words.to(ids)))
            answers = answered(model, asking, context, "pictures of the found prompts")
            label = "pictures of the plain prompts"
            measured = self.measure and context.judge is not None
            before = model.generate(prompts, context, label) if measured else None
        curve: tuple[CurvePoint, ...] = ()
        if before is not None:  # two points; no gradient is taken in between
            curve = judged(0, before, concept, context)
            curve += judged(self.generations, answers, concept, context)
        asked = asking.asked
        return Result(
            curve=curve, prompts=asking.texts, asked=asked, answers=answers, asking=asking
        )

    # --- the search ---

    def direction(self, model: Diffusion, concept: Concept) -> Tensor:
        """Return ĉ, (window, width): what the concept adds to a prompt's embedding."""
        pairs = self.pairs or tuple(
            (text, " ".join("".join(text.rsplit(name, 1)).split()))
            for text, name, _, _ in concept.wordings
        )
        plus, minus = (model.rows(side).float() for side in zip(*pairs, strict=True))
        return (plus - minus).mean(0)  # eq. 2

    def _found(
        self, model: Diffusion, concept: Concept, texts: list[str], context: Context
    ) -> dict[str, Tensor]:
        """Return (tokens,) words for each distinct text."""
        distinct = list(dict.fromkeys(texts))
        targets = model.rows(distinct).float() + self.eta * self.direction(model, concept)
        with context.progress.task("searching prompts", self.generations * len(targets)) as task:
            return {
                text: self._searched(model, target, context.stream("population", i), task.advance)
                for i, (text, target) in enumerate(zip(distinct, targets, strict=True))
            }

    def _searched(
        self, model: Diffusion, target: Tensor, g: torch.Generator, advance: Callable[[], None]
    ) -> Tensor:
        """Return the (tokens,) words nearest to the target of all that the search saw."""
        vocab = vocabulary(model).cpu()
        shape = (self.population, self.tokens)
        candidates = vocab[torch.randint(len(vocab), shape, generator=g)]
        best, least = candidates[0], float("inf")
        for _ in range(self.generations):
            loss = self.distance(model, candidates, target)
            order = loss.argsort()
            if float(loss[order[0]]) < least:
                best, least = candidates[order[0]], float(loss[order[0]])
            survivors = candidates[order[: self.population // 2]]  # selection
            candidates = self._offspring(survivors, vocab, g)
            advance()
        return best

    def distance(self, model: Diffusion, candidates: Tensor, target: Tensor) -> Tensor:
        """Return (n,) ‖E(words) − target‖² of (n, tokens) words, on the CPU."""
        ids, slots = prefixed_ids(model, [""], self.tokens)
        parts = []
        for words in candidates.split(64):
            n = len(words)
            cond = embed_hard(model, ids.expand(n, -1), slots.expand(n, -1), words)
            rows = cond.rows(model.sites.sequence).float()
            parts.append((rows - target).square().sum((1, 2)))  # eq. 4
        return torch.cat(parts).cpu()

    def _offspring(self, parents: Tensor, vocab: Tensor, g: torch.Generator) -> Tensor:
        """Return the parents and their children, some of both with one word changed."""
        n, length = parents.shape
        mothers = parents[torch.rand(n, generator=g) < self.crossover]
        fathers = parents[torch.randint(n, (len(mothers),), generator=g)]
        cut = torch.randint(1, length + 1, (len(mothers), 1), generator=g)
        first = torch.arange(length) < cut
        children = torch.where(first, mothers, fathers), torch.where(first, fathers, mothers)
        every = torch.cat([parents, *children])  # crossover
        changed = (torch.rand(len(every), generator=g) < self.mutation).nonzero().flatten()
        where = torch.randint(length, (len(changed),), generator=g)
        every[changed, where] = vocab[torch.randint(len(vocab), (len(changed),), generator=g)]
        return every  # after mutation
