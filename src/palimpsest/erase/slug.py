"""Single Layer Unlearning Gradient: of CLIP, and of the encoders that are a CLIP's tower."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from palimpsest.core.bibliography import cite
from palimpsest.core.demand import Demand
from palimpsest.core.errors import PalimpsestError
from palimpsest.data.images import as_bytes, resized
from palimpsest.data.pairs import Pairs, check_pairs
from palimpsest.data.questions import Quiz, counted
from palimpsest.data.read import read_pairs
from palimpsest.methods import Context, Eraser, Reading, Result, Task
from palimpsest.models.clip import ContrastiveEncoder, shared, tower
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import load_clip
from palimpsest.patch import Patch
from palimpsest.toolbox import layer_search
from palimpsest.toolbox.clip_losses import distance, zero_shot
from palimpsest.toolbox.denoising import kept
from palimpsest.toolbox.layer_search import Block, Layer, Slopes
from palimpsest.toolbox.pictures import Captioned, Sampler
from palimpsest.world.datasets import gather

if TYPE_CHECKING:
    from torch import Tensor

HOMES = {
    ("text", 256): "world",
    ("text", 768): "openai/clip-vit-large-patch14",
    ("text", 1024): "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ("vision", 128, 64): "world",
    ("vision", 1024, 336): "openai/clip-vit-large-patch14-336",
}
"""A tower's kind, width and pixels → the CLIP that it is of: the world's, that of Stable Diffusion
1.x and of 2.x; the world's, LLaVA-1.5's."""

FEW = 100
"""With fewer classes than this, being among the first five says little."""

After = Callable[[Patch | None], tuple[float, float]]
"""Edit → (share still known of what is forgotten, share kept of the rest)."""


CLIPS = {768: 427_616_513, 1024: 986_109_441}
"""Width of a text encoder → parameters of the whole CLIP that it is of, ViT-L or ViT-H."""


@dataclass(frozen=True)
class SLUG(Eraser):
    """Move one layer once, along the gradient that parts names and pictures.

    Cai et al., "Targeted Unlearning with Single Layer Unlearning Gradient", ICML 2025,
    arXiv:2407.11867. With L_f = mean(1 − cos(picture, caption)) over what is to be forgotten and
    L_r CLIP's contrastive loss over the rest, one gradient each: the layers with a large ‖∇L_f‖/‖θ‖
    and a small |cos(∇L_f, ∇L_r)| form a Pareto front per tower. On it, λ of θ + λ∇L_f is searched
    for the shortest step after which nothing of the concept is left. The gradients are always
    CLIP's: of the model itself, or of the CLIP whose text tower is Stable Diffusion's text encoder,
    or whose vision tower LLaVA sees through.

    Traps: θ moves up the gradient of 1 − cos; the other sign makes the concept more at home. L_r
    depends on its batch. Only layers that the edited model reads may stand on the front.
    """

    clip: str | None = None
    """The CLIP whose tower the edited model's encoder is: `world`, a Transformers folder or a Hub
    id. When left out it is known by the encoder's form; fingerprints refuse any other."""
    batch: int | None = None
    """The batch of the contrastive loss, which depends on it; memory does not. When left out: 16 in
    Stable Diffusion, 32 elsewhere."""
    blocks: int | None = None
    """How many blocks of the front are searched. When left out: in Stable Diffusion the deepest
    one, elsewhere all."""
    start: float | None = None
    """The first λ, as a multiple of ‖θ‖/‖∇L_f‖. When left out: 0.4 in Stable Diffusion, 0.1
    elsewhere."""
    unit: Literal["matrix", "block"] = "matrix"
    """In Stable Diffusion: whose ‖θ‖/‖∇L_f‖ λ is a multiple of, that of the block's most important
    matrix on the front (the authors' code), or that of all that moves together (`block`)."""
    tries: int = 10
    """Values of λ tried on each block."""
    scale: float | None = None
    """λ itself, as a multiple of ‖θ‖/‖∇L_f‖, on the first block: no search, and nothing is
    measured."""
    forgotten: Captioned = Captioned(256)
    """In Stable Diffusion, if the task brings no pictures: what is forgotten."""
    retained: Captioned = Captioned(1024)
    """In Stable Diffusion, if the task brings no pictures: what is retained."""
    search_pictures: int = 3
    """In Stable Diffusion: pictures of the concept, and as many of what it keeps, that a judge sees
    of every λ."""
    sampling: Sampler = Sampler(100, 9.0)
    """In Stable Diffusion: how all these pictures are drawn."""

    needs: ClassVar[frozenset[str]] = frozenset()
    needs_one: ClassVar[frozenset[str]] = frozenset(
        {"contrastive", "a CLIP text encoder", "answers"}
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {
            "forgotten": Captioned(128, Path("world")),
            "retained": Captioned(384, Path("world")),
            "batch": 128,
            "blocks": 3,
            "unit": "block",
            "tries": 6,
            "search_pictures": 16,
            "sampling": Sampler(8, 3.0),
        },
        "world_clip": {"batch": 128},
        "world_llava": {"batch": 128},
    }
    bibtex: ClassVar[str] = cite("cai2025targeted")
    least: ClassVar = dict(batch=2, blocks=1, start=1e-9, tries=1, search_pictures=1)

    def erase(self, model: Any, task: Task, context: Context) -> Result:
        """Move one block; it and λ are chosen by what the edited model still knows.

        Raises:
            PalimpsestError: pictures that cannot serve, a concept that is not known to begin with,
                no judge to search by, or the edit changes nothing.
        """
        target = target_of(model)(self, model, task)
        encoder, weights, batch = target.encoder, target.weights, self.batch or target.batch
        forget, retain = target.sets(context)
        check_pairs(forget, retain, task.names, task.synonyms)
        after = target.measure(context) if self.scale is None else None
        sets, names = (forget, retain), [*weights]
        found = layer_search.slopes(encoder, *sets, names, batch=batch, context=context)
        layers = layer_search.table(weights, found)  # step: importance and alignment
        blocks = target.front(layers, found)[: self.blocks or target.blocks]
        block, trials, short = blocks[0], [], None
        scale = (self.scale or 0.0) * block.step
        if after:
            start = self.start or target.start
            trials = layer_search.search_blocks(blocks, start, self.tries, after, context)
            won = layer_search.best(trials)
            block, scale = next(b for b in blocks if b.title == won.layer), won.scale
            short = target.short(won.forget)
        patch = model.make_patch(block.moved(scale))  # step: θ + λ∇L_f
        chosen = {"layer": block.title, "lambda": scale, "rule": target.rule}
        chosen["batch"] = min(batch, len(retain))
        record = layer_search.told(layers, trials) | chosen
        record |= self._sets(encoder, patch, forget, retain)
        return Result(patch, search=record, short=short)

    def check(self, model: Any, task: Task) -> None:
        """Refuse an encoder that is not the CLIP's, and sets that cannot serve.

        The CLIP is loaded for it: that is seconds, and what would be drawn in vain is minutes.
        """
        target_of(model)(self, model, task).check()

    def moves(self, model: Any) -> dict[str, int]:
        """Return the entries of the matrices that one block is chosen from."""
        return {name: p.numel() for name, p in target_of(model).matrices(model).items()}

    def demand(self, model: Any) -> Demand:
        """Return what one of its steps holds at once."""
        clip = CLIPS.get(model.text.width, 0) if hasattr(model, "text") else 0
        return Demand(other=4 * (clip + 2 * sum(self.moves(model).values())))

    def evaluations(self) -> tuple[int, int]:
        """Return Stable Diffusion's evaluations of one latent, without and with gradient."""
        drawn = sum(some.pictures for some in (self.forgotten, self.retained) if not some.source)
        if self.scale is None:
            drawn += (1 + (self.blocks or 1) * self.tries) * 2 * self.search_pictures
        return self.sampling.cost * drawn, 0

    def _sets(
        self, encoder: ContrastiveEncoder, patch: Patch, forget: Pairs, retain: Pairs
    ) -> dict[str, Any]:
        """Return what the gradients were taken over, and the concept's mean cosine."""

        def cosine() -> float:
            return 1 - float(distance(encoder.images(forget.images), encoder.texts(forget.texts)))

        before = cosine()
        with encoder.patched(patch):
            after = cosine()
        return {
            "clip": encoder.name,
            "cosine": [before, after],
            "forget": {"source": forget.source, "pictures": len(forget), "digest": forget.digest},
            "retain": {"source": retain.source, "pictures": len(retain), "digest": retain.digest},
            "skipped": [*forget.skipped, *retain.skipped],
        }


# --- what differs between the models that are edited ---


class Target:
    """A model to edit: whose matrices its encoder's are, what moves together, what is known."""

    start: float = 0.1
    """The published first λ."""
    batch: int = 32
    """The published batch of the contrastive loss."""
    blocks: int | None = None
    """How many blocks are searched as published; None is all."""
    rule: str
    """What ends the search."""
    left: str
    """What is left if it does not end, with its share at `{}`."""

    def __init__(self, settings: SLUG, model: Any, task: Task) -> None:
        self.settings, self.model, self.task = settings, model, task
        self.encoder, self.weights = self.reads()

    def reads(self) -> tuple[ContrastiveEncoder, dict[str, Tensor]]:
        """Return the CLIP that gradients are taken of, and its matrices that the model reads."""
        raise NotImplementedError

    @staticmethod
    def matrices(model: Any) -> dict[str, Tensor]:
        """Return the matrices of a model that may move."""
        return model.matrices()

    def check(self) -> None:
        """Refuse sets that cannot serve."""
        self.task.sets()

    def sets(self, context: Context) -> tuple[Pairs, Pairs]:
        """Return the pictures to forget and those to retain."""
        return self.task.sets()[:2]

    def front(self, layers: Sequence[Layer], found: Slopes) -> list[Block]:
        """Return what may be moved: each matrix of the front by itself."""
        return [Block.of(layer, found) for layer in layers if layer.front]

    def measure(self, context: Context) -> After:
        """Return what tells how much an edited model still knows.

        Raises:
            PalimpsestError: the unedited model does not know the concept, or nobody can tell.
        """
        raise NotImplementedError

    def short(self, share: float) -> str | None:
        """Return what a search that left a share says of itself; None if it left nothing."""
        left = self.left.format(f"{100 * share:.0f} %")
        kept = f"no layer reached 0 within the budget: {left} at best, which is kept"
        return kept if share else None

    def home(self, kind: str, *form: int) -> ContrastiveEncoder:
        """Load the CLIP that the settings name, or that is known by its tower's width and pixels.

        Raises:
            PalimpsestError: none is known.
        """
        name = self.settings.clip or HOMES.get((kind, *form))
        if name is None:
            at = f" at {form[1]} pixels" if form[1:] else ""
            raise PalimpsestError(
                f"no CLIP is known whose {kind} tower is {form[0]} wide{at}; name it with --clip"
            )
        return load_clip(name, device=str(self.model.device))


class InCLIP(Target):
    """Either tower of a CLIP, measured zero-shot on the task's validation pictures."""

    def __init__(self, settings: SLUG, model: ContrastiveEncoder, task: Task) -> None:
        super().__init__(settings, model, task)
        _, _, self.shown = task.sets()
        self.k = 1 if len(self.shown.prompts) < FEW else 5
        self.rule = f"forget accuracy @{self.k} is 0"
        self.left = f"forget accuracy @{self.k} is {{}}"

    def reads(self) -> tuple[ContrastiveEncoder, dict[str, Tensor]]:
        """Return the model itself and all its matrices."""
        return self.model, self.matrices(self.model)

    def measure(self, context: Context) -> After:
        """Return the measure: forget accuracy @k, and the accuracy over the other classes."""
        gone = [label in self.task.names for label in self.shown.labels]
        features = self.model.images(self.shown.images)

        def after(patch: Patch | None) -> tuple[float, float]:
            edited = patch.edits if patch else ()
            text = all(tower(name) == "text" for name in edited)  # pictures are seen as before
            with self.model.patched(patch):
                ranks = zero_shot(self.model, self.shown, features if text else None)
            pairs = list(zip(ranks, gone, strict=True))
            forgotten = share(rank < self.k for rank, own in pairs if own)
            return forgotten, share(rank == 0 for rank, own in pairs if not own)

        if not after(None)[0]:
            raise PalimpsestError(
                f"{self.model.name!r} names none of the validation pictures of "
                f"{', '.join(self.task.names)!r}, so there is nothing to forget; give others"
            )
        return after


class InLLaVA(Target):
    """LLaVA's vision tower, measured by its answers about the task's validation pictures."""

    rule = "no answer says the name"
    left = "the name is said of {} of its pictures"

    def reads(self) -> tuple[ContrastiveEncoder, dict[str, Tensor]]:
        """Return the CLIP of the vision tower, and its matrices that answers depend on."""
        encoder = self.home("vision", self.model.width, self.model.side)
        return encoder, shared(self.model, encoder, "vision", self.model.reads)

    def measure(self, context: Context) -> After:
        """Return the measure: how often the name is said, and others are named right."""
        quiz, names = self.task.validation, self.task.names
        if not isinstance(quiz, Quiz):
            raise PalimpsestError("the validation pictures ask nothing; give the task a Quiz")

        def after(patch: Patch | None) -> tuple[float, float]:
            with self.model.patched(patch):
                said = quiz.put(self.model)
            forgotten, others = counted(quiz, said, names, self.task.synonyms)
            return share(forgotten), share(chain(*others.values()))

        if not after(None)[0]:
            raise PalimpsestError(
                f"{self.model.name!r} says {', '.join(names)!r} of none of its validation "
                "pictures, so there is nothing to forget; ask otherwise (--questions) or give "
                "other pictures"
            )
        return after


class InStableDiffusion(Target):
    """Stable Diffusion's text encoder, measured by a judge on pictures drawn anew for each λ."""

    start = 0.4
    batch = 16
    blocks = 1
    rule = "no picture shows the concept"
    left = "{} of the pictures judged still show the concept"

    def reads(self) -> tuple[ContrastiveEncoder, dict[str, Tensor]]:
        """Return the CLIP of the text encoder, and its matrices that the pipeline reads."""
        encoder = self.home("text", self.model.text.width)
        known, unread = self.model.parameters("text"), self.model.text.unread
        reads = lambda name: name in known and not name.startswith(unread)  # noqa: E731
        return encoder, shared(self.model, encoder, "text", reads)

    @staticmethod
    def matrices(model: Diffusion) -> dict[str, Tensor]:
        """Return the matrices of the text encoder but its embeddings."""
        return {n: p for n, p in model.matrices("text").items() if "embedding" not in n}

    def check(self) -> None:
        """Refuse empty sources, and nothing to keep."""
        own = self.settings
        if own.scale is None or (self.task.retain is None and own.retained.source is None):
            kept(self.task.concepts)
        for source in (own.forgotten.source, own.retained.source):
            if source is not None and str(source) != "world":
                read_pairs(str(source), 8, limit=1)

    def sets(self, context: Context) -> tuple[Pairs, Pairs]:
        """Return the task's pictures, or those of the settings: read, rendered or drawn."""
        own, concepts = self.settings, self.task.concepts
        forget, retain = self.task.forget, self.task.retain
        if own.scale is None:
            context.needs_judge()  # before anything is drawn
        if forget is None:
            asks = [text for concept in concepts for text in concept.sentences]
            forget = self._pairs(own.forgotten, asks, "pictures", context)
        if retain is None:
            texts = [] if own.retained.source else kept(concepts)
            retain = self._pairs(own.retained, texts, "retained pictures", context)
        return forget, retain

    def _pairs(self, some: Captioned, texts: Sequence[str], stream: str, context: Context) -> Pairs:
        side, n = self.encoder.side, some.pictures
        if some.source is not None:
            place, others = str(some.source), stream == "retained pictures"
            return gather(place, side, self.task.names, n, context.seed, without=others)
        asked = cycled(texts, n)
        images = self._drawn(asked, stream, context)
        return Pairs(as_bytes(resized(images, side)), asked, "drawn")

    def _drawn(self, texts: Sequence[str], stream: str, context: Context) -> Tensor:
        """Draw a picture of each text; the stream tells one set's noise from another's."""
        cond, g = self.model.embed(texts), context.stream(stream)
        sampling = self.settings.sampling
        x_0, _ = sampling.draw(self.model, cond, len(texts), g, context, "pictures")
        return self.model.decode(x_0).cpu()

    def front(self, layers: Sequence[Layer], found: Slopes) -> list[Block]:
        """Return the blocks that hold a layer of the front, the deepest first."""
        return layer_search.joint_blocks(layers, self.weights, found, self.settings.unit)

    def measure(self, context: Context) -> After:
        """Return the measure, by pictures of the same prompts and noise for every edit.

        It is the share of the concept's pictures that show it, and the share of what the judge says
        of the others, over all its heads, that it said before.
        """
        n, judge = self.settings.search_pictures, context.needs_judge()
        concepts = self.task.concepts
        asked = cycled([(c, text) for c in concepts for text in c.sentences], n)
        keep = kept(concepts)
        others = [keep[i * len(keep) // n] for i in range(n)]

        def look(texts: Sequence[str], stream: str) -> Reading:
            return judge.read(self._drawn(texts, stream, context))

        before = look(others, "search, others")

        def after(patch: Patch | None) -> tuple[float, float]:
            with self.model.patched(patch):
                seen = look([text for _, text in asked], "search")
                now = look(others, "search, others")
            said = (seen.labels[c.kind][i] == c.name for i, (c, _) in enumerate(asked))
            return share(said), share(
                a == b
                for kind in before.labels
                for a, b in zip(before.labels[kind], now.labels[kind], strict=True)
            )

        return after


TARGETS: dict[str, type[Target]] = {
    "contrastive": InCLIP,
    "answers": InLLaVA,
    "a CLIP text encoder": InStableDiffusion,
}
"""What a model offers → what SLUG makes of such a model."""


def target_of(model: Any) -> type[Target]:
    """Return what SLUG makes of a model; `needs_one` has refused all others."""
    return next(kind for offer, kind in TARGETS.items() if offer in model.offers)


def share(verdicts: Iterable[bool]) -> float:
    """Return the share that is true."""
    every = list(verdicts)
    return sum(every) / len(every)


def cycled(items: Sequence[Any], n: int) -> tuple[Any, ...]:
    """Return `n` of the items, in turn."""
    return tuple(items[i % len(items)] for i in range(n))
