"""Ring-A-Bell: prompts found with the text encoder alone, before any model is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.prompts import Prompt
from palimpsest.core.streams import generator
from palimpsest.methods import Context, Recovery, Result
from palimpsest.metrics.rates import rate
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.patch import Patch
from palimpsest.toolbox.prompt_attack import plain
from palimpsest.toolbox.soft_tokens import embed_hard, prefixed_ids, refuse_overlong, vocabulary


@dataclass(frozen=True)
class RingABell(Recovery):
    """Breed odd words whose text embedding is that of the prompt and much more of the concept.

    Tsai et al., "Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?", ICLR
    2024, arXiv:2310.10012. With E the unedited text encoder and ĉ the mean of E(p⁺) − E(p⁻) over
    pairs of prompts with and without the concept, a genetic search minimises
    ‖E(words) − (E(p) + η·ĉ)‖² (eq. 4). The model under attack is not asked.
    """

    tokens: int = 16
    """Words of a prompt, K; nothing else stands in it."""
    eta: float = 3.0
    """Strength of the concept, η."""
    generations: int = 3000
    """Rounds of the search."""
    population: int = 200
    """Prompts in the first round; the better half of each lives on."""
    crossover: float = 0.5
    """How likely a survivor is to have two children with another one."""
    mutation: float = 0.25
    """How likely one word of a prompt is to change."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of prompts with and without the concept. When left out: the sentences that ask for it,
    and the same with its name left out."""
    measure: bool = True
    """Judge the plain prompts and those found; without it no judge is needed."""
    measure_pictures: int = 48
    """Prompts attacked, each with a seed of its own; equal texts share one search."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "violence": {"tokens": 75, "eta": 5.5},
        "world": {
            "tokens": 8,
            "generations": 200,
            "population": 100,
            "measure_pictures": 36,
        },
    }
    bibtex: ClassVar[str] = """@inproceedings{tsai2024ringabell,
  title={Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?},
  author={Tsai, Yu-Lin and Hsu, Chia-Yi and Xie, Chulin and Lin, Chih-Hsun and Chen, Jia-You
          and Li, Bo and Chen, Pin-Yu and Yu, Chia-Mu and Huang, Chun-Ying},
  booktitle={International Conference on Learning Representations},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, tokens=1, eta=0, generations=1, population=2, measure_pictures=1)
        at_least(self, crossover=0, mutation=0)
        for name in ("crossover", "mutation"):
            if getattr(self, name) > 1:
                raise PalimpsestError(
                    f"RingABell: {name} is {getattr(self, name)}; a probability is 0 to 1"
                )

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Seek prompts of the concept, then ask `model` as edited by `erased` for them.

        Raises:
            PalimpsestError: more words than the window holds.
        """
        if self.measure:
            context.needs_judge()
        refuse_overlong(model, [""], self.tokens)
        prompts = plain(concept, self.measure_pictures)
        texts = list(dict.fromkeys(prompt.text for prompt in prompts))
        targets = model.rows(texts).float() + self.eta * self.direction(model, concept)
        with context.progress.task("breeding prompts", self.generations * len(texts)) as task:
            bred = []
            for i, target in enumerate(targets):
                g = generator(context.seed, i)
                bred.append(self._bred(model, target, g, task.advance))
        words = torch.stack([bred[texts.index(prompt.text)] for prompt in prompts])
        ids, slots = prefixed_ids(model, [""] * len(prompts), self.tokens)
        with model.patched(erased):
            cond = embed_hard(model, ids, slots, words)
            assert cond.ids is not None
            answers = model.generate(prompts, context, "pictures of the found prompts", cond)
            curve = self._curve(model, concept, prompts, answers, context) if self.measure else ()
        found = [model.text.decode(row) for row in cond.ids]
        return Result(curve=curve, prompts=tuple(found), asked=tuple(prompts), answers=answers)

    def evaluations(self) -> tuple[int, int]:
        """None but for the pictures in the end: the U-Net takes no part in the search."""
        return 0, 0

    # --- the search ---

    def direction(self, model: Diffusion, concept: Concept) -> Tensor:
        """ĉ, (window, width): what the concept adds to a prompt's embedding (eq. 2)."""
        pairs = self.pairs or tuple(
            (text, " ".join("".join(text.rsplit(name, 1)).split()))
            for text, name, _, _ in concept.wordings
        )
        plus, minus = (model.rows(side).float() for side in zip(*pairs, strict=True))
        return (plus - minus).mean(0)

    def _bred(
        self, model: Diffusion, target: Tensor, g: torch.Generator, tell: Callable[[], None]
    ) -> Tensor:
        """(tokens,) the words nearest to the target that the search ever saw."""
        vocab = vocabulary(model).cpu()
        crowd = vocab[torch.randint(len(vocab), (self.population, self.tokens), generator=g)]
        best, least = crowd[0], float("inf")
        for _ in range(self.generations):
            far = self.distance(model, crowd, target)
            order = far.argsort()
            if float(far[order[0]]) < least:
                best, least = crowd[order[0]], float(far[order[0]])
            crowd = self._offspring(crowd[order[: self.population // 2]], vocab, g)
            tell()
        return best

    def distance(self, model: Diffusion, crowd: Tensor, target: Tensor) -> Tensor:
        """(n,) ‖E(words) − target‖² of n prompts, on the CPU."""
        ids, slots = prefixed_ids(model, [""], self.tokens)
        parts = []
        for words in crowd.split(64):
            n = len(words)
            cond: Conditioning = embed_hard(model, ids.expand(n, -1), slots.expand(n, -1), words)
            rows = cond.rows(model.sites.sequence).float()
            parts.append((rows - target).square().sum((1, 2)))  # eq. 4
        return torch.cat(parts).cpu()

    def _offspring(self, parents: Tensor, vocab: Tensor, g: torch.Generator) -> Tensor:
        """The parents and their children, some of all of them with one word changed."""
        n, length = parents.shape
        mothers = parents[torch.rand(n, generator=g) < self.crossover]
        fathers = parents[torch.randint(n, (len(mothers),), generator=g)]
        cut = torch.randint(1, length + 1, (len(mothers), 1), generator=g)
        first = torch.arange(length) < cut
        crowd = torch.cat(
            [parents, torch.where(first, mothers, fathers), torch.where(first, fathers, mothers)]
        )
        changed = (torch.rand(len(crowd), generator=g) < self.mutation).nonzero().flatten()
        where = torch.randint(length, (len(changed),), generator=g)
        crowd[changed, where] = vocab[torch.randint(len(vocab), (len(changed),), generator=g)]
        return crowd

    # --- the judge ---

    def _curve(
        self,
        model: Diffusion,
        concept: Concept,
        prompts: list[Prompt],
        answers: Tensor,
        context: Context,
    ) -> tuple[CurvePoint, ...]:
        """Before and after: no gradient was taken in between."""
        before = model.generate(prompts, context, "pictures of the plain prompts")
        points = []
        for step, images in ((0, before), (self.generations, answers)):
            says = context.needs_judge().read(images).says(concept.kind, concept.name)
            points.append(CurvePoint(step, 0, rate(says), tuple(says)))
        return tuple(points)
