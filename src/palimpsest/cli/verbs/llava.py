"""`palimpsest llava METHOD`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from palimpsest.cli.sets import Asked, Forget
from palimpsest.cli.tree import Call
from palimpsest.core.kinds import Kind
from palimpsest.core.registry import Registry
from palimpsest.erase import ERASERS, OF_LLAVA
from palimpsest.methods import Measure, Task
from palimpsest.world import suite

if TYPE_CHECKING:
    from palimpsest.data.pairs import Labelled
    from palimpsest.data.questions import Quiz


@dataclass(frozen=True, kw_only=True)
class Llava(Asked, Forget):
    """Make a LLaVA stop saying names, and see what it answers before and after."""

    model_kind: ClassVar[str] = "llava"
    methods: ClassVar[Registry] = replace(ERASERS, noun="eraser of LLaVA", own=OF_LLAVA)

    runs: Path = Path("runs/llava")
    """The folder where runs are kept."""

    def __call__(self, call: Call) -> int:
        """Forget, ask, and show the numbers; 3 if the search did not reach its end."""
        return self.tell(self.forgotten(call, self.runs), "still said")

    def sets(self, model: Any) -> tuple[Task, list[Measure]]:
        """Return what is learnt from, and what is asked before and after."""
        from palimpsest.judge.answers import Answers

        model.batch = self.batch_size
        forget, retain = self.captioned(model.side)
        validation, test = (self._quiz(shown) for shown in self.labelled(model.side))
        return Task(self.concepts(), forget, retain, validation), [Answers(test)]

    def _quiz(self, shown: Labelled) -> Quiz:
        from palimpsest.data.questions import QUESTIONS, Quiz

        kinds: dict[str, Kind] = {name: self._kind(name) for name in shown.prompts}
        asked = dict(QUESTIONS)
        for name in self.concept if self.questions else ():
            asked[self._kind(name)] = self.questions or ()
        return Quiz(shown.images, shown.labels, shown.prompts, kinds, asked)

    def _kind(self, name: str) -> Kind:
        return suite.kind_of(name) if self.classes is None else self.kind
