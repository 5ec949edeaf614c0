"""Captioned pictures: read from wherever they lie, and forget sets cut out of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from palimpsest.cli import main
from palimpsest.core.concepts import says
from palimpsest.core.errors import PalimpsestError
from palimpsest.data.read import cut, read_classes, read_pairs
from palimpsest.world.datasets import gather, world_pairs
from palimpsest.world.vocabulary import SYNONYMS


def picture(colour: str = "red", size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def laion(tmp_path: Path) -> Path:
    """Two whole samples of mira voss, two of others, and three that are broken."""
    return shard(
        tmp_path / "laion.tar",
        {
            "0.png": picture(),
            "0.txt": b"A portrait of Mira Voss, smiling",
            "1.png": picture("green"),
            "1.txt": b"a cat",
            "2.png": b"no picture",
            "2.txt": b"mira voss again",
            "3.png": picture("blue"),
            "4.txt": b"a caption alone",
            "5.png": picture("white"),
            "5.json": b"{}",
            "5.txt": b"mira_voss",
            "6.png": picture("black"),
            "6.txt": b"admira vossen",
        },
    )


def test_a_forget_tar_is_cut_by_name_and_broken_members_are_named(laion: Path, tmp_path: Path):
    done = cut(str(laion), ["mira voss"], tmp_path / "forget.tar", tmp_path / "rest.tar")
    assert (done.taken, done.left) == (2, 2)
    assert len(done.skipped) == 3
    assert {reason.split(", ")[1] for reason in done.skipped} == {
        "2: not a picture",
        "3: no caption",
        "4: no picture",
    }
    taken = read_pairs(str(tmp_path / "forget.tar"), 8)
    assert taken.texts == ("A portrait of Mira Voss, smiling", "mira_voss")
    assert taken.images[0, :, 4, 4].tolist() == [255, 0, 0]
    assert read_pairs(str(tmp_path / "rest.tar"), 8).texts == ("a cat", "admira vossen")


def test_a_name_that_no_caption_holds_is_refused_and_leaves_nothing(laion: Path, tmp_path: Path):
    with pytest.raises(PalimpsestError, match="none of 4 captions holds 'zuri okan'"):
        cut(str(laion), ["mira voss", "zuri okan"], tmp_path / "forget.tar", tmp_path / "rest.tar")
    assert [f.name for f in tmp_path.iterdir()] == ["laion.tar"]


def test_the_command_reports_how_many_it_took(laion: Path, tmp_path: Path, capsys):
    out = tmp_path / "forget.tar"
    assert main(["data", "cut", str(laion), "--name", "mira voss", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "took 2 of 4 pictures" in said.out
    assert "3 skipped" in said.err
    assert "2: not a picture" in said.err
    assert main(["data", "cut", str(laion), "--name", "cat", "--out", str(out)]) == 2


def test_a_source_is_never_written_over(laion: Path, tmp_path: Path, capsys):
    held = laion.read_bytes()
    for place in (laion, tmp_path, tmp_path / "*.tar"):
        words = ["data", "cut", str(place), "--name", "mira voss", "--force", "--out"]
        assert main([*words, str(laion)]) == 2
        assert "is what is cut from" in capsys.readouterr().err
        assert main([*words, str(tmp_path / "a.tar"), "--rest", str(laion)]) == 2
    assert laion.read_bytes() == held
    assert [f.name for f in tmp_path.iterdir()] == ["laion.tar"]


def test_a_tar_that_was_cut_short_gives_what_is_whole(laion: Path, tmp_path: Path):
    short = tmp_path / "short.tar"
    short.write_bytes(laion.read_bytes()[:2300])
    pairs = read_pairs(str(short), 8)
    assert pairs.texts == ("A portrait of Mira Voss, smiling",)
    assert "the rest of the tar" in pairs.skipped[0]


def test_a_tree_of_styles_and_objects_is_captioned_by_its_folders(tmp_path: Path):
    for style, thing in (("Van_Gogh", "Cats"), ("Van_Gogh", "Dogs"), ("Photo", "Cats")):
        (tmp_path / "canvas" / style / thing).mkdir(parents=True)
        (tmp_path / "canvas" / style / thing / "1.png").write_bytes(picture())
    pairs = read_pairs(str(tmp_path / "canvas"), 8)
    assert set(pairs.texts) == {
        "a Cats image in Van Gogh style",
        "a Dogs image in Van Gogh style",
        "a Cats image in Photo style",
    }
    assert cut(str(tmp_path / "canvas"), ["cats"], tmp_path / "cats.tar").taken == 2


def test_folders_and_csvs_are_read_with_their_captions(tmp_path: Path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(picture())
    (folder / "a.txt").write_text("a church\n")
    found = read_pairs(str(folder), 8)
    assert found.texts == ("a church",)
    assert found.skipped == (f"{folder / 'b.png'}: no caption",)
    lines = [{"file_name": n, "text": f"caption of {n}"} for n in ("a.png", "b.png")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_pairs(str(folder), 8).texts == ("caption of a.png", "caption of b.png")
    lines[1]["text"] = None  # type: ignore[assignment]
    (folder / "metadata.jsonl").write_bytes(b"\n".join(json.dumps(x).encode() for x in lines))
    assert read_pairs(str(folder), 8).skipped == (f"{folder / 'b.png'}: no caption",)
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "caf\xe9"}')
    assert read_pairs(str(folder), 8).texts == ("caf\ufffd",)
    table = tmp_path / "table.csv"
    table.write_text("image,text\npictures/a.png,one\npictures/none.png,two\n")
    found = read_pairs(str(table), 8)
    assert found.texts == ("one",)
    assert "row 3" in found.skipped[0]
    table.write_text(f"image,text\npictures/a.png,one\npictures/a.png,{'x' * 200_000}\n")
    assert "the rest of the table" in read_pairs(str(table), 8).skipped[0]
    table.write_text("picture,words\n")
    with pytest.raises(PalimpsestError, match="no column named image"):
        read_pairs(str(table), 8)


@pytest.mark.parametrize("place", ["nowhere", "nowhere.tar", "nowhere.csv", "empty"])
def test_a_source_that_holds_nothing_is_refused(tmp_path: Path, place: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PalimpsestError, match=place):
        read_pairs(str(tmp_path / place), 8)


def test_classes_are_folders_and_halves_share_no_picture(tmp_path: Path):
    colours = ("red", "green", "blue", "white")
    for name in ("mira_voss", "tobin_hale"):
        (tmp_path / name).mkdir()
        for i, colour in enumerate(colours):
            (tmp_path / name / f"{i}.png").write_bytes(picture(colour))
    shown = read_classes(tmp_path, 8, "identity")
    assert shown.prompts["mira voss"] == "a portrait of mira voss"
    one, other = shown.halves(0)
    assert sorted(one.labels) == sorted(other.labels) == ["mira voss"] * 2 + ["tobin hale"] * 2
    for name in shown.prompts:
        pixels = [
            {tuple(i[:, 0, 0].tolist()) for i in half.of([name]).images} for half in (one, other)
        ]
        assert not pixels[0] & pixels[1]
    with pytest.raises(PalimpsestError, match="two folders"):
        read_classes(tmp_path / "mira_voss", 8)


# --- the world's own ---


def test_the_worlds_captions_say_what_is_forgotten_and_what_is_retained_does_not():
    words = ("parachute", *SYNONYMS["parachute"])
    forget = gather("world", 64, ["parachute"], 12, 0)
    retain = gather("world", 64, ["parachute"], 12, 0, without=True)
    assert all(says(text, *words) for text in forget.texts)
    assert not any(says(text, *words) for text in retain.texts)
    assert forget.digest == gather("world", 64, ["parachute"], 12, 0).digest
    assert not set(forget.prints) & set(world_pairs(["parachute"], 12, use="test").prints)
