"""`palimpsest llava METHOD`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from palimpsest.cli import machine, paths
from palimpsest.cli.sets import Asked, Forget
from palimpsest.cli.tree import Call
from palimpsest.core.kinds import Kind
from palimpsest.core.registry import Registry
from palimpsest.erase import ERASERS, OF_LLAVA
from palimpsest.methods import Task
from palimpsest.world import suite

if TYPE_CHECKING:
    from palimpsest.data.pairs import Labelled
    from palimpsest.data.questions import Quiz
    from palimpsest.methods import Task


@dataclass(frozen=True, kw_only=True)
class Llava(Asked, Forget):
    """Make a LLaVA stop saying names, and see what it answers before and after."""

    model_kind: ClassVar[str] = "llava"
    methods: ClassVar[Registry] = replace(ERASERS, noun="eraser of LLaVA", own=OF_LLAVA)

    runs: Path = Path("runs/llava")
    """The folder where runs are kept."""

    def __call__(self, call: Call) -> int:
        """Forget, ask, and show the numbers; 3 if the search did not reach its end."""
        self.refuse()
        paths.runs_folder(self.runs)
        machine.silence()
        from palimpsest.core.memory import set_baseline
        from palimpsest.judge.answers import Answers
        from palimpsest.models.loading import load_llava
        from palimpsest.runs.asked import On

        set_baseline()
        model = load_llava(self.model, device=self.device, dtype=self.dtype or "float32")
        model.batch = self.batch_size
        forget, retain = self.captioned(model.side)
        validation, test = (self._quiz(shown) for shown in self.labelled(model.side))
        task = Task(self.concepts(), forget, retain, validation)
        runner = machine.runner(call, self.runs, model, seed=self.seed)
        run = runner.run(task, call.method, On(), [Answers(test)], preset=call.preset)
        return self.tell(run, "still said")

    def _quiz(self, shown: Labelled) -> Quiz:
        from palimpsest.data.questions import QUESTIONS, Quiz

        kinds: dict[str, Kind] = {name: self._kind(name) for name in shown.prompts}
        asked = dict(QUESTIONS)
        for name in self.concept if self.questions else ():
            asked[self._kind(name)] = self.questions or ()
        return Quiz(shown.images, shown.labels, shown.prompts, kinds, asked)

    def _kind(self, name: str) -> Kind:
        return suite.kind_of(name) if self.classes is None else self.kind
