"""Ask one model after another for a theme's concepts, and write down who still draws which."""

from __future__ import annotations

from palimpsest.core import provenance

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from palimpsest.runs import images
from palimpsest.runs.runner import Bench
from palimpsest.patch import Patch
from palimpsest.runs.folder import Run
from palimpsest.world.themes import Theme


@dataclass
class ThemeBench(Bench):
    """A model, those who look, and the folder where themed evaluations go."""

    def evaluate(
        self, theme: Theme, name: str, patches: Sequence[Patch] = (), erased: Sequence[str] = ()
    ) -> Run:
        """Draw a theme's concepts with the model under patches, and count who is seen.

        Args:
            theme: what is asked.
            name: what the subject is called.
            patches: what lies over the model; nothing is the unedited one.
            erased: the concepts that they were made to forget, for the record.

        Returns:
            The run. A finished one comes back at once; another CLIP counts its pictures afresh.
        """
        prompts = theme.prompts
        self.panel.classes(prompts)
        config = {
            "kind": "evaluate",
            "theme": theme.name,
            "model": self._model(),
            "patches": [patch.digest() for patch in patches],
            "prompts": images.digest(prompts),
            "judge": asdict(self.panel.judge.spec) if self.panel.judge else None,
        }
        words = re.sub(r"[^\w.-]+", "_", name).strip("_")
        run = Run.place(self.root, f"{theme.name}-{words}", config)
        sampling = str(self.model.sampling)
        looked = self.panel.entries()
        if run.done and run.record()["clip"] == looked["clip"]:
            return run
        if not run.record():
            concepts = [concept.name for concept in theme.concepts]
            about = {"concept": None, "asked": concepts, "erased": [*erased], "subject": None}
            run.update(**self._start(name, config) | looked, **about)
        with self.model.patched(*patches):
            self._look(run, prompts, f"{name}: {theme.name}")
        numbers, concepts = self.panel.themed(run, theme.kind, prompts, sampling)
        done = {"status": "done", "finished": provenance.now(), "clip": looked["clip"]}
        run.update(**done, numbers=numbers, concepts=concepts)
        return run
