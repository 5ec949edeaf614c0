"""How far an edited model's pictures are from others, on Inception's features."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.provenance import digest
from palimpsest.data.images import as_bytes
from palimpsest.judge import Counting
from palimpsest.judge.between import Between
from palimpsest.methods import Number
from palimpsest.models.devices import usable

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = 2048
"""Numbers of one of Inception's features."""
TITLES = {
    "FID (Inception, torch-fidelity)": "frechet_inception_distance",
    "KID (Inception, torch-fidelity)": "kernel_inception_distance_mean",
}
"""What each distance is called here and there."""

MEANINGS = {
    title + which: "distance of these pictures from the unedited model's, or to those of gold, on "
    "Inception's features, without an interval. Lower is closer."
    for title in TITLES
    for which in ("", " to gold")
}


@dataclass(frozen=True)
class Inception(Between):
    """FID and KID on Inception's features, by torch-fidelity.

    Heusel et al. 2017 and Bińkowski et al. 2018, by `torch_fidelity.calculate_metrics`. Neither has
    an interval: Inception would have to look again for each part that is left out.

    Traps: FID of fewer than 2,048 pictures is biased upward and is not told unless forced. The
    package downloads Inception's weights unless a file of them is named.
    """

    device: str = "cpu"
    force: bool = False
    weights: str = ""
    """A file of the package's Inception; it is downloaded without."""

    meanings = MEANINGS

    @property
    def spec(self) -> str:
        """The package, and its net."""
        weights = f" {digest(Path(self.weights))[:8]}" if self.weights else ""
        return f"torch-fidelity {version('torch-fidelity')}, inception-v3-compat{weights}"

    @classmethod
    def open(cls, counting: Counting) -> Inception:
        """Open it, with a file of weights if one is named.

        Raises:
            PalimpsestError: torch-fidelity cannot be imported, or there is no such file.
        """
        file = str(counting.file("fid", "the weights of Inception")) if counting.ref else ""
        function()
        return cls(usable(counting.device), counting.force, file)

    def look(self, pictures: Any) -> Any:
        """Return pictures as bytes."""
        return as_bytes(pictures)

    def asked(self, theirs: Tensor, ours: Tensor) -> dict[str, Any]:
        """Return what torch-fidelity is asked of two sets of pictures."""
        from torch.utils.data import Subset

        n = len(ours)
        return {
            "input1": Subset(ours, range(n)),  # type: ignore[arg-type]
            "input2": Subset(theirs, range(n)),  # type: ignore[arg-type]
            "fid": True,
            "kid": True,
            "kid_subset_size": min(n, 1000),
            "kid_subsets": 100 if n > 1000 else 1,  # of no more than 1,000 each would be all
            "feature_extractor_weights_path": self.weights or None,
            "cuda": self.device.startswith("cuda"),
            "cache": False,
            "save_cpu_ram": True,  # the pictures are there: no processes to read them
            "verbose": False,
        }

    def compared(self, behind: str, theirs: Any, ours: Any, of: Sequence[Hashable]) -> list[Number]:
        """Return both distances of two sets of pictures.

        Raises:
            PalimpsestError: torch-fidelity fails, as without weights.
        """
        try:
            found = function()(**self.asked(theirs, ours))
        except Exception as error:  # whatever comes of a download, a file or a device
            why = str(error).strip().split("\n")[0] or type(error).__name__
            raise PalimpsestError(
                f"torch-fidelity could not measure the pictures ({why}); without a way to download "
                "Inception's weights, name their file: fid:FILE"
            ) from error
        fid, kid = ((title + behind, found[key]) for title, key in TITLES.items())
        why = self.too_few(len(ours), WIDTH)
        value = math.nan if why else fid[1]
        return [Number(fid[0], value, n=len(ours), meaning=why), Number(*kid, n=len(ours))]


def function() -> Callable[..., dict[str, float]]:
    """Return torch-fidelity's public function.

    Raises:
        PalimpsestError: it cannot be imported.
    """
    try:
        package = import_module("torch_fidelity")
    except ImportError as error:
        raise PalimpsestError(
            f"the measure 'fid' needs torch-fidelity and its torchvision ({error}): pip install "
            "'palimpsest-ml[fid]'"
        ) from error
    return package.calculate_metrics
