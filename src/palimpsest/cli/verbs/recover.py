"""`palimpsest recover METHOD RUN`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from palimpsest.cli import session, show
from palimpsest.cli.tree import Call
from palimpsest.recover import RECOVERIES
from palimpsest.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Recover(session.Machine):
    """Try to bring back what a run erased, with the run's own concept, model, prompts and seed."""

    methods: ClassVar[Registry] = RECOVERIES

    erasure: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a finished erasing run."""
    subject: Literal["erased", "unedited"] = "erased"
    """Whom to recover it from: the erased model, or the unedited one as a control."""
    preset: str = "auto"
    """Whose hyperparameters are the defaults: `published`, `world`, or another of the method's;
    `auto` takes `world` on the world and `published` elsewhere."""
    runs: Path | None = None
    """The folder where runs are kept; that of RUN when left out."""
    dry_run: bool = False
    """Say what would run, for how long and in how much memory, and write nothing."""

    def preset_for(self, presets: dict[str, Any]) -> str:
        """Which preset the method's defaults come from."""
        world = session.erasure(self.erasure).record()["judge"] is not None
        return session.choose_preset(self.preset, world, presets)

    def __call__(self, call: Call) -> None:
        """Recover, judge, and show the curve and the numbers."""
        erased = session.erasure(self.erasure)
        record, concept = erased.record(), session.concept_of(erased)
        root = self.runs or self.erasure.resolve().parent
        session.runs_folder(root)
        model = self.load(record["model"]["name"], record["model"]["dtype"])
        from palimpsest.bench import Bench
        from palimpsest.gallery import asked
        from palimpsest.panel import Panel

        panel = session.panel(self.device) if record["judge"] else Panel()

        prompts = asked(erased)
        if self.dry_run:
            from palimpsest.cli.plan import tell

            return tell(call, model, concept.name, len(prompts), root)
        bench = Bench(root, model, panel, show.progress(), call.command, record["seed"])
        run = bench.recover(
            call.name,
            call.method,
            concept,
            prompts,
            subject=erased if self.subject == "erased" else None,
            arm=getattr(call.method, "arm", ""),
            preset=call.preset,
        )
        after = "recovered" if self.subject == "erased" else "trained on top of the unedited"
        show.curves([(after, run)])
        show.numbers(
            f"{concept.name}: {run.record()['title']} on the {self.subject} model",
            [("erased", erased), (after, run)],
        )
        show.say(f"{run.folder}")
