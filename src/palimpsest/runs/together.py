"""A method called by one process, or by all that share the work of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from palimpsest.core import processes
from palimpsest.core.processes import Alone
from palimpsest.methods import Context, Judge, Reading, Recovery, Result, Spec, TextJudge
from palimpsest.models.elsewhere import Model
from palimpsest.patch import Patch
from palimpsest.runs.asked import Asked

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Told:
    """A judge or a CLIP of the first process, whose answers all get."""

    spec: Spec
    classes: Mapping[str, Sequence[str]]
    own: Any = None
    """Who looks; nobody in the other processes."""

    @classmethod
    def of(cls, own: Judge | TextJudge | None) -> Any:
        """Return it; None of nobody."""
        return own and cls(own.spec, dict(getattr(own, "classes", {})), own)

    def read(self, images: Tensor) -> Reading:
        """Read pictures, (n, 3, height, width) in [0, 1]."""
        return processes.here().told(lambda: self.own.read(images))

    def cosine(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """(n,) cosine of each picture with its own text, on the CPU."""
        return processes.here().told(lambda: self.own.cosine(images, texts).cpu())


def made(asked: Asked, below: Sequence[Patch], context: Context) -> Result:
    """Return what a method came back with; all processes go through one that trains.

    Args:
        asked: the model, the method and its task.
        below: the patch that a recovery attacks, if any.
        context: of the first process.
    """
    group, method, given = processes.here(), asked.method, (asked.task, tuple(below))
    if group.size == 1 or not method.trains:
        return _called(asked.model, method, *given, context)
    looks: dict[str, Any] = {"judge": Told.of(context.judge), "clip": Told.of(context.clip)}
    lent: dict[str, Any] = {n: getattr(context, n) for n in ("seed", "folder", "optimizer")}
    lent |= {name: told and replace(told, own=None) for name, told in looks.items()}
    with group.helped(_help, Model.of(asked.model), method, given, lent):
        return _called(asked.model, method, *given, replace(context, **looks, group=group))


def _help(
    group: Alone, model: Model, method: Any, given: tuple[Any, Any], lent: Mapping[str, Any]
) -> None:
    """Go through the method as the first process does; the result is the same, and is dropped."""
    with model.here() as own:
        _called(own, method, *given, Context(**lent, group=group))


def _called(model: Any, method: Any, task: Any, below: Sequence[Patch], context: Context) -> Result:
    if isinstance(method, Recovery):
        return method(model, task, below[0] if below else None, context=context)
    return method(model, task, context=context)
