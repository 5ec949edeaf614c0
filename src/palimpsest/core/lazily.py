"""Import torch when it is first used: a file that says `import torch` loads nothing until then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "scipy")
"""What takes long to load."""
KNOWN = ("__class__", "__dict__", "__file__", "__loader__", "__name__", "__package__", "__spec__")
"""What a module answers before it is loaded: `import` and `inspect` ask for these alone."""
_loading = RLock()


class Late(ModuleType):
    """A module that is executed when something of it is first asked for.

    The module of `importlib.util.LazyLoader` is executed when a second file imports it, as Python
    asks every module that it finds for its `__spec__`; this one answers.
    """

    def __getattribute__(self, name: str):
        """Return an attribute, of which all but `KNOWN` load the module first."""
        if name in KNOWN:
            return ModuleType.__getattribute__(self, name)
        with _loading:
            if type(self) is Late:  # no other thread has loaded it meanwhile
                _load(self)
        return getattr(self, name)


class Loading(ModuleType):
    """A module that is being executed: other threads wait until it is whole."""

    def __getattribute__(self, name: str):
        """Return an attribute; to the thread that executes the module at once."""
        if name not in KNOWN:
            with _loading:
                pass
        return ModuleType.__getattribute__(self, name)


def _load(module: ModuleType) -> None:
    """Execute a module in place: whoever imported it holds this very object."""
    spec = module.__spec__
    module.__class__ = Loading
    assert spec is not None
    assert spec.loader is not None
    try:
        spec.loader.exec_module(module)
        if (put := sys.modules[spec.name]) is not module:  # another in its place, as of Diffusers
            vars(module)["__getattr__"] = partial(getattr, put)
    except BaseException:
        sys.modules.pop(spec.name, None)  # as a failed import leaves it
        raise
    finally:
        if issubclass(type(module), Loading):  # it has given itself no class of its own
            module.__class__ = ModuleType


class Once(MetaPathFinder):
    """Keeps what a package loads of its own from being executed twice.

    `import torch.fft` finds a `torch` that is not loaded and asks for its `__path__`. That loads
    it, `torch.fft` included, and then Python goes on to look for `torch.fft`.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what leads to a module that is there already; nothing of any other."""
        if name in sys.modules and target is None and name.partition(".")[0] in HEAVY:
            return ModuleSpec(name, There(sys.modules[name]))
        return None


class There(Loader):
    """Loads a module that is loaded."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return it."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is."""
        module.__spec__ = self.spec


def lazily(*names: str) -> None:
    """Let packages be loaded on first use; one that is loaded or not installed stays as it is."""
    if not any(isinstance(finder, Once) for finder in sys.meta_path):
        sys.meta_path.insert(0, Once())
    for name in names:
        if name not in sys.modules and (spec := find_spec(name)) is not None:
            sys.modules[name] = module = module_from_spec(spec)
            module.__class__ = Late


def no_grad(work: F) -> F:
    """Let a function compute without gradients, like `torch.no_grad()`, which would load torch."""

    @wraps(work)
    def without(*args: Any, **kwargs: Any) -> Any:
        import torch

        with torch.no_grad():
            return work(*args, **kwargs)

    return cast(F, without)
