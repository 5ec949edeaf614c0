"""Single Layer Unlearning Gradient, through the text encoder of Stable Diffusion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.streams import generator
from palimpsest.data.images import as_bytes, resized
from palimpsest.data.pairs import Pairs, check_pairs
from palimpsest.data.read import read_pairs
from palimpsest.methods import Context, Eraser, Reading, Result, Task
from palimpsest.models.clip import ContrastiveEncoder, shared
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import load_clip
from palimpsest.patch import Patch
from palimpsest.toolbox.clip_losses import distance
from palimpsest.toolbox.denoising import kept
from palimpsest.toolbox.layer_search import Layer, Slopes, Trial, best, search, slopes, table, told
from palimpsest.toolbox.pictures import draw
from palimpsest.world.datasets import gather

HOMES = {
    256: "world",
    768: "openai/clip-vit-large-patch14",
    1024: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}
"""Width of a text encoder → the CLIP that it is the text tower of: the world's, SD 1.x's, 2.x's."""

BLOCK = re.compile(r"(?P<place>.*\.layers\.(?P<depth>\d+)\.)(?P<part>self_attn|mlp)\.")
MEMBERS = {"self_attn": ("q_proj", "k_proj", "v_proj"), "mlp": ("fc1", "fc2")}
"""What moves together: queries, keys and values of a layer, or both matrices of its MLP."""


@dataclass(frozen=True)
class SLUG(Eraser):
    """Move one layer of the text encoder once, along the gradient that parts name and picture.

    Cai et al., "Targeted Unlearning with Single Layer Unlearning Gradient", ICML 2025,
    arXiv:2407.11867. With L_f = mean(1 − cos(picture, caption)) over what is to be forgotten and
    L_r CLIP's contrastive loss over the rest, one gradient each: the layers with a large ‖∇L_f‖/‖θ‖
    and a small |cos(∇L_f, ∇L_r)| form a Pareto front; its deepest one becomes θ + λ∇L_f. The
    gradients are CLIP's, whose text tower the pipeline's text encoder is.
    """

    clip: str | None = None
    """The CLIP whose text tower the text encoder is: `world`, a Transformers folder or a Hub id.
    When left out it is told by the text encoder's width; fingerprints refuse any other."""
    forget: str | None = None
    """Captioned pictures to forget: a folder, a .csv, webdataset tars, or `world`, the renderer's.
    When left out the model draws them."""
    retain: str | None = None
    """Captioned pictures to retain, likewise."""
    pictures: int = 256
    """How many pictures to forget are drawn, or taken at most."""
    retain_pictures: int = 1024
    """How many pictures to retain are drawn, or taken at most."""
    batch: int = 128
    """The batch of the contrastive loss, which depends on it; memory does not."""
    blocks: int = 1
    """How many blocks of the front are searched, the deepest first."""
    start: float = 0.4
    """The first λ, as a multiple of ‖θ‖/‖∇L_f‖."""
    tries: int = 10
    """Values of λ tried on each block."""
    scale: float | None = None
    """λ itself, as a multiple of ‖θ‖/‖∇L_f‖: no search, and no judge is needed."""
    search_pictures: int = 16
    """Pictures of the concept, and as many of what it keeps, that a judge sees of every λ."""
    sampling_steps: int = 50
    """Steps of DDIM for all pictures drawn."""
    guidance: float = 7.5
    """Guidance of all pictures drawn."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "world": {
            "forget": "world",
            "retain": "world",
            "pictures": 128,
            "retain_pictures": 384,
            "blocks": 3,
            "tries": 6,
            "sampling_steps": 8,
            "guidance": 3.0,
        },
    }
    bibtex: ClassVar[str] = """@inproceedings{cai2025targeted,
  title={Targeted Unlearning with Single Layer Unlearning Gradient},
  author={Cai, Zikui and Tan, Yaoteng and Asif, M. Salman},
  booktitle={International Conference on Machine Learning},
  year={2025}
}"""

    def __post_init__(self) -> None:
        at_least(self, pictures=1, retain_pictures=2, batch=2, blocks=1, start=1e-9, tries=1)
        at_least(self, search_pictures=1, sampling_steps=1)

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Erase the concepts.

        Raises:
            PalimpsestError: pictures that cannot serve, a text encoder that is not the CLIP's, or
                no judge to search by.
        """
        concepts = task.concepts
        self._keeps(concepts)
        if self.scale is None:
            context.needs_judge()  # before anything is spent
        encoder, weights = self._encoder(model)
        forget, retain = self._pairs(model, encoder, concepts, context)
        names = [concept.name for concept in concepts]
        check_pairs(forget, retain, names, [w for concept in concepts for w in concept.synonyms])
        found = slopes(encoder, forget, retain, [*weights], batch=self.batch, context=context)
        layers = table(weights, found)
        moved = [Block.of(title, weights, found) for title in blocks(layers)[: self.blocks]]
        trials = [] if self.scale else self._search(model, concepts, moved, context)
        won = best(trials) if trials else None
        block = next((b for b in moved if won and b.title == won.layer), moved[0])
        scale = won.scale if won else (self.scale or 0.0) * block.step
        deltas = {name: scale * found.forget[name] for name in block.names}
        patch = model.make_patch(deltas)
        told_ = told(layers, trials) | {"block": block.title, "lambda": scale}
        told_ |= _sets(encoder, patch, forget, retain, self.batch)
        return Result(patch, search=told_, short=_short(won))

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse a text encoder that is not the CLIP's, empty sources, and nothing to keep.

        The CLIP is loaded for it: that is seconds, and what would be drawn in vain is minutes.
        """
        concepts = task.concepts
        self._keeps(concepts)
        for place in (self.forget, self.retain):
            if place is not None and place != "world":
                read_pairs(place, 8, limit=1)
        self._encoder(model)

    def _keeps(self, concepts: Sequence[Concept]) -> None:
        if self.retain is None or self.scale is None:
            kept(concepts)

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries of the matrices that one block is chosen from."""
        return {n: p.numel() for n, p in model.parameters("text").items() if _is_matrix(n, p)}

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations of one latent, without and with gradient."""
        drawn = (not self.forget) * self.pictures + (not self.retain) * self.retain_pictures
        if self.scale is None:
            drawn += (1 + self.blocks * self.tries) * 2 * self.search_pictures
        return 2 * self.sampling_steps * drawn, 0

    # --- pictures and captions ---

    def _encoder(self, model: Diffusion) -> tuple[ContrastiveEncoder, dict[str, Tensor]]:
        """The CLIP whose text tower the text encoder is, and its matrices that the model reads."""
        encoder = load_clip(self._home(model), device=str(model.device))
        reads = model.parameters("text").__contains__
        return encoder, shared(model, encoder, "text", reads)

    def _home(self, model: Diffusion) -> str:
        width = model.text.width
        if self.clip is None and width not in HOMES:
            raise PalimpsestError(
                f"no CLIP is known whose text tower is {width} wide; name it with --clip"
            )
        return self.clip or HOMES[width]

    def _pairs(
        self,
        model: Diffusion,
        encoder: ContrastiveEncoder,
        concepts: Sequence[Concept],
        context: Context,
    ) -> tuple[Pairs, Pairs]:
        names, found = [concept.name for concept in concepts], []
        asks = [text for concept in concepts for text in concept.sentences]
        for place, n, without in (
            (self.forget, self.pictures, False),
            (self.retain, self.retain_pictures, True),
        ):
            if place is not None:
                found.append(gather(place, encoder.side, names, n, context.seed, without=without))
                continue
            texts = kept(concepts) if without else asks
            index = 2 if without else 1
            images = self._drawn(model, _cycled(texts, n), index, context)
            images = as_bytes(resized(images, encoder.side))
            found.append(Pairs(images, _cycled(texts, n), "drawn"))
        return found[0], found[1]

    def _drawn(
        self, model: Diffusion, texts: Sequence[str], index: int, context: Context
    ) -> Tensor:
        """A picture of each text; `index` tells one set's noise from another's."""
        latents, _ = draw(
            model,
            model.embed(texts),
            len(texts),
            generator(context.seed, index),
            steps=self.sampling_steps,
            guidance=self.guidance,
            context=context,
            label="pictures",
        )
        return model.decode(latents).cpu()

    # --- the search ---

    def _search(
        self,
        model: Diffusion,
        concepts: Sequence[Concept],
        moved: Sequence[Block],
        context: Context,
    ) -> list[Trial]:
        """Every λ tried on every block, judged by pictures of the same prompts and noise."""
        n, judge = self.search_pictures, context.needs_judge()
        asked = _cycled([(c, text) for c in concepts for text in c.sentences], n)
        keep = kept(concepts)
        others = [keep[i * len(keep) // n] for i in range(n)]

        def look(texts: Sequence[str], index: int) -> Reading:
            return judge.read(self._drawn(model, texts, index, context))

        before = look(others, 4)

        def measure(block: Block, scale: float) -> tuple[float, float]:
            shift = Patch.dense({name: scale * g for name, g in block.slopes.items()})
            with model.patched(shift):
                seen, after = look([text for _, text in asked], 3), look(others, 4)
            said = [seen.labels[c.kind][i] == c.name for i, (c, _) in enumerate(asked)]
            return sum(said) / n, _agreement(before, after)

        return [
            trial
            for block in moved
            for trial in search(
                block.title,
                self.start * block.step,
                self.tries,
                lambda scale, block=block: measure(block, scale),
            )
        ]


@dataclass(frozen=True)
class Block:
    """Matrices that move together along their gradients, by one λ."""

    title: str
    names: tuple[str, ...]
    slopes: dict[str, Tensor]
    step: float
    """‖θ‖/‖∇L_f‖ over all of them."""

    @classmethod
    def of(cls, title: str, weights: dict[str, Tensor], found: Slopes) -> Block:
        """The block of that title."""
        place, part = title.rsplit(".", 1)
        names = tuple(f"{place}.{part}.{member}.weight" for member in MEMBERS[part])
        own = {name: found.forget[name] for name in names}
        theta, g = (
            sqrt(sum(float(t.double().square().sum()) for t in some))
            for some in ((weights[n] for n in names), own.values())
        )
        return cls(title, names, own, theta / g)


def blocks(layers: Sequence[Layer]) -> list[str]:
    """The blocks that hold a layer of the front, the deepest first, then the more important."""
    found: dict[str, tuple[int, float]] = {}
    for layer in layers:
        match = BLOCK.match(layer.name)
        if layer.front and match:
            title = match["place"] + match["part"]
            rank = (int(match["depth"]), layer.importance)
            found[title] = max(rank, found.get(title, rank))
    return sorted(found, key=lambda title: found[title], reverse=True)


def _agreement(before: Reading, after: Reading) -> float:
    """Share of pictures and heads of which the judge says what it said before."""
    same = [
        a == b
        for kind in before.labels
        for a, b in zip(before.labels[kind], after.labels[kind], strict=True)
    ]
    return sum(same) / len(same)


def _short(won: Trial | None) -> str | None:
    """What a search that did not get there says of itself."""
    if won is None or won.forget == 0:
        return None
    left = f"{100 * won.forget:.0f} % of the pictures judged still show the concept"
    return f"no layer reached 0 within the budget: {left} at best, which is kept"


def _sets(
    encoder: ContrastiveEncoder, patch: Patch, forget: Pairs, retain: Pairs, batch: int
) -> dict[str, Any]:
    """What the gradients were taken over, and the concept's mean cosine before and after."""

    def cosine() -> float:
        return 1 - float(distance(encoder.images(forget.images), encoder.texts(forget.texts)))

    before = cosine()
    with encoder.patched(patch):
        after = cosine()
    return {
        "clip": encoder.name,
        "cosine": [before, after],
        "batch": min(batch, len(retain)),
        "forget": {"source": forget.source, "pictures": len(forget), "digest": forget.digest},
        "retain": {"source": retain.source, "pictures": len(retain), "digest": retain.digest},
        "skipped": [*forget.skipped, *retain.skipped],
    }


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and "embedding" not in name


def _cycled(items: Sequence[Any], n: int) -> tuple[Any, ...]:
    """`n` of the items, in turn."""
    return tuple(items[i % len(items)] for i in range(n))
