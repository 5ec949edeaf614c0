"""Pictures to train on come from the model or from a folder, and a bad folder is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.core.streams import generator
from palimpsest.data.images import as_bytes, resized
from palimpsest.data.read import read_folder, read_pairs
from palimpsest.data.sources import METADATA
from palimpsest.methods import Context
from palimpsest.runs.imagefolder import write_imagefolder
from palimpsest.toolbox.pictures import Sampler


def test_prompts_take_turns_and_a_picture_does_not_depend_on_its_batch(model, judge):
    cond = model.embed(["a picture of a cat", "a picture of a boat"])
    sampler = Sampler(20, 3.0)
    latents, owner = sampler.draw(model, cond, 4, generator(1), Context(), "")
    assert owner.tolist() == [0, 1, 0, 1]
    said = judge.read(model.decode(latents)).labels["object"]
    assert said == ["cat", "boat", "cat", "boat"]
    fewer, _ = sampler.draw(model, cond, 2, generator(1), Context(), "")
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


# --- captioned folders ---

BLACK, WHITE = (
    {"file_name": f"{name}.png", "text": f"a {name} one"} for name in ("black", "white")
)


@pytest.fixture
def captioned(tmp_path):
    """Two pictures, captions yet to be written: what writes them, and the folder."""
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    Image.new("RGB", (8, 8), "black").save(tmp_path / "black.png")

    def write(*lines: object):
        text = "".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines)
        (tmp_path / METADATA).write_text(text)
        return tmp_path

    return write


def test_captions_belong_to_their_pictures_in_any_order(captioned):
    pairs = read_pairs(captioned(WHITE, "\n", BLACK), 4, strict=True)
    assert pairs.texts == ("a black one", "a white one")
    assert pairs.images.float().mean((1, 2, 3)).tolist() == [0, 255]
    assert pairs.floats.mean((1, 2, 3)).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([BLACK], "white.png: no caption"),
        ([BLACK, {"file_name": "white.png", "text": None}], "white.png: no caption"),
        ([], r"black.png: no caption \(2 such\)"),
        ([BLACK, WHITE, {"file_name": "red.png", "text": ""}], "red.png has a caption, but is not"),
        ([BLACK, WHITE, BLACK], "line 3: a second caption of black.png"),
        ([BLACK, '{"file_name": "white.png",\n'], "line 2: no whole JSON"),
        ([BLACK, {"file_name": "white.png"}], "line 2: has no text under 'text'"),
        (["[1]\n"], "line 1: has no text under 'file_name'"),
    ],
)
def test_captions_that_do_not_fit_are_refused(captioned, lines, told):
    with pytest.raises(PalimpsestError, match=told):
        read_pairs(captioned(*lines), 4, strict=True)


def test_a_folder_without_captions_is_refused(captioned):
    folder = captioned()
    (folder / METADATA).unlink()
    with pytest.raises(PalimpsestError, match=r"black\.png: no caption \(2 such\)"):
        read_pairs(folder, 4, strict=True)
    for name in ("black", "white"):
        (folder / f"{name}.txt").write_text(f"a {name} one\n")
    assert read_pairs(folder, 4, strict=True).texts == ("a black one", "a white one")


def test_what_a_strict_reader_refuses_another_skips_and_names(captioned):
    folder = captioned(BLACK, WHITE, {"file_name": "red.png", "text": "red"}, BLACK)
    (folder / "white.png").write_bytes(b"no picture")
    with pytest.raises(PalimpsestError, match=r"a second caption of black\.png \(3 such\)"):
        read_pairs(folder, 4, strict=True)
    pairs = read_pairs(folder, 4)
    assert pairs.texts == ("a black one",)
    assert [reason.rpartition("/")[2] for reason in pairs.skipped] == [
        "metadata.jsonl, line 4: a second caption of black.png",
        "metadata.jsonl: red.png has a caption, but is not there",
        "white.png: not a picture",
    ]


def test_a_folder_of_any_name_is_a_folder(captioned):
    folder = captioned(BLACK, WHITE)
    odd = folder.rename(folder.with_name("pictures [1]*"))
    assert len(read_pairs(odd, 4, strict=True)) == 2


def test_resizing_bytes_is_resizing_numbers_and_rounding():
    images = torch.randint(256, (2, 3, 8, 8), generator=generator(0), dtype=torch.uint8)
    assert torch.equal(resized(images, 12), as_bytes(resized(images.float() / 255, 12)))
    assert resized(images, 8) is images
    assert resized(images[:0], 12).dtype == torch.uint8
    flat = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
    assert torch.equal(resized(flat, 5), flat[:, :, :5, :5])


def test_a_broken_off_folder_goes_on_and_equals_an_unbroken_one(model, tmp_path, monkeypatch):
    prompts = [Prompt("a cat", 1, index=i, guidance=1.0) for i in range(4)]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    monkeypatch.setattr(model, "sampling", type(model.sampling)(steps=2, batch=2))
    write_imagefolder(model, prompts, whole, context=Context())

    made, generate = [], type(model).generate

    def interrupted(self, prompts, *rest):
        if made:
            raise KeyboardInterrupt  # Ctrl-C after the first batch
        made.append(len(prompts))
        return generate(self, prompts, *rest)

    monkeypatch.setattr(type(model), "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_imagefolder(model, prompts, broken, context=Context())
    assert not broken.exists()
    monkeypatch.setattr(type(model), "generate", generate)
    others = tmp_path / "others"
    write_imagefolder(model, prompts[:2], others, context=Context())
    (part,) = tmp_path.glob(".broken-*.part")
    before = {f.name: f.stat().st_mtime_ns for f in part.glob("*.png")}
    assert len(before) == 2
    falsified = tmp_path / "falsified"
    unfinished = part.with_name(part.name.replace("broken", "falsified"))
    shutil.copytree(part, unfinished)
    shutil.copy(*sorted(unfinished.glob("*.png")))
    for folder in (broken, falsified):
        write_imagefolder(model, prompts, folder, context=Context())
    assert len(contents(whole)) == 5
    assert contents(broken) == contents(whole)
    assert contents(falsified) != contents(whole), "what lies there is not made again"
    assert all((broken / n).stat().st_mtime_ns == time for n, time in before.items())
    assert sorted(f.name for f in tmp_path.iterdir()) == ["broken", "falsified", "others", "whole"]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
