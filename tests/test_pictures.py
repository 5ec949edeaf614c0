"""Pictures to train on come from the model or from a folder, and a bad folder is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from palimpsest.models.pictures import draw, read_folder
from palimpsest.optimise import generator
from palimpsest.types import Context, PalimpsestError


def test_prompts_take_turns_and_a_picture_does_not_depend_on_its_batch(model, judge):
    cond = model.embed(["a picture of a cat", "a picture of a boat"])
    drawn = {"steps": 20, "guidance": 3.0, "context": Context(), "label": ""}
    latents, owner = draw(model, cond, 4, generator(1), **drawn)
    assert owner.tolist() == [0, 1, 0, 1]
    said = judge.read(model.decode(latents)).labels["object"]
    assert said == ["cat", "boat", "cat", "boat"]
    fewer, _ = draw(model, cond, 2, generator(1), **drawn)
    assert torch.allclose(fewer, latents[:2], atol=1e-3)


def test_a_folder_is_read_in_the_order_of_names_and_cut_to_a_square(tmp_path):
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 255  # the middle is white
    Image.fromarray(wide).save(tmp_path / "b.png")
    Image.new("L", (10, 10), 0).save(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    images, files = read_folder(tmp_path, 16)
    assert [f.name for f in files] == ["a.jpg", "b.png"]
    assert images.shape == (2, 3, 16, 16)
    assert float(images[0].max()) < 0.02
    assert float(images[1][:, :, 2:-2].min()) > 0.98


def test_a_folder_without_pictures_or_with_a_broken_one_is_refused(tmp_path):
    with pytest.raises(PalimpsestError, match="no such folder"):
        read_folder(tmp_path / "absent", 16)
    with pytest.raises(PalimpsestError, match="holds no picture"):
        read_folder(tmp_path, 16)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(PalimpsestError, match=r"broken\.png: cannot be read"):
        read_folder(tmp_path, 16)
