"""Methods that learn from pictures to forget and pictures to retain: both sets, and the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import ParameterGroup
from palimpsest.data.read import read_pairs
from palimpsest.methods import Context, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.latents import noised
from palimpsest.toolbox.optimise import Trained
from palimpsest.toolbox.pictures import Drawn

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Noised:
    """A batch of noised pictures."""

    x_t: Tensor
    """(n, channels, h, w) noised latents."""
    t: Tensor
    """(n,) times."""
    noise: Tensor
    """(n, channels, h, w) the noise in them."""
    c: Conditioning
    """The prompt of each."""
    c_other: Conditioning
    """What each prompt is to become."""


@dataclass(frozen=True)
class Examples:
    """Clean pictures, each with its prompt and with what that prompt is to become."""

    latents: Tensor
    """(n, channels, h, w) clean latents."""
    owner: Tensor
    """(n,) the position of each one's prompt in `cond` and `other`."""
    cond: Conditioning
    """The prompts that ask for the pictures. Where there are k times as many as in `other`, each
    of those has k wordings, set by set: every batch draws one of them for each of its pictures."""
    other: Conditioning
    """What the prompts are to become; for pictures to retain, the prompts themselves."""
    repeated: bool = False
    """Whether every batch takes the first pictures, each once."""

    def batch(self, model: Diffusion, n: int, g: torch.Generator) -> Noised:
        """Pick `n` pictures at random, or take the first, and noise each to a random time."""
        if self.repeated:
            return self._noised(model, torch.arange(len(self.latents))[:n], g)
        return self._noised(model, torch.randint(len(self.latents), (n,), generator=g), g)

    def passes(self, model: Diffusion, n: int, g: torch.Generator) -> list[Noised]:
        """Noise every picture once, in batches of up to `n`."""
        every = torch.arange(len(self.latents))
        return [self._noised(model, pick, g) for pick in every.split(n)]

    def _noised(self, model: Diffusion, pick: Tensor, g: torch.Generator) -> Noised:
        owner = said = self.owner[pick]
        batch = noised(model, self.latents[pick], g)
        if (k := len(self.cond) // len(self.other)) > 1:
            said = owner + len(self.other) * torch.randint(k, owner.shape, generator=g)
        return Noised(*batch, self.cond[said], self.other[owner])


def denoising(student: Diffusion, batch: Noised) -> Tensor:
    """Return ‖ε(x_t, c) − noise‖², the loss that diffusion models are trained with."""
    return (student.eps(batch.x_t, batch.t, batch.c) - batch.noise).square().mean()


def relabelling(student: Diffusion, batch: Noised) -> Tensor:
    """Return ‖ε(x_t, c) − sg ε(x_t, c_other)‖²: the picture is to be seen as another prompt's.

    Both predictions are the student's own as it stands; sg stops the gradient.
    """
    with torch.no_grad():
        target = student.eps(batch.x_t, batch.t, batch.c_other)
    return (student.eps(batch.x_t, batch.t, batch.c) - target).square().mean()


@dataclass(frozen=True)
class ForgetAndRetain(Trained):
    """Settings of a method that trains on pictures to forget and on pictures to retain."""

    batch: int = 8
    """Pictures to forget, and as many to retain, in a step."""
    train: ParameterGroup = "full"
    """Which parameters move."""
    forget: Drawn = Drawn(800, steps=50, guidance=7.5)
    """Pictures of the concepts."""
    retain: Drawn = Drawn(800, steps=50, guidance=7.5)
    """Pictures of what the concepts keep; those of a folder are captioned in its metadata.jsonl."""
    least: ClassVar = dict(batch=1)

    def examples(self, model: Diffusion, task: Task, context: Context) -> tuple[Examples, Examples]:
        """Return the pictures to forget and those to retain; they are drawn or read now.

        Each prompt to forget is to become its anchor's, or ∅ without an anchor. What one concept
        keeps is left out if it is another one to be forgotten.

        Raises:
            PalimpsestError: nothing to retain is named, or a folder that cannot be read.
        """
        wordings = [wording for concept in task.concepts for wording in concept.wordings]
        cond = model.embed([wording.sentence for wording in wordings])
        other = model.embed([wording.anchor_sentence for wording in wordings])
        g, label = context.stream("pictures"), "pictures to forget"
        forget = Examples(*self.forget.latents(model, cond, g, context, label), cond, other)
        return forget, self._retained(model, task, context)

    def _retained(self, model: Diffusion, task: Task, context: Context) -> Examples:
        """Return pictures of what the concepts keep, or a folder's with its captions."""
        if self.retain.folder is not None:
            pairs = read_pairs(self.retain.folder, model.side, strict=True)
            cond = model.embed(pairs.texts)
            return Examples(model.encode(pairs.floats), torch.arange(len(pairs)), cond, cond)
        cond, g = model.embed(kept(task.concepts)), context.stream("retained pictures")
        drawn = self.retain.draw(model, cond, g, context, "pictures to retain")
        return Examples(*drawn, cond, cond)

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse concepts for which there are no pictures to learn from.

        Raises:
            PalimpsestError: nothing to retain is named, or one folder to forget serves several.
        """
        if self.retain.folder is None:
            kept(task.concepts)
        if self.forget.folder is not None and len(task.concepts) > 1:
            raise PalimpsestError(
                f"{self.forget.folder}: a folder holds pictures of one concept, and there are "
                f"{len(task.concepts)}; erase one at a time, or leave the folder out"
            )

    @property
    def drawing(self) -> int:
        """Network evaluations that drawing the pictures takes."""
        return self.forget.cost + self.retain.cost


@dataclass(frozen=True)
class Restarting(ForgetAndRetain):
    """Settings of a method whose authors' loop begins its loaders anew at every step."""

    first_batch: Literal["both", "forget", "neither"] = "both"
    """Which pictures are the same at every step, the first `batch` of them, as where the authors
    begin an unshuffled loader anew: `both` sets, those to `forget` alone, or `neither`, and every
    step picks at random."""

    def examples(self, model: Diffusion, task: Task, context: Context) -> tuple[Examples, Examples]:
        """Return the pictures to forget and to retain, which know how batches are taken."""
        forget, retain = super().examples(model, task, context)
        retain = replace(retain, repeated=self.first_batch == "both")
        return replace(forget, repeated=self.first_batch != "neither"), retain

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse also concepts of which the first batch would show nothing.

        Raises:
            PalimpsestError: there are more sentences before the last concept's than pictures.
        """
        super().check(model, task)
        before = sum(len(concept.sentences) for concept in task.concepts[:-1])
        if self.first_batch != "neither" and before >= min(self.batch, self.forget.pictures):
            last = task.concepts[-1].name
            raise PalimpsestError(f"the first batch shows no {last!r}; set first_batch to neither")


def kept(concepts: Sequence[Concept]) -> list[str]:
    """Return what the concepts say to keep, each text once, without what is to be forgotten.

    Raises:
        PalimpsestError: nothing to keep is named.
    """
    gone = {text for concept in concepts for text in (concept.name, *concept.sentences)}
    keep = [text for concept in concepts for text in concept.keep if text not in gone]
    if not keep:
        raise PalimpsestError(
            "nothing to keep is named: give the concept sentences to keep (--keep, Concept.keep) "
            "or name a folder of captioned pictures (--retain.folder)"
        )
    return list(dict.fromkeys(keep))
