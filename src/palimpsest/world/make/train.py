"""Train the built-in world from nothing: CLIP, autoencoder, judge, Stable Diffusion and LLaVA.

Each part is one call of `optimise`, so a killed training goes on from its last checkpoint. A part's
weights are written when it is done; a part whose weights exist is not trained again.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Literal

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.world import assets
from palimpsest.world.make.training import Steps, Training

__all__ = ["PARTS", "Part", "Steps", "Training", "train"]

Part = Literal["clip", "vae", "judge", "unet", "llava"]

PARTS: dict[Part, tuple[Part, ...]] = {
    "clip": (),
    "vae": (),
    "judge": ("vae",),
    "unet": ("clip", "vae"),
    "llava": ("clip",),
}
"""Each part and those whose weights it needs, in the order of training."""


def train(training: Training, parts: Sequence[Part] = tuple(PARTS)) -> None:
    """Train the named parts, in the order in which they need each other.

    Raises:
        PalimpsestError: a part that another needs is neither there nor asked for, or a gold model
            is asked for before the model it is a patch over.
    """
    out, whole = training.out, assets.stable_diffusion(training.out) / "unet"
    places = {
        "clip": assets.clip(out),
        "vae": assets.vae(out),
        "judge": assets.judge(out),
        "unet": whole if training.without is None else assets.gold(training.without, out),
        "llava": assets.llava(out),
    }
    if training.without is not None and not whole.exists():
        raise PalimpsestError(
            f"a gold model is a patch over the world's own U-Net, of which there is none in "
            f"{training.out}; train that first (the same command without --without)"
        )
    for part, needs in PARTS.items():
        if part not in parts:
            continue
        for need in needs:
            if not places[need].exists():
                raise PalimpsestError(
                    f"{part} needs {need}, of which there is none in {training.out}; "
                    f"train it first (--part {need})"
                )
        if not places[part].exists():
            torch.manual_seed(training.context.seed)
            import_module(f"palimpsest.world.make.train_{part}").train(training)
