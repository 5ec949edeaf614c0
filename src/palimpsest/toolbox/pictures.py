"""Pictures to train on: drawn by the model itself, or read from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.data.read import read_folder, read_masks
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning


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
        """The pictures of several concepts, each told by its place in `parts`."""

        def together(tensors: list[Tensor | None]) -> Tensor | None:
            real = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(real) if real else None

        return cls(
            torch.cat([part.x_0 for part in parts]),
            tuple(owner for owner, part in enumerate(parts) for _ in part.x_0),
            together([part.mirrored for part in parts]),
            together([part.masks for part in parts]),
        )


def draw(
    model: Diffusion,
    cond: Conditioning,
    n: int,
    g: torch.Generator,
    *,
    steps: int,
    guidance: float,
    context: Context,
    label: str,
) -> tuple[Tensor, Tensor]:
    """`n` pictures of prompts taken in turn, as clean latents.

    Returns:
        (n, 4, h, w) latents, and (n,) the position in `cond` of each one's prompt.
    """
    owner = torch.arange(n) % len(cond)
    parts = []
    with context.progress.task(label, n) as task:
        for index in owner.split(model.sampling.batch):
            noise = model.noise(len(index), g)
            parts.append(model.sample(noise, cond[index], steps=steps, guidance=guidance))
            task.advance(len(index))
    return torch.cat(parts), owner


def read_latents(
    model: Diffusion, folder: Path, masks: Path | None, *, mirror: bool
) -> PictureLatents:
    """The pictures of a folder as latents, with their masks and mirror images if wanted.

    Raises:
        PalimpsestError: a folder, a picture or a mask that cannot be used.
    """
    images, files = read_folder(folder, model.side)
    return PictureLatents(
        model.encode(images),
        mirrored=model.encode(images.flip(-1)) if mirror else None,
        masks=read_masks(masks, files, model.side).to(model.device) if masks else None,
    )
