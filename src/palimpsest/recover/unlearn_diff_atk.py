"""UnlearnDiffAtk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.core.demand import ENCODED, Demand
from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Context, Recovery, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.toolbox.optimise import Recipe
from palimpsest.toolbox.prompt_attack import PromptAttack, Trials
from palimpsest.toolbox.relearning_curve import own_prompts
from palimpsest.toolbox.soft_tokens import embed_soft, prefixed_ids, refuse_overlong, vocabulary

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UnlearnDiffAtk(PromptAttack, Recovery):
    """Find words that, in front of the prompt, make the erased model denoise the concept again.

    Zhang et al., "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To
    Generate Unsafe Images ... For Now", ECCV 2024, arXiv:2310.11868. The erased model serves as its
    own classifier: with z₀ a picture of the concept, the words δ minimise ‖ε − ε(z_t, [δ; c])‖²
    (eq. 6). An attack succeeds where the prompt already draws the concept (pre) or does so behind
    the words (post).

    Traps: begin, end and padding tokens are not among the words; the authors' code lets them in.
    The loss does not see a negative prompt. Found token ids, written out and read again, may be
    split otherwise. Many tries find the judge's mistakes too: gold is the control.
    """

    tokens: int = 3
    """Words in front of the prompt (published: 3 for objects and styles, 5 for unsafe content)."""
    iterations: int = 40
    """Optimisation steps at each timestep, after which the words are judged."""
    timesteps: tuple[int, ...] = tuple(range(10, 1000, 20))
    """Times that the picture is noised to, one after the other."""
    lr: float = 1e-2
    """Adam's learning rate for the words' weights."""
    weight_decay: float = 0.1
    """Adam's weight decay."""
    relaxation: Literal["sampled", "mixed"] = "sampled"
    """What is put in front while the gradient is taken: words drawn by their weights, with the
    gradient passed straight through (the authors' code), or the weighted mean of all words."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "unsafe": {"tokens": 5},
        "world": {"iterations": 60, "timesteps": (300, 500, 700, 900), "prompts": 36},
    }
    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "a CLIP text encoder"})
    bibtex: ClassVar[str] = cite("zhang2024generate")
    least: ClassVar = dict(iterations=1, lr=0, weight_decay=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.timesteps or min(self.timesteps) < 0:
            raise PalimpsestError("UnlearnDiffAtk: timesteps must name at least one, from 0 up")

    @property
    def steps(self) -> int:
        """Optimisation steps of an attack that does not succeed."""
        return self.iterations * len(self.timesteps)

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse prompts that the words do not fit into, and timesteps that the model lacks."""
        texts = [prompt.text for prompt in own_prompts(task.concept, self.prompts)]
        refuse_overlong(model, texts, self.tokens)
        if max(self.timesteps) >= model.schedule.levels:
            raise PalimpsestError(
                f"UnlearnDiffAtk: the model has timesteps 0 to {model.schedule.levels - 1}, not "
                f"{max(self.timesteps)}"
            )

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Attack the concept's prompts on `model` as edited by `erased`.

        Raises:
            PalimpsestError: no judge.
        """
        texts, images = self.targets(model, concept, context)
        z_0 = model.encode(images)
        with model.patched(erased):
            words = vocabulary(model)
            E = model.token_vectors()[words].float()
            ids, slots = prefixed_ids(model, texts, self.tokens)
            shape = (self.prompts, self.tokens, len(words))
            u = torch.full(shape, 1 / len(words), device=model.device).requires_grad_()
            trials = Trials(
                model,
                concept,
                context,
                Recipe(self.steps, self.lr, weight_decay=self.weight_decay),
                every=self.iterations,
                words=u,
                found=lambda: words[u.argmax(-1)],
                template=(ids, slots),
            )

            def loss(g: torch.Generator, step: int) -> Tensor:
                u.data = onto_simplex(u.data)  # of the step before: a resumed run does it too
                t = torch.tensor(self.timesteps[step // self.iterations], device=model.device)

                def error(i: Tensor, own: list[torch.Generator]) -> Tensor:
                    noise = torch.cat([model.noise(1, g) for g in own])
                    p = torch.stack([self._relaxed(u[k], g) for k, g in zip(i, own, strict=True)])
                    cond = embed_soft(model, ids[i], slots[i], (p @ E).flatten(0, 1))
                    z_t = model.add_noise(z_0[i], noise, t)
                    return (model.eps(z_t, t, cond) - noise).square().mean((1, 2, 3))  # eq. 6

                return trials.loss(error, g)

            return trials.run(loss, images)

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        n = min(self.prompts, model.sampling.batch)
        return Demand(n, prompts=n, encoded=ENCODED)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations without and with gradient, at most; pictures aside."""
        return 0, self.steps * self.prompts

    def within(self, budget: int) -> Self:
        """Return it with as many iterations at each timestep as a prompt's budget pays for.

        Timesteps are left out, evenly, where the budget does not pay for one iteration at each or
        more of it is spent so.
        """
        whole = len(self.timesteps)
        most = min(whole, max(1, budget))
        n = max(range(-(-most // 2), most + 1), key=lambda n: (n * (budget // n), n))
        times = tuple(self.timesteps[i * whole // n] for i in range(n))
        return self.changed({"timesteps": times, "iterations": max(1, budget // n)})

    def _relaxed(self, u: Tensor, g: torch.Generator) -> Tensor:
        """Return (k, words) weights of the words put in front; their gradient is that of `u`."""
        if self.relaxation == "mixed":
            return u
        drawn = torch.multinomial(u.detach().cpu(), 1, generator=g).flatten().to(u.device)
        return (
            torch.nn.functional.one_hot(drawn, u.shape[-1]).to(u) + u - u.detach()
        )  # straight through: their code


def onto_simplex(v: Tensor) -> Tensor:
    """Return the nearest point of the probability simplex, by row (Duchi et al. 2008, fig. 1)."""
    high = v.sort(dim=-1, descending=True).values
    excess = high.cumsum(-1) - 1
    rank = torch.arange(1, v.shape[-1] + 1, device=v.device)
    last = (high * rank > excess).sum(-1, keepdim=True)
    return (v - excess.gather(-1, last - 1) / last).clamp(min=0)
