"""What MemoRa learns from: pictures called up by inversion and interpolation, and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator
from palimpsest.models.diffusion import Diffusion

Join = Literal["slerp", "linear", "none"]
"""How two latents are joined; `none` leaves them alone."""


@dataclass(frozen=True)
class Imagery:
    """How the pictures are made; the fields are MemoRa's own."""

    pairs: tuple[tuple[int, int], ...]
    between: int
    join: Join
    count: int | None
    sampling_steps: int
    guidance: float
    start_step: int
    offset: Literal["aligned", "published"]

    @property
    def whole(self) -> int:
        """Pictures that the recipe makes before some are chosen."""
        return len(self.pairs) * (2 if self.join == "none" else self.between)

    @property
    def n(self) -> int:
        """Pictures that the LoRA learns from."""
        return self.whole if self.count is None else self.count

    def evaluations(self, plain: bool) -> int:
        """Latents through the U-Net: to draw and invert the ends, to denoise what lies between."""
        guided, below = 2 * self.sampling_steps, 2 * (self.sampling_steps - self.start_step)
        if plain:
            return self.n * guided
        inverted = 2 * (self.sampling_steps - self._until - 1)  # the lowest level is where it lies
        return 2 * len(self.pairs) * (guided + inverted) + self.n * below

    @property
    def _until(self) -> int:
        """The step whose level inversion reaches."""
        return self.start_step + (1 if self.offset == "published" else 0)

    # --- by the original model ---

    def ends(self, model: Diffusion, concept: Concept) -> Tensor:
        """The pictures of all seeds, pair after pair."""
        return self._sampled(model, concept, [seed for pair in self.pairs for seed in pair])

    def plain(self, model: Diffusion, concept: Concept) -> Tensor:
        """As many plain pictures as the recipe makes, the published seeds first."""
        seeds = [seed for pair in self.pairs for seed in pair]
        seeds += range(10_000, 10_000 + self.n - len(seeds))
        return self._sampled(model, concept, seeds[: self.n])

    def _sampled(self, model: Diffusion, concept: Concept, seeds: Sequence[int]) -> Tensor:
        cond = model.embed(concept.sentences[:1])
        noise = torch.cat([model.noise(1, generator(seed)) for seed in seeds])
        parts = [
            model.sample(x, cond, steps=self.sampling_steps, guidance=self.guidance)
            for x in noise.split(model.sampling.batch)
        ]
        return model.decode(torch.cat(parts))

    # --- by the erased model ---

    def called_up(self, model: Diffusion, concept: Concept, ends: Tensor) -> Tensor:
        """Invert each pair's ends, walk between them, denoise every latent on the way.

        Args:
            model: the model under attack.
            concept: what it is asked for.
            ends: (2 × pairs, 4, h, w) clean latents.

        Returns:
            (n, 3, height, width) pictures.
        """
        cond = model.embed(concept.sentences[:1])
        steps, guidance = self.sampling_steps, self.guidance
        x_t = model.invert(ends, cond, steps=steps, guidance=guidance, until=self._until)
        parts = [
            model.sample(x, cond, steps=steps, guidance=guidance, start=self.start_step)
            for x in self._chosen(x_t).split(model.sampling.batch)
        ]
        return model.decode(torch.cat(parts))

    def _chosen(self, x_t: Tensor) -> Tensor:
        """The latents that are denoised, spread evenly over all pairs."""
        if self.join == "none":
            all_of_them = list(x_t)
        else:
            point = slerp if self.join == "slerp" else torch.lerp
            all_of_them = [
                point(a, b, i / (self.between - 1))
                for a, b in zip(x_t[0::2], x_t[1::2], strict=True)
                for i in range(self.between)
            ]
        return torch.stack([all_of_them[i] for i in spread(len(all_of_them), self.n)])


def spread(whole: int, n: int) -> list[int]:
    """`n` of `whole` places, evenly from the first to the last; one alone is the middle."""
    if n == 1:
        return [whole // 2]
    return [round(i * (whole - 1) / (n - 1)) for i in range(n)]


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The point at `share` of the arc from a to b, taken as flat vectors (Shoemake 1985)."""
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle < 1e-4:
        return torch.lerp(a, b, share)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


def random_captions(model: Diffusion, concept: Concept, n: int, g: torch.Generator) -> list[str]:
    """`n` captions of words drawn from the vocabulary, none of them of the concept.

    Each has as many words as the sentence that it stands in for.

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
