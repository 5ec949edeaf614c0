"""What methods share that train on attention maps: pictures, prompts, noised batches, norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from palimpsest.core.concepts import Concept
from palimpsest.core.demand import ENCODED, Demand
from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Context, Result
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning, without_ids
from palimpsest.toolbox.attention import attention_maps, logit_differences, within, word_positions
from palimpsest.toolbox.optimise import Loss, Summing, Trained, optimise
from palimpsest.toolbox.pictures import Drawn, PictureLatents, read_latents
from palimpsest.toolbox.shifting import Shifting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pictured(Trained):
    """Settings of a method that trains on the attention of noised pictures."""

    batch: int = 1
    """Noised pictures a step; the loss is the mean of theirs."""
    drawn: Drawn = Drawn(64, steps=50, guidance=7.5)
    """Pictures of each concept. With several concepts, `drawn.folder` contains one folder of
    pictures for each, by its name."""
    masks: Path | None = None
    """A folder of masks, white where the concept is, each named as its picture in `drawn.folder`;
    when left out, the whole picture counts."""
    clip: float | None = 1.0
    """Largest norm of the gradient, over all parameters together; None clips nothing."""
    least: ClassVar = dict(batch=1)
    above: ClassVar = dict(clip=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masks and not self.drawn.folder:
            raise PalimpsestError(
                f"{type(self).__name__}: masks belong to the pictures of a folder; name "
                "drawn.folder, too"
            )

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        summed = getattr(self, "gradients", "fresh") == "summed"
        encoded = ENCODED if self.drawn.folder else 0
        return Demand(self.batch, maps=True, summed=summed, encoded=encoded)

    def pictures(
        self, model: Diffusion, concepts: Sequence[Concept], context: Context, mirror: bool = False
    ) -> list[PictureLatents]:
        """Draw or read each concept's pictures, with their masks, and mirrored if wanted.

        Raises:
            PalimpsestError: pictures or masks that cannot be read.
        """
        if self.drawn.folder is None:
            return self.draw(model, concepts, context, mirror=mirror)
        parts = []
        for concept in concepts:
            own = concept.name if len(concepts) > 1 else ""
            masks = self.masks / own if self.masks else None
            parts.append(read_latents(model, self.drawn.folder / own, masks, mirror=mirror))
        return parts

    def draw(
        self,
        model: Diffusion,
        concepts: Sequence[Concept],
        context: Context,
        stream: str = "pictures",
        mirror: bool = False,
    ) -> list[PictureLatents]:
        """Draw each concept's pictures by its sentences, from the random stream of that name."""
        parts = []
        for k, concept in enumerate(concepts):
            cond, g = model.embed(concept.sentences), context.stream(stream, k)
            x_0, _ = self.drawn.draw(model, cond, g, context, f"pictures of {concept.name}")
            mirrored = model.encode(model.decode(x_0).flip(-1)) if mirror else None
            parts.append(PictureLatents(x_0, mirrored=mirrored))
        return parts


@dataclass(frozen=True)
class Steering(Pictured, Summing, Shifting):
    """Settings of Forget-Me-Not and of its correction of a word."""

    gradients: Literal["summed", "fresh"] = "fresh"
    weight_decay: float = 0.01
    """AdamW's weight decay. It acts on the shift, so toward the unedited weights."""
    train: Literal["full", "xattn", "xattn-kv"] = "full"
    """Which parameters move: the whole U-Net (published), the cross-attention alone, or only its
    keys and values."""

    least: ClassVar = dict(weight_decay=0)

    def steer(
        self, model: Diffusion, deltas: dict[str, Tensor], loss: Loss, context: Context
    ) -> Result:
        """Train the shift by AdamW."""
        recipe = replace(
            self.recipe, optimizer="adamw", weight_decay=self.weight_decay, clip=self.clip
        )
        optimise(loss, deltas, recipe, context=context, label="erasing")
        return Result(model.make_patch(deltas))


# --- what is trained on ---


@dataclass(frozen=True)
class Asked:
    """Prompts, and the tokens in them whose attention is steered."""

    cond: Conditioning
    """The prompts, embedded by the unedited model."""
    ids: Tensor
    """(prompts, window) their tokens; those in place of vectors do not matter."""
    wanted: Tensor
    """(prompts, window) S: true at the tokens whose attention is steered."""
    owner: tuple[int, ...]
    """Which concept each prompt asks for."""
    bare: tuple[str, ...]
    """The prompts without the words."""

    def __add__(self, other: Asked) -> Asked:
        return Asked(
            self.cond + other.cond,
            torch.cat([self.ids, other.ids]),
            torch.cat([self.wanted, other.wanted]),
            self.owner + other.owner,
            self.bare + other.bare,
        )


def ask_words(model: Diffusion, rows: Sequence[tuple[str, str, int]]) -> Asked:
    """Find the words in each prompt: every token of every occurrence.

    Args:
        model: whose tokens they are.
        rows: prompts, the words in each, and which concept each asks for; repeats are left out.

    Raises:
        PalimpsestError: a prompt that does not fit the window, or does not contain its words.
    """
    texts, words, owners = zip(*dict.fromkeys(rows), strict=True)
    wanted = [word_positions(model, *pair) for pair in zip(texts, words, strict=True)]
    cond, ids = without_ids(model.embed(texts).detach()), model.text.ids(texts)
    bare = tuple(without(*pair) for pair in zip(texts, words, strict=True))
    return Asked(cond, ids.to(model.device), torch.stack(wanted).to(model.device), owners, bare)


def without(text: str, words: str) -> str:
    """Return a prompt without some of its words."""
    return " ".join(text.replace(words, "").split())


@dataclass(frozen=True)
class NoisedBatch:
    """One step's noised latents with their prompts."""

    x_t: Tensor
    """(n, channels, h, w) noised latents."""
    t: Tensor
    """(n,) their times."""
    prompt: list[int]
    """Which prompt each has."""
    cond: Conditioning
    """A prompt for each."""
    wanted: Tensor
    """(n, window) S of each prompt."""
    masks: Tensor | None
    """(n, 1, height, width) in [0, 1]: which pixels count; None counts all."""

    def maps(self, model: Diffusion) -> dict[str, Tensor]:
        """Compute A: (n, heads, pixels, k) a layer, at the wanted tokens."""
        return attention_maps(model, self.x_t, self.t, self.cond, self.wanted)

    def differences(self, model: Diffusion, other: Conditioning) -> dict[str, Tensor]:
        """Compute (n, heads, pixels, window) a layer: logits less those of other prompts' keys."""
        return logit_differences(model, self.x_t, self.t, self.cond, other)


def batches(
    model: Diffusion, asked: Asked, pictures: Sequence[PictureLatents], size: int
) -> Callable[[torch.Generator], NoisedBatch]:
    """Return what draws one step's noised pictures, each with a prompt of its own concept.

    Args:
        model: draws the times and the noise.
        asked: the prompts.
        pictures: each concept's; none leaves noise alone.
        size: latents a batch.
    """
    shown = PictureLatents.joined(pictures) if pictures else None
    owners = shown.owner if shown else sorted(set(asked.owner))
    pairs = [
        (prompt, picture)
        for prompt, owner in enumerate(asked.owner)
        for picture, shows in enumerate(owners)
        if shows == owner
    ]

    def batch(g: torch.Generator) -> NoisedBatch:
        chosen = [pairs[i] for i in torch.randint(len(pairs), (size,), generator=g).tolist()]
        prompt, picture = map(list, zip(*chosen, strict=True))
        t = model.times(size, g)
        x_t, masks = model.noise(size, g), None
        if shown is not None:
            x_t = model.add_noise(shown.x_0[picture], x_t, t)
            masks = None if shown.masks is None else shown.masks[picture]
        return NoisedBatch(x_t, t, prompt, asked.cond[prompt], asked.wanted[prompt], masks)

    return batch


# --- how large attention is ---


def norm(maps: Mapping[str, Tensor], batch: NoisedBatch) -> Tensor:
    """Compute ‖m·A‖ over layers, heads, pixels and tokens; mean over the batch."""
    weighed = within(maps.values(), batch.masks)
    squares = torch.stack([A.square().sum((1, 2, 3)) for A in weighed]).sum(0)
    return squares.clamp_min(1e-12).sqrt().mean()  # √ is too steep at 0, where a difference starts


def mean_square(maps: Mapping[str, Tensor], batch: NoisedBatch) -> Tensor:
    """Compute the mean of (m·A)² over the batch, heads, pixels and tokens; sum over layers."""
    weighed = within(maps.values(), batch.masks)
    return torch.stack([A.square().mean() for A in weighed]).sum()
