"""SLUG's evaluation of identities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from palimpsest.core.draw import Draw
from palimpsest.core.kinds import Kind
from palimpsest.protocols.protocol import Protocol


@dataclass(frozen=True)
class SLUG(Protocol):
    """SLUG: portraits of several identities at once, the erased beside those that shall stay.

    This is its part for text-to-image models. Of a CLIP it is measured by `palimpsest erase slug
    --model clip:…`, on CelebA or ImageNet given as --classes.

    Source: Cai et al., ICML 2025, arXiv:2407.11867; CSIPlab/SLUG 8cb73c7, 59629a2, read 2026-11-26.

    Lacking: CelebA with names (its authors give them on request), ImageNet, LAION's shard; their
    prompts of identities stand in no file, so ours are the sentences that ask for a person.
    """

    name: ClassVar = "slug"
    draw: ClassVar = Draw(50, 7.5, sampler="ddim", noise="torch")
    judges: ClassVar = ("clip:openai/clip-vit-large-patch14",)
    kind: ClassVar[Kind] = "identity"
    own: ClassVar = "Elon Musk", "Jeff Bezos", "Kim Kardashian", "Mark Zuckerberg", "Taylor Swift"
    asked: ClassVar = 20
