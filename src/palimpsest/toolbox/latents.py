"""Noised latents to train at: sampled up to a random step, or pictures with noise added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.optimise import draws
from palimpsest.toolbox.pictures import draw, read_latents

LatentSource = Literal["student", "frozen", "noised"]
"""Sampled by the model under training, by the frozen one, or pictures with noise added."""


def sampled_midway(
    sampler: Diffusion, cond: Conditioning, g: torch.Generator, steps: int, guidance: float
) -> tuple[Tensor, Tensor]:
    """Sample from noise to a random step of the DDIM schedule.

    Args:
        sampler: the model, or the view of it, that samples.
        cond: one prompt a latent.
        g: draws the step, the noise and t.
        steps: length of the whole schedule.
        guidance: classifier-free guidance.

    Returns:
        (n, 4, h, w) latents, and (n,) timesteps drawn between that step's and the next lower one's.
    """
    stop = int(torch.randint(steps, (1,), generator=g))
    noise = sampler.noise(len(cond), g)
    x_t = sampler.sample(noise, cond, steps=steps, guidance=guidance, stop=stop)
    return x_t, sampler.schedule.between(steps, stop, len(cond), g).to(x_t.device)


def noised(model: Diffusion, x_0: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Add noise to clean latents, each to a timestep drawn uniformly.

    Returns:
        (n, 4, h, w) latents, and (n,) their timesteps.
    """
    t = model.times(len(x_0), g)
    return model.add_noise(x_0, model.noise(len(x_0), g), t), t


def check_folder(method: Any) -> None:
    """Refuse a folder of pictures where none are looked at.

    Raises:
        PalimpsestError: `folder` is given and `latents` is not `noised`.
    """
    if method.folder and method.latents != "noised":
        raise PalimpsestError(
            f"{type(method).__name__}: latents {method.latents!r} looks at no picture; set latents "
            "to 'noised', or leave out the folder"
        )


class Start(NamedTuple):
    """All that is random about one step's latents, before any model is asked."""

    x: Tensor
    """(batch, 4, h, w) latents as they stand before sampling: noise, or a noised picture."""
    stop: int
    """How many steps they are still to be sampled."""
    t: Tensor
    """(batch,) timesteps that they are trained at."""
    c: Conditioning
    """Their prompts."""


@dataclass(frozen=True)
class Latents:
    """Where one concept's latents come from."""

    model: Diffusion
    """The frozen model."""
    cond: Conditioning
    """The concept's prompts; each latent takes one of them at random."""
    source: LatentSource
    """Where x_t comes from."""
    batch: int
    """Latents a step."""
    steps: int
    """Length of the DDIM schedule."""
    guidance: float
    """Guidance that x_t, or the pictures, are sampled with."""
    pictures: int
    """For `noised`: how many pictures are made, before anything is trained."""
    context: Context
    """Its seed fixes the pictures."""
    folder: Path | None = None
    """For `noised`: a folder of pictures to take in place of those."""

    def __post_init__(self) -> None:
        if self.source == "noised":
            _ = self._x_0

    def start(self, g: torch.Generator) -> Start:
        """Draw what one step begins with."""
        if self.source == "noised":
            x_0 = self._x_0
            pick = torch.randint(len(x_0), (self.batch,), generator=g)
            t = self.model.times(self.batch, g)
            x_t = self.model.add_noise(x_0[pick], self.model.noise(self.batch, g), t)
            return Start(x_t, 0, t, self._prompts(g))
        c, stop = self._prompts(g), int(torch.randint(self.steps, (1,), generator=g))
        noise = self.model.noise(self.batch, g)
        # every time is met: t is drawn between this step's and the next lower one's
        t = self.model.schedule.between(self.steps, stop, self.batch, g)
        return Start(noise, stop, t.to(noise.device), c)

    def reach(
        self, starts: Sequence[Start], student: Diffusion
    ) -> tuple[Tensor, Tensor, Conditioning]:
        """The (n, 4, h, w) latents of these steps, their (n,) timesteps and prompts, in one batch.

        Args:
            starts: of this source, or of others with the same sampling.
            student: the model under training.
        """
        x, t = torch.cat([s.x for s in starts]), torch.cat([s.t for s in starts])
        c = reduce(add, (s.c for s in starts))
        stop = torch.tensor([s.stop for s in starts for _ in s.x])
        if stop.any():
            sampler = student if self.source == "student" else self.model
            x = sampler.sample(x, c, steps=self.steps, guidance=self.guidance, stop=stop)
        return x, t, c

    @property
    def stretch(self) -> int:
        """How many steps' latents can be worked out together, as many as pictures are made at once.

        What the student samples hangs on the step before it.
        """
        return 1 if self.source == "student" else max(1, self.model.sampling.batch // self.batch)

    def _prompts(self, g: torch.Generator) -> Conditioning:
        return self.cond[torch.randint(len(self.cond), (self.batch,), generator=g)]

    @cached_property
    def _x_0(self) -> Tensor:
        if self.folder is not None:
            return read_latents(self.model, self.folder, None, mirror=False).x_0
        x_0, _ = draw(
            self.model,
            self.cond,
            self.pictures,
            generator(self.context.seed, 1),
            steps=self.steps,
            guidance=self.guidance,
            context=self.context,
            label="pictures of the concept",
        )
        return x_0


class Ahead:
    """What steps need of the frozen model, worked out for a stretch of them in one batch.

    The draws are those of each step's own generator. Stretches begin at multiples of their length,
    so that a resumed run computes the same batches as an unbroken one.
    """

    def __init__(
        self,
        work: Callable[[list[torch.Generator]], tuple[Any, ...]],
        *,
        steps: int,
        stretch: int,
        context: Context,
    ) -> None:
        """Prepare; nothing is computed yet.

        Args:
            work: makes tensors or conditionings whose rows are those of the first generator's step,
                then of the next one's, as many for each.
            steps: how many steps there are in all.
            stretch: how many of them are worked out together.
            context: its seed fixes the draws.
        """
        self._work, self._steps, self._stretch, self._context = work, steps, stretch, context
        self._first, self._length = -1, 0
        self._parts: tuple[Any, ...] = ()

    def __call__(self, step: int) -> tuple[Any, ...]:
        """This step's rows of everything that `work` makes."""
        first = step - step % self._stretch
        if first != self._first:
            steps = range(first, min(first + self._stretch, self._steps))
            with torch.no_grad():
                self._parts = self._work([draws(self._context, k) for k in steps])
            self._first, self._length = first, len(steps)
        rows = len(self._parts[0]) // self._length
        own = slice((step - first) * rows, (step - first + 1) * rows)
        return tuple(part[own] for part in self._parts)
