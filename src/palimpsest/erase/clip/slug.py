"""Single Layer Unlearning Gradient, on CLIP itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.data.pairs import Lesson
from palimpsest.methods import Context
from palimpsest.models.clip import ContrastiveEncoder, tower
from palimpsest.patch import Patch
from palimpsest.toolbox.clip_losses import zero_shot
from palimpsest.toolbox.layer_search import Trial, best, search_front, slopes, table, told

FEW = 100
"""With fewer classes than this, being among the first five says little."""


@dataclass(frozen=True)
class SLUG:
    """Move one layer of CLIP once, along the gradient that parts names and pictures.

    Cai et al., "Targeted Unlearning with Single Layer Unlearning Gradient", ICML 2025,
    arXiv:2407.11867. With L_f = mean(1 − cos(picture, caption)) over what is to be forgotten and
    L_r CLIP's contrastive loss over the rest, one gradient each: the layers with a large ‖∇L_f‖/‖θ‖
    and a small |cos(∇L_f, ∇L_r)| form a Pareto front per tower. On each, λ of θ + λ∇L_f is searched
    for the shortest step after which no picture is named.
    """

    batch: int = 128
    """The batch of the contrastive loss, which depends on it; memory does not."""
    start: float = 0.1
    """The first λ, as a multiple of ‖θ‖/‖∇L_f‖."""
    tries: int = 10
    """Values of λ tried on each layer of the front."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"published": {}, "world": {}}
    bibtex: ClassVar[str] = """@inproceedings{cai2025targeted,
  title={Targeted Unlearning with Single Layer Unlearning Gradient},
  author={Cai, Zikui and Tan, Yaoteng and Asif, M. Salman},
  booktitle={International Conference on Machine Learning},
  year={2025}
}"""

    def __post_init__(self) -> None:
        at_least(self, batch=2, start=1e-9, tries=1)

    def __call__(self, model: ContrastiveEncoder, lesson: Lesson, *, context: Context) -> Patch:
        """Forget the lesson's names; layer and λ are chosen on its validation pictures.

        Raises:
            PalimpsestError: sets that cannot serve, names that are not known to begin with, or the
                edit changes nothing.
        """
        lesson.check()
        known = Known(model, lesson)
        known.check()
        weights = model.matrices()
        found = slopes(
            model, lesson.forget, lesson.retain, [*weights], batch=self.batch, context=context
        )
        layers = table(weights, found)
        trials = search_front(layers, found, self.start, self.tries, known.after, context)
        won = best(trials)
        patch = model.make_patch(
            {won.layer: won.scale * found.forget[won.layer]},
            {"method": "slug", "arguments": asdict(self)},
        )
        record = told(layers, trials) | {
            "layer": won.layer,
            "lambda": won.scale,
            "rule": f"forget accuracy @{known.k} is 0",
            "batch": min(self.batch, len(lesson.retain)),
        }
        return replace(patch, about={**patch.about, "slug": record, **_short(won, known.k)})


class Known:
    """What an edited CLIP still names of the lesson's validation pictures."""

    def __init__(self, model: ContrastiveEncoder, lesson: Lesson) -> None:
        self.model, self.names, self.shown = model, lesson.names, lesson.validation
        self.k = 1 if len(lesson.validation.prompts) < FEW else 5
        self.gone = [label in lesson.names for label in self.shown.labels]
        self.features = model.images(self.shown.images)

    def check(self) -> None:
        """Refuse names that the unedited model does not know.

        Raises:
            PalimpsestError: there is nothing to forget.
        """
        if not self.after(None)[0]:
            raise PalimpsestError(
                f"{self.model.name!r} names none of the validation pictures of "
                f"{', '.join(self.names)!r}, so there is nothing to forget; give other pictures"
            )

    def after(self, patch: Patch | None) -> tuple[float, float]:
        """Forget accuracy @k, and the accuracy over the other classes."""
        edits = patch.edits if patch else ()
        text = all(tower(name) == "text" for name in edits)  # pictures are seen as before
        with self.model.patched(patch):
            found = zero_shot(self.model, self.shown, self.features if text else None)
        pairs = list(zip(found, self.gone, strict=True))
        forgotten = [rank < self.k for rank, gone in pairs if gone]
        others = [rank == 0 for rank, gone in pairs if not gone]
        return sum(forgotten) / len(forgotten), sum(others) / len(others)


def _short(won: Trial, k: int) -> dict[str, str]:
    """What a search that did not get there says of itself."""
    if won.forget == 0:
        return {}
    left = f"forget accuracy @{k} is {100 * won.forget:.0f} % at best, which is kept"
    return {"short": f"no layer reached 0 within the budget: {left}"}
