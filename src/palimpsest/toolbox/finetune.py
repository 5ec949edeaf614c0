"""Fine-tune an erased model on captioned pictures, one curriculum after another.

Illusion of Unlearning and benign fine-tuning share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from palimpsest.core.demand import ENCODED, Demand
from palimpsest.core.errors import Settings
from palimpsest.core.kinds import ParameterGroup
from palimpsest.data.pairs import Pairs
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.checkpointing import checkpointed
from palimpsest.toolbox.curricula import TrainingData
from palimpsest.toolbox.latents import denoising_error
from palimpsest.toolbox.optimise import Recipe, Trace, optimise, part_of_all
from palimpsest.toolbox.relearning_curve import Judged

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FineTuning(Settings):
    """The settings of the training, of what it trains on and of the tests."""

    train: ParameterGroup = "full"
    """Which parameters move: `full`, the whole denoiser, or `xattn-kv`, keys and values of the
    cross-attention; the other groups are not published."""
    lr: float = 1e-5
    """AdamW's learning rate, held constant."""
    weight_decay: float = 1e-2
    """AdamW's weight decay of the shift."""
    clip: float = 1.0
    """Largest norm of the gradient, over all parameters together."""
    ema: float | None = 0.9999
    """Decay of the moving average of the weights, which is what is kept; it grows to this from 0.
    None keeps the weights of the last step."""
    batch: int = 10
    """Pictures whose gradients are computed at once."""
    accumulate: int = 1
    """Batches whose gradients are averaged in one step."""
    checkpointing: bool = False
    """Compute the denoiser's blocks again in the backward pass: less memory, for one more forward
    pass."""
    data: TrainingData = TrainingData()
    """The captioned pictures to train on; steps and guidance are of the model that draws them."""
    measure: Judged = Judged()
    """Who judges the model, and on how many pictures."""

    least: ClassVar = dict(lr=0, weight_decay=0, ema=0, batch=1, accumulate=1)
    above: ClassVar = dict(clip=0)
    below: ClassVar = dict(ema=1)

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        beside = 0 if self.ema is None else 4
        return Demand(self.batch, beside=beside, again=self.checkpointing, encoded=ENCODED)

    @property
    def per_step(self) -> int:
        """Pictures that a step trains on."""
        return self.batch * self.accumulate


@dataclass(frozen=True)
class Curriculum:
    """Pictures as the model under training sees them, and for how many steps."""

    x_0: Tensor
    """(2, n, 4, h, w) clean latents of the pictures, and of them mirrored."""
    cond: Conditioning
    """The n captions, embedded."""
    steps: int
    whole: int | None = None
    """Steps of the one whole epoch, in the given order, after which every step takes the first
    pictures again; None: all epochs are whole, each in an order of its own."""

    @classmethod
    def of(cls, model: Diffusion, pictures: Pairs, steps: int) -> Curriculum:
        """Encode pictures and captions once; within the patch, if it moves the text encoder."""
        both = [model.encode(images) for images in (pictures.floats, pictures.floats.flip(-1))]
        return cls(torch.stack(both), model.embed(pictures.texts), steps)

    def order(self, start: int, n: int, g: Callable[[int], torch.Generator]) -> Tensor:
        """Return the positions of `n` pictures, from place `start` on in an endless row of epochs.

        Every epoch has each picture once, in the given order if one epoch alone is whole, else in
        an order of its own by the generator `g(epoch)`.
        """
        size, found = self.x_0.shape[1], []
        if self.whole:
            return torch.arange(start, start + n) % size
        for epoch in range(start // size, (start + n - 1) // size + 1):
            shuffled = torch.randperm(size, generator=g(epoch))
            a, b = max(0, start - epoch * size), min(size, start + n - epoch * size)
            found.append(shuffled[a:b])
        return torch.cat(found)


def steps_of(pictures: int, epochs: int, per_step: int) -> int:
    """Return the steps that so many epochs take; the last is filled up from the epoch after."""
    return -(-pictures * epochs // per_step)


def fine_tune(
    model: Diffusion,
    stages: Sequence[Curriculum],
    settings: FineTuning,
    *,
    context: Context,
    label: str,
    watch: Callable[[Trace, Diffusion], bool | None],
    tested: Literal["last", "average"] = "average",
) -> tuple[Trace, Mapping[str, Tensor]]:
    """Train the model on curricula, one after another, by ‖ε(x_t, c) − noise‖².

    Args:
        model: the erased model, with its patch applied.
        stages: the curricula in order.
        settings: how to train.
        context: seed, progress and checkpoint folder.
        label: names the progress line and the checkpoint.
        watch: gets each step's trace and the model; True stops.
        tested: which weights that model has: the last step's, or their average if there is one.

    Returns:
        The trace, and the shifts of the weights by parameter.
    """
    deltas = model.shifts(settings.train)
    student, n = model.student(deltas), settings.batch
    parts = settings.accumulate * context.group.size  # of a step, by all processes
    calls = count()  # a resumed run begins with a whole step

    def loss(g: torch.Generator, step: int) -> Tensor:
        part = part_of_all(context, next(calls) % settings.accumulate)
        k, step = _within(stages, step)
        curriculum = stages[k]
        if curriculum.whole and step >= curriculum.whole:
            step = 0  # their code's counter of steps is never reset
        place = (step * parts + part) * n
        pick = curriculum.order(place, n, lambda epoch: context.stream("epochs", k, epoch))
        mirror = torch.randint(2, (n,), generator=g)
        x_0, c = curriculum.x_0[mirror, pick], curriculum.cond[pick]
        return denoising_error(student, x_0, c, g)  # step: the usual loss, ‖ε(x_t, c) − noise‖²

    def look(trace: Trace) -> bool | None:
        averaged = tested == "average" and trace.average
        return watch(trace, model.student(trace.average) if averaged else student)

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
    """Return which curriculum a step belongs to, and which step of that curriculum it is."""
    for k, curriculum in enumerate(stages):
        if step < curriculum.steps:
            return k, step
        step -= curriculum.steps
    raise IndexError(step)
