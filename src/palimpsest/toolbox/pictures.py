"""Pictures to train on: drawn by the model itself, or read from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from palimpsest.core.errors import Settings
from palimpsest.data.read import read_folder, read_masks
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampler(Settings):
    """How a method samples pictures of its own."""

    steps: int = 50
    """Steps of the schedule's grid."""
    guidance: float = 7.5
    """Classifier-free guidance."""
    least: ClassVar = dict(steps=1, guidance=0)

    @property
    def cost(self) -> int:
        """Network evaluations of one picture."""
        return 2 * self.steps

    def draw(
        self,
        model: Diffusion,
        cond: Conditioning,
        n: int,
        g: torch.Generator,
        context: Context,
        label: str,
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` pictures of prompts taken in turn, as clean latents; each process draws a part.

        Returns:
            (n, 4, h, w) latents, and (n,) the position in `cond` of each one's prompt.
        """
        owner, parts = torch.arange(n) % len(cond), []
        with context.progress.task(label, n) as task:
            lots = [(model.noise(len(i), g), i) for i in owner.split(model.sampling.batch)]
            for noise, index in context.group.own(lots):
                how = {"steps": self.steps, "guidance": self.guidance}
                made = model.sample(noise, cond[index], **how, apart=True)
                parts.append(made if context.group.size == 1 else made.cpu())
                task.advance(len(index))
            every = context.group.joined(parts)
            task.advance(n - sum(map(len, parts)))
        return torch.cat(every).to(model.device), owner


@dataclass(frozen=True)
class Drawn(Settings):
    """Pictures to learn from: drawn once by the unedited model, or those of a folder."""

    pictures: int = 64
    """How many pictures are drawn once, before training."""
    steps: int = 50
    """Steps of the grid that they are sampled on."""
    guidance: float = 7.5
    """Guidance that they are sampled with."""
    folder: Path | None = None
    """A folder of pictures to take in place of drawn ones."""
    least: ClassVar = dict(pictures=1, steps=1, guidance=0)

    @property
    def cost(self) -> int:
        """Network evaluations that drawing takes."""
        return 0 if self.folder else 2 * self.steps * self.pictures

    def draw(
        self, model: Diffusion, cond: Conditioning, g: torch.Generator, context: Context, label: str
    ) -> tuple[Tensor, Tensor]:
        """Draw the pictures, whether or not a folder is named; as `Sampler.draw`."""
        sampler = Sampler(self.steps, self.guidance)
        return sampler.draw(model, cond, self.pictures, g, context, label)

    def latents(
        self, model: Diffusion, cond: Conditioning, g: torch.Generator, context: Context, label: str
    ) -> tuple[Tensor, Tensor]:
        """Return the pictures as clean latents: drawn for prompts in turn, or read.

        Returns:
            (n, channels, h, w) latents, and (n,) the position in `cond` of each one's prompt.

        Raises:
            PalimpsestError: a folder that cannot be read.
        """
        if self.folder is None:
            return self.draw(model, cond, g, context, label)
        x_0 = model.encode(read_folder(self.folder, model.side)[0])
        return x_0, torch.arange(len(x_0)) % len(cond)


@dataclass(frozen=True)
class Captioned(Settings):
    """Captioned pictures to learn from: of a source, or drawn by the unedited model."""

    pictures: int = 256
    """How many pictures are drawn, or taken at most."""
    source: Path | None = None
    """Captioned pictures to take in place of drawn ones: a folder, a .csv, webdataset tars, or
    `world`, the renderer's."""
    least: ClassVar = dict(pictures=1)


@dataclass(frozen=True)
class PictureLatents:
    """Pictures of one concept or of several, as latents, and what goes with them."""

    x_0: Tensor
    """(n, 4, h, w) clean latents."""
    owner: tuple[int, ...] = ()
    """Which concept each picture shows; empty while there is one concept only."""
    mirrored: Tensor | None = None
    """(n, 4, h, w) latents of the mirrored pictures, if they were asked for."""
    masks: Tensor | None = None
    """(n, 1, height, width) in [0, 1]: which pixels count, if there are masks."""

    @classmethod
    def joined(cls, parts: Sequence[PictureLatents]) -> PictureLatents:
        """Join pictures of several concepts, and their masks; an owner is a place in `parts`."""
        owner = tuple(k for k, part in enumerate(parts) for _ in part.x_0)
        masks = [part.masks for part in parts if part.masks is not None]
        x_0 = torch.cat([part.x_0 for part in parts])
        return cls(x_0, owner, masks=torch.cat(masks) if masks else None)


def read_latents(
    model: Diffusion, folder: Path, masks: Path | None, *, mirror: bool
) -> PictureLatents:
    """Return the pictures of a folder as latents, with their masks and mirror images if wanted.

    Raises:
        PalimpsestError: a folder, a picture or a mask that cannot be used.
    """
    images, files = read_folder(folder, model.side)
    return PictureLatents(
        model.encode(images),
        mirrored=model.encode(images.flip(-1)) if mirror else None,
        masks=read_masks(masks, files, model.side).to(model.device) if masks else None,
    )
