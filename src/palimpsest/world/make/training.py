"""What all parts of the world's training share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.core.atomic import write_text
from palimpsest.core.files import read_object
from palimpsest.core.provenance import versions
from palimpsest.methods import Context
from palimpsest.toolbox.optimise import Loss, Recipe, Trace, optimise
from palimpsest.world import data, suite
from palimpsest.world.captions import SUBJECTS, all_captions, captions

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = 110
"""Training pictures of each object in each style."""


@dataclass(frozen=True)
class Steps:
    """How long to train each part, in steps."""

    clip: int = 2100
    """CLIP, 96 pictures a step."""
    vae: int = 2600
    """Autoencoder, 16 pictures a step."""
    judge: int = 1500
    """Judge, 80 pictures a step."""
    unet: int = 2800
    """U-Net, 64 latents a step."""
    llava: int = 900
    """LLaVA's Llama, 48 pictures with a question each a step."""


@dataclass(frozen=True)
class Training:
    """Where to write, how long to train, on what device, without what."""

    out: Path
    """The folder of finished weights."""
    work: Path
    """The folder of pictures, latents and checkpoints; safe to delete afterwards."""
    context: Context
    steps: Steps = Steps()
    device: str = "cpu"
    without: str | None = None
    """A concept that the U-Net shall never see: a gold model."""
    pictures_per_pair: int = PICTURES
    """Training pictures of each object in each style; the judge draws about half as many."""

    def __post_init__(self) -> None:
        if self.without is not None:
            suite.kind_of(self.without)  # refuses what the world does not have

    @cached_property
    def pictures(self) -> data.Pictures:
        """What CLIP, the autoencoder and the U-Net learn from."""
        return data.load("train", self.pictures_per_pair, self.context, self.work)

    def fit(
        self, part: str, loss: Loss, parameters: Mapping[str, Tensor], **settings: Any
    ) -> Trace:
        """Train a part by AdamW under a cosine, and write down beside the weights how.

        Args:
            part: one of the fields of `Steps`.
            loss: of one step.
            parameters: what is trained, in place.
            settings: other fields of the `Recipe`.
        """
        steps = getattr(self.steps, part)
        recipe = Recipe(steps, optimizer="adamw", schedule="cosine", clip=1.0, **settings)
        gold = part == "unet" and self.without is not None
        label = f"gold without {self.without}" if gold else part
        trace = optimise(loss, parameters, recipe, context=self.context, label=label)
        self._note(label, recipe, trace)
        return trace

    def _note(self, part: str, recipe: Recipe, trace: Trace) -> None:
        path = self.out / "recipe.json"
        known = read_object(path) if path.exists() else {}
        last = trace.losses[-100:]
        known[part] = {
            "seed": self.context.seed,
            "steps": trace.step,
            "lr": recipe.lr,
            "loss": round(sum(last) / len(last), 4),
            "device": self.device,
            "versions": versions(),
        }
        write_text(path, json.dumps(known, indent=2) + "\n")


@dataclass(frozen=True)
class Wordings:
    """The captions of every subject as a table to draw from."""

    texts: list[str]
    index: Tensor
    """(subjects, most) positions in `texts`."""
    shares: Tensor
    """(subjects, most) probability of each; padding has none."""

    @classmethod
    def make(cls) -> Wordings:
        """Return all captions of the world."""
        texts = all_captions()
        place = {text: i for i, text in enumerate(texts)}
        per_subject = [captions(subject) for subject in SUBJECTS]
        index = [torch.tensor([place[text] for text in shares]) for shares in per_subject]
        shares = [torch.tensor([*shares.values()]) for shares in per_subject]
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        return cls(texts, pad(index), pad(shares))

    def draw(self, subjects: Tensor, g: torch.Generator) -> Tensor:
        """Return one caption for each subject, as positions in `texts`."""
        column = torch.multinomial(self.shares[subjects], 1, generator=g)
        return self.index[subjects].gather(1, column)[:, 0]


def shifted(images: Tensor, g: torch.Generator, most: int = 3) -> Tensor:
    """Move a batch by up to `most` pixels, repeating the border."""
    dy, dx = (int(v) for v in torch.randint(0, 2 * most + 1, (2,), generator=g))
    padded = torch.nn.functional.pad(images, (most,) * 4, mode="replicate")
    return padded[..., dy : dy + images.shape[-2], dx : dx + images.shape[-1]]
