"""The noising probe: shown a half-drowned picture of the concept, does the erased model see it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.prompts import Prompt
from palimpsest.core.streams import generator
from palimpsest.data.read import read_folder
from palimpsest.methods import Context, Recovery, Result
from palimpsest.metrics.rates import rate
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.patch import Patch
from palimpsest.toolbox.prompt_attack import plain


@dataclass(frozen=True)
class NoisingProbe(Recovery):
    """Noise pictures of the concept, or cover their middle, and let the erased model go on.

    After Lu et al., "When Are Concepts Erased From Diffusion Models?", NeurIPS 2025,
    arXiv:2505.17013, who show erased models what they should not know, by noise and by in-painting;
    noising to t and denoising from there is SDEdit's (Meng et al., ICLR 2022, arXiv:2108.01073).
    Nothing is trained. The curve runs over noise levels: what is said at t, the gold model must not
    say as often at the same t.
    """

    shown: Literal["noised", "border"] = "noised"
    """What the model is shown of a picture: all of it under noise, or its border without noise, the
    middle being drawn anew (in-painting)."""
    levels: tuple[int, ...] = (200, 400, 600, 800)
    """For `noised`: noise levels t that the pictures are taken to, each the schedule's nearest from
    below."""
    covered: tuple[int, ...] = (25, 50, 75)
    """For `border`: sides of the covered square in the middle, in percent of the picture's."""
    answer: int | None = None
    """The level, or the side, whose pictures are handed back; None takes the middle one of them."""
    prompt: Literal["concept", "empty"] = "concept"
    """What is asked meanwhile: for the concept, or for nothing."""
    folder: str | None = None
    """A folder of pictures of the concept. When left out, the unedited model draws them."""
    sampling_steps: int = 50
    """Length of the DDIM schedule that is joined midway."""
    guidance: float = 7.5
    """Guidance of the denoising."""
    measure_pictures: int = 48
    """Pictures shown at each level."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "world": {"sampling_steps": 20, "guidance": 3.0, "measure_pictures": 36},
    }
    bibtex: ClassVar[str] = """@inproceedings{lu2025concepts,
  title={When Are Concepts Erased From Diffusion Models?},
  author={Lu, Kevin and Kriplani, Nicky and Gandikota, Rohit and Pham, Minh and Bau, David
          and Hegde, Chinmay and Cohen, Niv},
  booktitle={Advances in Neural Information Processing Systems},
  year={2025}
}"""

    def __post_init__(self) -> None:
        at_least(self, sampling_steps=1, guidance=0, measure_pictures=1)
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

    def recover(
        self, model: Diffusion, concept: Concept, erased: Patch | None, context: Context
    ) -> Result:
        """Probe `model` as edited by `erased`.

        Raises:
            PalimpsestError: no judge, a level below the schedule's lowest or above its highest, or
                a folder that cannot be read.
        """
        judge = context.needs_judge()
        if self.shown == "noised":
            self.starts(model)  # refuse before anything is drawn
        prompts = plain(concept, self.measure_pictures)
        images = self._pictures(model, prompts, context)
        noise = torch.cat([model.noise(1, generator(context.seed, i)) for i in range(len(images))])
        points, answers = [], None
        with model.patched(erased):
            cond = model.embed([p.text if self.prompt == "concept" else "" for p in prompts])
            for stage in self.stages:
                made = []
                with context.progress.task(f"pictures at {stage}", len(images)) as task:
                    for i in torch.arange(len(images)).split(model.sampling.batch):
                        go_on = self._denoised if self.shown == "noised" else self._filled
                        made.append(go_on(model, images[i], noise[i], cond[i], stage))
                        task.advance(len(i))
                made = torch.cat(made)
                says = judge.read(made).says(concept.kind, concept.name)
                points.append(CurvePoint(stage, 0, rate(says), tuple(says)))
                if stage == self._answer:
                    answers = made
        return Result(
            curve=tuple(points), images=images.cpu(), asked=tuple(prompts), answers=answers
        )

    def evaluations(self) -> tuple[int, int]:
        """Latents through the U-Net, the drawing of the pictures aside: none has a gradient."""
        # a schedule of which t of 1000 is left, or all of it
        shares = [t / 1000 if self.shown == "noised" else 1 for t in self.stages]
        return round(sum(shares) * 2 * self.sampling_steps) * self.measure_pictures, 0

    @property
    def _answer(self) -> int:
        return self.stages[len(self.stages) // 2] if self.answer is None else self.answer

    def starts(self, model: Diffusion) -> dict[int, int]:
        """Level → the step of the schedule at which denoising joins in."""
        times = model.schedule.grid(self.sampling_steps)[:-1]
        for level in self.levels:
            if not times[-1] <= level < model.schedule.levels:
                raise PalimpsestError(
                    f"NoisingProbe: the schedule has no step for the level {level}; levels go from "
                    f"{times[-1]} to {model.schedule.levels - 1}"
                )
        return {level: next(i for i, t in enumerate(times) if t <= level) for level in self.levels}

    def _pictures(self, model: Diffusion, prompts: list[Prompt], context: Context) -> Tensor:
        """One picture a prompt; those of a folder in turn."""
        if self.folder is None:
            return model.generate(prompts, context, "pictures to show")
        images, _ = read_folder(Path(self.folder), model.side)
        return images[torch.arange(len(prompts)) % len(images)]

    def _denoised(
        self, model: Diffusion, images: Tensor, noise: Tensor, cond: Conditioning, level: int
    ) -> Tensor:
        """Pictures, noised to a level and denoised from there."""
        steps, start = self.sampling_steps, self.starts(model)[level]
        t = torch.tensor(model.schedule.grid(steps)[:-1][start])
        x_t = model.add_noise(model.encode(images), noise, t)
        x = model.sample(x_t, cond, steps=steps, guidance=self.guidance, start=start)
        return model.decode(x).cpu()

    def _filled(
        self, model: Diffusion, images: Tensor, noise: Tensor, cond: Conditioning, side: int
    ) -> Tensor:
        """Pictures whose middle is drawn anew from noise, the border held at every step."""
        steps, times = self.sampling_steps, model.schedule.grid(self.sampling_steps)[:-1]
        pixels, middle = (middle_of(x, side) for x in (images, noise))
        known = model.encode(
            images.masked_fill(pixels, 0.5)
        )  # nothing of the middle shines through
        x = noise
        for i, t in enumerate(times):
            x = torch.where(middle, x, model.add_noise(known, noise, torch.tensor(t)))
            x = model.sample(x, cond, steps=steps, guidance=self.guidance, start=i, stop=i + 1)
        return model.decode(torch.where(middle, x, known)).cpu()


def middle_of(x: Tensor, percent: int) -> Tensor:
    """(1, 1, h, w) true in the square in the middle whose side is so many percent of the whole."""
    side = x.shape[-1]
    low = round(side * (1 - percent / 100) / 2)
    mask = torch.zeros(1, 1, side, side, dtype=torch.bool, device=x.device)
    mask[..., low : side - low, low : side - low] = True
    return mask
