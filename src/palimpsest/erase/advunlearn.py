"""AdvUnlearn: erasure trained against an attacker."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept, says
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.prompts import COCO
from palimpsest.core.streams import generator
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.latents import noised, sampled_midway
from palimpsest.toolbox.optimise import Recipe, optimise
from palimpsest.toolbox.pictures import draw
from palimpsest.toolbox.soft_tokens import embed_prefixed, random_words

Source = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""(which prompts, generator) → noised latents of them and their timesteps."""


@dataclass(frozen=True)
class AdvUnlearn(Eraser):
    """Train the text encoder to forget the concept even behind a word that calls it up again.

    Zhang et al., "Defensive Unlearning with Adversarial Training for Robust Concept Erasure in
    Diffusion Models", NeurIPS 2024, arXiv:2405.15234. The lower level seeks a prefix p* that makes
    the trained model answer [p; c] as the frozen one answers c; the upper level is ESD's loss under
    p*, and γ times the change of the answers to a retain set. Only the text encoder moves.
    """

    steps: int = 1000
    """Optimisation steps."""
    lr: float = 1e-5
    """Adam's learning rate."""
    eta: float = 1.0
    """Strength of the negative guidance, η."""
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
    warmup: int = 200
    """Steps of training before the attacker joins."""
    retain: Literal["coco", "keep"] = "coco"
    """What is retained: photos of COCO's 80 classes, or what the concepts say to keep."""
    retain_scale: float = 0.3
    """Weight of the retain loss, γ."""
    retain_batch: int = 5
    """Latents of the retain set a step."""
    latents: Literal["sampled", "noised"] = "sampled"
    """Where x_t comes from: sampled with the prompt by the frozen model, afresh for every step of
    training and of the attack; or pictures with noise added (cheaper, not published)."""
    sampling_steps: int = 50
    """Length of the DDIM schedule that x_t, or the pictures for `noised`, are sampled on."""
    guidance: float = 3.0
    """Guidance that they are sampled with."""
    batch: int = 1
    """Latents of the concept a step; each is attacked on its own."""
    pictures: int = 64
    """For `noised`: how many pictures are made once, before training, of the concept (at least one
    a prompt) and of the retain set (of so many of its prompts, if it has more) each."""
    wordings: Literal["name", "sentences"] = "name"
    """What the concept is called in training: its bare name, or every sentence that asks for it."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "fast": {"attack": "sign"},
        "world": {
            "steps": 120,
            "lr": 1e-4,
            "attack_steps": 2,
            "attack_lr": 1e-2,
            "warmup": 40,
            "retain": "keep",
            "retain_scale": 1.0,
            "retain_batch": 8,
            "latents": "noised",
            "sampling_steps": 10,
            "batch": 4,
            "pictures": 32,
            "wordings": "sentences",
        },
    }
    bibtex: ClassVar[str] = """@inproceedings{zhang2024defensive,
  title={Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion
         Models},
  author={Zhang, Yimeng and Chen, Xin and Jia, Jinghan and Zhang, Yihua and Fan, Chongyu
          and Liu, Jiancheng and Hong, Mingyi and Ding, Ke and Liu, Sijia},
  booktitle={Advances in Neural Information Processing Systems},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, steps=1, lr=0, prefix=1, attack_steps=0, attack_lr=0, warmup=0)
        at_least(self, retain_scale=0, retain_batch=1, sampling_steps=1, batch=1, pictures=1)
        if self.layers is not None:
            at_least(self, layers=1)

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Erase the concepts.

        Raises:
            PalimpsestError: nothing to retain, more layers than there are, or the edit changes
                nothing.
        """
        concepts = task.concepts
        deltas = {
            name: torch.zeros_like(p, dtype=torch.float32, requires_grad=True)
            for name, p in self._parameters(model).items()
        }
        student, texts = model.student(deltas), self._wordings(concepts)
        forget = self._forget(model, student, texts, context)
        retain = self._retain(model, student, self._retained(concepts), context)

        def loss(g: torch.Generator, step: int) -> Tensor:
            return forget(g, step) + self.retain_scale * retain(g)  # eq. 5

        recipe = Recipe(steps=self.steps, lr=self.lr)
        optimise(loss, deltas, recipe, context=context, label="erasing")
        return Result(model.make_patch(deltas))

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse layers that there are not, and concepts that leave nothing to retain."""
        concepts = task.concepts
        self._parameters(model)
        self._retained(concepts)

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that move, by parameter."""
        return {name: p.numel() for name, p in self._parameters(model).items()}

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations of one latent, without and with gradient."""
        guided, kept = 2 * self.sampling_steps, self.retain_batch if self.retain_scale else 0
        attacks = max(0, self.steps - self.warmup) * self.attack_steps * self.batch
        taught, held = self.steps * self.batch, self.steps * kept
        if self.latents == "noised":
            drawn = self.pictures * guided * (2 if kept else 1)
        else:  # half the schedule on average
            drawn = (taught + held + attacks) * guided // 2
        return drawn + 2 * taught + held + attacks, taught + held + attacks

    # --- the two terms of the loss ---

    def _forget(
        self, model: Diffusion, student: Diffusion, texts: list[str], context: Context
    ) -> Callable[[torch.Generator, int], Tensor]:
        """ESD's loss, once the warm-up is over under the attacker's prefix."""
        c, empty = model.embed(texts), model.empty()
        source = self._source(model, c, 1, "pictures of the concept", context)

        def forget(g: torch.Generator, step: int) -> Tensor:
            who = torch.randint(len(texts), (self.batch,), generator=g)
            prompts = [texts[i] for i in who.tolist()]
            if step >= self.warmup and self.attack_steps:

                def answers() -> tuple[Tensor, Tensor, Tensor]:
                    x_t, t = source(who, g)
                    with torch.no_grad():
                        return x_t, t, model.eps(x_t, t, c[who])

                p = self._attacked(student.still(), prompts, answers, g)
                asked = embed_prefixed(student, prompts, p)
            else:
                asked = student.embed(prompts)
            x_t, t = source(who, g)
            with torch.no_grad():
                both = empty.expand(len(x_t)) + c[who]
                e_0, e_c = model.eps(torch.cat([x_t, x_t]), t.repeat(2), both).chunk(2)
                target = e_0 - self.eta * (e_c - e_0)  # ESD's eq. 7
            # the U-Net is the frozen model's own: only what it is told differs
            return (model.eps(x_t, t, asked) - target).square().mean()

        return forget

    def _retain(
        self, model: Diffusion, student: Diffusion, texts: list[str], context: Context
    ) -> Callable[[torch.Generator], Tensor]:
        """How far the answers to the retain set have moved."""
        if not texts:
            return lambda g: torch.zeros((), device=model.device)
        if self.latents == "noised":  # as many prompts as there are pictures, of all sorts
            order = torch.randperm(len(texts), generator=generator(context.seed, 3))
            texts = [texts[i] for i in order[: self.pictures].tolist()]
        k = model.embed(texts)
        source = self._source(model, k, 2, "pictures to retain", context)

        def retain(g: torch.Generator) -> Tensor:
            who = torch.randint(len(texts), (self.retain_batch,), generator=g)
            x_t, t = source(who, g)
            with torch.no_grad():
                before = model.eps(x_t, t, k[who])
            after = model.eps(x_t, t, student.embed([texts[i] for i in who.tolist()]))
            return (after - before).square().mean()

        return retain

    def _attacked(
        self,
        victim: Diffusion,
        prompts: Sequence[str],
        answers: Callable[[], tuple[Tensor, Tensor, Tensor]],
        g: torch.Generator,
    ) -> Tensor:
        """p* = argmin ‖ε(x_t, [p; c]) − ε*(x_t, c)‖² (eq. 2), from random words: (n, k, width).

        `answers` draws x_t and t afresh, and gives them with the frozen model's ε*(x_t, c).
        """
        p = random_words(victim, (len(prompts), self.prefix), g).requires_grad_()
        descent = torch.optim.Adam([p], lr=self.attack_lr)
        for _ in range(self.attack_steps):
            x_t, t, target = answers()
            error = victim.eps(x_t, t, embed_prefixed(victim, prompts, p)) - target
            # a sum, so that no prompt's prefix depends on how many there are
            (p.grad,) = torch.autograd.grad(error.square().mean((1, 2, 3)).sum(), [p])
            if self.attack == "sign":
                p.data -= self.attack_lr * p.grad.sign()
            else:
                descent.step()
        return p.detach()

    # --- what they are computed on ---

    def _parameters(self, model: Diffusion) -> dict[str, Tensor]:
        """The text encoder's parameters that are trained, by name."""
        own = model.parameters("text")
        block = {name: re.search(r"\.layers\.(\d+)\.", name) for name in own}
        there = 1 + max((int(found[1]) for found in block.values() if found), default=-1)
        if self.layers is None:
            return {name: p for name, p in own.items() if name not in model.text.tables}
        if self.layers > there:
            raise PalimpsestError(
                f"AdvUnlearn: layers is {self.layers}; the text encoder has {there}"
            )
        return {n: own[n] for n, found in block.items() if found and int(found[1]) < self.layers}

    def _wordings(self, concepts: Sequence[Concept]) -> list[str]:
        if self.wordings == "name":
            return [concept.name for concept in concepts]
        return [text for concept in concepts for text in concept.sentences]

    def _retained(self, concepts: Sequence[Concept]) -> list[str]:
        """The prompts of the retain set; those that name a concept are left out."""
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

    def _source(
        self, model: Diffusion, cond: Conditioning, stream: int, label: str, context: Context
    ) -> Source:
        """What noises latents of the prompts it is given."""
        steps, guidance = self.sampling_steps, self.guidance
        if self.latents == "sampled":
            return lambda who, g: sampled_midway(model, cond[who], g, steps, guidance)
        rounds, own = max(1, self.pictures // len(cond)), generator(context.seed, stream)
        x_0, _ = draw(
            model,
            cond,
            rounds * len(cond),  # prompts in turn: each one's pictures lie len(cond) apart
            own,
            steps=steps,
            guidance=guidance,
            context=context,
            label=label,
        )

        def from_pictures(who: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
            which = torch.randint(rounds, (len(who),), generator=g)
            return noised(model, x_0[who + which * len(cond)], g)

        return from_pictures
