"""What a recovery asks in place of plain prompts, as a value with a file of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import parse_object
from palimpsest.core.prompts import Prompt
from palimpsest.core.typed import build, plain
from palimpsest.patch.tensor_files import checked_tensor, read_metadata, read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

NAME = "asking.safetensors"
"""The file of it in a run's folder."""
FORMAT = "asking 1"


@dataclass(frozen=True)
class Entry:
    """Latents that a model is to go on from, where on the sampling grid, and how."""

    step: int = 0
    """The step of the grid that is taken first."""
    steps: int = 50
    """The grid's length."""
    guidance: float = 7.5


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the file's header says of an asking beside its tensors."""

    asked: tuple[Prompt, ...] = ()
    """The plain prompts, each with the seed of its picture."""
    texts: tuple[str, ...] = ()
    """The ids in writing, for a model of other tokens; empty where vectors stand among them."""
    vocabulary: str = ""
    """Fingerprint of the tokens that the ids number."""
    entry: Entry | None = None
    """Where denoising starts from the latents."""


@dataclass(frozen=True, kw_only=True)
class Asking(Header):
    """What a recovery asks in place of n plain prompts, so that another model can be asked it, too.

    It is kept as what a text encoder reads and not as what it says: an erasure may have changed
    the encoder itself.
    """

    ids: Tensor | None = None
    """(n, window) token ids; those at the slots do not matter. None asks for nothing at all, by
    the empty prompt."""
    slots: Tensor | None = None
    """(n, window) true where vectors stand in place of tokens."""
    vectors: Tensor | None = None
    """(places that are true, width) row by row, as token embeddings."""
    latents: Tensor | None = None
    """(n, channels, h, w) noised latents that denoising starts from in place of noise."""

    def save(self, path: Path) -> None:
        """Write it as one safetensors file.

        Raises:
            WriteError: it cannot be written.
        """
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {
            n: v.detach().cpu().contiguous() for n, v in own.items() if isinstance(v, torch.Tensor)
        }
        told = plain(Header(**{f.name: own[f.name] for f in fields(Header)}))
        write_tensors(path, kept, {"palimpsest": FORMAT, "asking": json.dumps(told)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            PalimpsestError: no such file, or something else.
        """
        tensors, about = read_tensors(path)
        if about.get("palimpsest") != FORMAT:
            raise PalimpsestError(
                f"{path}: holds nothing that a recovery asks; name the asking.safetensors of one "
                "that changed what is asked, or a patch"
            )
        try:
            told = build(Header, parse_object(about["asking"], "its text"))
            found = cls(**tensors, **vars(told))
            found._check()
        except (ValueError, LookupError, TypeError, PalimpsestError) as error:
            raise PalimpsestError(
                f"{path}: broken ({error}); remove its run and run the recovery again"
            ) from error
        return found

    def _check(self) -> None:
        """Refuse parts that do not fit one another, with ValueError."""
        n, ids, slots, vectors = len(self.asked), self.ids, self.slots, self.vectors
        if n == 0 or len(set(self.asked)) < n or len(self.texts) not in (0, n):
            raise ValueError("it asks for no pictures, or for one of them twice")
        if ids is not None and (ids.dtype != torch.int64 or ids.ndim != 2 or len(ids) != n):
            raise ValueError(f"its ids are {ids.dtype} of {tuple(ids.shape)} for {n} prompts")
        if ids is not None and (ids.numel() == 0 or ids.min() < 0):
            raise ValueError("its ids number no tokens")
        if slots is not None:
            if ids is None or slots.dtype != torch.bool or slots.shape != ids.shape:
                raise ValueError("its slots are no places among its ids")
            places = int(slots.sum())
            if vectors is None or vectors.ndim != 2 or len(vectors) != places:
                raise ValueError(f"it has {places} places and not as many vectors")
        if vectors is not None:
            checked_tensor("its vectors", vectors)
        if (vectors is None) != (slots is None) or (self.latents is None) != (self.entry is None):
            raise ValueError("one of two parts that belong together is missing")
        if self.latents is not None and self.entry is not None:
            checked_tensor("its latents", self.latents, (n, *self.latents.shape[1:]))
            if self.latents.ndim != 4 or not 0 <= self.entry.step < self.entry.steps:
                raise ValueError("its latents are of no step of the grid")


def is_asking(path: Path) -> bool:
    """Return whether a safetensors file is one of these.

    Raises:
        PalimpsestError: it is no safetensors file.
    """
    return read_metadata(path).get("palimpsest", "").startswith("asking ")
