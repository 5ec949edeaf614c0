"""`palimpsest llava METHOD`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from palimpsest.cli.sets import Sets
from palimpsest.cli.verbs.erase import Forget
from palimpsest.core.registry import Registry
from palimpsest.erase import ERASERS, OF_LLAVA


@dataclass(frozen=True, kw_only=True)
class Llava(Sets, Forget):
    """Make a LLaVA stop saying names, and see what it answers before and after."""

    family = "llava"
    methods: ClassVar[Registry] = replace(ERASERS, noun="eraser of LLaVA", own=OF_LLAVA)

    runs: Path = Path("runs/llava")
    """The folder where runs are kept."""
