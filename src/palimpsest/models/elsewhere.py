"""A model as another process of the same run can have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import Memory
from palimpsest.core.processes import Alone
from palimpsest.models.loading import load_model
from palimpsest.models.sampling import Sampling
from palimpsest.patch import Patch

_held: dict[str, Any] = {}
"""The model that this process has, or why there is none, by how it is loaded; one at most."""


@dataclass(frozen=True)
class Model:
    """How a model is loaded, how it draws, and what lies over it."""

    loaded: Mapping[str, Any]
    """What `load_model` is told."""
    memory: Memory = "normal"
    sampling: Sampling | None = None
    """None of a model that draws nothing."""
    patches: tuple[Patch, ...] = ()

    @classmethod
    def of(cls, model: Any) -> Model:
        """Return a model as it is now.

        Raises:
            PalimpsestError: no `load_model` can load it again.
        """
        if model.loaded is None:
            raise PalimpsestError(
                f"{model.name!r} was not loaded by its name, so the other processes of this run "
                "cannot have it; load it with load_model"
            )
        patches = tuple(model.applied)
        if not hasattr(model, "sampling"):
            return cls(model.loaded, patches=patches)
        return cls(model.loaded, model.memory, model.sampling, patches)

    @contextmanager
    def here(self) -> Iterator[Any]:
        """Yield the model in this process, under the patches.

        Raises:
            PalimpsestError: it cannot be loaded, or takes no such patch.
        """
        model = _found(self.loaded)
        if self.sampling is not None:
            model.use_memory(self.memory)
            model.sampling = self.sampling
        with ExitStack() as stack:
            for patch in self.patches:
                stack.enter_context(model.patched(patch))
            yield model


def expect(group: Alone, loaded: Mapping[str, Any]) -> None:
    """Load a model that the first process loads, too; what goes wrong is said when it is asked for.

    Args:
        group: the processes.
        loaded: what `load_model` is told.
    """
    _held.clear()
    try:
        _held[repr(loaded)] = load_model(**loaded)
    except PalimpsestError as error:
        _held[repr(loaded)] = error


def _found(loaded: Mapping[str, Any]) -> Any:
    if repr(loaded) not in _held:
        _held.clear()
        _held[repr(loaded)] = load_model(**loaded)
    found = _held[repr(loaded)]
    if isinstance(found, PalimpsestError):
        raise found
    return found
