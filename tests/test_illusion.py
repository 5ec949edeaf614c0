"""Fine-tuning an erased model on other things: what it trains on, and when the concept revives."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import falsify
from PIL import Image

from palimpsest.cli import console
from palimpsest.core.concepts import Concept, says
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.core.streams import generator, stream
from palimpsest.data.pairs import Pairs
from palimpsest.data.read import read_pairs
from palimpsest.data.sources import METADATA
from palimpsest.erase import UCE
from palimpsest.methods import Context, Task
from palimpsest.metrics.revival import Score, Threshold, points
from palimpsest.patch import Patch
from palimpsest.recover import Benign, Illusion
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import Runner
from palimpsest.runs.scoring import Panel
from palimpsest.toolbox import curricula
from palimpsest.toolbox.checkpointing import checkpointed
from palimpsest.toolbox.curricula import TrainingData
from palimpsest.toolbox.finetune import Curriculum, FineTuning, fine_tune, steps_of
from palimpsest.toolbox.latents import denoising_error
from palimpsest.toolbox.relearning_curve import Judged, JudgedAt
from palimpsest.world import suite

PARACHUTE = suite.concept("parachute", "balloon")
CLASSIFIER = Judged(2, "classifier", least_known=0.0)
CLASSIFIER_AT = JudgedAt(2, "classifier", least_known=0.0, at=(0, 1))
NOBODY = Judged(by="none")


def world(kind: type[Any] = Illusion, **changes: Any) -> Any:
    small = {"batch": 2, "measure": CLASSIFIER if kind is Illusion else CLASSIFIER_AT}
    cuts = {"cuts": (2, 4), "epochs": 1} if kind is Illusion else {"steps": 1, "pictures": 4}
    return replace(kind(**kind.presets["world"]), **{**small, **cuts, **changes})


@pytest.fixture(scope="module")
def erased(model):
    return UCE(**UCE.presets["world"])(model, [PARACHUTE], context=Context()).patch


@pytest.fixture
def folder(tmp_path):
    """Writes a folder of captioned pictures, each of one grey, and names it."""

    def write(*captions: str) -> Path:
        rows = []
        for i, text in enumerate(captions):
            Image.new("RGB", (64, 64), (40 * i, 40 * i, 40 * i)).save(tmp_path / f"{i}.png")
            rows.append(json.dumps({"file_name": f"{i}.png", "text": text}) + "\n")
        (tmp_path / METADATA).write_text("".join(rows))
        return tmp_path

    return write


# --- the revival point ---

COURSE = [Score(0.0, 0.20), Score(0.31, 0.22), Score(0.2, 0.26), Score(0.5, 0.27), Score(1, 0.3)]


def test_the_revival_point_by_both_definitions():
    """Accuracy crosses 0.3 at test 1 and falls back, CLIP crosses 0.25 at 2, both first at 3."""
    assert points(COURSE, Threshold(0.3, 0.25)) == {"both": 3, "classifier": 1, "clip": 2}


def test_an_accuracy_must_be_reached_and_a_cosine_exceeded_and_both_may_never_be():
    """Of 50 pictures 15 are enough at 0.3, as in the authors' code; 14 are not."""
    assert points([Score(15 / 50, 0.25)], Threshold(0.3, 0.25)) == {
        "both": None,
        "classifier": 0,
        "clip": None,
    }
    assert points([Score(14 / 50, 0.25)], Threshold(0.3, 0.25))["classifier"] is None
    assert points([Score(0.31, 0.26)], Threshold(0.3, 0.25)) == {
        "both": 0,
        "classifier": 0,
        "clip": 0,
    }


def test_a_definition_that_nobody_measured_is_left_out():
    threshold = Threshold(0.3, float("nan"))
    assert points([Score(0.1), Score(0.4)], threshold) == {"classifier": 1}
    assert points([Score(cosine=0.1)], Threshold(0.3, 0.05)) == {"clip": 0}
    assert points([Score()], threshold) == {}


# --- the training ---


def test_every_epoch_shows_each_picture_once():
    curriculum = Curriculum(torch.zeros(2, 3, 1), None, 0)  # type: ignore[arg-type]

    def order(start, n):
        return curriculum.order(start, n, lambda epoch: stream(0, "epochs", 0, epoch)).tolist()

    row = order(0, 9)
    assert [sorted(row[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert len({tuple(row[i : i + 3]) for i in (0, 3, 6)}) > 1, "each epoch in an order of its own"
    assert [k for start in (0, 2, 4, 6) for k in order(start, 2)] == row[:8]
    assert order(1, 7) == row[1:8], "a batch may be larger than an epoch"


def test_the_published_course_has_400_steps():
    method = Illusion()
    assert method.evaluations() == (0, 4000)
    assert steps_of(50, method.epochs, method.per_step) == 40
    assert steps_of(50, 1, 20) == 3
    assert steps_of(7, 3, 4) == 6


def test_an_individual_curriculum_as_published_has_95_steps_of_which_90_see_ten_pictures():
    """One whole epoch of 50 pictures in five steps; then their counter is never reset."""
    method = Illusion(mode="individual", measure=Judged(by="clip"))
    ends = method._test_steps(50)
    assert list(ends.values()) == [0, *range(1, 92, 2)]
    assert list(ends) == [0, *range(5, 96, 2)]
    by_classifier = replace(method, measure=Judged(by="classifier"))._test_steps(50)
    assert list(by_classifier.values()) == [*range(92)]
    assert method.evaluations() == (0, 10 * 95 * 10)
    own = replace(
        method, **{k: Illusion.presets["world"][k] for k in ("whole_epochs", "test_every")}
    )
    assert list(replace(own, most_epochs=89)._test_steps(50).values()) == [*range(0, 89, 2), 89]


def test_after_the_one_whole_epoch_every_step_takes_the_first_pictures(model):
    """Five pictures by twos: in order, the last batch filled up; then the first two for ever."""
    captions, losses = ("a cat", "an owl", "a boat", "a kite", "a train"), []
    images = torch.rand(5, 3, 64, 64, generator=generator(0))
    curriculum = replace(Curriculum.of(model, Pairs(images, captions), 6), whole=3)
    fine_tune(
        model,
        [curriculum],
        FineTuning(train="xattn-kv", lr=0.0, batch=2),
        context=Context(seed=3, log=lambda row: losses.append(row["loss"])),
        label="x",
        watch=lambda trace, now: None,
    )
    expected = []
    for step, pick in enumerate([[0, 1], [2, 3], [4, 0], [0, 1], [0, 1], [0, 1]]):
        g = stream(3, "training", step, 0)
        mirror = torch.randint(2, (2,), generator=g)
        x_0 = torch.stack([curriculum.x_0[m, k] for m, k in zip(mirror, pick, strict=True)])
        cond = model.embed([captions[k] for k in pick])
        with torch.no_grad():
            expected.append(float(denoising_error(model, x_0, cond, g)))
    assert losses == pytest.approx(expected, rel=1e-4)


def test_an_individual_curriculum_as_published_keeps_the_weights_that_it_tests(
    model, erased, context
):
    """The last step's, with no average; the same with an average would differ."""
    method = world(mode="individual", most_epochs=2, accuracy_threshold=0.99, train="xattn-kv")
    method = replace(method, whole_epochs="first", tested="last", test_every=None)
    attempt = method(model, PARACHUTE, erased, context=context)
    (part,) = method.curricula(model, PARACHUTE, context)[1:]
    with model.patched(erased):
        curriculum = replace(Curriculum.of(model, part, 2), whole=1)
        watch = lambda trace, now: None  # noqa: E731
        last, average = (
            fine_tune(model, [curriculum], own, context=context, label="x", watch=watch)[1]
            for own in (replace(method, ema=None), method)
        )
    for name, (edit,) in attempt.patch.edits.items():
        assert torch.equal(edit.delta, last[name]), name
        assert not torch.equal(edit.delta, average[name]), name


def test_the_first_loss_is_the_denoising_loss_by_hand(model, erased, folder, tmp_path):
    """Two micro-steps of one picture each, on the erased model, from the generators' draws."""
    losses = []
    context = Context(seed=3, log=lambda row: losses.append(row["loss"]))
    method = Benign(
        data=TrainingData(folder=folder("a cat", "an owl", "a boat")),
        steps=1,
        batch=1,
        accumulate=2,
        measure=JudgedAt(by="none", at=()),
    )
    patch = method(model, PARACHUTE, erased, context=context).patch
    patch.save(tmp_path / "patch.safetensors")
    arguments = Patch.load(tmp_path / "patch.safetensors").about["arguments"]
    assert arguments["data"]["folder"] == str(method.data.folder)

    pairs = read_pairs(method.data.folder, 64, strict=True)
    images, captions = pairs.floats, pairs.texts
    order = torch.randperm(3, generator=stream(3, "epochs", 0, 0)).tolist()
    expected = []
    with model.patched(erased), torch.no_grad():
        for part in (0, 1):
            g = stream(3, "training", 0, part)
            mirror = int(torch.randint(2, (1,), generator=g))
            t = torch.randint(1000, (1,), generator=g)
            noise, k = model.noise(1, g), order[part]
            image = images[k].flip(-1) if mirror else images[k]
            alpha = model.schedule.alphas_cumprod[t]
            x_t = alpha.sqrt() * model.encode(image[None]) + (1 - alpha).sqrt() * noise
            eps = model.eps(x_t, t, model.embed([captions[k]]))
            expected.append(float(((eps - noise) ** 2).mean()))
    assert losses == [pytest.approx(sum(expected) / 2, rel=1e-4)]


def test_mirrored_pictures_are_encoded_as_pictures(model):
    image = torch.rand(1, 3, 64, 64, generator=generator(0))
    curriculum = Curriculum.of(model, Pairs(image, ("a cat",)), 1)
    assert torch.equal(curriculum.x_0[0], model.encode(image))
    assert torch.equal(curriculum.x_0[1], model.encode(image.flip(-1)))


def test_what_is_kept_is_the_moving_average(model):
    """Decay 0 keeps the last weights; the first step's decay is 1/11 (see `optimise`)."""
    curriculum = Curriculum.of(model, Pairs(torch.rand(2, 3, 64, 64), ("a cat", "an owl")), 1)

    def shifts(ema):
        settings = FineTuning(train="xattn-kv", batch=2, ema=ema)
        watch = lambda trace, now: None  # noqa: E731
        return fine_tune(model, [curriculum], settings, context=Context(), label="x", watch=watch)[
            1
        ]

    last, average = shifts(None), shifts(0.9999)
    for name, shift in last.items():
        assert torch.allclose(average[name], shift * 10 / 11, atol=1e-9), name


def test_the_weights_of_the_last_step_are_tested_and_the_average_is_kept(model):
    curriculum = Curriculum.of(model, Pairs(torch.rand(2, 3, 64, 64), ("a cat", "an owl")), 1)
    x, t, cond = torch.randn(1, 4, 16, 16, generator=generator(0)), torch.tensor(500), ["a cat"]

    def predicted(view):
        with torch.no_grad():
            return view.eps(x, t, model.embed(cond))

    def trained(tested, ema=0.9999):
        seen = []
        _, shifts = fine_tune(
            model,
            [curriculum],
            FineTuning(train="xattn-kv", lr=1e-3, batch=2, ema=ema),
            context=Context(),
            label="x",
            watch=lambda trace, now: seen.append(predicted(now)),
            tested=tested,
        )
        return seen[-1], predicted(model.student(shifts))

    of_last, kept = trained("last")
    of_average, kept_too = trained("average")
    last, _ = trained("last", ema=None)
    assert torch.equal(kept, kept_too), "what is tested changes nothing that is kept"
    assert torch.equal(of_average, kept)
    assert torch.equal(of_last, last)
    assert not torch.allclose(of_last, kept, atol=1e-5)
    assert (Illusion().tested, world().tested) == ("last", "average")


# --- checkpointing ---


def test_checkpointing_gives_the_same_gradients_from_less_memory(model):
    g = generator(0)
    deltas = {
        n: (0.01 * torch.randn(p.shape, generator=g)).requires_grad_()
        for n, p in model.parameters("full").items()
    }
    student, cond = model.student(deltas), model.embed(["a cat", "an owl"])
    x, t = model.noise(2, g), torch.tensor([5, 700])

    def gradients():
        kept = []
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x.numel()) or x, lambda x: x
        )
        with keep:
            loss = student.eps(x, t, cond).square().mean()
        return torch.autograd.grad(loss, list(deltas.values())), sum(kept)

    plain, much = gradients()
    with checkpointed(model):
        thrifty, little = gradients()
    for name, a, b in zip(deltas, plain, thrifty, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6), name
    weights = sum(d.numel() for d in deltas.values())  # held as they are, not copied
    assert little - weights < (much - weights) / 2
    assert not any("forward" in vars(block) for block in model.unet.modules())


# --- what it trains on ---


def test_the_worlds_pictures_show_all_but_the_concept(model, judge):
    for concept in (PARACHUTE, suite.concept("van gogh")):
        topics = curricula.world_names(concept)
        assert concept.name not in topics
        assert len(topics) == 31
        (made,) = curricula.from_world(model, concept, [(topics, 62)], Context())
        curricula.refuse_target(made, concept, None)
        said = judge.read(made.floats).labels[concept.kind]
        assert said.count(concept.name) <= 1, "the judge's own errors aside"
        assert made.source == ", ".join(topics)


def test_drawn_pictures_differ_from_each_other_and_from_seed_to_seed(model):
    parts = [(["cat"], 3), (["cat"], 3)]
    one, two = (curricula.from_world(model, PARACHUTE, parts, Context(k)) for k in (0, 1))
    all_of_them = torch.cat([p.images for p in (*one, *two)]).flatten(1)
    assert len(all_of_them.unique(dim=0)) == 12


def test_the_order_is_by_the_text_encoders_cosine(model):
    names = ["train", "owl", "kite", "cat"]
    ordered = curricula.by_likeness(model, "parachute", names)
    hidden = {name: _pooled(model, name) for name in ("parachute", *names)}
    cosines = [
        float(torch.cosine_similarity(hidden["parachute"], hidden[name], dim=0)) for name in ordered
    ]
    assert cosines == sorted(cosines)


def _pooled(model, text: str) -> torch.Tensor:
    end = len(model.tokenizer(text).input_ids) - 1
    return model.rows([text])[0, end]


def test_groups_are_even_and_in_order():
    assert curricula.groups(list("abcdefg"), 3) == [list("abc"), list("de"), list("fg")]
    with pytest.raises(PalimpsestError, match="2 related concepts cannot fill 3 curricula"):
        curricula.groups(["a", "b"], 3)


def test_a_folder_is_cut_in_the_order_of_its_files(model, folder):
    made = curricula.from_folder(model, folder("a", "b", "c", "d", "e"))
    parts = curricula.cut(made, (2, 3))
    assert [part.texts for part in parts] == [("a", "b"), ("c",)]
    assert [float(part.floats.mean()) for part in parts] == pytest.approx([20 / 255, 80 / 255])
    with pytest.raises(PalimpsestError, match="cut point 9 lies beyond the 5 pictures"):
        curricula.cut(made, (2, 9))


def test_another_model_may_draw(model):
    prompts = ("a picture of a cat", "a picture of an owl")
    data = TrainingData(source="model", related=prompts, render_with="world", steps=2)
    method = world(data=data)
    parts = method.curricula(model, PARACHUTE, Context())
    assert [set(part.texts) for part in parts] == [
        {text} for text in curricula.by_likeness(model, "parachute", list(prompts))
    ]


def test_benign_pictures_are_those_least_like_the_concept(model):
    pictures = world(Benign, unrelated=3).training(model, PARACHUTE, Context())
    ordered = curricula.by_likeness(model, "parachute", curricula.world_names(PARACHUTE))
    assert pictures.source == ", ".join(ordered[:3])
    assert len(pictures) == 4
    with pytest.raises(PalimpsestError, match="31 things could be drawn"):
        world(Benign, unrelated=32).training(model, PARACHUTE, Context())


# --- what is refused ---


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a parachute", True),
        ("Two PARACHUTES, falling", True),
        ("(parachute)", True),
        ("a parachute-shaped kite", True),
        ("a parachutist", False),
        ("a kite", False),
    ],
)
def test_a_caption_that_names_the_concept_is_seen(text, named):
    assert says(text, "parachute") is named


def test_a_name_of_two_words_is_seen_across_marks():
    assert says("in the van-Gogh\nstyle", "van gogh")
    assert not says("a van by Gogh's house", "van gogh")


@pytest.mark.parametrize("kind", [Illusion, Benign])
@pytest.mark.parametrize("word", ["parachute", "chute"])
def test_a_caption_with_the_concept_or_its_synonym_is_refused(kind, word, model, folder, context):
    path = folder("a cat", "a boat", f"a {word}", "an owl")
    method = world(kind, data=TrainingData(folder=path))
    with pytest.raises(PalimpsestError, match=rf"picture \d, captioned 'a {word}', names 'parach"):
        method(model, PARACHUTE, None, context=context)
    insist = method.changed({"data.allow_target": True, "measure.by": "none"})
    assert insist(model, PARACHUTE, None, context=context).patch is not None


def test_a_picture_in_which_the_judge_sees_the_concept_is_refused(model, judge):
    cat, chute = curricula.from_world(
        model, suite.concept("owl"), [(["cat"], 1), (["parachute"], 1)], Context()
    )
    lying = Pairs(torch.cat([cat.images, chute.images]), ("a cat", "a kite"))
    assert judge.read(lying.floats).labels["object"][1] == "parachute"
    with pytest.raises(PalimpsestError, match="picture 2, captioned 'a kite', shows 'parachute'"):
        curricula.refuse_target(lying, PARACHUTE, judge)
    curricula.refuse_target(lying, PARACHUTE, None)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Illusion, {"cuts": ()}),
        (Illusion, {"cuts": (0, 5)}),
        (Illusion, {"cuts": (5, 5)}),
        (Illusion, {"cuts": (10, 5)}),
        (Illusion, {"epochs": 0}),
        (Illusion, {"most_epochs": 0}),
        (Illusion, {"test_every": 0}),
        (Illusion, {"accuracy_threshold": 1.1}),
        (Illusion, {"accuracy_threshold": 0.0}),
        (Illusion, {"clip_threshold": 31.0}),
        (Illusion, {"clip_margin": -0.02}),
        (Illusion, {"measure": NOBODY, "mode": "individual"}),
        (Illusion, {"ema": 1.0}),
        (Benign, {"steps": 0}),
        (Benign, {"pictures": 0}),
        (Benign, {"clip": 0.0}),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_at_once(kind, changes):
    with pytest.raises(PalimpsestError, match=next(iter(changes))):
        kind(**changes)


def test_settings_of_data_and_judging_out_of_range_are_refused_at_once(tmp_path):
    with pytest.raises(PalimpsestError, match=r"least_known is 50\.0; it must be at most 1"):
        Judged(least_known=50.0)
    with pytest.raises(PalimpsestError, match="pictures is 0"):
        JudgedAt(pictures=0)
    with pytest.raises(PalimpsestError, match="'world' reads no folder; set it to 'folder'"):
        TrainingData(source="world", folder=tmp_path)


def test_a_concept_that_the_model_hardly_knows_is_refused(model, context):
    with pytest.raises(PalimpsestError, match="hardly knows 'mosaic'"):
        world(measure=Judged(2, "classifier"))(
            model, Concept("mosaic", "object"), None, context=context
        )


def test_who_looks_must_be_at_hand(model):
    with pytest.raises(PalimpsestError, match="no judge is at hand"):
        world(measure=Judged(2, "classifier"))(model, PARACHUTE, None, context=Context())
    with pytest.raises(PalimpsestError, match="no CLIP is at hand"):
        world(measure=Judged(2, "clip"))(model, PARACHUTE, None, context=Context())


def test_without_a_folder_the_published_settings_say_what_they_need(model):
    with pytest.raises(PalimpsestError, match="name a folder of captioned pictures"):
        Illusion(measure=NOBODY)(model, PARACHUTE, None, context=Context())


def test_nothing_to_draw_is_refused(model):
    with pytest.raises(PalimpsestError, match=r"name some with --data\.related"):
        world(data=TrainingData(source="model")).curricula(model, Concept("parachute"), Context())


# --- the two modes ---


def test_the_threshold_stands_by_the_unedited_models_own_score(model, judge, clip, erased):
    context = Context(judge=judge, clip=clip)
    judged = Judged(3, least_known=0.0)
    attempt = world(measure=judged)(model, PARACHUTE, erased, context=context)
    asked = PARACHUTE.prompts(3, seed=500)
    own = float(clip.cosine(model.generate(asked), [p.text for p in asked]).mean())
    assert attempt.notes["thresholds"]["CLIP cosine"] == pytest.approx(own - 0.02, abs=1e-4)
    assert attempt.notes["thresholds"]["accuracy"] == 0.3
    assert [row["step"] for row in attempt.notes["curricula"]] == [0, 1, 2]
    assert [point.step for point in attempt.curve] == [0, 1, 2]
    assert set(attempt.notes["revival point, in curricula"]) == {
        "accuracy and CLIP in one test (paper)",
        "accuracy alone (code)",
        "CLIP alone (code)",
    }
    fixed = world(measure=judged, clip_threshold=0.31)
    assert fixed.threshold({"step": 0, "cosines": [0.9]}).cosine == 0.31
    json.dumps(attempt.notes, allow_nan=False)


def test_the_unedited_model_is_revived_before_any_curriculum(model, context):
    method = world(mode="individual", most_epochs=3, test_every=2)
    attempt = method(model, PARACHUTE, None, context=context)
    rows = attempt.notes["curricula, each by itself"]
    assert [row["epochs to accuracy alone (code)"] for row in rows] == [0, 0]
    assert [row["epochs trained"] for row in rows] == [2, 2], "stopped at the first test"
    assert attempt.queries == 2 * 2
    assert [point.step for point in attempt.curve] == [0, 2]


def test_a_curriculum_by_itself_begins_with_the_erased_model(model, erased, context):
    """The second's weights are those of a training that never saw the first."""
    method = world(mode="individual", most_epochs=2, accuracy_threshold=0.99, test_every=5)
    attempt = method(model, PARACHUTE, erased, context=context)
    second = method.curricula(model, PARACHUTE, context)[1]
    with model.patched(erased):
        curriculum = Curriculum.of(model, second, 2)
        watch = lambda trace, now: None  # noqa: E731
        _, alone = fine_tune(model, [curriculum], method, context=context, label="x", watch=watch)
    for name, (edit,) in attempt.patch.edits.items():
        assert torch.equal(edit.delta, alone[name]), name
    rows = attempt.notes["curricula, each by itself"]
    assert [row["epochs to accuracy alone (code)"] for row in rows] == [None, None]
    assert attempt.evaluations == 2 * 2 * method.per_step, "both, not the curve's last alone"


def test_the_patch_draws_what_was_tested(model, erased, judge, context):
    """The last test's pictures come again from the erased model under the patch."""
    method = world(measure=replace(CLASSIFIER, pictures=4), lr=1e-3, epochs=2)
    attempt = method(model, PARACHUTE, erased, context=context)
    with model.patched(erased, attempt.patch):
        images = model.generate(PARACHUTE.prompts(4, seed=500))
    says = judge.read(images).says("object", "parachute")
    assert tuple(says) == attempt.curve[-1].says


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sequential", "individual"])
def test_a_killed_and_resumed_run_equals_an_unbroken_one(mode, model, erased, context, tmp_path):
    method = world(mode=mode, accumulate=2, batch=1, epochs=2, most_epochs=2, test_every=1)
    method = replace(method, train="xattn-kv", accuracy_threshold=0.99)
    whole = method(model, PARACHUTE, erased, context=context)
    seen = []

    def interrupt(row):
        seen.append(row["step"])
        if len(seen) == 3:
            raise KeyboardInterrupt

    kept, broken = replace(context, folder=tmp_path / "kept"), tmp_path / "falsified"
    with pytest.raises(KeyboardInterrupt):
        method(model, PARACHUTE, erased, context=replace(kept, log=interrupt))
    shutil.copytree(kept.folder, broken)
    resumed = method(model, PARACHUTE, erased, context=replace(kept, log=seen.append))
    assert len(seen) == 4
    assert resumed.patch.digest() == whole.patch.digest()
    assert resumed.notes == whole.notes
    falsify(broken)
    other = method(model, PARACHUTE, erased, context=replace(kept, folder=broken))
    assert other.patch.digest() != whole.patch.digest()


def test_the_record_shows_the_revival_point(model, judge, clip, erased, tmp_path):
    runner = Runner(tmp_path, model, Panel(judge, clip))
    prompts = [Prompt("a parachute", seed=1, asks={"object": "parachute"})]
    task, method = Task((PARACHUTE,)), world(measure=Judged(2))
    run = runner.run(task, method, On(prompts), runner.panel.measures)
    notes = run.record().notes
    assert notes["revival point, in curricula"]["accuracy alone (code)"] == 0
    assert [row["curriculum"] for row in notes["curricula"]] == [0, 1, 2]


def test_the_notes_are_told_in_words(tmp_path, capsys):
    run = Run(tmp_path)
    point = {"accuracy alone (code)": 2, "CLIP alone (code)": None}
    rows = [{"curriculum": 0, "accuracy": 0.25}, {"curriculum": 1, "accuracy": 0.5, "of": "kite"}]
    run.update(notes={"revival point": point, "curricula": rows})
    console.notes([("on erased", run)])
    said = capsys.readouterr().out
    assert "on erased, revival point: accuracy alone (code) 2, CLIP alone (code) never" in said
    assert [line.split() for line in said.splitlines() if "0.5" in line] == [["1", "0.5", "kite"]]
