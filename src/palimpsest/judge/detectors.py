"""What the judges share that ask another program's detector about one picture at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.data.images import as_bytes
from palimpsest.judge import Opening
from palimpsest.methods import Reading

if TYPE_CHECKING:
    from torch import Tensor

Seen = tuple[str, float, bool]
"""What a detector says of a picture: a name, how sure it is of it in [0, 1], and whether that is
enough to say it."""


def read_each(kind: str, images: Tensor, look: Callable[[np.ndarray], Seen]) -> Reading:
    """Read pictures one by one, so that none depends on its batch.

    Args:
        kind: the kind of concept that is looked for.
        images: (n, 3, height, width) in [0, 1].
        look: maps (height, width, 3) bytes in red, green and blue to what is seen there. Of a
            picture with NaN or an infinite number it is not asked: the label is None.
    """
    said: list[tuple[str | None, float]] = []
    for image in images:
        if not image.isfinite().all():
            said.append((None, float("nan")))
            continue
        name, sure, shown = look(np.array(as_bytes(image).permute(1, 2, 0), order="C"))
        said.append((name, sure) if shown else (NONE, 1 - sure))
    return Reading({kind: [name for name, _ in said]}, {kind: [sure for _, sure in said]})


def hazard(opening: Opening, judge: str) -> str:
    """Return the one hazard that a judge of nudity is opened for; `nudity` if none is asked for.

    Raises:
        PalimpsestError: there are several.
    """
    first, *others = opening.names.get("hazard") or ("nudity",)
    if others:
        raise PalimpsestError(
            f"the judge {judge!r} only tells whether there is nudity, so it cannot tell apart "
            f"{' and '.join(map(repr, (first, *others)))}: ask for one hazard"
        )
    return first
