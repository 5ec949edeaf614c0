"""Captioned pictures to fine-tune an erased model on, and the check that none shows the concept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from palimpsest.core.concepts import Concept, says
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.lazily import no_grad
from palimpsest.core.prompts import Prompt
from palimpsest.data.images import resized
from palimpsest.data.pairs import Pairs
from palimpsest.data.read import read_pairs
from palimpsest.methods import Context, Judge
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import load_model
from palimpsest.toolbox.pictures import Sampler
from palimpsest.world import suite
from palimpsest.world.render import SIZE, render
from palimpsest.world.vocabulary import DOMAINS, OBJECTS, STYLES

SEED = 3_000_000
"""First seed of what the world's renderer draws: beyond those that the world, its judge and its
tests were drawn from."""

Part = tuple[list[str], int]
"""What to draw, prompts or names taken in turn, and how many pictures of it."""


@dataclass(frozen=True)
class TrainingData(Sampler):
    """Where the captioned pictures to fine-tune on come from; none may show the concept."""

    source: Literal["folder", "model", "world"] = "folder"
    """Where the pictures come from: a `folder`; drawn by a `model`, the unedited one or another;
    or the built-in world's renderer, whose pictures show exactly what was asked for."""
    folder: Path | None = None
    """For `folder`: captioned pictures, as `palimpsest generate --for-training` writes them (their
    captions in metadata.jsonl), taken in the order of their files' names."""
    related: tuple[str, ...] = ()
    """For `model`: the prompts to draw from. Without any, what the concept keeps."""
    render_with: str | None = None
    """For `model`: another model that draws, by its name, folder, file or Hub id."""
    allow_target: bool = False
    """Train even on pictures that show the concept or name it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folder and self.source != "folder":
            raise PalimpsestError(
                f"data.source {self.source!r} reads no folder; set it to 'folder', or leave out "
                "data.folder"
            )

    def evaluations(self, pictures: int) -> int:
        """Return the network evaluations that drawing so many pictures takes."""
        return pictures * self.cost if self.source == "model" else 0

    def topics(self, model: Diffusion, concept: Concept) -> list[str]:
        """Return what may be drawn, from the least to the most like the concept.

        Raises:
            PalimpsestError: there is nothing, or the world has no such concept.
        """
        if self.source == "world":
            texts = world_names(concept)
        else:
            texts = list(dict.fromkeys(self.related or concept.keep))
        if not texts:
            raise PalimpsestError(
                f"no prompt says what to draw around {concept.name!r}; name some with "
                "--data.related"
            )
        return by_likeness(model, concept.name, texts)

    def drawn(
        self, model: Diffusion, concept: Concept, parts: Sequence[Part], context: Context
    ) -> list[Pairs]:
        """Draw the pictures of each part."""
        if self.source == "world":
            return from_world(model, concept, parts, context)
        made = from_model(renderer(model, self.render_with), parts, self, context)
        return [replace(part, images=resized(part.images, model.side)) for part in made]

    def refuse_shown(self, parts: Iterable[Pairs], concept: Concept, context: Context) -> None:
        """Refuse pictures of the concept. The world's own have exact labels and need no judge.

        Raises:
            PalimpsestError: naming the first such picture.
        """
        judge = None if self.source == "world" else context.judge
        for part in () if self.allow_target else parts:
            refuse_target(part, concept, judge)


# --- where they come from ---


def from_folder(model: Diffusion, folder: Path | None) -> Pairs:
    """Read the captioned pictures of a folder, in the order of their files' names.

    Raises:
        PalimpsestError: no folder is named, or what `read_pairs` refuses.
    """
    if folder is None:
        raise PalimpsestError(
            "nothing to fine-tune on: name a folder of captioned pictures with --data.folder, or "
            "let them be drawn with --data.source"
        )
    return read_pairs(folder, model.side, strict=True)


def from_model(
    model: Diffusion, parts: Sequence[Part], sampler: Sampler, context: Context
) -> list[Pairs]:
    """Draw pictures of each part's prompts by a model."""
    made = []
    for i, (prompts, n) in enumerate(parts):
        g, cond = context.stream("pictures", i), model.embed(prompts)
        label = f"pictures to train on, part {i + 1}"
        latents, owner = sampler.draw(model, cond, n, g, context, label)
        captions = tuple(prompts[k] for k in owner.tolist())
        made.append(Pairs(model.decode(latents).cpu(), captions, ", ".join(prompts)))
    return made


def from_world(
    model: Diffusion, concept: Concept, parts: Sequence[Part], context: Context
) -> list[Pairs]:
    """Draw pictures of each part's names by the world's renderer.

    What a name leaves open, an object's style or a style's object, is taken at random from all but
    the concept, so that no picture shows it: the renderer draws nothing that it was not asked for.

    Raises:
        PalimpsestError: the model is not of the world's size.
    """
    if model.side != SIZE:
        raise PalimpsestError(
            f"the world's renderer draws {SIZE} px and {model.name!r} {model.side} px; name a "
            "--data.folder, or let a model draw with --data.source model"
        )
    made = []
    for i, (topics, n) in enumerate(parts):
        g = context.stream("pictures", i)
        asked = [_subject(topics[k % len(topics)], k, concept, g) for k in range(n)]
        arrays = [render(_name(p), p.asks.get("style"), p.seed) for p in asked]
        images = torch.stack([torch.from_numpy(a).permute(2, 0, 1) for a in arrays])
        made.append(Pairs(images, tuple(p.text for p in asked), ", ".join(topics)))
    return made


def _subject(name: str, turn: int, concept: Concept, g: torch.Generator) -> Prompt:
    """Return what the renderer draws for a name, with its caption and its exact labels."""
    kind = suite.kind_of(name)
    others = [n for n in (STYLES if kind == "object" else OBJECTS) if n != concept.name]
    other = others[int(torch.randint(len(others), (1,), generator=g))]
    seed = SEED + int(torch.randint(2**30, (1,), generator=g))
    if kind == "object":
        return suite.pair(name, other, seed)
    return suite.pair(other, name, seed) if kind == "style" else suite.single(name, seed, turn)


def _name(prompt: Prompt) -> str:
    """Return what is drawn, its style aside."""
    return next(name for kind, name in prompt.asks.items() if kind != "style")


def world_names(concept: Concept) -> list[str]:
    """Return everything that the world knows but the concept.

    Raises:
        PalimpsestError: the world has no such concept.
    """
    suite.kind_of(concept.name)
    return [name for names in DOMAINS.values() for name in names if name != concept.name]


def renderer(model: Diffusion, name: str | None) -> Diffusion:
    """Return the model that draws: the unedited one, or another by its name."""
    if name is None:
        return model
    dtype = str(model.dtype).removeprefix("torch.")
    return load_model(name, device=str(model.device), dtype=dtype)


# --- their order ---


@no_grad
def by_likeness(model: Diffusion, name: str, texts: list[str]) -> list[str]:
    """Return texts from the least to the most like a name, to the model's own text encoder.

    Likeness is the cosine of the text encoder's hidden states at the end of each text.
    """
    every = [name, *texts]
    rows, ends = model.rows(every).float(), [n - 1 for n in model.text.lengths(every)]
    features = torch.nn.functional.normalize(
        rows[torch.arange(len(every)), torch.tensor(ends)], dim=-1
    )
    order = (features[1:] @ features[0]).argsort(stable=True)
    return [texts[i] for i in order.tolist()]


def groups(texts: list[str], n: int) -> list[list[str]]:
    """Return texts in `n` groups that follow one another, as even as can be, larger first.

    Raises:
        PalimpsestError: there are fewer texts than groups.
    """
    if len(texts) < n:
        raise PalimpsestError(
            f"{len(texts)} related concepts cannot fill {n} curricula; name more of them, or fewer "
            "cut points"
        )
    size, larger = divmod(len(texts), n)
    ends = [i * size + min(i, larger) for i in range(n + 1)]
    return [list(texts[a:b]) for a, b in pairwise(ends)]


def cut(pictures: Pairs, cuts: Sequence[int]) -> list[Pairs]:
    """Return the slices between cumulative cut points, from the first picture on.

    Raises:
        PalimpsestError: a cut point beyond the pictures.
    """
    if cuts[-1] > len(pictures):
        raise PalimpsestError(
            f"the cut point {cuts[-1]} lies beyond the {len(pictures)} pictures; the last one can "
            f"be {len(pictures)} at most"
        )
    return [pictures[a:b] for a, b in pairwise([0, *cuts])]


# --- what they must not show ---


def refuse_target(pictures: Pairs, concept: Concept, judge: Judge | None) -> None:
    """Refuse pictures that name the concept in a caption, or in which the judge, if any, sees it.

    Raises:
        PalimpsestError: naming the first such picture, and how many there are.
    """
    named = [i for i, text in enumerate(pictures.texts) if says(text, *concept.names)]
    _refuse(pictures, named, f"names {concept.name!r}, which was erased, or a word for it")
    if judge is None:
        return
    labels = judge.read(pictures.floats).labels.get(concept.kind, [])
    seen = [i for i, label in enumerate(labels) if label == concept.name]
    _refuse(pictures, seen, f"shows {concept.name!r}, which was erased, as the judge sees it")


def _refuse(pictures: Pairs, found: Sequence[int], what: str) -> None:
    if not found:
        return
    more = f" ({len(found)} of {len(pictures)} do)" if len(found) > 1 else ""
    raise PalimpsestError(
        f"picture {found[0] + 1}, captioned {pictures.texts[found[0]]!r}, {what}{more}; what "
        "came back from it would have been taught: leave such pictures out, or insist with "
        "--data.allow-target"
    )
