"""Prompting4Debugging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.core.demand import ENCODED, Demand
from palimpsest.methods import Context, Recovery, Result
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.toolbox.optimise import Recipe, Trained
from palimpsest.toolbox.prompt_attack import PromptAttack, Trials
from palimpsest.toolbox.soft_tokens import embed_soft, prefixed_ids, random_words, vocabulary

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class P4D(Trained, PromptAttack, Recovery):
    """Find a prompt under which the erased model predicts what the unedited one did.

    Chin et al., "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding
    Problematic Prompts", ICML 2024, arXiv:2309.06135, the variant P4D-N: a prompt of N words and
    nothing else. With c the target prompt, z_t its noised picture and proj(p) the words nearest to
    the vectors p, the vectors follow the gradient of ‖ε(z_t, proj(p)) − ε*(z_t, c)‖² at proj(p).

    Traps: the loss is on the conditional prediction, so it does not see guidance or a negative
    prompt. A prompt ends at the first picture of which the judge says the concept, and many tries
    find the judge's mistakes too: the same attack on gold is the control.
    """

    steps: int = 3000
    lr: float = 0.1
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    every: int = 50
    """Steps after which the words are judged."""
    rescaled: bool = False
    """Whether the target pictures are brought from [0, 1] to [−1, 1] for the autoencoder; the
    authors' code leaves that out, so that it encodes pictures of half the contrast."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {"tokens": 8, "steps": 120, "every": 40, "prompts": 36, "rescaled": True},
    }
    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "a CLIP text encoder"})
    bibtex: ClassVar[str] = cite("chin2024prompting4debugging")
    least: ClassVar = dict(weight_decay=0, every=1)

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Seek prompts of the concept for `model` as edited by `erased`.

        Raises:
            PalimpsestError: no judge.
        """
        texts, images = self.targets(model, concept, context)
        # the autoencoder sees 2x − 1
        z_0, c = model.encode(images if self.rescaled else (images + 1) / 2), model.embed(texts)
        with model.patched(erased):
            unedited, words = model.unedited(), vocabulary(model)
            E = model.token_vectors()[words].float()
            ids, slots = prefixed_ids(model, [""] * self.prompts, self.tokens)
            shape = (self.prompts, self.tokens)
            p = random_words(model, shape, context.stream("words")).requires_grad_()

            def error(i: Tensor, own: list[torch.Generator]) -> Tensor:
                t = torch.cat([model.times(1, g) for g in own])
                noise = torch.cat([model.noise(1, g) for g in own])
                z_t = model.add_noise(z_0[i], noise, t)
                with torch.no_grad():
                    target = unedited.eps(z_t, t, c[i])
                hard = p[i] + (E[nearest(p[i], E)] - p[i]).detach()  # proj(p), straight through
                cond = embed_soft(model, ids[i], slots[i], hard.flatten(0, 1))
                return (model.eps(z_t, t, cond) - target).square().mean((1, 2, 3))  # eq. 6

            trials = Trials(
                model,
                concept,
                context,
                Recipe(self.steps, self.lr, "adamw", weight_decay=self.weight_decay),
                every=self.every,
                words=p,
                found=lambda: words[nearest(p, E)],
                template=(ids, slots),
            )
            return trials.run(lambda g, step: trials.loss(error, g), images)

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        n = min(self.prompts, model.sampling.batch)
        return Demand(n, prompts=n, encoded=ENCODED)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations without and with gradient, at most; pictures aside."""
        return self.steps * self.prompts, self.steps * self.prompts


def nearest(p: Tensor, E: Tensor) -> Tensor:
    """Return, for each vector of p, the row of E with the highest cosine: proj(p)."""
    return (
        torch.nn.functional.normalize(p.detach(), dim=-1)
        @ torch.nn.functional.normalize(E, dim=-1).T
    ).argmax(-1)
