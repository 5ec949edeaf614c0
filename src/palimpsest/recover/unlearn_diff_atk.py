"""UnlearnDiffAtk: a few words in front of the prompt, found by the erased model's own error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.methods import Attempt, Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.toolbox.optimise import Recipe, optimise
from palimpsest.toolbox.prompt_attack import Trials, plain
from palimpsest.toolbox.soft_tokens import embed_soft, prefixed_ids, refuse_overlong, vocabulary


@dataclass(frozen=True)
class UnlearnDiffAtk:
    """Find words that, in front of the prompt, make the erased model denoise the concept again.

    Zhang et al., "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To
    Generate Unsafe Images ... For Now", ECCV 2024, arXiv:2310.11868. The erased model serves as its
    own classifier: with z₀ a picture of the concept, the words δ minimise ‖ε − ε(z_t, [δ; c])‖²
    (eq. 6). A prompt counts as won where it already draws the concept (pre) or does so behind the
    words (post).
    """

    tokens: int = 3
    """Words in front of the prompt (published: 3 for objects and styles, 5 for unsafe content)."""
    iterations: int = 40
    """Steps at each timestep; then what was found is tried out."""
    timesteps: tuple[int, ...] = tuple(range(10, 1000, 20))
    """Noise levels of the picture, attacked one after the other."""
    lr: float = 1e-2
    """Adam's learning rate."""
    weight_decay: float = 0.1
    """Adam's weight decay."""
    relaxation: Literal["sampled", "mixed"] = "sampled"
    """What stands in front while the gradient is taken: words drawn by their weights, the gradient
    passed straight through (the authors' code), or the weighted mean of all words."""
    measure_pictures: int = 48
    """Prompts attacked, each with a seed of its own."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "unsafe": {"tokens": 5},
        "world": {
            "iterations": 60,
            "timesteps": (300, 500, 700, 900),
            "measure_pictures": 36,
        },
    }
    bibtex: ClassVar[str] = """@inproceedings{zhang2024generate,
  title={To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate
         Unsafe Images ... For Now},
  author={Zhang, Yimeng and Jia, Jinghan and Chen, Xin and Chen, Aochuan and Zhang, Yihua
          and Liu, Jiancheng and Ding, Ke and Liu, Sijia},
  booktitle={European Conference on Computer Vision},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, tokens=1, iterations=1, lr=0, weight_decay=0, measure_pictures=1)
        if not self.timesteps or min(self.timesteps) < 0:
            raise PalimpsestError("UnlearnDiffAtk: timesteps must name at least one, from 0 up")

    @property
    def steps(self) -> int:
        """Gradient steps that a prompt which holds is attacked with."""
        return self.iterations * len(self.timesteps)

    def __call__(
        self, model: Diffusion, concept: Concept, erased: Patch | None, *, context: Context
    ) -> Attempt:
        """Attack the concept's prompts on `model` as edited by `erased`.

        Raises:
            PalimpsestError: no judge, a timestep that the model has not, or a prompt that leaves
                too little room for the words.
        """
        context.needs_judge()
        prompts = plain(concept, self.measure_pictures)
        texts = [prompt.text for prompt in prompts]
        refuse_overlong(model, texts, self.tokens)
        if max(self.timesteps) >= model.schedule.levels:
            raise PalimpsestError(
                f"UnlearnDiffAtk: the model has timesteps 0 to {model.schedule.levels - 1}, not "
                f"{max(self.timesteps)}"
            )
        images = model.generate(prompts, context, "target pictures")
        z_0 = model.encode(images)
        with model.patched(erased):
            return self._attack(model, concept, z_0, images, context)

    def evaluations(self) -> tuple[int, int]:
        """Latents through the U-Net without gradient (all drawing aside) and with it, at most."""
        return 0, self.steps * self.measure_pictures

    def _attack(
        self, model: Diffusion, concept: Concept, z_0: Tensor, images: Tensor, context: Context
    ) -> Attempt:
        texts = [prompt.text for prompt in plain(concept, len(z_0))]
        ids, slots = prefixed_ids(model, texts, self.tokens)
        words = vocabulary(model)
        E = model.token_vectors()[words].float()
        u = torch.full((len(z_0), self.tokens, len(words)), 1 / len(words), device=model.device)
        u.requires_grad_()
        trials = Trials(
            model,
            concept,
            context,
            n=len(z_0),
            every=self.iterations,
            steps=self.steps,
            room=(ids, slots),
            found=lambda: words[u.argmax(-1)],
        )

        def loss(g: torch.Generator, step: int) -> Tensor:
            u.data = onto_simplex(u.data)  # belongs to the step before; a resumed run does it, too
            t = torch.tensor(self.timesteps[step // self.iterations], device=model.device)

            def error(i: Tensor, own: list[torch.Generator]) -> Tensor:
                noise = torch.cat([model.noise(1, g) for g in own])
                p = torch.stack([self._relaxed(u[k], g) for k, g in zip(i, own, strict=True)])
                cond = embed_soft(model, ids[i], slots[i], (p @ E).flatten(0, 1))
                z_t = model.add_noise(z_0[i], noise, t)
                return (model.eps(z_t, t, cond) - noise).square().mean((1, 2, 3))  # eq. 6

            return trials.loss(error, {"words": u}, g)

        recipe = Recipe(steps=self.steps, lr=self.lr, weight_decay=self.weight_decay)
        trained = {"words": u, "closed": trials.closed}
        trace = optimise(
            loss, trained, recipe, context=context, label="attacking", watch=trials.watch
        )
        return trials.attempt(trace, images)

    def _relaxed(self, u: Tensor, g: torch.Generator) -> Tensor:
        """(k, words) weights of the words that stand in front; their gradient is that of `u`."""
        if self.relaxation == "mixed":
            return u
        drawn = torch.multinomial(u.detach().cpu(), 1, generator=g).flatten().to(u.device)
        return one_hot(drawn, u.shape[-1]).to(u) + u - u.detach()


def onto_simplex(v: Tensor) -> Tensor:
    """The nearest point of the probability simplex, row by row (Duchi et al. 2008, fig. 1)."""
    high = v.sort(dim=-1, descending=True).values
    excess = high.cumsum(-1) - 1
    rank = torch.arange(1, v.shape[-1] + 1, device=v.device)
    last = (high * rank > excess).sum(-1, keepdim=True)
    return (v - excess.gather(-1, last - 1) / last).clamp(min=0)
