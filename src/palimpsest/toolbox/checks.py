"""What no eraser could do well, refused before any of them starts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from palimpsest.core.concepts import Concept, says
from palimpsest.core.errors import PalimpsestError
from palimpsest.models.diffusion import Diffusion


def check_concepts(model: Diffusion, concepts: Sequence[Concept]) -> None:
    """Refuse concepts that the text encoder cannot read whole, or cannot tell apart.

    Raises:
        PalimpsestError: a name, synonym or anchor that does not fit the model's window; or two
            concepts of which one is named within the other.
    """
    for concept in concepts:
        names = (*concept.names, *([concept.anchor] if concept.anchor else ()))
        for i in model.text.overlong(names):
            raise PalimpsestError(
                f"{names[i]!r} alone does not fit the model's window of {model.text.window} "
                "tokens, so its end would never be read; give it a shorter name"
            )
    for one, other in permutations(concepts, 2):
        if says(other.name, one.name):
            raise PalimpsestError(
                f"{other.name!r} contains {one.name!r}, so erasing one takes the other along; name "
                f"only one of them, or make {other.name!r} a synonym of {one.name!r}"
            )
