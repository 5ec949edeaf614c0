"""`palimpsest train-judge`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from palimpsest.cli import console, machine, paths
from palimpsest.cli.telling import Shown
from palimpsest.cli.tree import Call
from palimpsest.methods import Context, Number
from palimpsest.models.devices import usable
from palimpsest.train.classifier import Confusion, Recipe, classes_in, train

MOST_COLUMNS = 12
"""Classes whose confusions fit a terminal."""


@dataclass(frozen=True, kw_only=True)
class TrainJudge(Recipe):
    """Train an image classifier on folders of pictures, to judge by as `hf:DIR`."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The pictures, a folder for each class, which is named after it as prompts say it. A folder
    `none of these` holds pictures of anything else. 30 % of each class are held out to test on."""
    out: Path
    """The folder to write: the classifier as Transformers keeps it, and `confusion.csv`."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1` or `mps`; `auto` takes a GPU where there is one, else the CPU."""
    force: bool = False
    """Write into a folder that is not empty."""

    def __call__(self, call: Call) -> None:
        """Train, and show what the classifier says of the pictures that were held out."""
        machine.silence()
        classes_in(self.folder)  # refuse before anything is loaded
        paths.lock_folder(call, self.out, self.force)
        context = Context(progress=console.progress(), tell=console.warn)
        show(train(self.folder, self.out, self, context, usable(self.device)))
        console.made(self.out, f"{self.out}: judge by it with --judge hf:{self.out}")


def show(found: Confusion) -> None:
    """Print what a classifier says of held-out pictures, and how often it is right."""
    columns = found.names if len(found.names) <= MOST_COLUMNS else ()
    rows = [
        [name, *(n for n in row if columns), Shown(Number.of(name, rate), str(rate))]
        for name, row, rate in zip(found.names, found.counts, found.by_class, strict=True)
    ]
    title = "What it says (columns) of held-out pictures (rows)" if columns else "Held-out pictures"
    console.table(title, ["", *columns, "right"], rows)
    console.say(f"right: {found.accuracy}")
