"""Single Layer Unlearning Gradient, through the vision tower of LLaVA."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, ClassVar

from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.data.pairs import Lesson
from palimpsest.data.questions import Quiz, counted
from palimpsest.methods import Context
from palimpsest.models.clip import shared
from palimpsest.models.llava import Answerer
from palimpsest.models.loading import load_clip
from palimpsest.patch import Patch
from palimpsest.toolbox.layer_search import Trial, best, search_front, slopes, table, told

HOMES = {(128, 64): "world", (1024, 336): "openai/clip-vit-large-patch14-336"}
"""Width and side of a vision tower → the CLIP that it is of: the world's, LLaVA-1.5's."""


@dataclass(frozen=True)
class SLUG:
    """Move one layer of the vision tower once, along the gradient that parts name and picture.

    Cai et al., "Targeted Unlearning with Single Layer Unlearning Gradient", ICML 2025,
    arXiv:2407.11867. With L_f = mean(1 − cos(picture, caption)) over what is to be forgotten and
    L_r CLIP's contrastive loss over the rest, one gradient each: the layers with a large ‖∇L_f‖/‖θ‖
    and a small |cos(∇L_f, ∇L_r)| form a Pareto front. On each, λ of θ + λ∇L_f is searched for the
    shortest step after which no answer says the name. The gradients are CLIP's, whose vision tower
    LLaVA's is, and the front holds only layers that LLaVA reads.
    """

    clip: str | None = None
    """The CLIP whose vision tower LLaVA's is: `world`, a Transformers folder or a Hub id. When left
    out it is told by the tower's width and resolution; fingerprints refuse any other."""
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

    def __call__(self, model: Answerer, lesson: Lesson[Quiz], *, context: Context) -> Patch:
        """Forget the lesson's names; layer and λ are chosen on its validation pictures.

        Raises:
            PalimpsestError: sets that cannot serve, a vision tower that is not the CLIP's, a name
                that is not said to begin with, or the edit changes nothing.
        """
        lesson.check()
        encoder = load_clip(self.clip or home(model), device=str(model.device))
        weights = shared(model, encoder, "vision", model.reads)
        known = Said(model, lesson)
        known.check()
        found = slopes(
            encoder, lesson.forget, lesson.retain, [*weights], batch=self.batch, context=context
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
            "rule": "no answer says the name",
            "batch": min(self.batch, len(lesson.retain)),
            "clip": encoder.name,
        }
        return replace(patch, about={**patch.about, "slug": record, **_short(won)})


class Said:
    """What an edited LLaVA still says of the lesson's validation pictures."""

    def __init__(self, model: Answerer, lesson: Lesson[Quiz]) -> None:
        self.model, self.lesson = model, lesson

    def check(self) -> None:
        """Refuse names that the unedited model does not say.

        Raises:
            PalimpsestError: there is nothing to forget.
        """
        if not self.after(None)[0]:
            names = ", ".join(self.lesson.names)
            raise PalimpsestError(
                f"{self.model.name!r} says {names!r} of none of its validation pictures, so there "
                "is nothing to forget; ask otherwise (--questions) or give other pictures"
            )

    def after(self, patch: Patch | None) -> tuple[float, float]:
        """Share of the forget pictures whose name is said, and of the others named right."""
        quiz = self.lesson.validation
        with self.model.patched(patch):
            forgotten, others = counted(quiz, quiz.put(self.model), self.lesson)
        kept = [*chain(*others.values())]
        return sum(forgotten) / len(forgotten), sum(kept) / len(kept)


def home(model: Answerer) -> str:
    """The CLIP that a LLaVA's vision tower is known to be of.

    Raises:
        PalimpsestError: none is known.
    """
    config: Any = model.model.config
    form = (int(config.vision_config.hidden_size), model.side)
    if form not in HOMES:
        raise PalimpsestError(
            f"no CLIP is known whose vision tower is {form[0]} wide at {form[1]} pixels; name it "
            "with --clip"
        )
    return HOMES[form]


def _short(won: Trial) -> dict[str, str]:
    """What a search that did not get there says of itself."""
    if won.forget == 0:
        return {}
    left = f"the name is said of {100 * won.forget:.0f} % of its pictures at best, which is kept"
    return {"short": f"no layer reached 0 within the budget: {left}"}
