"""Forget-Me-Not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept, ask
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.streams import generator
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning, without_ids
from palimpsest.patch.algebra import check_rank, truncated
from palimpsest.toolbox.attention import attention_maps, end_of_text, within, word_positions
from palimpsest.toolbox.inversion import OBJECT_TEMPLATES, STYLE_TEMPLATES, Inversion, first_vectors
from palimpsest.toolbox.optimise import Recipe, optimise
from palimpsest.toolbox.pictures import PictureLatents, draw, read_latents
from palimpsest.toolbox.soft_tokens import SLOT, embed_vectors, token_ids


@dataclass(frozen=True)
class Asked:
    """The prompts that are trained on."""

    cond: Conditioning
    wanted: Tensor
    """(prompts, window) true at the tokens whose attention shall fall."""
    owner: list[int]
    """Which concept each prompt asks for."""


@dataclass(frozen=True)
class NoisedBatch:
    """One step's noised latents with their prompts."""

    x_t: Tensor
    t: Tensor
    cond: Conditioning
    wanted: Tensor
    masks: Tensor | None

    def maps(self, model: Diffusion) -> dict[str, Tensor]:
        """What each layer of the model pays attention to, at the wanted tokens."""
        return attention_maps(model, self.x_t, self.t, self.cond, self.wanted)


@dataclass(frozen=True)
class FMN(Eraser):
    """Turn the attention of every pixel away from the concept's words.

    Zhang et al., "Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models", CVPR
    Workshops 2024, arXiv:2303.17591. Attention re-steering: with A the cross-attention
    probabilities of the concept's tokens over all layers, heads and pixels, on noised pictures of
    the concept, the loss is the Frobenius norm ‖A‖.
    """

    steps: int = 35
    """Optimisation steps."""
    lr: float = 2e-6
    """AdamW's learning rate."""
    weight_decay: float = 0.01
    """AdamW's weight decay. It acts on the shift, so toward the unedited weights."""
    batch: int = 1
    """Latents a step; each has a norm of its own, and the loss is their mean."""
    train: Literal["full", "xattn", "xattn-kv"] = "full"
    """Which parameters move: the whole U-Net (published), the cross-attention alone, or only its
    keys and values."""
    objective: Literal["norm", "mean-square"] = "norm"
    """The norm of all probabilities together, or their mean square (as SRS-ME's authors ran it)."""
    pooler: bool = False
    """Let the attention of every `<|endoftext|>` fall too, the padding of Stable Diffusion 1.x
    included."""
    tail: bool = False
    """Let the attention of every word after the concept's fall too: a causal text encoder lets them
    carry it (SRS-ME's authors take every word of the prompt but `a painting of`)."""
    wordings: Literal["photo", "sentences"] = "photo"
    """What is prompted: `a photo of …` or `a photo in the style of …`, or every sentence that asks
    for the concept."""
    templates: tuple[str, ...] = ()
    """Prompts of one's own in place of the wordings; `{name}` in them stands for the concept."""
    words: str = ""
    """The words whose attention falls; the concept's name when left out. With `templates`, this
    corrects an ambiguous word: its attention falls on pictures of the concept, the unwanted
    meaning."""
    hold: bool = False
    """Hold the words' attention on pictures of the concept's anchor at what it was, so that an
    ambiguous word keeps that meaning; adds ‖A − A*‖ there to the loss (not published)."""
    latents: Literal["pictures", "noise"] = "pictures"
    """What the attention looks at: the concept's pictures with noise added, or noise alone."""
    folder: str | None = None
    """A folder of pictures of the concept; with several concepts, of one such folder each, by name.
    When left out, the unedited model draws them."""
    masks: str | None = None
    """A folder of masks, one per picture of `folder` by its name: only where it is white counts."""
    pictures: int = 64
    """How many pictures of each concept the model draws."""
    sampling_steps: int = 50
    """Length of the DDIM schedule that they are drawn on."""
    guidance: float = 7.5
    """Guidance that they are drawn with."""
    rank: int | None = None
    """Cut the patch to this rank by singular values, for a light file; None keeps it whole."""
    placeholders: int = 0
    """Vectors to find by textual inversion first, then to forget in place of the concept's words;
    0 forgets the words (published: 4 where inversion is used)."""
    starts: tuple[str, ...] = ()
    """What the vectors start from, one entry each, the rest random. When left out the first starts
    from the concept's name."""
    inversion: Inversion = field(default_factory=Inversion)
    """How the vectors are trained."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "srs-me": {
            "lr": 1e-5,
            "steps": 30,
            "train": "xattn",
            "objective": "mean-square",
            "templates": ("a painting of {name}",),
        },
        "world": {
            "steps": 70,
            "lr": 4e-4,
            "batch": 8,
            "train": "xattn-kv",
            "pooler": True,
            "tail": True,
            "wordings": "sentences",
            "sampling_steps": 20,
            "guidance": 3.0,
        },
        "world-correction": {
            "steps": 100,
            "lr": 1e-3,
            "batch": 8,
            "train": "xattn",
            "hold": True,
            "sampling_steps": 20,
            "guidance": 3.0,
        },
    }
    bibtex: ClassVar[str] = """@inproceedings{zhang2024forget,
  title={Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models},
  author={Zhang, Gong and Wang, Kai and Xu, Xingqian and Wang, Zhangyang and Shi, Humphrey},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, steps=1, lr=0, weight_decay=0, batch=1, pictures=1, sampling_steps=1)
        at_least(self, placeholders=0)
        if self.rank is not None:
            at_least(self, rank=1)
        if self.masks and not self.folder:
            raise PalimpsestError("FMN: masks belong to the pictures of a folder; name it, too")
        if self.latents == "noise" and self.folder and not self.placeholders:
            raise PalimpsestError("FMN: latents 'noise' looks at no picture; leave out the folder")
        if self.placeholders and self.words:
            raise PalimpsestError("FMN: placeholders take the place of words; give one of the two")
        if len(self.starts) > self.placeholders:
            raise PalimpsestError(
                f"FMN: starts has {len(self.starts)} entries for {self.placeholders} placeholders"
            )

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Erase the concepts.

        Raises:
            PalimpsestError: a prompt too long or without its words, pictures or masks that cannot
                be used, a rank too high, or an edit that changes nothing.
        """
        concepts = task.concepts
        weights = model.parameters(self.train)
        anchors = [anchor_of(concept) for concept in concepts] if self.hold else []
        asked = None if self.placeholders else self._words(model, concepts)
        shown = self._shown(model, concepts, context) if self._looks else None
        if asked is None:
            assert shown is not None
            asked = self._inverted(model, concepts, shown, context)
        held = self._held(model, anchors, context) if anchors else None
        deltas = {
            name: torch.zeros_like(p, dtype=torch.float32, requires_grad=True)
            for name, p in weights.items()
        }
        loss = self._loss(model, model.student(deltas), asked, shown, held)
        recipe = Recipe(
            steps=self.steps, lr=self.lr, optimizer="adamw", weight_decay=self.weight_decay
        )
        optimise(loss, deltas, recipe, context=context, label="erasing")
        patch = model.make_patch(deltas)
        if self.rank is None:
            return Result(patch)
        light, residual = truncated(patch, self.rank, smaller=True)
        return Result(model.checked(replace(light, about={"residual": residual})))

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse a rank too high, a missing anchor, and prompts too long or without their words."""
        concepts = task.concepts
        if self.rank is not None:
            shapes = {n: p.shape for n, p in model.parameters(self.train).items()}
            check_rank(shapes, self.rank, smaller=True)
        for concept in concepts if self.hold else ():
            anchor_of(concept)
        if not self.placeholders:
            self._words(model, concepts)

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that move, by parameter."""
        return model.sizes(self.train)

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations of one latent, without and with gradient."""
        sets = int(self._looks and not self.folder) + self.hold
        drawn = sets * self.pictures * 2 * self.sampling_steps
        inverted = self.inversion.steps * self.inversion.batch if self.placeholders else 0
        steered = self.steps * self.batch
        return drawn + self.hold * steered, (1 + self.hold) * steered + inverted

    # --- the loss ---

    def _loss(
        self,
        model: Diffusion,
        student: Diffusion,
        asked: Asked,
        shown: PictureLatents | None,
        held: PictureLatents | None,
    ) -> Callable[[torch.Generator, int], Tensor]:
        steered = self._noised(model, asked, shown if self.latents == "pictures" else None)
        kept = self._noised(model, asked, held) if held else None

        def loss(g: torch.Generator, step: int) -> Tensor:
            seen = steered(g)
            total = self._size(seen.maps(student), seen)
            if kept is None:
                return total
            seen = kept(g)
            with torch.no_grad():
                target = seen.maps(model)
            moved = {name: A - target[name] for name, A in seen.maps(student).items()}
            return total + self._size(moved, seen)

        return loss

    def _noised(
        self, model: Diffusion, asked: Asked, shown: PictureLatents | None
    ) -> Callable[[torch.Generator], NoisedBatch]:
        """What draws one step's noised pictures, or noise alone, each with a prompt of its own."""
        owners = [*shown.owner] if shown else sorted(set(asked.owner))
        pairs = [
            (prompt, picture)
            for prompt, owner in enumerate(asked.owner)
            for picture, shows in enumerate(owners)
            if shows == owner
        ]

        def noised(g: torch.Generator) -> NoisedBatch:
            chosen = torch.randint(len(pairs), (self.batch,), generator=g).tolist()
            prompt, picture = ([pairs[i][k] for i in chosen] for k in (0, 1))
            t = model.times(self.batch, g)
            x_t, masks = model.noise(self.batch, g), None
            if shown is not None:
                x_t = model.add_noise(shown.x_0[picture], x_t, t)
                masks = None if shown.masks is None else shown.masks[picture]
            return NoisedBatch(x_t, t, asked.cond[prompt], asked.wanted[prompt], masks)

        return noised

    def _size(self, maps: Mapping[str, Tensor], seen: NoisedBatch) -> Tensor:
        """‖A‖ over all layers, heads, pixels and tokens, or the mean of A²; mean over the batch."""
        parts = within(maps.values(), seen.masks)
        squares = torch.stack([A.square().sum((1, 2, 3)) for A in parts]).sum(0)
        if self.objective == "norm":
            return squares.clamp_min(1e-12).sqrt().mean()  # √ is too steep at 0, where hold starts
        entries = seen.wanted.sum(1) * sum(A[0, :, :, 0].numel() for A in parts)
        return (squares / entries).mean()

    # --- what is asked for ---

    def _wordings(self, name: str, concept: Concept) -> tuple[str, ...]:
        if self.templates:
            return tuple(template.replace("{name}", name) for template in self.templates)
        if self.wordings == "sentences":
            return ask(name, concept.kind)
        of = "in the style of" if concept.kind == "style" else "of"
        return (f"a photo {of} {name}",)

    def _words(self, model: Diffusion, concepts: Sequence[Concept]) -> Asked:
        """Prompts with the concepts' own words."""
        rows = [
            (text, self.words or name, owner)
            for owner, concept in enumerate(concepts)
            for name in (concept.name, *concept.synonyms)
            for text in self._wordings(name, concept)
        ]
        rows = list(dict.fromkeys(rows))
        wanted = torch.stack([word_positions(model, text, words) for text, words, _ in rows])
        texts, _, owners = zip(*rows, strict=True)
        ids = model.text.ids(texts).to(model.device)
        return self._asked(model, model.embed(texts), wanted, ids, list(owners))

    def _inverted(
        self, model: Diffusion, concepts: Sequence[Concept], shown: PictureLatents, context: Context
    ) -> Asked:
        """Prompts with vectors in place of the concepts' words."""
        found = []
        for owner, concept in enumerate(concepts):
            texts = self._wordings(SLOT, concept)
            ids, slots = token_ids(model, texts, self.placeholders)
            vectors = self._vectors(model, concept, owner, shown, context)
            with torch.no_grad():
                cond = embed_vectors(model, texts, vectors)
            found.append(self._asked(model, cond, slots, ids, [owner] * len(texts)))
        conds = [asked.cond for asked in found]
        cond = sum(conds[1:], conds[0])
        wanted = torch.cat([asked.wanted for asked in found])
        return Asked(cond, wanted, [owner for asked in found for owner in asked.owner])

    def _asked(
        self, model: Diffusion, cond: Conditioning, wanted: Tensor, ids: Tensor, owner: list[int]
    ) -> Asked:
        wanted = wanted.to(ids.device)
        ends = end_of_text(model, ids)
        if self.tail:
            wanted = wanted | (wanted.cumsum(1) > 0) & ~ends
        if self.pooler:
            wanted = wanted | ends
        return Asked(without_ids(cond.detach()), wanted, owner)

    def _vectors(
        self,
        model: Diffusion,
        concept: Concept,
        owner: int,
        shown: PictureLatents,
        context: Context,
    ) -> Tensor:
        """Textual inversion of one concept's pictures, as they are and mirrored."""
        mine = [i for i, shows in enumerate(shown.owner) if shows == owner]
        assert shown.mirrored is not None
        texts = ask(SLOT, concept.kind)
        if self.wordings == "photo":
            texts = STYLE_TEMPLATES if concept.kind == "style" else OBJECT_TEMPLATES
        start = first_vectors(
            model,
            self.starts or (concept.name,),
            self.placeholders,
            generator(context.seed, 2, owner),
        )
        return self.inversion(
            model,
            torch.cat([shown.x_0[mine], shown.mirrored[mine]]),
            texts,
            start,
            context=context,
            label=f"inverting {concept.name}",
        )

    @property
    def _looks(self) -> bool:
        """Whether pictures are looked at, by the attention or by the inversion."""
        return self.latents == "pictures" or self.placeholders > 0

    def _shown(
        self, model: Diffusion, concepts: Sequence[Concept], context: Context
    ) -> PictureLatents:
        """Every concept's pictures, drawn or read, with their mirror images for an inversion."""
        parts = []
        for owner, concept in enumerate(concepts):
            if self.folder is None:
                g = generator(context.seed, 1, owner)
                parts.append(self._drawn(model, concept, g, context))
            else:
                sub = concept.name if len(concepts) > 1 else ""
                masks = Path(self.masks) / sub if self.masks else None
                place = Path(self.folder) / sub
                parts.append(read_latents(model, place, masks, mirror=self.placeholders > 0))
        return PictureLatents.joined(parts)

    def _held(
        self, model: Diffusion, anchors: Sequence[Concept], context: Context
    ) -> PictureLatents:
        """Pictures of what takes each concept's place."""
        parts = [
            self._drawn(model, anchor, generator(context.seed, 3, owner), context)
            for owner, anchor in enumerate(anchors)
        ]
        return PictureLatents.joined(parts)

    def _drawn(
        self, model: Diffusion, concept: Concept, g: torch.Generator, context: Context
    ) -> PictureLatents:
        x_0, _ = draw(
            model,
            model.embed(concept.sentences),
            self.pictures,
            g,
            steps=self.sampling_steps,
            guidance=self.guidance,
            context=context,
            label=f"pictures of {concept.name}",
        )
        mirrored = model.encode(model.decode(x_0).flip(-1)) if self.placeholders else None
        return PictureLatents(x_0, mirrored=mirrored)


def anchor_of(concept: Concept) -> Concept:
    """What takes the concept's place, as a concept of its own.

    Raises:
        PalimpsestError: it has no anchor.
    """
    if concept.anchor is None:
        raise PalimpsestError(
            f"{concept.name!r} has no anchor to hold: name one, or leave out hold"
        )
    return Concept(concept.anchor, concept.kind)
