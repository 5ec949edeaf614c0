"""What makes a CLIP forget, each method one file: `(encoder, lesson, *, context) -> Patch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.core.registry import Registry

if TYPE_CHECKING:
    from palimpsest.erase.clip.fine_tune import FineTune as FineTune
    from palimpsest.erase.clip.gradient_ascent import GradientAscent as GradientAscent
    from palimpsest.erase.clip.salun import SalUn as SalUn
    from palimpsest.erase.clip.slug import SLUG as SLUG
    from palimpsest.erase.clip.ssd import SSD as SSD

CLIP_ERASERS = Registry(
    "eraser of CLIP",
    "palimpsest.clip_erasers",
    {
        "slug": "SLUG",
        "fine_tune": "FineTune",
        "gradient_ascent": "GradientAscent",
        "salun": "SalUn",
        "ssd": "SSD",
    },
    __name__,
)
"""Every eraser of CLIP by its command-line name."""


def __getattr__(name: str):
    return CLIP_ERASERS.attribute(name)
