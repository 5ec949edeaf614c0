"""Fine-tune an erased model on captioned pictures, and test now and then whether it remembers.

What *Illusion of Unlearning* and *benign fine-tuning* share; no recovery by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.kinds import ParameterGroup
from palimpsest.core.streams import generator
from palimpsest.data.images import resized
from palimpsest.data.pairs import Pairs
from palimpsest.methods import Context
from palimpsest.metrics import rates
from palimpsest.metrics.rates import Rate
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.metrics.revival import Score
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox import curricula
from palimpsest.toolbox.checkpointing import checkpointed
from palimpsest.toolbox.optimise import Recipe, Trace, optimise
from palimpsest.toolbox.relearning_curve import SEED

Test = dict[str, Any]
"""One test of a model, JSON-able: `step`, and where somebody looked `says`, one 0 or 1 a picture,
and `cosines`, one a picture."""


@dataclass(frozen=True)
class FineTuning:
    """The settings of the training, of what it trains on and of the tests."""

    train: ParameterGroup = "full"
    """Which parameters move: `full`, the whole U-Net, or `xattn-kv`, keys and values of the
    cross-attention; the other groups are not published."""
    lr: float = 1e-5
    """AdamW's learning rate, held constant."""
    weight_decay: float = 1e-2
    """AdamW's weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient, over all parameters together."""
    ema: float | None = 0.9999
    """Decay of the moving average of the weights, which is what is tested and kept; it grows to
    this from 0. None keeps the weights of the last step."""
    batch: int = 10
    """Pictures a micro-step."""
    accumulate: int = 1
    """Micro-steps a step."""
    checkpointing: bool = False
    """Compute the U-Net's blocks again in the backward pass: less memory, for one more forward
    pass."""
    source: Literal["folder", "model", "world"] = "folder"
    """Where the pictures come from: a `folder`; drawn by a `model`, the unedited one or another;
    or the built-in world's renderer, whose pictures show exactly what was asked for."""
    folder: str | None = None
    """For `folder`: captioned pictures, as `palimpsest generate --for-training` writes them (their
    captions in metadata.jsonl), taken in the order of their files' names."""
    related: tuple[str, ...] = ()
    """For `model`: the prompts to draw from. Without any, what the concept keeps."""
    render_with: str | None = None
    """For `model`: another model that draws, by its name, folder, file or Hub id."""
    sampling_steps: int = 50
    """For `model`: steps of DDIM."""
    guidance: float = 7.5
    """For `model`: guidance."""
    allow_target: bool = False
    """Train even on pictures that show the concept or name it."""
    judged_by: Literal["both", "classifier", "clip", "none"] = "both"
    """Who looks at the test pictures: the classifier, CLIP, both, or nobody."""
    measure_pictures: int = 48
    """Pictures a test, of the concept's own sentences."""
    least_known: float = 0.5
    """Share of the unedited model's test pictures in which the classifier must see the concept;
    below it forgetting could not be told from never having known."""

    def __post_init__(self) -> None:
        at_least(self, lr=0, weight_decay=0, batch=1, accumulate=1, measure_pictures=1)
        at_least(self, sampling_steps=1, guidance=0)
        name = type(self).__name__
        if not self.clip > 0:
            raise PalimpsestError(f"{name}: clip is {self.clip}; it must be above 0")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise PalimpsestError(f"{name}: ema is {self.ema}; it must be 0 or more and below 1")
        if not 0 <= self.least_known <= 1:
            raise PalimpsestError(f"{name}: least_known is {self.least_known}; it must be 0 to 1")

    @property
    def per_step(self) -> int:
        """Pictures that a step trains on."""
        return self.batch * self.accumulate

    @property
    def judged(self) -> bool:
        """Whether the classifier looks."""
        return self.judged_by in ("both", "classifier")

    @property
    def fitted(self) -> bool:
        """Whether CLIP looks."""
        return self.judged_by in ("both", "clip")

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that move, by parameter."""
        return model.sizes(self.train)

    def drawing(self, pictures: int) -> int:
        """U-Net evaluations that so many drawn pictures take."""
        return pictures * self.sampling_steps * 2 if self.source == "model" else 0

    def topics(self, model: Diffusion, concept: Concept) -> list[str]:
        """What may be drawn, from the least to the most like the concept.

        Raises:
            PalimpsestError: there is nothing, or the world has no such concept.
        """
        if self.source == "world":
            texts = curricula.world_names(concept)
        else:
            texts = list(dict.fromkeys(self.related or concept.keep))
        if not texts:
            raise PalimpsestError(
                f"no prompt says what to draw around {concept.name!r}; name some with --related"
            )
        return curricula.by_likeness(model, concept.name, texts)

    def drawn(
        self,
        model: Diffusion,
        concept: Concept,
        parts: Sequence[tuple[list[str], int]],
        context: Context,
    ) -> list[Pairs]:
        """For each part its topics in turn, so many pictures of them."""
        if self.source == "world":
            return curricula.from_world(model, concept, parts, context.seed)
        artist = curricula.renderer(model, self.render_with)
        made = curricula.from_model(
            artist, parts, steps=self.sampling_steps, guidance=self.guidance, context=context
        )
        return [replace(part, images=resized(part.images, model.side)) for part in made]

    def refuse_shown(self, parts: Iterable[Pairs], concept: Concept, context: Context) -> None:
        """Refuse pictures of the concept. The world's own carry exact labels and need no judge.

        Raises:
            PalimpsestError: naming the first such picture.
        """
        judge = None if self.source == "world" else context.judge
        for part in () if self.allow_target else parts:
            curricula.refuse_target(part, concept, judge)


@dataclass(frozen=True)
class Curriculum:
    """Pictures as the model under training sees them, and for how many steps."""

    x_0: Tensor
    """(2, n, 4, h, w) clean latents of the pictures, and of them mirrored."""
    cond: Conditioning
    """The n captions, embedded."""
    steps: int

    @classmethod
    def of(cls, model: Diffusion, pictures: Pairs, steps: int) -> Curriculum:
        """Encode pictures and captions once; under the patch, if it moves the text encoder."""
        both = [model.encode(images) for images in (pictures.floats, pictures.floats.flip(-1))]
        return cls(torch.stack(both), model.embed(pictures.texts), steps)

    def order(self, start: int, n: int, g: Callable[[int], torch.Generator]) -> Tensor:
        """The `n` pictures from place `start` on in an endless row of epochs.

        Every epoch holds each picture once, in an order of its own by the generator `g(epoch)`.
        """
        size, found = self.x_0.shape[1], []
        for epoch in range(start // size, (start + n - 1) // size + 1):
            shuffled = torch.randperm(size, generator=g(epoch))
            a, b = max(0, start - epoch * size), min(size, start + n - epoch * size)
            found.append(shuffled[a:b])
        return torch.cat(found)


def steps_of(pictures: int, epochs: int, per_step: int) -> int:
    """Steps that so many epochs take; the last is filled up from the epoch after."""
    return -(-pictures * epochs // per_step)


def fine_tune(
    model: Diffusion,
    stages: Sequence[Curriculum],
    settings: FineTuning,
    *,
    context: Context,
    label: str,
    watch: Callable[[Trace, Diffusion], bool | None],
) -> tuple[Trace, Mapping[str, Tensor]]:
    """Train the model on curricula, one after another, by ‖ε(x_t, c) − noise‖².

    Args:
        model: the erased model, under its patch.
        stages: the curricula in order.
        settings: the rest.
        context: seed, progress and checkpoint folder.
        label: names the progress line and the checkpoint.
        watch: sees each step's trace and the model as it would be kept now; True stops.

    Returns:
        The trace, and the shifts of the weights by parameter.
    """
    deltas = model.shifts(settings.train)
    student, n = model.student(deltas), settings.batch
    calls = count()  # a resumed run begins with a whole step

    def loss(g: torch.Generator, step: int) -> Tensor:
        part = next(calls) % settings.accumulate
        k, step = _within(stages, step)
        curriculum, place = stages[k], (step * settings.accumulate + part) * n
        pick = curriculum.order(place, n, lambda epoch: generator(context.seed, 2, k, epoch))
        mirror = torch.randint(2, (n,), generator=g)
        x_0 = curriculum.x_0[mirror, pick]
        t = model.times(n, g)
        noise = model.noise(n, g)
        x_t = model.add_noise(x_0, noise, t)
        return (student.eps(x_t, t, curriculum.cond[pick]) - noise).square().mean()

    def look(trace: Trace) -> bool | None:
        return watch(trace, model.student(trace.average) if trace.average else student)

    recipe = Recipe(
        steps=sum(curriculum.steps for curriculum in stages),
        lr=settings.lr,
        optimizer="adamw",
        weight_decay=settings.weight_decay,
        accumulate=settings.accumulate,
        clip=settings.clip,
        ema=settings.ema,
    )
    with checkpointed(model) if settings.checkpointing else nullcontext():
        trace = optimise(loss, deltas, recipe, context=context, label=label, watch=look)
    return trace, trace.average or deltas


def _within(stages: Sequence[Curriculum], step: int) -> tuple[int, int]:
    """Which curriculum a step belongs to, and which step of that curriculum it is."""
    for k, curriculum in enumerate(stages):
        if step < curriculum.steps:
            return k, step
        step -= curriculum.steps
    raise IndexError(step)


@dataclass(frozen=True)
class Examiner:
    """Tests models on the same prompts and seeds."""

    concept: Concept
    settings: FineTuning
    context: Context

    def __post_init__(self) -> None:
        if self.settings.judged:
            self.context.needs_judge()  # before anything is spent
        if self.settings.fitted:
            self.context.needs_clip()

    def test(self, model: Diffusion, step: int, label: str = "") -> Test:
        """Draw the test pictures and have them looked at."""
        if self.settings.judged_by == "none":
            return {"step": step}
        asked = self.concept.prompts(self.settings.measure_pictures, seed=SEED)
        images = model.generate(asked, self.context, label or f"test pictures at step {step}")
        found: Test = {"step": step}
        if self.settings.judged:
            reading = self.context.needs_judge().read(images)
            found["says"] = [int(s) for s in reading.says(self.concept.kind, self.concept.name)]
        if self.settings.fitted:
            cosines = self.context.needs_clip().cosine(images, [p.text for p in asked])
            found["cosines"] = [round(float(c), 5) for c in cosines]
        return found

    def original(self, model: Diffusion) -> Test:
        """The unedited model's test.

        Raises:
            PalimpsestError: it hardly knows the concept.
        """
        found = self.test(model, 0, "test pictures of the unedited model")
        least = self.settings.least_known
        if score(found).accuracy < least:
            raise PalimpsestError(
                f"the unedited model hardly knows {self.concept.name!r}: the classifier finds it "
                f"in {accuracy(found)} of its pictures and needs {100 * least:g} %, so there is "
                "nothing to revive; choose another concept, or set --least-known 0 to go on"
            )
        return found


def accuracy(test: Test) -> Rate:
    """How often the classifier says the concept."""
    return rates.rate(map(bool, test.get("says", ())))


def cosine(test: Test) -> Rate:
    """The mean CLIP cosine of the pictures with their own prompts."""
    return rates.mean(test.get("cosines", ()))


def score(test: Test) -> Score:
    """What a threshold looks at."""
    return Score(accuracy(test).value, cosine(test).value)


def figures(test: Test) -> dict[str, Any]:
    """A test's figures for the record, each with its interval."""
    found: dict[str, Any] = {}
    for name, rate in (("accuracy", accuracy(test)), ("CLIP cosine", cosine(test))):
        if rate.n:
            found[name] = round(rate.value, 4)
        if rate.n > 1:
            found[f"{name}, 95 %"] = [round(rate.low, 4), round(rate.high, 4)]
    return found


def curve(tests: Sequence[Test], per_step: int) -> tuple[CurvePoint, ...]:
    """The relearning curve, as far as the classifier looked."""
    return tuple(
        CurvePoint(
            test["step"], test["step"] * per_step, accuracy(test), tuple(map(bool, test["says"]))
        )
        for test in tests
        if "says" in test
    )
