"""The noising probe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.data.read import read_folder
from palimpsest.methods import Context, Recovery, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.patch import Patch
from palimpsest.patch.asking import Asking, Entry
from palimpsest.toolbox.asking import from_latents
from palimpsest.toolbox.pictures import Sampler
from palimpsest.toolbox.relearning_curve import judged, own_prompts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NoisingProbe(Recovery):
    """Noise pictures of the concept, or cover their middle, and let the erased model continue.

    After Lu et al., "When Are Concepts Erased From Diffusion Models?", NeurIPS 2025,
    arXiv:2505.17013, who show erased models noised and in-painted pictures; noising to t and
    denoising from there is SDEdit's (Meng et al., ICLR 2022, arXiv:2108.01073). Nothing is trained.

    Traps: the curve's steps are noise levels, not training. At a low level the picture survives
    whatever the model knows, and at the highest the prompt alone decides: compare with gold level
    by level. A style shows in the whole picture, so covering the middle hides little of it.
    """

    shown: Literal["noised", "border"] = "noised"
    """What the model is shown of a picture: all of it with noise added, or its border without
    noise, while the middle is drawn (in-painting)."""
    levels: tuple[int, ...] = (200, 400, 600, 800)
    """For `noised`: times t that the pictures are noised to, from 0 up to the number of levels of
    the model's schedule; each is moved down to the nearest time of the sampling grid."""
    covered: tuple[int, ...] = (25, 50, 75)
    """For `border`: sides of the covered square in the middle, in percent of the picture's side."""
    answer: int | None = None
    """The level, or the side, whose pictures are returned; None takes the middle one of them."""
    prompt: Literal["concept", "empty"] = "concept"
    """What the model is asked for meanwhile: the concept, or nothing."""
    folder: Path | None = None
    """A folder of pictures of the concept. When left out, the unedited model draws them."""
    sampling: Sampler = Sampler(50, 7.5)
    """How the erased model denoises; the grid is entered at the level."""
    pictures: int = 48
    """Pictures shown at each level."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "world": {"sampling": Sampler(20, 3.0), "pictures": 36},
    }
    bibtex: ClassVar[str] = cite("lu2025concepts")
    least: ClassVar = dict(pictures=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            name = "levels" if self.shown == "noised" else "covered"
            raise PalimpsestError(f"NoisingProbe: {name} is empty; it must name at least one")
        if self.answer not in (None, *self.stages):
            stages = ", ".join(map(str, self.stages))
            raise PalimpsestError(
                f"NoisingProbe: answer is {self.answer}; it must be one of what the curve runs "
                f"over ({stages})"
            )
        if not all(0 < side <= 100 for side in self.covered):
            raise PalimpsestError("NoisingProbe: covered must be sides of 1 to 100 percent")

    @property
    def stages(self) -> list[int]:
        """What the curve runs over, in order."""
        return sorted(self.levels if self.shown == "noised" else self.covered)

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse a level outside the sampling grid, and an empty prompt that the model lacks."""
        if self.shown == "noised":
            self.starts(model)
        if self.prompt == "empty":
            model.empty()

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Probe `model` as edited by `erased`.

        Raises:
            PalimpsestError: a folder that cannot be read.
        """
        prompts = own_prompts(concept, self.pictures)
        images = self._pictures(model, prompts, context)
        noise = torch.cat([model.noise(1, context.stream("noise", i)) for i in range(len(images))])
        draw = self._denoised if self.shown == "noised" else self._filled
        chosen = self.stages[len(self.stages) // 2] if self.answer is None else self.answer
        curve, answers = [], None
        with model.patched(erased):
            texts = [prompt.text for prompt in prompts]
            asked = self.prompt == "concept"
            cond = model.embed(texts) if asked else model.empty().expand(len(prompts))
            for stage in self.stages:
                made = []
                with context.progress.task(f"pictures at {stage}", len(images)) as task:
                    for i in torch.arange(len(images)).split(model.sampling.batch):
                        made.append(draw(model, images[i], noise[i], cond[i], stage))
                        task.advance(len(i))
                made = torch.cat(made)
                curve += judged(stage, made, concept, context)
                if stage == chosen:
                    answers = made
            asking = self._asking(model, prompts, images, noise, chosen)
        return Result(
            curve=tuple(curve),
            images=images.cpu(),
            asked=tuple(prompts),
            answers=answers,
            asking=asking,
        )

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations, none of them with gradient; the first pictures aside."""
        # of a grid over 1000 levels the share below t remains, or all of it
        shares = [t / 1000 if self.shown == "noised" else 1 for t in self.stages]
        return round(sum(shares) * self.sampling.cost) * self.pictures, 0

    def starts(self, model: Diffusion) -> dict[int, int]:
        """Return, for each level, the step of the grid at which denoising starts.

        Raises:
            PalimpsestError: a level below the grid's lowest time or above the schedule's highest.
        """
        times = model.schedule.grid(self.sampling.steps)[:-1]
        for level in self.levels:
            if not times[-1] <= level < model.schedule.levels:
                raise PalimpsestError(
                    f"NoisingProbe: the schedule has no step for the level {level}; levels go from "
                    f"{times[-1]:g} to {model.schedule.levels - 1}"
                )
        return {level: next(i for i, t in enumerate(times) if t <= level) for level in self.levels}

    def _pictures(self, model: Diffusion, prompts: list[Prompt], context: Context) -> Tensor:
        """Return one picture a prompt; those of a folder are taken in turn."""
        if self.folder is None:
            return model.generate(prompts, context, "pictures to show")
        images, _ = read_folder(self.folder, model.side)
        return images[torch.arange(len(prompts)) % len(images)]

    def _denoised(
        self, model: Diffusion, images: Tensor, noise: Tensor, cond: Conditioning, level: int
    ) -> Tensor:
        """Return pictures noised to a level and denoised from there."""
        x_t = self._noised(model, images, noise, level)
        how = {"steps": self.sampling.steps, "guidance": self.sampling.guidance}
        x = model.sample(x_t, cond, **how, start=self.starts(model)[level], apart=True)
        return model.decode(x).cpu()

    def _noised(self, model: Diffusion, images: Tensor, noise: Tensor, level: int) -> Tensor:
        """Return the latents of pictures noised to a level."""
        times = model.schedule.grid(self.sampling.steps)
        t = torch.tensor(times[self.starts(model)[level]], device=model.device)
        return model.add_noise(model.encode(images), noise, t)  # step: SDEdit, noised to t

    def _asking(
        self, model: Diffusion, prompts: list[Prompt], images: Tensor, noise: Tensor, level: int
    ) -> Asking | None:
        """Return the noised latents of a level for other models; none of pictures in part."""
        if self.shown == "border":  # it is set anew at every step, by this model's own latents
            return None
        x_t = torch.cat(
            [
                self._noised(model, images[i], noise[i], level)
                for i in torch.arange(len(images)).split(model.sampling.batch)
            ]
        )
        at = Entry(self.starts(model)[level], self.sampling.steps, self.sampling.guidance)
        return from_latents(model, prompts, x_t, at, empty=self.prompt == "empty")

    def _filled(
        self, model: Diffusion, images: Tensor, noise: Tensor, cond: Conditioning, side: int
    ) -> Tensor:
        """Return pictures whose middle is drawn from noise; their border is set at every step."""
        pixels, middle = (middle_of(x, side) for x in (images, noise))
        known = model.encode(images.masked_fill(pixels, 0.5))  # without the middle
        x, s = noise, self.sampling
        for i, t in enumerate(model.schedule.grid(s.steps)[:-1]):
            border = model.add_noise(known, noise, torch.tensor(t, device=model.device))
            x = torch.where(middle, x, border)
            how = {"steps": s.steps, "guidance": s.guidance, "start": i, "stop": i + 1}
            x = model.sample(x, cond, **how, apart=True)
        return model.decode(torch.where(middle, x, known)).cpu()


def middle_of(x: Tensor, percent: int) -> Tensor:
    """Return (1, 1, h, w), true in the middle square whose side is that percentage of the whole."""
    side = x.shape[-1]
    low = round(side * (1 - percent / 100) / 2)
    mask = torch.zeros(1, 1, side, side, dtype=torch.bool, device=x.device)
    mask[..., low : side - low, low : side - low] = True
    return mask
