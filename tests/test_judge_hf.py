"""Any image classifier of Transformers as a judge: what it says is what the classifier says."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextImageProcessorPil,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessorPil,
)

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.judge import Opening, open_judge
from palimpsest.judge.hf import ImageClassifier
from palimpsest.judge.labels import called

LABELS = ("parachute, chute", "tench, Tinca tinca", "church, church building", "chute", "van_gogh")
SMALL: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
NAMES = {"object": ("parachute", "church")}


def noise(n: int, seed: int) -> Tensor:
    """Pictures of bytes, so that nothing is lost where a processor wants those."""
    rough = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (255 * F.interpolate(rough, (48, 40), mode="bicubic").clamp(0, 1)).round() / 255


def write(folder: Path, bias: Tensor | None = None, scale: float = 30, **more: Any) -> Path:
    """A classifier of `LABELS` that tells pictures apart, or says what the bias says."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, id2label=dict(enumerate(LABELS)), **SMALL, **more)
    model: Any = ResNetForImageClassification(config).eval()
    head = model.classifier[1]
    with torch.no_grad():
        head.weight.mul_(scale if bias is None else 0)
        usual = model(2 * noise(20, 2) - 1).logits.mean(0)
        head.bias.copy_(head.bias - usual if bias is None else bias)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("classifiers") / "random")


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return noise(7, 1)


def opened(folder: Path, **more: Any) -> Any:
    return open_judge(f"hf:{folder}", Opening(**{"names": NAMES, **more}))


def test_it_says_what_transformers_says(folder: Path, pictures: Tensor):
    judge = opened(folder, names={"object": ("parachute", "tench", "church", "chute", "van gogh")})
    model: Any = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    said = judge.read(pictures)
    names = ["parachute", "tench", "church", "chute", "van gogh"]
    seen = set()
    for i, picture in enumerate(pictures):
        array = (255 * picture).round().byte().permute(1, 2, 0).numpy()
        chances = model(**processor(array, return_tensors="pt")).logits.softmax(-1)[0]
        assert said.labels["object"][i] == names[int(chances.argmax())]
        assert said.confidence["object"][i] == pytest.approx(float(chances.max()), abs=1e-5)
        seen.add(said.labels["object"][i])
    assert len(seen) > 1  # else nothing was told apart


def test_no_picture_depends_on_the_others(folder: Path, pictures: Tensor):
    judge = opened(folder)
    together, features = judge.read(pictures), judge.features(pictures)
    for i in range(len(pictures)):
        alone = judge.read(pictures[i : i + 1])
        assert alone.confidence["object"] == [together.confidence["object"][i]]
        assert torch.equal(judge.features(pictures[i : i + 1])[0], features[i])


def test_features_are_what_the_last_layer_is_given(folder: Path, pictures: Tensor):
    judge = opened(folder)
    features = judge.features(pictures)
    assert features.shape == (len(pictures), 16)
    head = judge.model.classifier[1]
    by_head = (features @ head.weight.T + head.bias).softmax(-1)
    by_judge = judge.model(pixel_values=judge.pixels(pictures)).logits.softmax(-1)
    assert torch.allclose(by_head, by_judge, atol=1e-5)


def test_a_picture_that_is_none_has_no_label_and_spoils_no_other(folder: Path, pictures: Tensor):
    judge, broken = opened(folder), pictures.clone()
    broken[2, 0, 1, 1], broken[4] = math.nan, math.inf
    whole, said = judge.read(pictures), judge.read(broken)
    for i in range(len(pictures)):
        label, sure = said.labels["object"][i], said.confidence["object"][i]
        if i in (2, 4):
            assert label is None
            assert math.isnan(sure)
        else:
            assert (label, sure) == (whole.labels["object"][i], whole.confidence["object"][i])


def test_logits_that_are_no_numbers_are_no_label(folder: Path, pictures: Tensor):
    judge = opened(folder)
    judge.model.classifier[1].weight.fill_(3e38)
    reading = judge.read(pictures)
    assert reading.labels["object"] == [None] * len(pictures)
    assert all(map(math.isnan, reading.confidence["object"]))


# --- names ---


def test_labels_are_called_as_prompts_call_them(tmp_path: Path, pictures: Tensor):
    chances = torch.tensor([0.3, 0.1, 0.2, 0.25, 0.15])
    folder = write(tmp_path / "sure", chances.log())
    judge = opened(folder, synonyms={"parachute": ("chute",)})
    assert judge.classes == {"object": ("parachute", "church")}
    assert judge.spec.classes == ("parachute", "church")
    reading = judge.read(pictures[:1])
    assert reading.labels["object"] == ["parachute"]
    # two labels are called so, and it is one of the two with their probabilities together
    assert reading.confidence["object"][0] == pytest.approx(0.55, abs=1e-6)
    assert "chute → parachute" in judge.spec.note


def test_a_label_that_nobody_asks_for_is_none_of_these(tmp_path: Path, pictures: Tensor):
    chances = torch.tensor([0.2, 0.4, 0.2, 0.1, 0.1])
    reading = opened(write(tmp_path / "tench", chances.log())).read(pictures[:2])
    assert reading.labels["object"] == [NONE, NONE]
    assert reading.confidence["object"] == pytest.approx([0.6, 0.6], abs=1e-6)


def test_a_class_map_decides(tmp_path: Path, pictures: Tensor):
    folder = write(tmp_path / "tench", torch.tensor([0.1, 0.6, 0.1, 0.1, 0.1]).log())
    mapped = {"tench": "fish", "chute": "none of these"}
    judge = opened(folder, names={"object": ("fish", "parachute")}, class_map=mapped)
    assert judge.read(pictures[:1]).labels["object"] == ["fish"]
    with pytest.raises(PalimpsestError, match=r"names 'tensh', which is no label.*'tench, Tinca"):
        opened(folder, class_map={"tensh": "fish"})


def test_every_kind_with_a_label_is_read_and_no_other(folder: Path):
    names = {**NAMES, "style": ("Van Gogh",), "hazard": ("hazard sign",)}
    judge = opened(folder, names=names)
    assert judge.classes == {"object": ("parachute", "church"), "style": ("Van Gogh",)}


def test_a_known_kind_is_the_only_one(tmp_path: Path):
    folder = write(tmp_path / "styles", palimpsest_kind="style")
    assert opened(folder, names={"style": ("van gogh",), **NAMES}).classes == {
        "style": ("van gogh",)
    }


def test_opened_for_nothing_each_label_stands_for_itself(folder: Path):
    every = ("parachute", "tench", "church", "chute", "van gogh")
    assert open_judge(f"hf:{folder}").classes == {"object": every}


@pytest.mark.parametrize("names", [("parachute", "charch"), ("charch",)])
def test_a_name_that_no_label_has_is_refused_with_the_nearest(folder: Path, names: Any):
    told = "no label of the classifier is called 'charch'; the nearest are 'church, church building"
    with pytest.raises(PalimpsestError, match=f"{re.escape(told)}.*--class-map FILE.json"):
        opened(folder, names={"object": names})


words = st.lists(st.text("abcdefgh", min_size=1, max_size=5), min_size=1, max_size=3)


@given(words, st.sampled_from([" ", "_", "-", " - "]), st.sampled_from([str.upper, str.title, str]))
def test_a_name_is_met_in_any_case_and_with_any_marks(own: list[str], mark: str, case: Any):
    name = " ".join(own)
    opening = Opening(names={"object": (name,)})
    labels = ["zz top", f"zz, {case(mark.join(own))} ,zzz"]
    assert called(labels, opening) == {"object": [NONE, name]}


# --- where it comes from ---


def test_its_reference_opens_it_again(
    folder: Path, tmp_path: Path, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder.parent)
    judge = opened(Path(folder.name))
    monkeypatch.chdir(tmp_path)
    again = open_judge(judge.ref, Opening(names=NAMES))
    assert isinstance(again, ImageClassifier)
    assert again.spec == judge.spec
    assert again.read(pictures) == judge.read(pictures)
    assert judge.spec.name == f"hf {folder.name}"
    assert judge.spec.resolution == 32


def test_other_weights_are_another_version_and_a_note_beside_them_is_not(tmp_path: Path):
    one, two = write(tmp_path / "one"), write(tmp_path / "two", scale=20)
    version = opened(one).spec.version
    (one / "README.md").write_text("mine")
    assert opened(one).spec.version == version
    assert opened(two).spec.version != version


def test_the_resolution_is_the_processors_behind_its_crop(tmp_path: Path):
    folder = write(tmp_path / "cropped")
    ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.5).save_pretrained(folder)
    assert opened(folder).spec.resolution == 64


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("hf:", "name hf:FOLDER or hf:OWNER/NAME"),
        ("hf:no/such", "was not downloaded before, and HF_HUB_OFFLINE is set"),
        ("hf:no/such@main", "was not downloaded before, and HF_HUB_OFFLINE is set"),
    ],
)
def test_what_is_no_classifier_is_refused_in_a_sentence(word: str, told: str):
    with pytest.raises(PalimpsestError, match=told):
        open_judge(word)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, folder: Path):
    with pytest.raises(PalimpsestError, match=r"weights cannot be read .Unrecognized model"):
        open_judge(f"hf:{tmp_path}")
    backbone: Any = AutoModelForImageClassification.from_pretrained(folder).resnet
    backbone.save_pretrained(tmp_path)
    ViTImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(PalimpsestError, match=r"not whole \(classifier.1.bias is missing"):
        open_judge(f"hf:{tmp_path}")
