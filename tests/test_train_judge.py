"""`palimpsest train-judge`: a classifier that learns, is tested on what it did not see, judges."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from palimpsest.cli import main
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.data.read import read_folder
from palimpsest.judge import Opening, open_judge
from palimpsest.methods import Context
from palimpsest.train.classifier import Head, Recipe, Whole, begin, classes_in, gather, split, train
from palimpsest.world.render import render

OBJECTS = ("church", "fish", "parachute")
QUICK = ("--size", "32", "--epochs", "1", "--batch", "8")


def drawn(root: Path, n: int, names: tuple[str, ...] = OBJECTS) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(n):
            style = ("photo", "watercolor")[i % 2]
            Image.fromarray(render(name, style, i)).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("pictures"), 30)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("few"), 8)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    out = tmp_path_factory.mktemp("judge") / "objects"
    own = ("--size", "64", "--epochs", "8", "--batch", "16", "--kind", "object")
    assert run(pictures, "--out", out, *own) == 0
    return out


def run(folder: Path, *words: object) -> int:
    return main(["train-judge", str(folder), *map(str, words)])


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "confusion.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def state(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_it_tells_apart_what_it_never_saw(judge: Path):
    every = table(judge)[-1]
    assert int(every["n"]) == 27  # 30 % of 90
    assert float(every["accuracy"]) >= 0.8
    assert float(every["low"]) < float(every["accuracy"]) <= float(every["high"])


def test_read_back_it_says_of_held_out_pictures_what_the_table_says(judge: Path, pictures: Path):
    opened: Any = open_judge(f"hf:{judge}")
    assert opened.classes == {"object": OBJECTS}
    assert opened.spec.resolution == 64
    files = [f for own in classes_in(pictures).values() for f in own]
    labels = torch.tensor([OBJECTS.index(f.parent.name) for f in files])
    images = torch.cat([read_folder(pictures / name, 64)[0] for name in OBJECTS])
    learn, held = split(labels, 0)
    assert sorted([*learn.tolist(), *held.tolist()]) == list(range(90))
    said = opened.read(images[held]).labels["object"]
    for k, row in enumerate(table(judge)[:-1]):
        own = [said[i] for i in range(len(held)) if labels[held[i]] == k]
        assert {name: int(row[name]) for name in OBJECTS} == {n: own.count(n) for n in OBJECTS}
        assert int(row["n"]) == len(own) == 9


def test_it_answers_by_the_names_that_prompts_ask_for(judge: Path):
    config = json.loads((judge / "config.json").read_text())
    assert config["palimpsest_kind"] == "object"
    opening = Opening(names={"object": ("Parachute",), "style": ("church",)})
    assert open_judge(f"hf:{judge}", opening).classes == {"object": ("Parachute",)}


class StoppedError(Exception):
    """Stands for whatever stops a process."""


class StopsAt:
    """Progress whose work is broken off."""

    def __init__(self, step: int) -> None:
        self.left = step

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[StopsAt]:
        self.training = label == "training"
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= self.training
        if self.left < 0:
            raise StoppedError


def test_a_training_that_was_broken_off_goes_on_to_the_same_end(few: Path, tmp_path: Path):
    recipe = Recipe(size=32, epochs=4, batch=6)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(few, whole, recipe, Context(), "cpu")
    with pytest.raises(StoppedError):  # in the third epoch of three steps
        train(few, broken, recipe, Context(progress=StopsAt(7)), "cpu")
    assert not broken.exists()
    steps = StopsAt(6)  # two epochs are left; a third would be too much
    train(few, broken, recipe, Context(progress=steps), "cpu")
    assert state(broken) == state(whole)
    assert (broken / "confusion.csv").read_text() == (whole / "confusion.csv").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "broken"}


def test_a_broken_state_is_told_and_left_behind(few: Path, tmp_path: Path):
    (tmp_path / ".out.checkpoint").write_bytes(b"no state")
    told: list[str] = []
    train(few, tmp_path / "out", Recipe(size=32, epochs=1), Context(tell=told.append), "cpu")
    assert "the training begins anew" in told[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_seed_fixes_all(few: Path, tmp_path: Path):
    before = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(few, tmp_path / name, Recipe(size=32, epochs=1, seed=seed), Context(), "cpu")
    assert state(tmp_path / "a") == state(tmp_path / "b") != state(tmp_path / "c")
    assert torch.equal(torch.get_rng_state(), before)


def test_of_a_base_the_last_layer_alone_learns(judge: Path, tmp_path: Path):
    other = drawn(tmp_path / "other", 12, ("balloon", "truck"))
    out = tmp_path / "out"
    assert run(other, "--out", out, "--base", judge, "--epochs", 8, "--lr", 0.1) == 0
    base, made = load_file(judge / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], made[name])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    assert made["classifier.1.bias"].shape == (2,)
    assert float(table(out)[-1]["accuracy"]) >= 0.8
    assert open_judge(f"hf:{out}").classes == {"object": ("balloon", "truck")}


def test_a_head_on_kept_features_is_the_whole_network(judge: Path, few: Path):
    files = classes_in(few)
    model, processor = begin(Recipe(base=str(judge)), tuple(files), "cpu")
    shown = gather(files, processor, Context())
    assert shown.images.shape[2:] == (64, 64)  # the base's own
    head, network = (kind(model, processor, shown, Context()) for kind in (Head, Whole))
    index, flips = torch.tensor([3, 0, 20]), torch.tensor([True, False, True])
    with torch.no_grad():
        assert torch.allclose(head.logits(index, flips), network.logits(index, flips), atol=1e-5)
        assert not torch.allclose(head.logits(index, flips), head.logits(index, ~flips), atol=1e-3)


def test_none_of_these_is_a_class_that_is_no_name(few: Path, tmp_path: Path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, shows in (("a_church", "church"), (NONE, "fish")):
        (folder / name).symlink_to(few / shows)
    assert run(folder, "--out", tmp_path / "out", *QUICK) == 0
    assert open_judge(f"hf:{tmp_path / 'out'}").classes == {"object": ("a church",)}


def test_a_broken_picture_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = drawn(tmp_path / "pictures", 5, ("church", "fish"))
    (folder / "fish" / "03.png").write_bytes((folder / "fish" / "02.png").read_bytes()[:300])
    assert run(folder, "--out", tmp_path / "out", *QUICK) == 0
    assert "fish/03.png: cannot be read as a picture" in capsys.readouterr().err
    for i in (1, 2):
        (folder / "fish" / f"0{i}.png").write_bytes(b"nothing")
    assert run(folder, "--out", tmp_path / "none", *QUICK) == 2
    assert "the class 'fish' has 2 pictures that can be read" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_bad_input_is_one_sentence(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, small = drawn(tmp_path / "one", 4, ("fish",)), drawn(tmp_path / "small", 3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    out = tmp_path / "out"
    cases = (
        (tmp_path / "nowhere", [], "no such folder of pictures by class"),
        (one, [], "needs two folders of pictures or more"),
        (small, [], "the class 'church' has 3 pictures"),
        (few, ["--train", "head"], "--train head needs a --base"),
        (few, ["--base", "no/such"], "was not downloaded before"),
        (few, ["--base", one], "nor a Hub id of an image classifier or a backbone"),
        (few, ["--device", "abacus"], "the device 'abacus' cannot be used here"),
        (few, ["--epochs", "0"], "epochs is 0; it must be at least 1"),
        (few, ["--lr", "1e30", *QUICK], "the loss is"),
    )
    for folder, words, told in cases:
        assert run(folder, "--out", out, *words) == 2, words
        assert told in capsys.readouterr().err
        assert not out.exists()
    assert run(few, "--out", tmp_path / "full", *QUICK) == 2
    assert "not empty; use --force" in capsys.readouterr().err
    assert run(few, "--out", tmp_path / "full", *QUICK, "--force") == 0
    assert {"mine", "config.json", "confusion.csv"} <= {
        f.name for f in (tmp_path / "full").iterdir()
    }


def test_a_base_of_which_more_than_the_head_is_missing_is_refused(judge: Path, tmp_path: Path):
    from safetensors.torch import save_file

    base = tmp_path / "base"
    base.mkdir()
    for file in judge.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    weights = load_file(base / "model.safetensors")
    gone = next(name for name in weights if "encoder" in name and name.endswith("weight"))
    save_file({k: t for k, t in weights.items() if k != gone}, base / "model.safetensors")
    with pytest.raises(PalimpsestError, match=r"its weights lack resnet\.encoder"):
        begin(Recipe(base=str(base)), ("a", "b"), "cpu")
