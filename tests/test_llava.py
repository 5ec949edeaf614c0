"""LLaVA: it sees through CLIP's tower, answers in words, and SLUG makes it stop saying a name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from methods import lesson, quiz
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from palimpsest.cli import main
from palimpsest.core.errors import PalimpsestError
from palimpsest.data.questions import (
    SHOWN,
    WHO,
    betrays,
    counted,
    names,
)
from palimpsest.erase import SLUG
from palimpsest.erase.slug import InLLaVA
from palimpsest.judge.answers import Answers
from palimpsest.methods import Context
from palimpsest.models.clip import ContrastiveEncoder, shared
from palimpsest.models.llava import CHAT, Answerer
from palimpsest.models.loading import load_clip, load_llava
from palimpsest.patch import Patch
from palimpsest.report import write_report
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import Runner
from palimpsest.toolbox.clip_losses import distance, loss_gradient
from palimpsest.world import assets
from palimpsest.world.datasets import world_classes

MIRA = ("mira voss",)
LESSON = lesson("mira voss", asked=True)
VALUES = "vision.encoder.layers.2.self_attn.v_proj.weight"
UNREAD = "vision.encoder.layers.3.self_attn.v_proj.weight"


@pytest.fixture(scope="module")
def llava() -> Answerer:
    return load_llava("world")


@pytest.fixture(scope="module")
def encoder() -> ContrastiveEncoder:
    return load_clip("world")


def shift(model: Answerer, name: str, size: float = 1.0) -> dict[str, torch.Tensor]:
    own = model._parameters[name]
    return {name: size * torch.randn(own.shape, generator=torch.Generator().manual_seed(0))}


# --- the model ---


def test_its_vision_tower_is_clips_value_for_value(llava, encoder):
    ours = {n: p for n, p in llava._parameters.items() if n.startswith("vision.")}
    theirs = {n: p for n, p in encoder.parameters().items() if n.startswith("vision.")}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_answers_as_hugging_faces_own_processor_and_model_do(llava):
    """The picture goes in as a file would; the chat form is LLaVA-1.5's."""
    shown = world_classes(1, 700_000)[[0, 18, 22]]
    folder = assets.llava()
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    for image, asked in zip(shown.images, (SHOWN, WHO, WHO), strict=True):
        given = processor(
            images=Image.fromarray(image.permute(1, 2, 0).numpy()),
            text=CHAT.format(question=asked),
            return_tensors="pt",
        )
        given.pop("token_type_ids", None)
        ids = model.generate(**given, max_new_tokens=8, do_sample=False)
        reply = processor.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        assert llava.ask(image[None], asked) == [reply.strip()]


def test_questions_of_unlike_length_are_asked_together(llava):
    """Padding on the left moves no answer; floats are read as bytes are."""
    shown = world_classes(1, 700_000)[[0, 5, 18, 19]]
    asked = [SHOWN, "What is this?", WHO, "Who is this?"]
    alone = [llava.ask(shown.images[[i]], asked[i])[0] for i in range(4)]
    assert llava.ask(shown.images, asked) == alone
    assert llava.ask(shown.images.float() / 255, asked) == alone
    assert alone[2:] == ["mira voss", "tobin hale"]


def test_the_world_is_known_before_any_edit(llava):
    shown = quiz(world_classes(1, 700_000))
    answers = shown.put(llava)
    right = [names(said, label) for said, label in zip(answers, shown.labels, strict=True)]
    assert sum(right) >= 0.8 * len(right)


def test_a_patch_of_clip_moves_its_answers_and_takes_nothing_with_it(llava, encoder):
    patch = encoder.make_patch({VALUES: shift(llava, VALUES)[VALUES]}, {})
    images = world_classes(1, 700_000).images[:8]
    before = llava.ask(images, SHOWN)
    with llava.patched(patch):
        assert llava.ask(images, SHOWN) != before
    assert llava.ask(images, SHOWN) == before
    with pytest.raises(PalimpsestError, match="no parameter 'text_encoder"):
        llava.accepts(Patch.dense(shift_of_text(encoder)))


def shift_of_text(encoder: ContrastiveEncoder) -> dict[str, torch.Tensor]:
    name = "text_encoder.encoder.layers.0.mlp.fc1.weight"
    return {name: torch.ones_like(encoder.parameters()[name])}


def test_layers_past_the_feature_layer_change_no_answer(llava):
    """`vision_feature_layer` −2 of four layers: the last is not read, the third is."""
    images = world_classes(1, 700_000).images[:4]
    before = llava.ask(images, SHOWN)
    with llava.patched(Patch.dense(shift(llava, UNREAD, 9))):
        assert llava.ask(images, SHOWN) == before
    assert llava.depth == 3
    assert llava.reads(VALUES)
    outside = (UNREAD, "visual_projection.weight", "vision.post_layernorm.weight")
    assert not any(llava.reads(name) for name in outside)


def test_the_front_is_taken_over_the_layers_that_are_read(llava, encoder):
    found = shared(llava, encoder, "vision", llava.reads)
    assert {name.split(".")[3] for name in found} == {"0", "1", "2"}
    assert len(found) == 3 * 6


def test_another_clip_is_refused(llava):
    other = load_clip("world")
    other.parameters()[VALUES].data *= 2
    with pytest.raises(PalimpsestError, match="not the vision tower of the CLIP 'world'"):
        shared(llava, other, "vision", llava.reads)
    with pytest.raises(PalimpsestError, match="another base model"):
        llava.accepts(other.make_patch({VALUES: torch.ones_like(other._parameters[VALUES])}, {}))


def test_its_clip_is_told_by_the_towers_form(llava):
    assert InLLaVA(SLUG(), llava, LESSON).encoder.name == "world"
    with pytest.raises(PalimpsestError, match="vision tower is 128 wide at 99 pixels; name it"):
        InLLaVA(SLUG(), llava, LESSON).home("vision", 128, 99)


def test_what_cannot_be_read_is_refused(llava):
    with pytest.raises(PalimpsestError, match="pictures of 32×32 pixels; 'world' reads 64×64"):
        llava.ask(torch.zeros(1, 3, 32, 32), SHOWN)
    with pytest.raises(PalimpsestError, match="a view of a LLaVA answers nothing"):
        llava.student({}).ask(torch.zeros(1, 3, 64, 64), SHOWN)
    with pytest.raises(PalimpsestError, match="a model of type 'clip'; name a Llava"):
        load_llava(str(assets.clip()))


# --- answers ---


def test_a_name_is_heard_in_a_sentence_as_whole_words():
    assert betrays(["nobody", "This is Mira Voss, smiling."], MIRA)
    assert not betrays(["mira vossen", "a voss mira"], MIRA)
    assert names(["It is a CAT.", "cat"], "cat")
    assert not names(["a cat", "a dog"], "cat"), "every answer must name it"


def test_answers_are_counted_by_hand():
    """Three pictures: the name said in one of two answers; one other right, one wrong."""
    three = replace(LESSON.validation, labels=("mira voss", "cat", "otto finch"))
    answers = [["nobody", "Mira Voss"], ["a cat"], ["otto finch", "nobody"]]
    assert counted(three, answers, MIRA) == ([True], {"cat": [True], "otto finch": [False]})


# --- SLUG ---


def test_slug_moves_one_read_layer_along_clips_gradient(llava, encoder):
    before = {name: p.detach().clone() for name, p in llava._parameters.items()}
    method = SLUG(batch=16, tries=2, start=0.3)
    result = method(llava, LESSON, context=Context(seed=1))
    assert all(torch.equal(before[n], p) for n, p in llava._parameters.items())
    patch, record = result.patch, result.search
    ((name, (edit,)),) = patch.edits.items()
    assert name == record["layer"]
    assert llava.reads(name)
    slope = loss_gradient(encoder, LESSON.forget, distance, [name], batch=8)[name]
    assert torch.allclose(edit.delta, record["lambda"] * slope, rtol=1e-4, atol=1e-8)
    assert len(record["trials"]) == 2 * sum(row["front"] for row in record["layers"])
    assert {row["tower"] for row in record["layers"]} == {"vision"}
    chosen = next(t for t in record["trials"] if t["scale"] == record["lambda"])
    after = InLLaVA(method, llava, LESSON).measure(Context())
    assert after(patch) == (chosen["forget"], chosen["keep"])
    assert (result.short is not None) == (chosen["forget"] > 0)


def test_a_name_that_is_never_said_cannot_be_forgotten(llava):
    shown = LESSON.validation
    mute = replace(shown, questions={**shown.questions, "identity": ("What style is this?",)})
    wrong = replace(LESSON, validation=replace(mute, images=torch.zeros_like(shown.images)))
    with pytest.raises(PalimpsestError, match="so there is nothing to forget"):
        SLUG()(llava, wrong, context=Context())


def test_validation_pictures_that_ask_nothing_are_refused(llava):
    with pytest.raises(PalimpsestError, match="ask nothing; give the task a Quiz"):
        SLUG()(llava, lesson("mira voss"))


def test_a_run_keeps_answers_before_and_after_and_shows_them_as_text(llava, tmp_path):
    exam = quiz(world_classes(1, 700_000, more=MIRA))
    runner, measures = Runner(tmp_path, llava), [Answers(exam)]
    run = runner.run(LESSON, SLUG(batch=16, tries=1), On(), measures)
    record, rows = run.record(), run.rows("answers.jsonl")
    assert len(rows) == sum(len(exam.asks(label)) for label in exam.labels)
    assert [row.name for row in record.numbers][:2] == ["name said", "others named"]
    before = {row.name: row for row in record.baseline}
    said = [r["file"] for r in rows if r["shows"] in MIRA and "mira voss" in r["before"]]
    assert before["name said"].value == len(set(said)) / 4
    assert before["name said"].n == 4
    assert before["others named, identity"].n == 3
    assert before["others named, object"].n == 18
    assert record.questions["cat"] == (SHOWN,)
    assert all(run.path(row["file"]).is_file() for row in rows)
    again = runner.run(LESSON, SLUG(batch=16, tries=1), On(), measures)
    assert again.record().finished == record.finished
    escaped(run)


def escaped(run: Run) -> None:
    rows = run.rows("answers.jsonl")
    rows[0]["after"] = "<script>alert(1)</script>"
    run.write_rows("answers.jsonl", [{**row, "shows": "mira voss"} for row in rows])
    page = write_report([run.folder], run.path("report.html")).read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "data:image/webp" in page


def test_the_command_writes_its_page_and_says_by_its_code_if_it_fell_short(tmp_path, capsys):
    words = "llava slug --concept parachute --pictures 4 --retain-pictures 8 --per-class 1"
    small = ["--batch", "8", "--tries", "1", "--start", "1e-6", "--questions", "What is this?"]
    assert main([*words.split(), *small, "--runs", str(tmp_path)]) == 3
    said = capsys.readouterr()
    assert "the name is said of" in said.err
    assert "name said" in said.out
    (folder,) = (path.parent for path in tmp_path.glob("*/run.json"))
    assert {"answers.jsonl", "report.html", "patch.safetensors"} <= {
        f.name for f in folder.iterdir()
    }
    record = json.loads((folder / "run.json").read_text())
    assert record["kind"] == "llava"
    assert record["questions"]["parachute"] == ["What is this?"]
    assert record["questions"]["mira voss"] == [WHO, SHOWN]


def test_pictures_of_ones_own_are_taken_from_folders(tmp_path: Path, capsys):
    shown = world_classes(4, 800_000)
    for which, label in (("a", "cat"), ("b", "owl")):
        for i, image in enumerate(shown.of([label]).images):
            array = image.permute(1, 2, 0).numpy()
            for place, text in ((f"classes/{label}", None), (which, f"a picture of a {label}")):
                file = tmp_path / place / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(file)
                if text:
                    file.with_suffix(".txt").write_text(text)
    sets = [
        "--forget",
        tmp_path / "a",
        "--retain",
        tmp_path / "b",
        "--classes",
        tmp_path / "classes",
    ]
    small = ["--batch", "4", "--tries", "1", "--start", "1e-6"]
    words = ["llava", "slug", "--concept", "cat", *map(str, sets), *small]
    assert main([*words, "--runs", str(tmp_path / "runs")]) == 3
    (record,) = (json.loads(p.read_text()) for p in (tmp_path / "runs").glob("*/run.json"))
    assert record["test"] == 4
    assert record["questions"] == {"cat": [SHOWN], "owl": [SHOWN]}
    assert main([*words[:6], "--runs", str(tmp_path / "runs")]) == 2
    assert "need all three" in capsys.readouterr().err
