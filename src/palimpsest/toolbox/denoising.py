"""What methods that learn from pictures share: what to forget, what to keep, and the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator
from palimpsest.data.read import read_folder, read_pairs
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.pictures import draw


class Sources(Protocol):
    """Where a method's pictures come from, in its own fields."""

    @property
    def pictures(self) -> int:
        """How many pictures of the concepts are drawn."""
        ...

    @property
    def retain_pictures(self) -> int:
        """How many pictures of what they keep are drawn."""
        ...

    @property
    def forget_folder(self) -> str | None:
        """A folder of pictures to forget, instead of drawn ones."""
        ...

    @property
    def retain_folder(self) -> str | None:
        """A folder of captioned pictures to keep, instead of drawn ones."""
        ...

    @property
    def sampling_steps(self) -> int:
        """Steps of DDIM for the drawn pictures."""
        ...

    @property
    def guidance(self) -> float:
        """Guidance of the drawn pictures."""
        ...


@dataclass(frozen=True)
class Noised:
    """A batch of noised pictures."""

    x_t: Tensor
    """(n, 4, h, w) noised latents."""
    t: Tensor
    """(n,) timesteps."""
    noise: Tensor
    """(n, 4, h, w) the noise in them."""
    c: Conditioning
    """The prompt of each."""
    c_other: Conditioning
    """What each prompt is to become."""


@dataclass(frozen=True)
class Examples:
    """Clean pictures, each with its prompt and with what that prompt is to become."""

    latents: Tensor
    """(n, 4, h, w) clean latents."""
    owner: Tensor
    """(n,) the position of each one's prompt in `cond` and `other`."""
    cond: Conditioning
    """The prompts that ask for the pictures."""
    other: Conditioning
    """What the prompts are to become; for pictures to keep, the prompts themselves."""

    def batch(self, model: Diffusion, n: int, g: torch.Generator) -> Noised:
        """`n` pictures picked at random, noised to uniformly random timesteps."""
        return self._noised(model, torch.randint(len(self.latents), (n,), generator=g), g)

    def passes(self, model: Diffusion, n: int, g: torch.Generator) -> list[Noised]:
        """Every picture once, noised, in batches of up to `n`."""
        every = torch.arange(len(self.latents))
        return [self._noised(model, pick, g) for pick in every.split(n)]

    def _noised(self, model: Diffusion, pick: Tensor, g: torch.Generator) -> Noised:
        x_0, owner = self.latents[pick], self.owner[pick]
        t = model.times(len(pick), g)
        noise = model.noise(len(pick), g)
        x_t = model.add_noise(x_0, noise, t)
        return Noised(x_t, t, noise, self.cond[owner], self.other[owner])


def denoising(student: Diffusion, batch: Noised) -> Tensor:
    """‖ε(x_t, c) − noise‖², the loss that diffusion models are trained with."""
    return (student.eps(batch.x_t, batch.t, batch.c) - batch.noise).square().mean()


def relabelling(student: Diffusion, batch: Noised) -> Tensor:
    """‖ε(x_t, c) − sg ε(x_t, c_other)‖²: see the picture as another prompt's.

    The stop-gradient is on the student, as it stands.
    """
    with torch.no_grad():
        target = student.eps(batch.x_t, batch.t, batch.c_other)
    return (student.eps(batch.x_t, batch.t, batch.c) - target).square().mean()


def drawing(sources: Sources) -> int:
    """U-Net evaluations that drawing the pictures takes."""
    forget = 0 if sources.forget_folder else sources.pictures
    retain = 0 if sources.retain_folder else sources.retain_pictures
    return 2 * sources.sampling_steps * (forget + retain)


def to_forget(
    model: Diffusion, concepts: Sequence[Concept], sources: Sources, context: Context
) -> Examples:
    """Pictures of the concepts, drawn by the model or read from a folder.

    Raises:
        PalimpsestError: a folder that cannot be read.
    """
    wordings = [wording for concept in concepts for wording in concept.wordings]
    cond = model.embed([wording.sentence for wording in wordings])
    other = model.embed([wording.anchor_sentence for wording in wordings])
    if sources.forget_folder is None:
        latents, owner = _drawn(model, cond, sources, context, retain=False)
        return Examples(latents, owner, cond, other)
    images, _ = read_folder(Path(sources.forget_folder), model.side)
    return Examples(model.encode(images), torch.arange(len(images)) % len(cond), cond, other)


def to_retain(
    model: Diffusion, concepts: Sequence[Concept], sources: Sources, context: Context
) -> Examples:
    """Pictures of what the concepts keep, drawn by the model, or a folder's with its captions.

    What another concept keeps is left out if it is itself to be forgotten.

    Raises:
        PalimpsestError: nothing to keep is named, or a folder that cannot be read.
    """
    if sources.retain_folder is not None:
        pairs = read_pairs(sources.retain_folder, model.side, strict=True)
        cond = model.embed(pairs.texts)
        return Examples(model.encode(pairs.floats), torch.arange(len(pairs)), cond, cond)
    cond = model.embed(kept(concepts))
    latents, owner = _drawn(model, cond, sources, context, retain=True)
    return Examples(latents, owner, cond, cond)


def kept(concepts: Sequence[Concept]) -> list[str]:
    """What the concepts say to keep, each text once, without what is itself to be forgotten.

    Raises:
        PalimpsestError: nothing to keep is named.
    """
    gone = {text for concept in concepts for text in (concept.name, *concept.sentences)}
    keep = [text for concept in concepts for text in concept.keep if text not in gone]
    if not keep:
        raise PalimpsestError(
            "nothing to keep is named: give the concept sentences to keep (Concept.keep), or name "
            "a folder of captioned pictures (retain_folder)"
        )
    return list(dict.fromkeys(keep))


def check_sources(concepts: Sequence[Concept], sources: Sources) -> None:
    """Refuse, before anything is drawn, concepts for which there are no pictures to learn from.

    Raises:
        PalimpsestError: nothing to keep is named, or a folder to forget serves several concepts.
    """
    if sources.retain_folder is None:
        kept(concepts)
    if sources.forget_folder is not None and len(concepts) > 1:
        raise PalimpsestError(
            f"{sources.forget_folder}: a folder holds pictures of one concept, and there are "
            f"{len(concepts)}; erase one at a time, or leave the folder out"
        )


def _drawn(
    model: Diffusion, cond: Conditioning, sources: Sources, context: Context, *, retain: bool
) -> tuple[Tensor, Tensor]:
    return draw(
        model,
        cond,
        sources.retain_pictures if retain else sources.pictures,
        generator(context.seed, 2 if retain else 1),
        steps=sources.sampling_steps,
        guidance=sources.guidance,
        context=context,
        label="pictures to retain" if retain else "pictures to forget",
    )
