"""What MemoRa learns from: pictures by inversion and interpolation, and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.pictures import Sampler

if TYPE_CHECKING:
    from torch import Tensor

PAIRS = ((1805, 2821), (1405, 2421), (1705, 2721))
"""The published pairs of seeds."""


@dataclass(frozen=True)
class Interpolation(Sampler):
    """How pictures come of pairs of latents: inverted, interpolated, denoised.

    Guidance and steps of the grid are those of the pictures and of the inversion.
    """

    pairs: tuple[tuple[int, int], ...] = PAIRS
    """Seeds of the pictures whose latents are interpolated."""
    between: int = 11
    """Latents along each pair's arc, both ends included."""
    join: Literal["slerp", "linear", "none"] = "slerp"
    """How the latents of a pair are joined: by an arc, by a straight line (`linear`), or not at
    all (`none`: the inverted ends alone)."""
    count: int | None = None
    """How many of these pictures the LoRA learns from, chosen evenly; all of them when left out."""
    start_step: int = 15
    """The grid's step that inversion reaches and denoising starts from."""
    offset: Literal["aligned", "published"] = "aligned"
    """`aligned` inverts to the level at which denoising starts; `published` stops one level below
    it (t = 661 against 681), as the authors' code does."""
    least: ClassVar = dict(steps=2, between=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pairs:
            raise PalimpsestError("Interpolation: pairs is empty; it needs a pair of seeds")
        if self.count is not None and not 1 <= self.count <= self._whole:
            raise PalimpsestError(
                f"Interpolation: count is {self.count}; it must be 1 to {self._whole}"
            )
        if not 0 <= self.start_step < self.steps - 1:
            raise PalimpsestError(
                f"Interpolation: start_step is {self.start_step}; it must be 0 to {self.steps - 2}"
            )

    @property
    def _whole(self) -> int:
        """Pictures that there are before some are chosen."""
        return len(self.pairs) * (2 if self.join == "none" else self.between)

    @property
    def n(self) -> int:
        """Pictures that the LoRA learns from."""
        return self._whole if self.count is None else self.count

    @property
    def _until(self) -> int:
        """The step whose level inversion reaches."""
        return self.start_step + (self.offset == "published")

    def evaluations(self, plain: bool) -> int:
        """Return the network evaluations of the pictures, interpolated or plain."""
        if plain:
            return self.n * self.cost
        inverted = 2 * (self.steps - self._until - 1)  # the picture is at the grid's lowest level
        denoised = 2 * (self.steps - self.start_step)
        return 2 * len(self.pairs) * (self.cost + inverted) + self.n * denoised

    # --- by the original model ---

    def ends(self, model: Diffusion, concept: Concept) -> Tensor:
        """Draw the pictures of all seeds, pair after pair."""
        return self._sampled(model, concept, [seed for pair in self.pairs for seed in pair])

    def plain(self, model: Diffusion, concept: Concept) -> Tensor:
        """Draw as many plain pictures as the recipe makes, the published seeds first."""
        seeds = [seed for pair in self.pairs for seed in pair]
        seeds += range(10_000, 10_000 + self.n - len(seeds))
        return self._sampled(model, concept, seeds[: self.n])

    def _sampled(self, model: Diffusion, concept: Concept, seeds: Sequence[int]) -> Tensor:
        noise = torch.cat([model.noise(1, generator(seed)) for seed in seeds])
        return self._denoised(model, concept, noise, start=0)

    # --- by the erased model ---

    def interpolated(self, model: Diffusion, concept: Concept, ends: Tensor) -> Tensor:
        """Invert each pair's ends, interpolate between them, denoise every latent.

        Args:
            model: the model under attack.
            concept: what its prompt asks for.
            ends: (2 × pairs, channels, h, w) clean latents.

        Returns:
            (n, 3, height, width) pictures.
        """
        cond = model.embed(concept.sentences[:1])
        # step 2
        x_t = model.invert(ends, cond, steps=self.steps, guidance=self.guidance, until=self._until)
        return self._denoised(model, concept, self._chosen(x_t), start=self.start_step)  # step 4

    def _chosen(self, x_t: Tensor) -> Tensor:
        """Return the latents that are denoised, spread evenly over all pairs."""
        every = list(x_t)
        if self.join != "none":
            point = slerp if self.join == "slerp" else torch.lerp
            every = [
                point(a, b, i / (self.between - 1))  # step 3
                for a, b in zip(x_t[0::2], x_t[1::2], strict=True)
                for i in range(self.between)
            ]
        return torch.stack([every[i] for i in spread(len(every), self.n)])

    def _denoised(self, model: Diffusion, concept: Concept, x: Tensor, start: int) -> Tensor:
        """Sample from step `start` on, prompted with the concept's first sentence, and decode."""
        cond = model.embed(concept.sentences[:1])
        parts = [
            model.sample(
                part, cond, steps=self.steps, guidance=self.guidance, start=start, apart=True
            )
            for part in x.split(model.sampling.batch)
        ]
        return model.decode(torch.cat(parts))


def spread(whole: int, n: int) -> list[int]:
    """Return `n` of `whole` places, evenly from the first to the last; one alone is the middle."""
    if n == 1:
        return [whole // 2]
    return [round(i * (whole - 1) / (n - 1)) for i in range(n)]


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return the point at `share` of the arc from a to b, as flat vectors (Shoemake 1985)."""
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle < 1e-4:
        return torch.lerp(a, b, share)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


def random_captions(model: Diffusion, concept: Concept, n: int, g: torch.Generator) -> list[str]:
    """Draw `n` captions of words of the vocabulary, none of them of the concept.

    Each has as many words as the sentence that it replaces.

    Raises:
        PalimpsestError: the tokenizer knows no whole words.
    """
    own = {word for sentence in concept.sentences for word in sentence.lower().split()}
    words = sorted(
        word
        for token in model.text.pieces()
        if (word := token.removesuffix("</w>")) != token
        and word.isascii()
        and word.isalpha()
        and len(word) > 2
        and word not in own
    )
    if not words:
        raise PalimpsestError(f"{model.name}: its tokenizer has no whole words to draw captions of")
    length = len(concept.sentences[0].split())
    rows = torch.randint(len(words), (n, length), generator=g)
    return [" ".join(words[int(i)] for i in row) for row in rows]
