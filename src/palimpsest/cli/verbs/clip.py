"""`palimpsest clip METHOD`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from palimpsest.cli.verbs.erase import Forget
from palimpsest.core.registry import Registry
from palimpsest.erase import ERASERS, OF_CLIP


@dataclass(frozen=True, kw_only=True)
class Clip(Forget):
    """Make a CLIP forget names, and see zero-shot what it still knows."""

    family = "clip"
    methods: ClassVar[Registry] = replace(
        ERASERS, noun="eraser of CLIP", own=OF_CLIP, aliases={"salun": "salun_clip"}
    )

    runs: Path = Path("runs/clip")
    """The folder where runs are kept."""
