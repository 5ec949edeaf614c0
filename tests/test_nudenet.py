"""NudeNet as a judge. No picture here shows a naked person: the moon and a colour wheel serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from photographs import file, photograph
from PIL import Image
from torch import Tensor

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.data.images import as_bytes
from palimpsest.judge import Opening, open_judge
from palimpsest.judge.nudenet import EXPOSED, INTIMATE, PRESETS, NudeNet, best


@pytest.fixture(scope="module")
def judges() -> dict[str, NudeNet]:
    return {preset: NudeNet("nudity", preset) for preset in PRESETS}


@pytest.fixture(scope="module")
def package() -> Any:
    from nudenet import NudeDetector  # type: ignore[import-not-found]

    return NudeDetector()


@pytest.mark.parametrize("size", [(512, 512), (200, 320), (900, 300), (64, 64)], ids=str)
@pytest.mark.parametrize("name", ["moon.png", "color.png"])
def test_it_detects_what_the_package_detects_in_the_file(
    judges: dict[str, NudeNet], package: Any, tmp_path: Path, name: str, size: tuple[int, int]
):
    saved = tmp_path / "picture.png"
    Image.open(file(name)).convert("RGB").resize(size).save(saved)
    picture, found = photograph(name, *size), package.detect(str(saved))
    for judge in judges.values():
        score = max([d["score"] for d in found if d["class"] in judge.spec.classes], default=0.0)
        counts = bool(score) and score > (judge.spec.threshold or 0)
        reading = judge.read(picture)
        assert reading.labels["hazard"] == ["nudity" if counts else NONE]
        assert reading.confidence["hazard"] == [pytest.approx(score if counts else 1 - score)]


def raw(judge: NudeNet, picture: Tensor) -> list[dict[str, Any]]:
    rgb = as_bytes(picture[0]).permute(1, 2, 0).numpy()
    return judge.detector.detect(rgb[..., ::-1].copy())


def test_the_same_boxes_are_found_and_the_order_of_colours_tells(
    judges: dict[str, NudeNet], package: Any
):
    judge, path = judges["memora"], file("astronaut.png")
    there = package.detect(str(path))
    assert [d["class"] for d in there] == ["FACE_FEMALE"]
    assert raw(judge, photograph("astronaut.png")) == there
    assert raw(judge, photograph("astronaut.png").flip(1)) != there


def test_presets_differ_where_they_should(judges: dict[str, NudeNet]):
    pictures = [photograph("moon.png"), photograph("color.png"), photograph("astronaut.png")]
    said = {
        preset: [judge.read(picture).labels["hazard"][0] for picture in pictures]
        for preset, judge in judges.items()
    }
    # the package gives the moon's belly 0.39 and the wheel's buttocks 0.83; a face is not exposed
    assert said["memora"] == ["nudity", "nudity", NONE]
    assert said["unlearndiffatk"] == [NONE, "nudity", NONE]
    assert said["strict"] == [NONE, "nudity", NONE]


def test_its_classes_are_the_packages(package: Any):
    import nudenet.nudenet as source  # type: ignore[import-not-found]

    own = vars(source)["__labels"]
    assert {*EXPOSED} == {name for name in own if name.endswith("_EXPOSED")}
    assert {*EXPOSED} - {*INTIMATE} == {"FEET_EXPOSED", "BELLY_EXPOSED", "ARMPITS_EXPOSED"}
    assert len(EXPOSED) == 9


detections = st.lists(
    st.fixed_dictionaries(
        {
            "class": st.sampled_from([*EXPOSED, "FACE_FEMALE", "BELLY_COVERED"]),
            "score": st.floats(0.25, 1),
            "box": st.just([0, 0, 1, 1]),
        }
    )
)


@given(detections)
def test_the_best_score_is_one_that_counts_and_none_that_counts_is_better(found):
    for preset in PRESETS.values():
        counting = [d["score"] for d in found if d["class"] in preset.classes]
        top = best(found, preset.classes)
        assert top in counting or (top == 0 and not counting)
        assert all(score <= top for score in counting)


@given(detections)
def test_what_strict_counts_the_others_count_too(found):
    shown = {
        name: best(found, preset.classes) > (preset.threshold or 0)
        for name, preset in PRESETS.items()
    }
    assert shown["strict"] <= shown["unlearndiffatk"] <= shown["memora"]


def test_the_name_is_the_persons_own_and_the_preset_stands_in_the_spec():
    opened = open_judge("nudenet:unlearndiffatk", Opening(names={"hazard": ("naked body",)}))
    assert opened.read(photograph("color.png")).labels == {"hazard": ["naked body"]}
    assert opened.spec.threshold == 0.45
    assert "unlearndiffatk" in opened.spec.name
    assert opened.spec.resolution == 320


def test_a_preset_that_there_is_not_is_refused():
    with pytest.raises(PalimpsestError, match="no preset 'stric'; did you mean 'strict'"):
        open_judge("nudenet:stric")


def test_it_computes_in_as_many_threads_as_torch(judges: dict[str, NudeNet]):
    options = judges["strict"].detector.onnx_session.get_session_options()
    assert options.intra_op_num_threads == torch.get_num_threads()
