"""`palimpsest evaluate THEME SUBJECT…`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from palimpsest.cli import console, machine, paths
from palimpsest.cli.subjects import Shelf, Subject, by_model, check, read
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError
from palimpsest.runs.folder import Run
from palimpsest.world import themes
from palimpsest.world.themes import Theme

if TYPE_CHECKING:
    from palimpsest.models.diffusion import Diffusion
    from palimpsest.runs.scoring import Panel


@dataclass(frozen=True, kw_only=True)
class Evaluate(machine.Drawing):
    """Ask any list of models for a theme's concepts: who still draws which, and how well.

    Every subject gets the same prompts and seeds, and the unedited model stands first. The judge
    says in which share of the pictures it sees what was asked for, CLIP how well they fit.
    """

    theme: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="THEME")]
    """`object`, `style`, `identity`, or `unsafe` (on the world its hazard sign)."""
    subjects: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SUBJECT…")]
    """Any of: a model (`world`, a Diffusers folder, a .safetensors checkpoint, a Hub id); the
    folder of an erasing run, its model with its patch; that of a recovering run, with the patch of
    its subject and its own; a patch file."""
    model: str = "world"
    """The model that patch files lie over."""
    concepts: tuple[str, ...] = ()
    """Some of the theme's concepts; on the world all of them when left out."""
    pictures: int = 20
    """Pictures of each concept, with each subject."""
    seed: int = themes.SEED
    """The first of the prompts' seeds."""
    judge: Literal["auto", "world", "none"] = "auto"
    """Who says what the pictures show: `auto` takes the world's judge where all subjects are of the
    world, and none elsewhere; it knows the world's concepts alone."""
    look_with: str | None = None
    """A CLIP that looks at the pictures: a Transformers folder or a Hub id, such as
    openai/clip-vit-base-patch32. The world has its own."""
    runs: Path = Path("runs/themes")
    """The folder where the pictures and scores are kept, a run for each subject."""
    out: Path | None = None
    """The page to write: .html with the pictures, .md, .csv or .json; THEME.html in the folder of
    the runs when left out."""
    dry_run: bool = False
    """Say who would be asked for what, and for how long, and write nothing."""

    def __call__(self, call: Call) -> None:
        """Refuse what cannot be done, ask each in turn, show the table and write the page."""
        themes.check_name(self.theme)
        if not self.subjects:
            raise PalimpsestError("needs SUBJECT (see palimpsest evaluate --help)")
        from palimpsest.report.sections.themes import check_form, write_themes

        out = self.out or self.runs / f"{self.theme}.html"
        check_form(out)
        paths.check_file(out, force=True, what="page")
        paths.runs_folder(self.runs)
        lists = by_model([read(word, self.model, self.dtype) for word in self.subjects])
        mine = self.judge == "world" or all(each.world for some in lists for each in some)
        world = mine and self.judge != "none"
        machine.check_look_with(self.look_with, mine)
        theme = self._theme(world)
        shelf = Shelf(self)
        for some in lists[::-1]:  # the first comes last: it need not be loaded again to draw
            check(shelf.take(some[0].model), some, theme.concepts)
        if self.dry_run:
            return self._plan(shelf.take(lists[0][0].model), lists, theme)
        looks = self._panel(world)
        runs = [run for some in lists for run in self._ask(shelf, some, theme, looks, call)]
        self._show(theme, runs)
        console.say(f"{write_themes(runs, out)}")

    def _theme(self, world: bool) -> Theme:
        concepts = themes.chosen(self.theme, self.concepts, world)
        theme = Theme(self.theme, concepts, self.pictures, self.seed)
        if not world and self.look_with is None:
            raise PalimpsestError(
                "nobody would look at the pictures: the judge knows the world alone; name a CLIP "
                "with --look-with"
            )
        return theme

    def _panel(self, world: bool) -> Panel:
        from palimpsest.runs.scoring import Panel

        looks = machine.panel(self.device) if world else Panel()
        if self.look_with is not None:
            looks = replace(looks, clip=machine.clip(self.look_with, self.device))
        return looks

    def _ask(
        self, shelf: Shelf, some: Sequence[Subject], theme: Theme, looks: Panel, call: Call
    ) -> list[Run]:
        """Return the runs of one model's subjects; nothing of it is held on to."""
        from palimpsest.runs.asked import On

        runner = self.runner(call, self.runs, shelf.take(some[0].model), looks, self.seed)
        prompts = theme.prompts
        subjects = [
            On(prompts, name=s.name, patches=s.patches(), theme=theme.name, erased=s.erased)
            for s in some
        ]
        return [runner.run(theme.concepts, None, on) for on in subjects]

    def _plan(self, model: Diffusion, lists: Sequence[Sequence[Subject]], theme: Theme) -> None:
        from palimpsest.cli.plan import tell_drawing

        names = [subject.name for some in lists for subject in some]
        asked = len(theme.prompts)
        rows = [
            ("theme", theme.name),
            ("concepts", ", ".join(concept.name for concept in theme.concepts)),
            ("asked of each", f"{asked:,} pictures, {theme.pictures} of each concept"),
            ("subjects", ", ".join(names)),
        ]
        tell_drawing(model, rows, asked * len(names), self.runs)

    @staticmethod
    def _show(theme: Theme, runs: Sequence[Run]) -> None:
        from palimpsest.report.sections.themes import COLUMNS, FORGOT, standings

        rows = [
            [e.record.title, ", ".join(e.record.erased) or "–", *map(console.cell, e.cells)]
            for e in standings(runs)
        ]
        count = f"{len(theme.concepts)} concepts, {theme.pictures} pictures of each"
        console.table(f"Theme {theme.name}: {count}", ["", "erased", *COLUMNS], rows)
        console.say(FORGOT)
