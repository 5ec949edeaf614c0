"""Any image classifier of Hugging Face's Transformers as a judge."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.core.lazily import no_grad
from palimpsest.core.prompts import KINDS, folded
from palimpsest.core.provenance import digest
from palimpsest.data.images import as_bytes
from palimpsest.judge import Looking, Opening
from palimpsest.judge.labels import called
from palimpsest.methods import Reading, Spec
from palimpsest.models.devices import usable
from palimpsest.models.hub import SUFFIXES
from palimpsest.models.loading import moved, or_refused, whole_network
from palimpsest.models.rows import in_calls, rows_a_call

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 64
"""Pictures that are prepared together."""


@dataclass(frozen=True)
class Origin:
    """Where a classifier came from."""

    ref: str
    """The word that opens it again."""
    name: str
    version: str
    kind: str | None = None
    """What sort of thing its labels are, if that is known."""


class ImageClassifier(Looking):
    """Names what an image classifier of Transformers sees, by the names that prompts ask for.

    A picture is called by its most probable label, or `none of these` if that label has none of the
    names. Labels of one name stand together: the confidence is the sum of their probabilities.
    """

    def __init__(self, model: Any, processor: Any, opening: Opening, origin: Origin) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor, self.ref = processor, origin.ref
        own = self.model.config.id2label
        labels = [own[i] for i in range(len(own))]
        self.names = called(labels, opening, origin.kind)
        self.classes = {
            kind: tuple(dict.fromkeys(n for n in names if n != NONE))
            for kind, names in self.names.items()
        }
        side = self.pixels(torch.zeros(1, 3, 64, 64)).shape[-1]
        pairs = zip(labels * len(self.names), chain(*self.names.values()), strict=True)
        note = "; ".join(f"{a} → {b}" for a, b in pairs if b != NONE and folded(a) != folded(b))
        every = tuple(chain(*self.classes.values()))
        self.spec = Spec(origin.name, origin.version, side, every, note=note)

    @classmethod
    def open(cls, opening: Opening) -> ImageClassifier:
        """Open a folder that `save_pretrained` wrote, or a Hub id with or without `@revision`.

        Raises:
            PalimpsestError: it is none of an image classifier, or it knows none of the names.
        """
        word, folder = opening.ref, Path(opening.ref)
        if not word:
            raise PalimpsestError("hf: says no classifier; name hf:FOLDER or hf:OWNER/NAME")
        model, processor = load(word, usable(opening.device))
        config, name, ref = model.config, word, f"hf:{word}"
        kind = getattr(config, "palimpsest_kind", None)
        if folder.is_dir():
            name, ref = folder.resolve().name, f"hf:{folder.resolve()}"
        version = getattr(config, "_commit_hash", None) or _digest(folder)
        origin = Origin(ref, f"hf {name}", version[:16], kind if kind in KINDS else None)
        return cls(model, processor, opening, origin)

    @no_grad
    def read(self, images: Tensor) -> Reading:
        """Read pictures, (n, 3, height, width) in [0, 1], of any size."""
        chances = self._each(images, lambda x: self.model(pixel_values=x).logits).softmax(-1)
        seen = (images.cpu().flatten(1).isfinite().all(1) & chances.isfinite().all(1)).tolist()
        labels: dict[str, list[str | None]] = {}
        confidence: dict[str, list[float]] = {}
        for kind, names in self.names.items():
            place = {name: i for i, name in enumerate(dict.fromkeys(names))}
            index = torch.tensor([place[name] for name in names])
            sums = torch.zeros(len(chances), len(place)).index_add(1, index, chances)
            best = chances.argmax(-1)
            sure = sums.gather(1, index[best][:, None])[:, 0].tolist()
            said = [names[i] for i in best.tolist()]
            labels[kind] = [s if ok else None for s, ok in zip(said, seen, strict=True)]
            confidence[kind] = [p if ok else float("nan") for p, ok in zip(sure, seen, strict=True)]
        return Reading(labels, confidence)

    @no_grad
    def features(self, images: Tensor) -> Tensor:
        """Return what the last linear layer is given, (n, width)."""
        return self._each(images, lambda x: before(self.model, x))

    def pixels(self, images: Tensor) -> Tensor:
        """Return pictures as the classifier takes them: resized and normalised."""
        arrays = as_bytes(images.nan_to_num()).permute(0, 2, 3, 1).numpy()
        how = {"return_tensors": "pt", "input_data_format": "channels_last"}
        return self.processor(list(arrays), **how)["pixel_values"].to(self.model.device)

    def _each(self, images: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what is made of each picture; on the CPU none depends on the others."""
        parts = []
        for part in images.split(AT_ONCE):
            pixels = self.pixels(part)
            parts.append(in_calls(look, rows_a_call(pixels), pixels).float().cpu())
        return torch.cat(parts)


def load(word: str, device: str) -> tuple[Any, Any]:
    """Return an image classifier and its processor, from a folder or the Hub.

    Args:
        word: the folder, or a Hub id with or without `@revision`.
        device: where it shall be.

    Raises:
        PalimpsestError: there is none, or it is not whole.
    """
    place, given = found(word)
    with or_refused(word, "a folder nor a Hub id of an image classifier"):
        how = {"dtype": torch.float32, **given}
        model = whole_network(word, transformers.AutoModelForImageClassification, place, **how)
        processor = processor_of(place, **given)
    return moved(model, device, word), processor


def found(word: str) -> tuple[str, dict[str, Any]]:
    """Return a folder or a Hub id, and how Transformers reads it; no code of a stranger is run."""
    place, _, revision = (word, "", "") if Path(word).is_dir() else word.partition("@")
    return place, {"trust_remote_code": False} | ({"revision": revision} if revision else {})


def processor_of(place: str, **given: Any) -> Any:
    """Return a classifier's processor, which resizes by Pillow: torchvision's pixels are others."""
    return transformers.AutoImageProcessor.from_pretrained(place, backend="pil", **given)


def last(model: Any) -> torch.nn.Linear:
    """Return the last linear layer of a classifier, which maps features to logits."""
    return [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]


def before(model: Any, pixels: Tensor) -> Tensor:
    """Return what the last linear layer is given of pictures, (n, width)."""
    given: list[Tensor] = []
    hook = last(model).register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        model(pixel_values=pixels)
    finally:
        hook.remove()
    return given[-1].flatten(1)


def _digest(folder: Path) -> str:
    """Return a digest of a classifier's weights and configuration."""
    own = [p for p in sorted(folder.iterdir()) if p.suffix in (*SUFFIXES, ".json")]
    return hashlib.sha256("".join(map(digest, own)).encode()).hexdigest()
