"""`palimpsest evaluate THEME SUBJECT…` and `palimpsest evaluate protocol:NAME SUBJECT…`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from palimpsest.cli import console, machine, paths, protocols
from palimpsest.cli.protocols import Questions
from palimpsest.cli.subjects import Shelf, Subject, by_model, check, read
from palimpsest.cli.tree import Call
from palimpsest.core.errors import PalimpsestError
from palimpsest.judge import opening
from palimpsest.protocols import PREFIX, PROTOCOLS
from palimpsest.runs.folder import Run
from palimpsest.world import themes
from palimpsest.world.themes import Theme

if TYPE_CHECKING:
    from palimpsest.models.diffusion import Diffusion
    from palimpsest.protocols.protocol import Protocol
    from palimpsest.runs.scoring import Panel


@dataclass(frozen=True, kw_only=True)
class Evaluate(protocols.Flags, machine.Drawing):
    """Ask any list of models for a theme's concepts: who still draws which, and how well.

    Every subject gets the same prompts and seeds, and the unedited model stands first. The judge
    says in which share of the pictures it sees what was asked for, CLIP how well they fit.
    """

    theme: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="THEME")]
    """`object`, `style`, `identity`, or `unsafe` (on the world its hazard sign); or a published
    evaluation, `protocol:NAME`, drawn as its authors drew (see `palimpsest list`)."""
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
    judge: tuple[str, ...] = ("auto",)
    """Who says what the pictures show, one or several, as of `palimpsest erase`: `auto` takes the
    world's judge and CLIP where all subjects are of the world, and nobody elsewhere."""
    class_map: Path | None = None
    """For `hf:` and `vit:`: a JSON file of a classifier's label → the concept's name."""
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
        protocol = self._protocol
        if protocol is None:
            themes.check_name(self.theme)
            self.refuse_flags()
        if not self.subjects:
            raise PalimpsestError("needs SUBJECT (see palimpsest evaluate --help)")
        from palimpsest.report.forms import check_form
        from palimpsest.report.sections.themes import FORMS, write_themes

        out = self.out or self.runs / f"{self.theme.removeprefix(PREFIX)}.html"
        check_form(out, FORMS)
        paths.check_file(out, force=True, what="page")
        paths.runs_folder(self.runs)
        protocols.check_copies(self.copies)
        lists = by_model([read(word, self.model, self.dtype) for word in self.subjects])
        mine = "world" in self.judge or all(each.world for some in lists for each in some)
        theirs = protocol.at_hand() if protocol else ()
        words = machine.judges_of(self.judge, mine, theirs)
        machine.check_look_with(self.look_with, mine)
        theme = self._theme(mine and "world" in words, words)
        how = protocols.drawn(protocol.draw, self.draw) if protocol else self.draw
        shelf = Shelf(replace(self, draw=how))
        for some in lists[::-1]:  # the first comes last: it need not be loaded again to draw
            check(shelf.take(some[0].model), some, theme.concepts)
        if self.dry_run:
            return self._plan(shelf.take(lists[0][0].model), lists, theme)
        looks = self._panel(words, theme)
        runs = [run for some in lists for run in self._ask(shelf, some, theme, looks, call)]
        self._show(theme, runs)
        if self.copies is not None and theme.how is not None:
            protocols.write_copies(theme.how, runs, self.copies)
        console.made(write_themes(runs, out))

    @property
    def _protocol(self) -> type[Protocol] | None:
        known = self.theme.startswith(PREFIX)
        return PROTOCOLS.load(self.theme.removeprefix(PREFIX)) if known else None

    def _theme(self, world: bool, words: Sequence[str]) -> Questions:
        protocol = self._protocol
        if protocol is not None:
            asked = self.protocol(self.theme, self.concepts, world, self.pictures, self.seed)
        else:
            concepts = themes.chosen(self.theme, self.concepts, world)
            theme = Theme(self.theme, concepts, self.pictures, self.seed)
            each = f"{theme.pictures} of each concept"
            asked = Questions(theme.name, theme.concepts, theme.prompts, each)
        if not words and self.look_with is None:
            theirs = f" (the authors' is {', '.join(protocol.judges)})" if protocol else ""
            raise PalimpsestError(
                "nobody would look at the pictures: the judge knows the world alone; name a judge "
                f"with --judge{theirs}, or a CLIP with --look-with"
            )
        return asked

    def _panel(self, words: Sequence[str], theme: Questions) -> Panel:
        name = self.look_with or ("world" if "world" in words else None)
        clip = machine.clip(name, self.device) if name else None
        mapped = machine.class_map(self.class_map)
        opened = opening(theme.concepts, theme.prompts, self.device)
        return machine.panel(words, replace(opened, class_map=mapped), clip)

    def _ask(
        self, shelf: Shelf, some: Sequence[Subject], theme: Questions, looks: Panel, call: Call
    ) -> list[Run]:
        """Return the runs of one model's subjects; nothing of it is held on to."""
        from palimpsest.runs.asked import On

        runner = self.runner(call, self.runs, shelf.take(some[0].model), looks, self.seed)
        prompts = theme.prompts
        subjects = [
            On(prompts, name=s.name, patches=s.patches(), theme=theme.theme, erased=s.erased)
            for s in some
        ]
        return [runner.run(theme.concepts, None, on) for on in subjects]

    def _plan(self, model: Diffusion, lists: Sequence[Sequence[Subject]], theme: Questions) -> None:
        from palimpsest.cli.plan import tell_drawing

        names = [subject.name for some in lists for subject in some]
        asked = len(theme.prompts)
        rows = [
            ("theme", theme.theme),
            ("concepts", ", ".join(concept.name for concept in theme.concepts)),
            ("asked of each", f"{asked:,} pictures, {theme.each}"),
            ("drawn by", str(model.sampling)),
            ("subjects", ", ".join(names)),
        ]
        tell_drawing(model, rows, asked * len(names), self.runs)

    @staticmethod
    def _show(theme: Questions, runs: Sequence[Run]) -> None:
        from palimpsest.report.sections.themes import FORGOT, columns, meanings, standings

        told = standings(runs)
        head = columns(told)
        erased = ["erased", *(", ".join(e.record.erased) or "–" for e in told)]
        shown = zip(*(e.shown(head) for e in told), strict=True)
        rows = [erased, *([name, *cells] for name, cells in zip(head, shown, strict=True))]
        n = len(theme.concepts)
        count = f"{n} concept{'s' * (n > 1)}, {theme.each.replace(' of', ' pictures of', 1)}"
        console.table(
            f"{told[0].record.asked}: {count}",
            ["", *(e.record.title for e in told)],
            rows,
            meanings(told),
        )
        console.say(FORGOT)
