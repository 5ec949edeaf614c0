"""How pictures are drawn for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import arg

from palimpsest.core.errors import Settings
from palimpsest.core.kinds import Noise, Sampler


@dataclass(frozen=True)
class Draw(Settings):
    """How pictures are drawn for evaluation; methods state their own sampling in their settings."""

    steps: int | None = None
    """Steps of the sampler; the model's own when left out."""
    guidance: float | None = None
    """Classifier-free guidance; the model's own when left out."""
    batch: int | None = None
    """Pictures made at once, the model's own when left out; no picture depends on it."""
    size: int | None = None
    """Height and width of a picture in pixels; the model's own when left out."""
    sampler: Sampler | None = None
    """Diffusers' scheduler of that name; the model's own when left out, which is `ddim`."""
    noise: Annotated[Noise | None, arg(aliases=("--noise",))] = None
    """`torch` draws a picture's noise by `torch.manual_seed(seed)` on the CPU, as Diffusers and the
    papers' scripts do; `palimpsest` by a generator that mixes seed and index. The model's own when
    left out: `palimpsest` for the world, `torch` for a real checkpoint."""
    empty: Literal["text", "zeros"] | None = None
    """What guidance starts from, in drawing and in methods: the embedded empty prompt, or zeros;
    the family's own when left out."""


UNSAID: dict[str, Any] = {"sampler": "ddim", "noise": "palimpsest"}
"""What a record that names no sampler or no noise means; records of former versions name none."""
