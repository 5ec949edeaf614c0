"""Selective Synaptic Dampening, on CLIP."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.errors import at_least
from palimpsest.data.pairs import Lesson, Pairs
from palimpsest.methods import Context
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.patch import Patch
from palimpsest.toolbox.clip_losses import distance, loss_gradient


@dataclass(frozen=True)
class SSD:
    """Dampen the weights that matter far more to what is forgotten than to the rest.

    Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic
    Dampening", AAAI 2024, arXiv:2308.07707. With F the diagonal of the Fisher information, the mean
    square of each picture's gradient (of 1 − cos), entries with F_forget > α·F_retain become
    θ·min(1, ω·F_retain/F_forget).
    """

    alpha: float = 10.0
    """α: how much more an entry must matter to what is forgotten."""
    omega: float = 1.0
    """ω: how much of an entry is left."""
    pictures: int = 512
    """Pictures of either set whose gradients are taken, one by one, at most."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "world": {"alpha": 3.0, "pictures": 96},
    }
    bibtex: ClassVar[str] = """@inproceedings{foster2024fast,
  title={Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening},
  author={Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra},
  booktitle={AAAI Conference on Artificial Intelligence},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, alpha=0, omega=0, pictures=1)

    def __call__(self, model: ContrastiveEncoder, lesson: Lesson, *, context: Context) -> Patch:
        """Forget the lesson's names.

        Raises:
            PalimpsestError: sets that cannot serve, or the edit changes nothing.
        """
        lesson.check()
        forget, retain = (
            self._fisher(model, pairs.shuffled(context.seed, self.pictures), context)
            for pairs in (lesson.forget, lesson.retain)
        )
        deltas = {}
        for name, weight in model.parameters().items():
            share = (self.omega * retain[name] / forget[name]).clamp(max=1)
            chosen = forget[name] > self.alpha * retain[name]
            deltas[name] = torch.where(chosen, (share - 1) * weight.float(), 0.0)
        return model.make_patch(deltas, {"method": "ssd", "arguments": asdict(self)})

    def _fisher(
        self, model: ContrastiveEncoder, pairs: Pairs, context: Context
    ) -> dict[str, Tensor]:
        """The mean square of every picture's gradient."""
        names = [*model.parameters()]
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self._of(model)}
        with context.progress.task("gradients", len(pairs)) as task:
            for i in range(len(pairs)):
                slope = loss_gradient(model, pairs[[i]], distance, names, batch=1)
                for name, part in slope.items():
                    total[name] += part.square() / len(pairs)
                task.advance()
        return total

    @staticmethod
    def _of(model: ContrastiveEncoder) -> list[tuple[str, Tensor]]:
        return list(model.parameters().items())
