"""`palimpsest patch export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from palimpsest.cli import session, show
from palimpsest.cli.tree import Call
from palimpsest.runs import Run
from palimpsest.types import PalimpsestError

if TYPE_CHECKING:
    from palimpsest.models.stable_diffusion import Diffusion


@dataclass(frozen=True, kw_only=True)
class Export(session.Machine):
    """Write out a patched model for use with Diffusers alone."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_FILE")]
    """A run, or a patch file. A recovery's patch is laid over that of the run it attacked."""
    out: Path
    """The folder to write."""
    model: str | None = None
    """The base model; the run's own when left out, else `world`."""
    format: Literal["diffusers", "unet"] = "diffusers"
    """`diffusers`: the whole pipeline; `unet`: the U-Net's state dict as safetensors."""
    force: bool = False
    """Write into a folder that is not empty."""

    def __call__(self, call: Call) -> None:
        """Lay the patch over the model and save what comes out."""
        joint = session.joined(session.patches_from(self.source))
        if joint is not None:
            joint.refuse_hook("exported")
        name = self.model
        if name is None:
            named = self.source.is_dir()
            name = Run.open(self.source).record()["model"]["name"] if named else "world"
        session.check_out(self.out, self.force)
        beyond = [part for part in (joint.components if joint else ()) if part != "unet"]
        if self.format == "unet" and beyond:
            raise PalimpsestError(
                f"{self.source}: this patch edits the {', '.join(beyond)} too, which --format unet "
                "would leave out; export it as --format diffusers"
            )
        model = self.load(name)
        with model.patched(joint), session.folder_made(self.out, self.force) as folder:
            WRITERS[self.format](model, folder)
        show.say(f"{self.out}")


def write_pipeline(model: Diffusion, folder: Path) -> None:
    """The whole pipeline as a Diffusers folder."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    pipeline = StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=model.scheduler,  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def write_unet(model: Diffusion, folder: Path) -> None:
    """The U-Net's state dict in one file."""
    from safetensors.torch import save_file

    state = {name: t.detach().cpu().contiguous() for name, t in model.unet.state_dict().items()}
    save_file(state, folder / "unet.safetensors")


WRITERS = {"diffusers": write_pipeline, "unet": write_unet}
