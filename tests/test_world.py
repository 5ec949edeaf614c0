"""The built-in world: its pictures, its words, its seeds, and the training that makes it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.core.prompts import read_csv, write_csv
from palimpsest.methods import Context
from palimpsest.world import assets, data, suite
from palimpsest.world.captions import SUBJECTS, Subject, all_captions, captions
from palimpsest.world.make.networks import make_tokenizer
from palimpsest.world.make.train import PARTS, Steps, Training, train
from palimpsest.world.render import render
from palimpsest.world.vocabulary import DOMAINS, GROUPS, IDENTITIES, OBJECTS, STYLES


def test_the_world_is_as_large_as_promised():
    assert len(OBJECTS) >= 16
    assert len(GROUPS) >= 4
    assert len(STYLES) >= 8
    assert len(IDENTITIES) >= 4


def test_a_picture_depends_on_its_arguments_alone():
    code = (
        "from palimpsest.world.render import render; import hashlib;"
        "print(hashlib.sha256(render('owl', 'van gogh', 7).tobytes()).hexdigest())"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(prints) == 1


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: f"{s.name}-{s.style}")
def test_every_subject_is_drawn(subject: Subject):
    a, b = render(subject.name, subject.style, 1), render(subject.name, subject.style, 2)
    assert a.shape == (64, 64, 3)
    assert a.dtype == np.uint8
    assert a.std() > 15, "something stands out from the ground"
    assert not np.array_equal(a, b)


def test_unknown_subjects_and_styles_are_refused():
    for wrong in (("unicorn", "photo"), ("cat", "cubism"), ("cat", None), ("mira voss", "photo")):
        with pytest.raises(ValueError, match=r"."):
            render(*wrong, 0)


def test_seeds_of_training_judging_and_testing_never_meet():
    ranges = []
    for first in data.FIRST_SEED.values():
        most = max(data.count(s, 300) for s in SUBJECTS)
        assert most <= 1000, "a subject's seeds run into the next one's"
        ranges.append(range(first, first + 1000 * len(SUBJECTS)))
    for a, b in itertools.combinations(ranges, 2):
        assert a.stop <= b.start or b.stop <= a.start


def test_captions_are_shares_and_fit_the_window():
    for subject in SUBJECTS:
        assert sum(captions(subject).values()) == pytest.approx(1)
        assert len(captions(subject)) >= 3, "several wordings mean the same"
    tokenizer = make_tokenizer()
    longest = max(map(len, tokenizer(all_captions()).input_ids))
    assert longest <= 16


def test_the_ambiguous_word_has_two_meanings():
    for meaning in ("crane bird", "crane machine"):
        assert captions(Subject(meaning, "photo"))["a photo of a crane"] > 0
        assert captions(Subject(meaning, "photo"))[f"a photo of a {meaning}"] > 0
        assert meaning in DOMAINS["object"]
    assert "crane" not in DOMAINS["object"], "only the named meanings are scored"


def test_without_leaves_a_concept_out_of_every_picture_and_caption():
    for concept in ("parachute", "van gogh"):
        left = [SUBJECTS[i] for i in data.without(concept)]
        assert 0 < len(left) < len(SUBJECTS)
        assert not any(concept in text for s in left for text in captions(s))
    assert len(data.without(None)) == len(SUBJECTS)


def test_labels_say_none_of_these():
    assert data.label(Subject("cat", "neon"), "object") == "cat"
    assert data.label(Subject("cat", "neon"), "style") == "neon"
    assert data.label(Subject("cat", "neon"), "identity") == NONE
    assert data.label(Subject("hazard sign"), "object") == NONE


@pytest.mark.parametrize("name", ["parachute", "van gogh", "mira voss", "hazard sign"])
def test_a_suite_asks_for_its_concept_and_everything_else(name: str, tmp_path: Path):
    concept = suite.concept(name)
    prompts = suite.suite(concept, asked=48)
    own = [p for p in prompts if p.wants(concept.kind, name)]
    assert len(own) >= 48
    assert {p.asks.get("object") for p in prompts} >= set(OBJECTS) - {name}
    assert {p.asks.get("style") for p in prompts} >= set(STYLES) - {name}
    assert len({(p.text, p.seed) for p in prompts}) == len(prompts)
    with (tmp_path / "world.csv").open("w") as file:
        write_csv(prompts, file)
    assert read_csv(tmp_path / "world.csv") == prompts


def test_the_shipped_prompts_are_the_whole_suite():
    shipped = read_csv(assets.PROMPTS)
    assert [replace(p, case="") for p in shipped] == suite.whole(5)


def test_kept_sentences_never_name_the_concept():
    for name in ("parachute", "van gogh", "otto finch", "hazard sign"):
        concept = suite.concept(name)
        assert concept.keep
        assert not any(name in sentence for sentence in concept.keep)


def test_the_shipped_weights_leave_room_for_two_gold_models():
    size = sum(f.stat().st_size for f in assets.WEIGHTS.rglob("*") if f.is_file())
    unet = (assets.stable_diffusion() / "unet").rglob("*.safetensors")
    gold = 0 if assets.gold("parachute").exists() else 2 * sum(f.stat().st_size for f in unet)
    assert size + gold < 80e6


@pytest.mark.slow
def test_a_world_is_trained_part_by_part(tmp_path: Path):
    """Every part, from nothing, for two steps: what is written loads and draws."""
    from palimpsest.judge.clip import Clip
    from palimpsest.judge.world import Classifier
    from palimpsest.models.loading import load_clip, load_llava, load_model
    from palimpsest.patch import Patch

    steps = Steps(clip=2, vae=2, judge=2, unet=2, llava=2)
    out, work = tmp_path / "out", tmp_path / "work"
    context = Context(folder=work)
    # few pictures: the numbers of pictures are the recipe's, the code path is the same
    training = Training(out, work, context, steps, pictures_per_pair=2)
    with pytest.raises(PalimpsestError, match="needs"):
        train(training, ["unet"])
    with pytest.raises(PalimpsestError, match="gold model is a patch"):
        train(replace(training, without="parachute"), list(PARTS))
    train(training, list(PARTS))
    model = load_model(str(assets.stable_diffusion(out)))
    assert model.generate(["a cat"]).shape == (1, 3, 64, 64)
    assert Clip.load(assets.clip(out)).texts(["a cat"]).shape[0] == 1
    labels = Classifier.load(assets.judge(out)).read(torch.rand(2, 3, 64, 64)).labels
    assert set(labels) == set(DOMAINS)
    llava = load_llava(str(assets.llava(out)))
    assert len(llava.ask(torch.zeros(2, 3, 64, 64), "What is this?")) == 2
    llava.accepts(_any_patch(load_clip(str(assets.clip(out)))))
    gold = Training(out, work, context, steps, without="parachute", pictures_per_pair=2)
    train(gold, ["unet"])
    with model.patched(Patch.load(assets.gold("parachute", out))):
        assert model.generate(["a cat"]).shape == (1, 3, 64, 64)
    with pytest.raises(PalimpsestError, match="no concept 'parachutes'; did you mean 'parachute'"):
        Training(out, work, context, without="parachutes")


def _any_patch(encoder):
    """A patch of the vision tower: its fingerprints say whose tower it is."""
    name = "vision.encoder.layers.0.mlp.fc1.weight"
    return encoder.make_patch({name: torch.ones_like(encoder.parameters()[name])}, {})


def test_what_is_alone_of_its_kind_takes_an_object_for_its_anchor():
    assert suite.anchors("hazard sign") == OBJECTS
    assert suite.concept("hazard sign", "owl").anchor == "owl"
    with pytest.raises(PalimpsestError, match="no object of the world"):
        suite.concept("hazard sign", "mira voss")
    with pytest.raises(PalimpsestError, match="no style of the world"):
        suite.concept("van gogh", "owl")
