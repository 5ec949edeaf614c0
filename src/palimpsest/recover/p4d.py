"""P4D: a prompt of odd words to which the erased model answers as it once answered the concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import at_least
from palimpsest.core.streams import generator
from palimpsest.methods import Attempt, Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.toolbox.optimise import Recipe, optimise
from palimpsest.toolbox.prompt_attack import Trials, plain
from palimpsest.toolbox.soft_tokens import (
    embed_soft,
    prefixed_ids,
    random_words,
    refuse_overlong,
    vocabulary,
)


@dataclass(frozen=True)
class P4D:
    """Find a prompt of words alone under which the erased model predicts what the unedited one did.

    Chin et al., "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding
    Problematic Prompts", ICML 2024, arXiv:2309.06135, the variant P4D-N. With c the target prompt,
    z_t its noised picture and proj(p) the words nearest to the vectors p, the vectors follow the
    gradient of ‖ε(z_t, proj(p)) − ε*(z_t, c)‖² as it is at the words.
    """

    tokens: int = 16
    """Words of the prompt, N; nothing else stands in it."""
    steps: int = 3000
    """Optimisation steps."""
    lr: float = 0.1
    """AdamW's learning rate."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    every: int = 50
    """Steps after which the words are tried out."""
    measure_pictures: int = 48
    """Prompts attacked, each with a seed of its own."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "world": {"tokens": 8, "steps": 120, "every": 40, "measure_pictures": 36},
    }
    bibtex: ClassVar[str] = """@inproceedings{chin2024prompting4debugging,
  title={Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic
         Prompts},
  author={Chin, Zhi-Yi and Jiang, Chieh-Ming and Huang, Ching-Chun and Chen, Pin-Yu
          and Chiu, Wei-Chen},
  booktitle={International Conference on Machine Learning},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, tokens=1, steps=1, lr=0, weight_decay=0, every=1, measure_pictures=1)

    def __call__(
        self, model: Diffusion, concept: Concept, erased: Patch | None, *, context: Context
    ) -> Attempt:
        """Seek prompts of the concept for `model` as edited by `erased`.

        Raises:
            PalimpsestError: no judge, or more words than the window holds.
        """
        context.needs_judge()
        refuse_overlong(model, [""], self.tokens)
        prompts = plain(concept, self.measure_pictures)
        images = model.generate(prompts, context, "target pictures")
        z_0, c = model.encode(images), model.embed([prompt.text for prompt in prompts])
        with model.patched(erased):
            n, unedited = len(prompts), model.unedited()
            room = prefixed_ids(model, [""] * n, self.tokens)
            start = random_words(model, (n, self.tokens), generator(context.seed, 1))
            p, words = start.requires_grad_(), vocabulary(model)
            E = model.token_vectors()[words].float()
            trials = Trials(
                model,
                concept,
                context,
                n=n,
                every=self.every,
                steps=self.steps,
                room=room,
                found=lambda: words[nearest(p, E)],
            )

            def error(i: Tensor, own: list[torch.Generator]) -> Tensor:
                t = torch.cat([model.times(1, g) for g in own])
                noise = torch.cat([model.noise(1, g) for g in own])
                z_t = model.add_noise(z_0[i], noise, t)
                with torch.no_grad():
                    target = unedited.eps(z_t, t, c[i])
                hard = p[i] + (E[nearest(p[i], E)] - p[i]).detach()  # straight through
                ids, slots = (part[i] for part in room)
                cond = embed_soft(model, ids, slots, hard.flatten(0, 1))
                return (model.eps(z_t, t, cond) - target).square().mean((1, 2, 3))  # eq. 6

            def loss(g: torch.Generator, step: int) -> Tensor:
                return trials.loss(error, {"words": p}, g)

            recipe = Recipe(
                steps=self.steps, lr=self.lr, optimizer="adamw", weight_decay=self.weight_decay
            )
            trained = {"words": p, "closed": trials.closed}
            trace = optimise(
                loss, trained, recipe, context=context, label="attacking", watch=trials.watch
            )
            return trials.attempt(trace, images)

    def evaluations(self) -> tuple[int, int]:
        """Latents through the U-Net without gradient (all drawing aside) and with it, at most."""
        return self.steps * self.measure_pictures, self.steps * self.measure_pictures


def nearest(p: Tensor, E: Tensor) -> Tensor:
    """For each vector, which row of E has the highest cosine with it."""
    return (normalize(p.detach(), dim=-1) @ normalize(E, dim=-1).T).argmax(-1)
