"""Photographs that scikit-image ships in its wheel, read without importing it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def file(name: str) -> Path:
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], "data", name)


def photograph(name: str, width: int = 0, height: int = 0) -> Tensor:
    """(1, 3, height, width) in [0, 1]; `astronaut.png` is NASA's portrait of Eileen Collins."""
    picture = Image.open(file(name)).convert("RGB")
    return batch(picture.resize((width, height)) if width else picture)


def batch(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


def stranger(index: int = 0) -> Image.Image:
    """A face of Labeled Faces in the Wild, 25 pixels wide, enlarged and framed in grey."""
    small = np.load(file("lfw_subset.npy"), mmap_mode="r")[index]
    framed = Image.new("L", (240, 240), 90)
    framed.paste(Image.fromarray((255 * small).astype(np.uint8)).resize((160, 160)), (40, 40))
    return framed.convert("RGB")
