"""`palimpsest world save DIR`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from palimpsest.cli import console, paths
from palimpsest.cli.tree import Call
from palimpsest.core.atomic import whole_folder
from palimpsest.core.errors import at_least
from palimpsest.world import assets
from palimpsest.world.vocabulary import OBJECTS, STYLES

SEED = 70_000
"""The pictures' first seed; nothing else uses it."""


@dataclass(frozen=True, kw_only=True)
class Save:
    """Write the world out as people publish such things, to try every command on as on their own.

    DIR/model is a Diffusers folder, DIR/clip and DIR/llava are Transformers folders, and
    DIR/pictures has a folder of pictures for each object, for `palimpsest train-judge`, and
    DIR/prompts.csv asks for every object in every style, a seed after the other.
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to write."""
    pictures: int = 48
    """Pictures of each object, as the world's renderer draws them, in all styles in turn."""
    force: bool = False
    """Write into a folder that has something in it."""

    least: ClassVar = {"pictures": 0}

    def __call__(self, call: Call) -> None:
        """Copy the models, draw the pictures, and say where all of it lies."""
        at_least(self, **self.least)
        paths.lock_folder(call, self.out, self.force)
        with whole_folder(self.out) as part:
            for name, place in (
                ("model", assets.stable_diffusion()),
                ("clip", assets.clip()),
                ("llava", assets.llava()),
            ):
                shutil.copytree(place, part / name, copy_function=shutil.copyfile)
            shutil.copyfile(assets.PROMPTS, part / "prompts.csv")
            self._draw(part / "pictures")
        console.made(self.out)

    def _draw(self, folder: Path) -> None:
        from PIL import Image

        from palimpsest.world.render import render

        with console.progress().task("pictures", len(OBJECTS) * self.pictures) as task:
            for name in OBJECTS:
                (folder / name).mkdir(parents=True)
                for i in range(self.pictures):
                    picture = render(name, STYLES[i % len(STYLES)], SEED + i)
                    Image.fromarray(picture).save(folder / name / f"{i:03d}.png")
                    task.advance()
