"""What makes a LLaVA forget, each method one file: `(model, interview, *, context) -> Patch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.core.registry import Registry

if TYPE_CHECKING:
    from palimpsest.erase.llava.slug import SLUG as SLUG

LLAVA_ERASERS = Registry(
    "eraser of LLaVA",
    "palimpsest.llava_erasers",
    {"slug": "SLUG"},
    __name__,
)
"""Every eraser of LLaVA by its command-line name."""


def __getattr__(name: str):
    return LLAVA_ERASERS.attribute(name)
