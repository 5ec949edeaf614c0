"""AdvUnlearn: erasure trained against an attacker."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept, says
from palimpsest.core.demand import Demand
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.lazily import no_grad
from palimpsest.core.prompts import COCO
from palimpsest.methods import Context, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.latents import Latents, both, noised, sampled_midway
from palimpsest.toolbox.optimise import Recipe, Trained, optimise
from palimpsest.toolbox.pictures import Drawn, read_latents
from palimpsest.toolbox.shifting import Shifting
from palimpsest.toolbox.soft_tokens import embed_prefixed, random_words

if TYPE_CHECKING:
    from torch import Tensor

Source: TypeAlias = "Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]"
"""(which prompts, generator) → noised latents of them and their times."""


@dataclass(frozen=True)
class AdvUnlearn(Trained, Shifting):
    """Train the text encoder to forget the concept even behind a word that calls it up again.

    Zhang et al., "Defensive Unlearning with Adversarial Training for Robust Concept Erasure in
    Diffusion Models", NeurIPS 2024, arXiv:2405.15234. The lower level seeks a prefix p* that makes
    the trained model answer [p; c] as the frozen one answers c; the upper level is ESD's loss under
    p*, and γ times the change of the answers to a retain set. Only the text encoder moves.

    Traps: gold models share the text encoder, so they are no control for this edit. A prefix takes
    a place of the window: a prompt that fills it loses its last word while it is attacked. Prompts
    that name the concept are left out of the retain set.
    """

    steps: int = 1000
    lr: float = 1e-5
    eta: float = 1.0
    """Strength of the negative guidance in the loss of ESD, η."""
    layers: int | None = None
    """Train the first so many blocks of the text encoder; None trains all of it but the table of
    token embeddings."""
    prefix: int = 1
    """Soft tokens that the attacker may set in front of the prompt."""
    attack_steps: int = 30
    """Steps of the attack, before every step of training; 0 trains without an attacker."""
    attack_lr: float = 1e-3
    """Step size of the attack."""
    attack: Literal["adam", "sign"] = "adam"
    """How the attack descends: by Adam, or by the gradient's sign (the fast variant)."""
    attack_gradients: Literal["summed", "fresh"] = "summed"
    """What a step of the attack takes: the `summed` gradients of all its steps so far, since the
    authors' loop never clears them, or its own (`fresh`)."""
    warmup: int = 200
    """Steps of training before the attacker joins."""
    retain: Literal["coco", "keep"] = "coco"
    """What is retained: photos of COCO's 80 classes, or what the concepts say to keep."""
    retain_scale: float = 0.3
    """Weight of the retain loss, γ."""
    retain_batch: int = 5
    """Latents of the retain set a step."""
    latents: Latents = Latents("frozen", steps=50, guidance=3.0, batch=1)
    """Where x_t comes from: sampled with the prompt by the `frozen` model, afresh for every step of
    training and of the attack; or `noised` pictures (not published), at least one for every prompt
    of the concept, and as many of the retain set. Each latent of the batch has its own attack."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "fast": {"attack": "sign"},
        "world": {
            "steps": 120,
            "lr": 1e-4,
            "attack_steps": 2,
            "attack_lr": 1e-2,
            "attack_gradients": "fresh",
            "warmup": 40,
            "retain": "keep",
            "retain_scale": 1.0,
            "retain_batch": 8,
            "latents": Latents("noised", steps=10, batch=4, pictures=32, wordings="sentences"),
        },
    }
    needs: ClassVar[frozenset[str]] = frozenset(
        {"diffusion", "an empty prompt", "a CLIP text encoder"}
    )
    bibtex: ClassVar[str] = cite("zhang2024defensive")
    least: ClassVar = dict(
        prefix=1, attack_steps=0, attack_lr=0, warmup=0, retain_scale=0, retain_batch=1, layers=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latents.source == "student":
            raise PalimpsestError(
                "AdvUnlearn: latents.source is 'student', which this method does not sample with; "
                "set it to 'frozen' or 'noised'"
            )

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Train the shift.

        Raises:
            PalimpsestError: nothing to retain, more layers than there are, or the edit changes
                nothing.
        """
        deltas = model.shifts("text", self._trained(model))
        student = model.student(deltas)
        forget = self._forget(model, student, self.latents.texts(task.concepts), context)
        retain = self._retain(model, student, self._retained(task.concepts), context)

        def loss(g: torch.Generator, step: int) -> Tensor:
            return forget(g, step) + self.retain_scale * retain(g)  # eq. 5

        optimise(loss, deltas, Recipe(self.steps, self.lr), context=context, label="erasing")
        return Result(model.make_patch(deltas))

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse layers that there are not, and concepts that leave nothing to retain."""
        self._trained(model)
        self._retained(task.concepts)

    def weights(self, model: Diffusion) -> dict[str, Tensor]:
        """Return the weights that are shifted: those of the text encoder that are trained."""
        trained = self._trained(model)
        return {name: p for name, p in model.parameters("text").items() if name in trained}

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        batch, kept = self.latents.batch, self.retain_batch if self.retain_scale else 0
        return Demand(batch + kept, plain=2 * max(batch, kept), prompts=batch + kept)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, without and with gradient."""
        attacks = max(0, self.steps - self.warmup) * self.attack_steps
        asked, attacked = self.steps * self.latents.batch, attacks * self.latents.batch
        drawn, kept = self.latents.evaluations(self.steps + attacks), 0
        if self.retain_scale:
            drawn += self._kept.evaluations(self.steps)
            kept = self.steps * self.retain_batch
        return drawn + 2 * asked + kept + attacked, asked + kept + attacked

    # --- the two terms of the loss ---

    def _forget(
        self, model: Diffusion, student: Diffusion, texts: list[str], context: Context
    ) -> Callable[[torch.Generator, int], Tensor]:
        """Return ESD's loss, under the attacker's prefix once the warm-up is over."""
        c, empty = model.embed(texts), model.empty()
        source = latents_of(model, c, self.latents, "pictures", context)

        def forget(g: torch.Generator, step: int) -> Tensor:
            who = torch.randint(len(texts), (self.latents.batch,), generator=g)
            prompts = [texts[i] for i in who.tolist()]
            if step >= self.warmup and self.attack_steps:
                answers = partial(answered, model, c, source, who, g)
                p = self._attacked(student.still(), prompts, answers, g)
                asked = embed_prefixed(student, prompts, p)
            else:
                asked = student.embed(prompts)
            x_t, t = source(who, g)
            with torch.no_grad():
                e_0, e_c = both(model, empty, x_t, t, c[who])
                target = e_0 - self.eta * (e_c - e_0)  # ESD's eq. 7
            # the denoiser is the frozen model's own: only what it is asked differs
            return (model.eps(x_t, t, asked) - target).square().mean()  # ESD's eq. 8

        return forget

    def _retain(
        self, model: Diffusion, student: Diffusion, texts: list[str], context: Context
    ) -> Callable[[torch.Generator], Tensor]:
        """Return how far the answers to the retain set have moved."""
        if not texts:
            return lambda g: torch.zeros((), device=model.device)
        if self.latents.source == "noised":  # as many prompts as there are pictures, of all sorts
            order = torch.randperm(len(texts), generator=context.stream("retained prompts"))
            texts = [texts[i] for i in order[: self.latents.pictures].tolist()]
        k = model.embed(texts)
        source = latents_of(model, k, self._kept, "retained pictures", context)

        def retain(g: torch.Generator) -> Tensor:
            who = torch.randint(len(texts), (self.retain_batch,), generator=g)
            x_t, t, before = answered(model, k, source, who, g)
            after = model.eps(x_t, t, student.embed([texts[i] for i in who.tolist()]))
            return (after - before).square().mean()  # eq. 5, second term

        return retain

    def _attacked(
        self,
        victim: Diffusion,
        prompts: Sequence[str],
        answers: Callable[[], tuple[Tensor, Tensor, Tensor]],
        g: torch.Generator,
    ) -> Tensor:
        """Return p* = argmin ‖ε(x_t, [p; c]) − ε*(x_t, c)‖², from random words: (n, k, width).

        Args:
            victim: the model under training, as it is now.
            prompts: n prompts c; each has a prefix of its own.
            answers: draws x_t and t afresh, and gives them with the frozen model's ε*(x_t, c).
            g: draws the words that the attack starts from.
        """
        p = random_words(victim, (len(prompts), self.prefix), g).requires_grad_()
        descent = torch.optim.Adam([p], lr=self.attack_lr)
        for _ in range(self.attack_steps):
            x_t, t, target = answers()
            error = victim.eps(x_t, t, embed_prefixed(victim, prompts, p)) - target
            # a sum, so that no prompt's prefix depends on how many there are
            (own,) = torch.autograd.grad(error.square().mean((1, 2, 3)).sum(), [p])  # eq. 2
            before = p.grad if self.attack_gradients == "summed" else None
            p.grad = own if before is None else before + own
            if self.attack == "sign":
                p.data -= self.attack_lr * p.grad.sign()  # the fast variant's step
            else:
                descent.step()
        return p.detach()

    # --- what they are computed on ---

    def _trained(self, model: Diffusion) -> set[str]:
        """Return the names of the text encoder's parameters that are trained."""
        own = set(model.sizes("text"))
        if self.layers is None:
            return own - set(model.text.tables)
        found = {name: re.search(r"\.layers\.(\d+)\.", name) for name in own}
        block = {name: int(number[1]) for name, number in found.items() if number}
        there = 1 + max(block.values(), default=-1)
        if self.layers > there:
            raise PalimpsestError(
                f"AdvUnlearn: layers is {self.layers}; the text encoder has {there}"
            )
        return {name for name, i in block.items() if i < self.layers}

    def _retained(self, concepts: Sequence[Concept]) -> list[str]:
        """Return the prompts of the retain set; those that name a concept are left out."""
        if not self.retain_scale:
            return []
        names = [name for c in concepts for name in c.names]
        photos = [f"a photo of {name}" for name in COCO]
        texts = photos if self.retain == "coco" else [t for c in concepts for t in c.keep]
        kept = [t for t in dict.fromkeys(texts) if not says(t, *names)]
        if not kept:
            raise PalimpsestError(
                "AdvUnlearn: the concepts name nothing to keep; give them neighbours to keep, "
                "retain COCO's classes (retain: coco), or set retain_scale to 0"
            )
        return kept

    @property
    def _kept(self) -> Latents:
        """Where the retain set's x_t comes from; a folder shows the concept alone."""
        return replace(self.latents, batch=self.retain_batch, folder=None)


@no_grad
def answered(
    model: Diffusion, cond: Conditioning, source: Source, who: Tensor, g: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_t and t of chosen prompts, and the frozen model's ε*(x_t, c)."""
    x_t, t = source(who, g)
    return x_t, t, model.eps(x_t, t, cond[who])


def latents_of(
    model: Diffusion, cond: Conditioning, settings: Latents, pictures: str, context: Context
) -> Source:
    """Return what noises latents of chosen prompts: sampled with them, or pictures of them.

    Args:
        model: the frozen model.
        cond: the prompts.
        settings: where the latents come from, `frozen` or `noised`.
        pictures: for `noised`, the name of the random stream that they are drawn from.
        context: seed and progress.
    """
    steps, guidance, prompts = settings.steps, settings.guidance, len(cond)
    if settings.source == "frozen":
        return lambda who, g: sampled_midway(model, cond[who], g, steps, guidance)
    if settings.folder is None:
        rounds = max(1, settings.pictures // prompts)
        drawn, g = Drawn(rounds * prompts, steps, guidance), context.stream(pictures)
        x_0 = drawn.draw(model, cond, g, context, pictures)[0].unflatten(0, (rounds, prompts))
    else:  # every picture goes with every prompt
        x_0 = read_latents(model, settings.folder, None, mirror=False).x_0[:, None]
        x_0 = x_0.expand(-1, prompts, -1, -1, -1)

    def from_pictures(who: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        which = torch.randint(len(x_0), (len(who),), generator=g)
        return noised(model, x_0[which, who], g)[:2]

    return from_pictures
