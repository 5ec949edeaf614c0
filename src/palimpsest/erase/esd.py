"""Erased Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from palimpsest.core.bibliography import cite
from palimpsest.core.kinds import ParameterGroup
from palimpsest.methods import Context, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.toolbox.latents import Latents, ahead, both
from palimpsest.toolbox.optimise import Recipe, Trained, optimise
from palimpsest.toolbox.shifting import Shifting

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ESD(Trained, Shifting):
    """Steer the concept's prediction to the far side of the empty prompt's.

    Gandikota et al., "Erasing Concepts from Diffusion Models", ICCV 2023, arXiv:2303.07345. With ε*
    the frozen model and ε the trained one, eq. 7 asks of every noised latent x_t that
    ε(x_t, c) = ε*(x_t, ∅) − η·(ε*(x_t, c) − ε*(x_t, ∅)). Adam at a constant rate.

    Traps: the time embedding and the output head are not part of ESD-u. A concept trained by its
    bare name alone may come back by a paraphrase. Training on styled prompts erases the styles too.
    """

    steps: int = 1000
    lr: float = 1e-5
    eta: float = 1.0
    """Strength of the negative guidance, η."""
    erase_from: str = ""
    """What the concept, an attribute, is taken out of, such as *cowboy* for *hat*: prompts of this
    are trained, and others stay. When left out, the concept itself is erased."""
    train: ParameterGroup = "xattn"
    """Which parameters move: `xattn` (ESD-x), `xattn-kv` (strict), `noxattn` (ESD-u), `selfattn` or
    `full`."""
    latents: Latents = Latents("student", steps=50, guidance=3.0, batch=1)
    """Where x_t comes from: the `student` (paper), the `frozen` model (the authors' newer code), or
    `noised` pictures (not published)."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "newer": {"steps": 200, "lr": 5e-5, "latents": Latents("frozen")},
        "sdxl": {
            "steps": 200,
            "lr": 2e-4,
            "train": "xattn-kv",
            "latents": Latents("frozen", guidance=2.0),
        },
        "world": {
            "steps": 300,
            "lr": 2e-4,
            "latents": Latents("noised", steps=20, batch=8, wordings="sentences"),
        },
    }
    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "an empty prompt"})
    bibtex: ClassVar[str] = cite("gandikota2023erasing")

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Train the shift.

        Raises:
            PalimpsestError: no parameter selected, or the edit changes nothing.
        """
        deltas = model.shifts(self.train)
        student, empty = model.student(deltas), model.empty()
        owners = [replace(c, name=self.erase_from or c.name, synonyms=()) for c in task.concepts]
        latents = self.latents.of(model, owners if self.erase_from else task.concepts, context)
        attribute = model.embed([task.concept.name]) if self.erase_from else None

        def aim(gs: list[torch.Generator]) -> tuple[Tensor, Tensor, Conditioning, Tensor]:
            x_t, t, c = latents.reach([latents.start(g) for g in gs], student)
            e_0, e_c = both(model, empty, x_t, t, c)
            if attribute is None:
                return x_t, t, c, e_0 - self.eta * (e_c - e_0)  # eq. 7
            e_a = model.eps(x_t, t, attribute)
            return x_t, t, c, e_c - self.eta * (e_a - e_0)  # eq. 7 for an attribute: newer code

        aims = ahead(aim, steps=self.steps, stretch=latents.stretch, context=context)

        def loss(g: torch.Generator, step: int) -> Tensor:
            x_t, t, c, target = aims(step)
            return (student.eps(x_t, t, c) - target).square().mean()  # eq. 8

        optimise(loss, deltas, Recipe(self.steps, self.lr), context=context, label="erasing")
        return Result(model.make_patch(deltas))

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent, without and with gradient."""
        asked = self.steps * self.latents.batch
        targets = 3 if self.erase_from else 2
        return self.latents.evaluations(self.steps) + targets * asked, asked
