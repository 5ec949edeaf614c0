"""CLIP as a judge: how well a picture fits its own prompt, and which concept it is nearest to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from palimpsest.core.concepts import ask
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.core.prompts import Prompt
from palimpsest.core.provenance import digest
from palimpsest.data.images import resized
from palimpsest.judge import Looking, Opening
from palimpsest.methods import Reading, Spec
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.models.loading import load_clip
from palimpsest.models.rows import in_calls
from palimpsest.world import assets

if TYPE_CHECKING:
    from torch import Tensor

WORLD = "world CLIP"
"""What the world's own is called."""
REMEMBERED = 4096
"""Pictures whose features are kept."""
KEPT = 0.05
"""Where every picture asks for a concept of a kind, so many may fall below the threshold."""


@dataclass(repr=False)
class Clip(Looking):
    """A CLIP that looks; pictures are resized to what it was trained on."""

    encoder: ContrastiveEncoder
    spec: Spec
    ref: str | None = None
    """What loads it again: `world`, a folder or a Hub id; None of one put together in Python."""

    @classmethod
    def load(cls, name: Path | str, device: str = "cpu") -> Clip:
        """Load `world`, a Transformers folder or a Hub id.

        Raises:
            PalimpsestError: there is none.
        """
        encoder, path = load_clip(str(name), device=device), Path(name)
        if name in ("world", assets.clip()):
            return cls(encoder, Spec(WORLD, "1", encoder.side), "world")
        ref = str(path.resolve()) if path.is_dir() else str(name)
        return cls(encoder, Spec(f"CLIP {name}", "1", encoder.side), ref)

    _seen: dict[bytes, Tensor] = field(default_factory=dict, repr=False)
    """Features of the pictures that it was shown last, by digest: several measures ask for them."""

    def images(self, images: Tensor) -> Tensor:
        """Map (n, 3, h, w) in [0, 1] → (n, d) features of length one.

        On the CPU no picture's depends on the others, and the last pictures are not encoded again.
        """
        names = [blake2b(image.cpu().numpy().tobytes()).digest() for image in images.float()]
        new = [i for i, name in enumerate(names) if name not in self._seen]
        for part in torch.tensor(new, dtype=torch.long).split(128):
            rows = 16 if str(self.encoder.device) == "cpu" else None
            made = in_calls(self._encode, rows, images[part]) if len(part) else ()
            self._seen |= dict(zip([names[i] for i in part], made, strict=True))
        width = self.encoder.model.config.projection_dim
        found = torch.stack([self._seen[n] for n in names]) if names else torch.empty(0, width)
        for name in [*self._seen][: max(0, len(self._seen) - REMEMBERED)]:
            del self._seen[name]
        return found

    def _encode(self, images: Tensor) -> Tensor:
        return self.encoder.images(resized(images, self.spec.resolution)).cpu()

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return (n, d) features of length one, each distinct text encoded once."""
        return self.encoder.texts(texts).cpu()

    def cosine(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Return (n,) cosine of each picture with its own text, −1 to 1."""
        return (self.images(images) * self.texts(texts)).sum(-1)

    def nearest(self, name: str, candidates: Sequence[str]) -> str:
        """Return the candidate whose text feature is most like that of `name`."""
        features = self.texts([name, *candidates])
        return candidates[int((features[1:] @ features[0]).argmax())]


class ZeroShotJudge(Looking):
    """Names the concept whose sentences a picture is nearest to in a CLIP's space.

    A picture of which no cosine reaches the threshold of its kind shows *none of these*. The
    threshold is fitted on the unedited model's pictures: it tells those that ask for a concept of
    the kind from those that do not, with the best balanced accuracy; where all ask for one, it
    leaves out 5 % of them.

    Traps: CLIP cannot count, and what a text encoder shares with the model that it judges, it
    shares with its blind spots. It knows the named concepts alone: with no neighbour named, the
    threshold alone says whether the concept is there.
    """

    def __init__(self, clip: Clip, opening: Opening) -> None:
        if not opening.names:
            raise PalimpsestError(
                "a CLIP that judges needs names of concepts, and none is asked for"
            )
        self.classes = {kind: tuple(sorted(names)) for kind, names in opening.names.items()}
        self.clip, self.opening = clip, replace(opening, names=self.classes, class_map={})
        self.ref = f"clip:{clip.ref}" if clip.ref else None
        self.fitted: dict[str, float] = {}
        """Kind → the threshold on the best cosine."""
        names = tuple(name for names in self.classes.values() for name in names)
        told = (
            "zero-shot by two sentences a name; threshold fitted on the unedited model's pictures"
        )
        own, place = clip.spec, Path(clip.ref or "")
        named, version = own.name, getattr(clip.encoder.model.config, "_commit_hash", None)
        if place.is_absolute():
            named, version = f"CLIP {place.name}", digest(place)  # wherever it lies
        version = version[:16] if version else own.version
        self.spec = Spec(f"{named} zero-shot", version, own.resolution, names, note=told)

    @classmethod
    def open(cls, opening: Opening) -> ZeroShotJudge:
        """Open `clip:world`, or `clip:` and a Transformers folder or a Hub id.

        Raises:
            PalimpsestError: there is none, or no name to look for.
        """
        return cls(Clip.load(opening.ref, opening.device), opening)

    def cosines(self, images: Tensor, kind: str) -> Tensor:
        """Return (n, names) cosines with the mean feature of each name's sentences."""
        names = self.classes[kind]
        told = [text for name in names for text in ask(name, kind)[:2]]  # type: ignore[arg-type]
        texts = torch.nn.functional.normalize(
            self.clip.texts(told).unflatten(0, (len(names), -1)).mean(1), dim=-1
        )
        return self.clip.images(images) @ texts.T

    def fit(self, shown: Iterable[tuple[Tensor, Sequence[Prompt]]]) -> None:
        """Fit the thresholds on the unedited model's pictures, (n, 3, height, width) at a time."""
        found: dict[str, list[tuple[bool, float]]] = {kind: [] for kind in self.classes}
        for images, prompts in shown:
            for kind, own in found.items():
                best = self.cosines(images, kind).max(-1).values.tolist()
                own += [(kind in p.asks, score) for p, score in zip(prompts, best, strict=True)]
        for kind, own in found.items():
            there, absent = (
                torch.tensor([s for a, s in own if a is asks]) for asks in (True, False)
            )
            cut = threshold(there, absent)
            self.fitted[kind] = math.floor(cut * 1e4) / 1e4  # upward it would lose the lowest

    def read(self, images: Tensor) -> Reading:
        """Read pictures, (n, 3, height, width) in [0, 1]; confidence is a softmax over the names.

        Raises:
            PalimpsestError: it was not fitted.
        """
        labels: dict[str, list[str | None]] = {}
        sure: dict[str, list[float]] = {}
        for kind, names in self.classes.items():
            if kind not in self.fitted:
                raise PalimpsestError(
                    f"{self.spec.name} was not fitted yet: let the unedited model be judged first"
                )
            cosines = self.cosines(images, kind)
            best, cut = cosines.max(-1), self.fitted[kind]
            labels[kind] = [
                None if top != top else names[i] if top >= cut else NONE
                for i, top in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            scaled = cosines * self.clip.encoder.scale.cpu()
            sure[kind] = scaled.softmax(-1).max(-1).values.tolist()
        return Reading(labels, sure)


def threshold(shown: Tensor, absent: Tensor) -> float:
    """Return the score from which on a picture counts as showing something.

    It has the best balanced accuracy; of several, the lowest. Without pictures of other things
    `KEPT` of those that show it fall below; without any that show it, all do.

    Args:
        shown: scores of pictures that show it.
        absent: scores of pictures that do not.
    """
    if not len(shown):
        return 1.0
    if not len(absent):
        return float(shown.quantile(KEPT))
    cuts = torch.cat([shown, absent]).unique()
    right = (shown[:, None] >= cuts).float().mean(0) + (absent[:, None] < cuts).float().mean(0)
    return float(cuts[right.argmax()])
