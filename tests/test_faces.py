"""Faces as a judge of identities, by the portrait of an astronaut and faces of strangers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import batch, file, photograph, stranger
from PIL import Image

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.judge import Opening, open_judge
from palimpsest.judge.face import NEAR, Faces, _weights

COLLINS = "Eileen Collins"


def head() -> Image.Image:
    return Image.open(file("astronaut.png")).convert("RGB").crop((80, 40, 340, 300))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference pictures of two identities, one under a name with a blank."""
    folder = tmp_path_factory.mktemp("references")
    for name in ("EILEEN_collins", "stranger", ".hidden"):
        (folder / name).mkdir()
    head().save(folder / "EILEEN_collins" / "head.png")
    for i in (0, 1):
        stranger(i).save(folder / "stranger" / f"{i}.png")
    (folder / "a note.txt").write_text("no folder")
    return folder


@pytest.fixture(scope="module")
def judge(folder: Path) -> Faces:
    return Faces(folder, (COLLINS,))


def test_a_face_is_known_again_and_a_stranger_is_not(judge: Faces):
    views = [photograph("astronaut.png"), batch(head()).flip(3), batch(head().resize((200, 220)))]
    for view in views:
        reading = judge.read(view)
        assert reading.labels["identity"] == [COLLINS]
        assert reading.confidence["identity"][0] > 0.5
    unknown, known = judge.read(torch.cat([batch(stranger(5)), batch(stranger(1))])).labels[
        "identity"
    ]
    assert (unknown, known) == (NONE, "stranger")


def test_a_picture_without_a_face_shows_nobody(judge: Faces):
    reading = judge.read(photograph("coffee.png"))
    assert reading.labels == {"identity": [NONE]}
    assert reading.confidence == {"identity": [1.0]}
    assert "without a face: none of them" in judge.spec.note


def test_whoever_of_several_is_near_is_shown(judge: Faces):
    both = torch.full((1, 3, 300, 640), 0.4)
    both[..., 20:280, :260] = batch(head())
    both[..., 30:270, 380:620] = batch(stranger(5))
    distances = judge.distances((both[0] * 255).byte().permute(1, 2, 0).numpy().copy())
    assert len(distances) == 2
    assert judge.read(both).labels["identity"] == [COLLINS]


def test_distances_are_the_packages(judge: Faces, folder: Path):
    """As dlib's own example of face recognition computes them, of the file."""
    import dlib  # type: ignore[import-not-found]

    detect = dlib.get_frontal_face_detector()
    align = dlib.shape_predictor(_weights("shape_predictor_5_face_landmarks"))
    net = dlib.face_recognition_model_v1(_weights("dlib_face_recognition_resnet_model_v1"))

    def largest(image: Any) -> np.ndarray:
        box = max(detect(image, 1), key=lambda found: found.area())
        return np.array(net.compute_face_descriptor(image, align(image, box)))

    portrait = dlib.load_rgb_image(str(folder / "EILEEN_collins" / "head.png"))
    seen = np.ascontiguousarray(portrait[:, ::-1])
    there = np.linalg.norm(largest(portrait) - largest(seen))
    assert 0.05 < there < NEAR
    ours = judge.distances(seen)
    assert ours[0, 0] == pytest.approx(there, abs=1e-6)
    assert judge.read(batch(head()).flip(3)).confidence["identity"] == [
        pytest.approx(1 - ours.min() / 1.2)
    ]
    blue = judge.distances(np.ascontiguousarray(portrait[..., ::-1]))
    assert judge.distances(portrait)[0, 0] == pytest.approx(0, abs=1e-6)
    assert blue[0, 0] > 0.05  # the order of colours tells


def test_a_reference_is_turned_as_its_camera_was_and_its_largest_face_counts(
    tmp_path: Path, judge: Faces
):
    (tmp_path / COLLINS).mkdir()
    turned = Image.open(file("astronaut.png")).convert("RGB").rotate(90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(tmp_path / COLLINS / "phone.jpg", quality=95, exif=exif)
    again = Faces(tmp_path)
    assert again.classes == {"identity": (COLLINS,)}
    assert np.linalg.norm(again.known[0] - judge.known[0]) < 0.1


def test_names_are_spelt_as_prompts_do_whatever_the_folders_case(judge: Faces, folder: Path):
    assert judge.classes == {"identity": (COLLINS, "stranger")}
    word = Opening(names={"identity": ("who",)}, synonyms={"who": ("stranger",)})
    assert open_judge(f"face:{folder}", word).classes["identity"] == ("EILEEN collins", "who")


def test_the_spec_changes_with_the_references(judge: Faces, tmp_path: Path):
    (tmp_path / "stranger").mkdir()
    stranger(2).save(tmp_path / "stranger" / "2.png")
    other = Faces(tmp_path)
    assert other.spec.version != judge.spec.version
    assert (judge.spec.threshold, judge.spec.resolution) == (0.6, 150)
    assert "3 references" in judge.spec.note


def test_what_cannot_serve_is_refused_by_name(folder: Path, tmp_path: Path):
    def refused(says: str, where: Path = tmp_path, *names: str) -> None:
        with pytest.raises(PalimpsestError, match=says):
            open_judge(f"face:{where}", Opening(names={"identity": names}))

    refused("'Eileen Colins'; did you mean 'eileen collins'", folder, "Eileen Colins")
    refused("give a folder", tmp_path / "nowhere")
    refused("no folder of pictures for any identity")
    (tmp_path / "somebody").mkdir()
    refused("somebody: there are no pictures here")
    Image.open(file("coffee.png")).save(tmp_path / "somebody" / "cup.png")
    refused(r"cup\.png: no face is found")
    (tmp_path / "somebody" / "cup.png").write_bytes(b"no picture")
    refused(r"cup\.png: cannot be read")
    with pytest.raises(PalimpsestError, match="as face:FOLDER"):
        open_judge("face")


def test_the_models_are_opened_by_path_and_the_68_landmarks_never(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    used = ("shape_predictor_5_face_landmarks", "dlib_face_recognition_resnet_model_v1")
    paths = [Path(_weights(name)) for name in used]
    package = tmp_path / "face_recognition_models"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is imported')")
    for path in paths:
        (package / "models" / path.name).symlink_to(path)
    monkeypatch.syspath_prepend(tmp_path)
    assert Path(_weights(used[0])).is_relative_to(tmp_path)
    judge = Faces(folder)
    assert judge.read(batch(stranger(1))).labels["identity"] == ["stranger"]
    assert Path(judge.ref.removeprefix("face:")).is_absolute()
