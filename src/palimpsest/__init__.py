"""Erase concepts from text-to-image models, try to recover them, judge both, and look.

```python
from palimpsest import Concept, Context, load_model
from palimpsest.erase import ESD

model = load_model("world")
patch = ESD(**ESD.presets["world"])(model, Concept("parachute"), context=Context(seed=0)).patch
with model.patched(patch):
    images = model.generate(Concept("parachute").prompts(16))
```

Importing this package imports nothing heavy; each name below is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from palimpsest.core.moved import refuse_old_names

if TYPE_CHECKING:
    from palimpsest.core.bars import progress as progress
    from palimpsest.core.concepts import Concept as Concept
    from palimpsest.core.errors import PalimpsestError as PalimpsestError
    from palimpsest.core.prompts import Prompt as Prompt
    from palimpsest.erase import ERASERS as ERASERS
    from palimpsest.methods import Context as Context
    from palimpsest.models.loading import load_model as load_model
    from palimpsest.patch import Patch as Patch
    from palimpsest.recover import RECOVERIES as RECOVERIES
    from palimpsest.report.results import results as results

refuse_old_names()

_HOMES = {
    "Concept": "core.concepts",
    "Context": "methods",
    "ERASERS": "erase",
    "PalimpsestError": "core.errors",
    "Patch": "patch",
    "Prompt": "core.prompts",
    "RECOVERIES": "recover",
    "load_model": "models.loading",
    "progress": "core.bars",
    "results": "report.results",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
