"""`palimpsest bench FILE.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from palimpsest.cli import console, paths
from palimpsest.cli.bench.engines import ENGINES, Engine
from palimpsest.cli.named import kind_and_name
from palimpsest.cli.tree import Call
from palimpsest.core import processes
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.locks import folder_lock
from palimpsest.core.registry import Registry

if TYPE_CHECKING:
    from palimpsest.cli.bench.campaign import Campaign
    from palimpsest.cli.bench.planner import Planned


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Carry out a comparison that a file describes: erasers, concepts, seeds, and attacks on them.

    Every erasure and every attack is a command of its own and a run of its own. What is done stays
    done: the same line goes on where it was stopped, also with another engine.
    """

    engines: ClassVar[Registry] = ENGINES

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.yaml")]
    """What is compared (docs/campaigns.md)."""
    only: tuple[str, ...] = ()
    """Only commands in whose title one of these texts stands, and those they start from; a title is
    what --dry-run lists, such as `ESD, parachute, seed 1`. No page is written while others are
    left to do."""
    engine: str = "here"
    """Where the commands are carried out (docs/clusters.md): `here`, one after the other in this
    process; `ray`; `slurm`; or another package's. Each has flags of its own: `--engine ray
    --help`."""
    dry_run: bool = False
    """List the commands and what they would cost, and write nothing."""

    def __call__(self, call: Call) -> int:
        """Plan, carry out, show the table of all that is done; 1 if some command failed."""
        from palimpsest.cli.bench.campaign import read
        from palimpsest.cli.bench.planner import WORKS, plan

        if processes.here().size > 1:
            raise PalimpsestError(
                "bench: accelerate launch shares one command among processes; start bench without "
                "it, and let --engine carry out several commands at once"
            )
        campaign = read(self.file)
        planned = plan(campaign)
        chosen = self._chosen(planned)
        paths.runs_folder(campaign.runs)
        if self.dry_run:
            from palimpsest.cli.bench.cost import tell

            tell(campaign, chosen)
            return 0
        campaign.runs.joinpath(WORKS).mkdir(parents=True, exist_ok=True)
        _say(campaign, planned)
        try:
            failed = self._carry_out(campaign, chosen, call.method)
        finally:
            _say(campaign, planned)
        from palimpsest.cli.bench.page import tell

        tell(campaign, planned, bool(self.only))
        return int(failed > 0)

    def _chosen(self, planned: Sequence[Planned]) -> list[Planned]:
        if not self.only:
            return list(planned)
        texts = [text.lower() for text in self.only]
        named = [p for p in planned if any(text in p.work.title.lower() for text in texts)]
        if not named:
            told = f"--only {' '.join(self.only)}: no command has it in its title"
            raise PalimpsestError(f"{told}; --dry-run lists them")
        needed = {key for p in named for key in (p.work.key, *p.work.after)}
        return [p for p in planned if p.work.key in needed]

    def _carry_out(self, campaign: Campaign, planned: Sequence[Planned], engine: Engine) -> int:
        from palimpsest.cli.bench.planner import WORKS
        from palimpsest.cli.bench.view import View
        from palimpsest.cli.bench.work import SHORT

        failed = 0
        with folder_lock(campaign.runs / WORKS, console.warn), closing(engine):
            works = {p.work.key: p.work for p in planned}
            left = [work for work in works.values() if work.answer is None]
            with View(left, len(works) - len(left)) as view:
                for key, code in engine.run(left) if left else ():
                    view.ended(key, code)
                    failed += code not in (0, SHORT)
        return failed


def _say(campaign: Campaign, planned: Sequence[Planned]) -> None:
    """Write beside the runs what they compare, for pages that are made of them."""
    from palimpsest.runs.groups import Compared, read

    named = {
        group: tuple(tuple(kind_and_name(word)[1] for word in names) for names in held)
        for group, held in campaign.groups.items()
        if group
    }
    called = {run.name: one.recovery or one.eraser for one in planned for run in one.runs.values()}
    before = read([campaign.runs]).called  # of other files that name the folder
    there = {name: title for name, title in before.items() if (campaign.runs / name).is_dir()}
    Compared(campaign.title, campaign.about, named, there | called).write(campaign.runs)
