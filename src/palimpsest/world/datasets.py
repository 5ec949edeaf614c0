"""The world's pictures with captions, as its CLIP learnt them, and by class, to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from palimpsest.core.concepts import ask, says
from palimpsest.core.streams import stream
from palimpsest.data.images import resized
from palimpsest.data.pairs import Labelled, Pairs
from palimpsest.data.read import read_pairs
from palimpsest.world.captions import SUBJECTS, captions
from palimpsest.world.data import FIRST_SEED
from palimpsest.world.render import render
from palimpsest.world.vocabulary import DOMAINS, OBJECTS, STYLES, SYNONYMS

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def world_pairs(
    names: Sequence[str], n: int, seed: int = 0, *, without: bool = False, use: str = "train"
) -> Pairs:
    """Return pictures of the world, captioned as its CLIP learnt them.

    Args:
        names: what the pictures show and their captions say; or what they do not.
        n: how many, of the subjects in turn. `train` holds the pictures that CLIP was trained on.
        seed: draws the captions.
        without: whether `names` are left out instead.
        use: whose seeds: `train`, `judge` or `test`.
    """
    words = [word for name in names for word in (name, *SYNONYMS.get(name, ()))]
    shown = [bool({s.name, s.style} & set(names)) for s in SUBJECTS]
    chosen = [i for i, shows in enumerate(shown) if shows != without]
    g, images, texts = stream(seed, "pairs"), [], []
    order = [chosen[int(k)] for k in torch.randperm(len(chosen), generator=g)]
    for k in range(n if order else 0):
        i = order[k % len(order)]
        every = captions(SUBJECTS[i]).items()
        shares = {t: p for t, p in every if says(t, *words) != without}
        pick = torch.multinomial(torch.tensor([*shares.values()]), 1, generator=g)
        texts.append([*shares][int(pick)])
        seed_of = FIRST_SEED[use] + 1000 * i + k // len(order)
        images.append(_bytes(render(SUBJECTS[i].name, SUBJECTS[i].style, seed_of)))
    empty = torch.zeros(0, 3, 64, 64, dtype=torch.uint8)
    return Pairs(torch.stack(images) if images else empty, tuple(texts), "world")


def world_classes(
    per_class: int, first: int, *, more: Sequence[str] = (), times: int = 4
) -> Labelled:
    """Return pictures that nothing was trained on, so many of each name, in all styles.

    Args:
        per_class: pictures of each.
        first: the first seed among those for measuring; ranges that do not meet share no picture.
        more: names that get more.
        times: how many times as many.
    """
    images, labels, prompts = [], [], {}
    for kind, members in DOMAINS.items():
        for name in members if kind != "style" else ():
            prompts[name] = ask(name, kind)[0]  # type: ignore[arg-type]
            for k in range(per_class * (times if name in more else 1)):
                style = STYLES[k % len(STYLES)] if name in OBJECTS else None
                images.append(_bytes(render(name, style, FIRST_SEED["test"] + first + k)))
                labels.append(name)
    return Labelled(torch.stack(images), tuple(labels), prompts)


def _bytes(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def gather(
    place: str, side: int, names: Sequence[str], n: int, seed: int, *, without: bool = False
) -> Pairs:
    """So many pairs of a source, or the world's own, in an order that the seed fixes.

    Args:
        place: a source, or `world`.
        side: height and width to scale to, in pixels.
        names: for the world: what the pictures show, or what they do not show.
        n: how many at most.
        seed: fixes the order, and the world's captions.
        without: whether `names` are left out instead.
    """
    if place != "world":
        return read_pairs(place, side).shuffled(seed, n)
    pairs = world_pairs(names, n, seed, without=without)
    return replace(pairs, images=resized(pairs.images, side))
