"""Noised latents to train at: sampled up to a random step, or pictures with noise added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.optimise import draws
from palimpsest.toolbox.pictures import Drawn

if TYPE_CHECKING:
    from torch import Tensor

Wordings = Literal["name", "sentences"]
"""How a concept is called: by its bare name, or by every sentence that asks for it."""

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


def noised(model: Diffusion, x_0: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Add noise to clean latents, each to a timestep drawn uniformly.

    Returns:
        (n, 4, h, w) latents, (n,) their timesteps, and the noise.
    """
    t, noise = model.times(len(x_0), g), model.noise(len(x_0), g)
    return model.add_noise(x_0, noise, t), t, noise


def both(
    model: Diffusion, empty: Conditioning, x_t: Tensor, t: Tensor, c: Conditioning
) -> tuple[Tensor, Tensor]:
    """Return ε(x_t, ∅) and ε(x_t, c), asked for in one batch."""
    asked = empty.expand(len(x_t)) + c
    e_0, e_c = model.eps(torch.cat([x_t, x_t]), t.repeat(2), asked).chunk(2)
    return e_0, e_c


def denoising_error(model: Diffusion, x_0: Tensor, c: Conditioning, g: torch.Generator) -> Tensor:
    """Return ‖ε(x_t, t, c) − noise‖², averaged, the loss that diffusion models are trained with.

    Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv:2006.11239, eq. 14.

    Args:
        model: the model, or the view of it under training.
        x_0: (n, channels, h, w) clean latents.
        c: n prompts, or one for all.
        g: draws the n times and the noise.
    """
    x_t, t, noise = noised(model, x_0, g)
    return (model.eps(x_t, t, c) - noise).square().mean()  # eq. 14


@dataclass(frozen=True)
class Latents(Settings):
    """Where noised latents of a concept come from."""

    source: LatentSource = "student"
    """What x_t is: sampled with the concept's prompt up to a random step, by the model under
    training (`student`) or the frozen one (`frozen`); or `noised`: pictures of the concept with
    noise added, which is cheaper."""
    steps: int = 50
    """Length of the grid that x_t, or the pictures, are sampled on."""
    guidance: float = 3.0
    """Guidance that they are sampled with."""
    batch: int = 1
    """Latents a step."""
    pictures: int = 64
    """For `noised`: how many pictures of the concept are drawn once, before training."""
    folder: Path | None = None
    """For `noised`: a folder of pictures of the concept to take in place of drawn ones."""
    wordings: Wordings = "name"
    """What the concept is called in training: its bare name, or every sentence that asks for it."""

    least: ClassVar = dict(steps=1, guidance=0, batch=1, pictures=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folder and self.source != "noised":
            raise PalimpsestError(
                f"latents.source {self.source!r} looks at no picture; set it to 'noised', or leave "
                "out latents.folder"
            )

    def texts(self, concepts: Sequence[Concept]) -> list[str]:
        """Return what the concepts are called in training."""
        every = self.wordings == "sentences"
        return [text for c in concepts for text in (c.sentences if every else (c.name,))]

    def of(self, model: Diffusion, concepts: Sequence[Concept], context: Context) -> NoisedLatents:
        """Return the source of these concepts' latents; for `noised` the pictures are made now."""
        return NoisedLatents(model, model.embed(self.texts(concepts)), self, context)

    @property
    def drawn(self) -> Drawn:
        """For `noised`: the pictures."""
        return Drawn(self.pictures, self.steps, self.guidance, self.folder)

    def evaluations(self, steps: int) -> int:
        """Return the network evaluations that the latents of so many training steps take."""
        if self.source == "noised":
            return self.drawn.cost
        return steps * self.batch * self.steps  # two for guidance, half the grid on average


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
class NoisedLatents:
    """One concept's latents, step by step."""

    model: Diffusion
    """The frozen model."""
    cond: Conditioning
    """The concept's prompts; each latent takes one of them at random."""
    settings: Latents
    """Where they come from."""
    context: Context
    """Its seed fixes the pictures."""

    def __post_init__(self) -> None:
        if self.settings.source == "noised":
            _ = self._x_0

    def start(self, g: torch.Generator) -> Start:
        """Draw what one step begins with."""
        if self.settings.source == "noised":
            pick = torch.randint(len(self._x_0), (self.settings.batch,), generator=g)
            x_t, t, _ = noised(self.model, self._x_0[pick], g)
            return Start(x_t, 0, t, self._prompts(g))
        c, stop = self._prompts(g), int(torch.randint(self.settings.steps, (1,), generator=g))
        noise = self.model.noise(self.settings.batch, g)
        # every time is met: t is drawn between this step's and the next lower one's
        t = self.model.schedule.between(self.settings.steps, stop, self.settings.batch, g)
        return Start(noise, stop, t.to(noise.device), c)

    def reach(
        self, starts: Sequence[Start], student: Diffusion
    ) -> tuple[Tensor, Tensor, Conditioning]:
        """Return the steps' (n, 4, h, w) latents, their (n,) timesteps and prompts, in one batch.

        Args:
            starts: of this source, or of others with the same sampling.
            student: the model under training.
        """
        x, t = torch.cat([s.x for s in starts]), torch.cat([s.t for s in starts])
        c = reduce(add, (s.c for s in starts))
        stop = torch.tensor([s.stop for s in starts for _ in s.x])
        if stop.any():
            s, own = self.settings, self.settings.source == "student"
            how = {"steps": s.steps, "guidance": s.guidance, "stop": stop}
            x = (student if own else self.model).sample(x, c, **how, apart=not own)
        return x, t, c

    @property
    def stretch(self) -> int:
        """How many steps' latents can be worked out together, as many as pictures are made at once.

        What the student samples hangs on the step before it.
        """
        if self.settings.source == "student":
            return 1
        return max(1, self.model.sampling.batch // self.settings.batch)

    def _prompts(self, g: torch.Generator) -> Conditioning:
        return self.cond[torch.randint(len(self.cond), (self.settings.batch,), generator=g)]

    @cached_property
    def _x_0(self) -> Tensor:
        g, label = self.context.stream("pictures"), "pictures of the concept"
        return self.settings.drawn.latents(self.model, self.cond, g, self.context, label)[0]


def ahead(
    work: Callable[[list[torch.Generator]], tuple[Any, ...]],
    *,
    steps: int,
    stretch: int,
    context: Context,
) -> Callable[[int], tuple[Any, ...]]:
    """Return what works out for a stretch of steps at once all that they need of the frozen model.

    The draws are those of each step's own generator. Stretches begin at multiples of their length,
    so that a resumed run computes the same batches as an unbroken one.

    Args:
        work: makes tensors or conditionings whose rows are those of the first generator's step,
            then of the next one's, as many for each.
        steps: how many steps there are in all.
        stretch: how many of them are worked out together.
        context: its seed fixes the draws.

    Returns:
        Step → its own rows of everything that `work` makes.
    """

    @lru_cache(maxsize=1)
    def from_step(first: int) -> tuple[tuple[Any, ...], int]:
        draw = [draws(context, step) for step in range(first, min(first + stretch, steps))]
        with torch.no_grad():
            parts = work(draw)
        return parts, len(parts[0]) // len(draw)

    def own(step: int) -> tuple[Any, ...]:
        parts, rows = from_step(step - step % stretch)
        i = step % stretch * rows
        return tuple(part[i : i + rows] for part in parts)

    return own
