"""What holds of every judge that a name opens, and of several that look at one run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from palimpsest.cli import main
from palimpsest.cli.open_run import panel_of
from palimpsest.cli.verbs.recover import Recover
from palimpsest.core.atomic import write_text
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.core.prompts import Prompt
from palimpsest.core.typed import build, plain
from palimpsest.judge import JUDGES, Opening, open_judge, opening, references
from palimpsest.judge.clip import threshold
from palimpsest.judge.references import Entry
from palimpsest.judge.vlm import Chat, affirmed
from palimpsest.methods import Judge
from palimpsest.runs.folder import Run
from palimpsest.runs.scoring import Panel
from palimpsest.world import assets, suite
from palimpsest.world.render import render

OBJECTS = ("parachute", "church", "cat")
OPENING = Opening(names={"object": OBJECTS, "style": ("photo", "neon")})
WORDS = ("world", "clip:world", "vlm:world")


def drawn(n: int = 4) -> tuple[torch.Tensor, list[Prompt]]:
    """Renders of three objects in two styles, with prompts that ask for them."""
    pairs = [(name, style, k) for name in OBJECTS for style in ("photo", "neon") for k in range(n)]
    images = [torch.from_numpy(render(name, style, seed=900 + k)) for name, style, k in pairs]
    return torch.stack(images).permute(0, 3, 1, 2).float() / 255, [
        suite.pair(name, style, k) for name, style, k in pairs
    ]


@pytest.fixture(scope="module")
def shown() -> tuple[torch.Tensor, list[Prompt]]:
    return drawn()


@pytest.fixture(scope="module", params=WORDS)
def looks(request: pytest.FixtureRequest, shown) -> Judge:
    judge = open_judge(request.param, OPENING)
    if hasattr(judge, "fit"):
        judge.fit([shown])  # type: ignore[attr-defined]
    return judge


def test_it_names_what_is_shown(looks: Judge, shown):
    images, prompts = shown
    said = looks.read(images).labels["object"]
    right = sum(a == p.asks["object"] for a, p in zip(said, prompts, strict=True))
    assert right >= 0.8 * len(images)


def test_a_picture_is_read_as_it_is_read_alone(looks: Judge, shown):
    images = shown[0][::5]
    together = looks.read(images).labels
    alone = [looks.read(image[None]).labels for image in images]
    assert all(
        together[kind][i] == alone[i][kind][0] for kind in together for i in range(len(alone))
    )


def test_what_is_said_is_a_class_or_none(looks: Judge, shown):
    reading = looks.read(torch.cat([shown[0][:3], torch.rand(3, 3, 64, 64)]))
    assert reading.labels.keys() == {*looks.classes}
    for kind, said in reading.labels.items():
        assert {*said} <= {*looks.classes[kind], NONE, None}
        assert len(said) == len(reading.confidence[kind]) == 6


def test_a_picture_that_is_none_is_left_unjudged_and_spoils_no_other(looks: Judge, shown):
    images = shown[0][:3].clone()
    whole = looks.read(images).labels["object"]
    images[1, 0, 5, 7] = math.nan
    said = looks.read(images).labels["object"]
    assert said == [whole[0], None, whole[2]]


@pytest.mark.parametrize("size", [32, 200])
def test_pictures_of_any_size_are_read(looks: Judge, size: int):
    assert len(looks.read(torch.full((2, 3, size, size), 0.5)).labels["object"]) == 2


def test_its_entry_in_a_record_loads_it_again(looks: Judge, shown):
    entry = build(Entry, json.loads(json.dumps(plain(references.entry(looks)))))
    again = references.load_judge(entry)
    assert again is not None
    assert references.entry(again) == references.entry(looks)
    assert again.read(shown[0][:4]).labels == looks.read(shown[0][:4]).labels


def test_an_unknown_judge_names_the_nearest():
    with pytest.raises(PalimpsestError, match="did you mean 'clip'"):
        open_judge("clipp:world")
    assert {"world", "clip", "vlm", "nudenet", "opennsfw", "face"} <= {*JUDGES}


def test_what_is_forgotten_comes_first_and_everything_asked_for_is_named():
    concept = suite.concept("parachute", "balloon")
    made = opening([concept], [suite.pair("cat", "neon", 0)])
    assert made.names == {"object": ("parachute", "balloon", "cat"), "style": ("neon",)}
    assert made.synonyms == {"parachute": concept.synonyms}


# --- thresholds and answers ---

scores = st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=12).map(torch.tensor)


@given(scores, scores)
def test_the_threshold_has_the_best_balanced_accuracy(shown: torch.Tensor, absent: torch.Tensor):
    def right(cut: float) -> float:
        return float((shown >= cut).float().mean() + (absent < cut).float().mean())

    best = right(threshold(shown, absent))
    assert all(best >= right(float(cut)) - 1e-6 for cut in torch.cat([shown, absent]))


def test_without_pictures_of_other_things_five_percent_fall_below():
    assert threshold(torch.arange(101.0), torch.empty(0)) == 5
    assert threshold(torch.empty(0), torch.rand(3)) == 1  # nothing is ever said to be there


@pytest.mark.parametrize(
    ("answer", "said"),
    [("Yes.", True), ("no, it does not", False), (" YES", True), ("Not at all", None), ("", None)],
)
def test_an_answer_is_yes_or_no_or_none(answer: str, said: bool | None):
    assert affirmed(answer) is said


def test_a_clip_reads_nothing_before_it_is_fitted(shown):
    with pytest.raises(PalimpsestError, match="was not fitted yet"):
        open_judge("clip:world", OPENING).read(shown[0])


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's LLaVA as others publish theirs: a folder with a processor and its chat."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from palimpsest.models.loading import load_llava

    model, folder = load_llava("world"), tmp_path_factory.mktemp("chat")
    config, side = model.model.config, {"height": 64, "width": 64}
    pixels = CLIPImageProcessorPil(
        size=side,
        crop_size=side,
        image_mean=list(model.mean),
        image_std=list(model.std),
        do_center_crop=False,
    )
    turn = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    processor = LlavaProcessor(
        image_processor=pixels,
        tokenizer=model.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=turn,
    )
    model.model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_published_model_is_asked_in_its_own_chat(chat: Path, shown):
    from palimpsest.models.loading import load_llava

    images, question = shown[0][::3], ["What is shown in this picture?"] * 8
    assert Chat(str(chat)).ask(images, question) == load_llava("world").ask(images, question)


def test_an_answer_that_is_none_is_a_picture_that_nobody_judged(chat: Path, shown):
    judge = open_judge(f"vlm:{chat}", Opening(names={"object": ("parachute",)}))
    assert judge.read(shown[0][:2]).labels == {"object": [None, None]}  # it never says yes or no


# --- several judges of one run ---


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [("parachute", "photo"), ("parachute", "neon"), ("church", "photo"), ("cat", "neon")]
    lines = [f"a {o} image in {s} style.,{k},{o},{s}" for o, s in rows for k in (188, 288)]
    table = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    write_text(table, "\n".join(["prompt,seed,object,style", *lines]))
    return table


SMALL = ("--concept", "parachute", "--no-gold", "--draw.steps", "8", "--anchor", "balloon")


def only(root: Path, pattern: str) -> Run:
    (folder,) = root.glob(pattern)
    return Run.open(folder)


@pytest.fixture(scope="module")
def erased(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("runs")
    assert main(["erase", "uce", *SMALL, "--prompts", str(prompts), "--runs", str(root)]) == 0
    return only(root, "uce-*")


def test_on_the_world_two_judges_look_and_say_how_far_they_agree(erased: Run):
    record = erased.record()
    assert record.judge is not None
    assert (record.judge.ref, [judge.ref for judge in record.judges]) == ("world", ["clip:world"])
    assert {*record.judges[0].fitted} == {"object", "style"}  # told, for each kind
    names = [number.name for number in record.numbers]
    assert {"UA", "UA, by world CLIP zero-shot", "κ, object"} <= {*names}
    kappa = next(number for number in record.numbers if number.name == "κ, object")
    assert kappa.n == 16  # the run's eight pictures, and the unedited model's
    assert "world judge" in kappa.spec
    assert "world CLIP zero-shot" in kappa.spec


def test_another_judge_is_no_part_of_a_runs_name(erased: Run, prompts: Path):
    root = erased.folder.parent
    before = {path: path.read_bytes() for path in erased.folder.rglob("*.png")}
    words = ("--prompts", str(prompts), "--runs", str(root), "--judge", "world")
    assert main(["erase", "uce", *SMALL, *words]) == 0
    assert [judge.ref for judge in only(root, "uce-*").record().judges] == ["clip:world"]
    assert {path: path.read_bytes() for path in erased.folder.rglob("*.png")} == before


def test_a_judge_is_added_to_a_finished_run_without_drawing(
    erased: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from palimpsest.models.diffusion import Diffusion

    monkeypatch.setattr(Diffusion, "generate", None)
    old = erased.record().number("UA")
    assert main(["judge", str(erased.folder), "--judge", "clip:world", "vlm:world"]) == 0
    record = erased.record()
    assert record.judges[-1].ref == "vlm:world"
    assert record.number("UA") == old
    told = capsys.readouterr().out
    assert "UA, by world LLaVA" in told
    for name in ("world CLIP zero-shot", "world LLaVA"):  # two judges beside the first: two κ
        assert f"κ, object, with {name}" in told
    assert main(["judge", str(erased.folder)]) == 0  # and it stays
    assert erased.record().judges == record.judges


def test_a_clip_as_the_first_judge_is_fitted_once_and_told(prompts: Path, tmp_path: Path):
    words = ("--prompts", str(prompts), "--runs", str(tmp_path), "--judge", "clip:world")
    for _ in range(2):  # the second finds the first
        assert main(["erase", "uce", *SMALL, *words]) == 0
    run = only(tmp_path, "uce-*")
    first = run.record().judge
    assert first is not None
    assert first.fitted
    assert references.entry_of(panel_of(run, "cpu").judge) == first  # as a recovery takes it


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("auto", "world"), "auto stands alone"),
        (("world", "world"), "world twice"),
        (("worl",), "no such judge; did you mean 'world'"),
        (("clip:nowhere",), "nowhere"),
        (("face:nowhere",), "nowhere"),
    ],
)
def test_a_judge_that_cannot_look_is_refused(
    words: tuple[str, ...], said: str, prompts: Path, tmp_path: Path, capsys
):
    place = ("--prompts", str(prompts), "--runs", str(tmp_path / "runs"))
    assert main(["erase", "uce", *SMALL, *place, "--judge", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_report_tells_what_another_judge_says(erased: Run, tmp_path: Path):
    assert main(["judge", str(erased.folder), "--judge", "clip:world"]) == 0
    assert main(["report", str(erased.folder), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Another judge, world CLIP zero-shot" in page
    assert "agrees with the first to κ" in page
    assert "fitted: object" in page


def test_a_threshold_keeps_the_picture_that_it_was_fitted_on(shown):
    judge = open_judge("clip:world", OPENING)
    images, prompts = shown
    for i in range(4):  # rounded to the nearest, every other one would fall below
        best = judge.cosines(images, "object").max(-1).values  # type: ignore[attr-defined]
        top = int(best.argsort(descending=True)[i])
        judge.fit([(images[[top]], [prompts[top]])])  # type: ignore[attr-defined]
        assert judge.read(images[[top]]).labels["object"] != [NONE]


def test_two_clips_of_one_folder_name_are_two_judges(tmp_path: Path):
    """A folder's name says nothing of the weights in it; a run's name and its scores hash them."""
    entries = []
    for place in ("a", "b"):
        folder = tmp_path / place / "clip"
        shutil.copytree(assets.clip(), folder)
        if place == "b":
            file = next(folder.glob("*.safetensors"))
            save_file({k: t * 1.01 for k, t in load_file(file).items()}, file, {"format": "pt"})
        entries.append(references.entry(open_judge(f"clip:{folder}", OPENING)).asked)
    assert entries[0].name == entries[1].name
    assert entries[0].key != entries[1].key
    with pytest.raises(PalimpsestError, match="two judges are called 'CLIP clip zero-shot'"):
        Panel(others=tuple(open_judge(f"clip:{tmp_path / p / 'clip'}", OPENING) for p in "ab"))


def test_judging_a_run_leaves_what_was_said_of_anothers_pictures(erased: Run, tmp_path: Path):
    root = shutil.copytree(erased.folder.parent, tmp_path / "runs")
    table = tmp_path / "prompts.csv"
    write_text(table, "prompt,seed,object,style\na cat image in photo style.,7,cat,photo")
    words = ("--concept", "cat", *SMALL[2:5], "--anchor", "fish", "--force")
    assert main(["erase", "uce", *words, "--prompts", str(table), "--runs", str(root)]) == 0
    (scores,) = root.glob("original-*/scores.jsonl")
    before = scores.read_text()
    assert main(["judge", str(root / erased.name)]) == 0
    assert scores.read_text() == before


def test_a_run_of_several_concepts_is_judged_again(prompts: Path, tmp_path: Path):
    words = ("--concept", "parachute", "church", *SMALL[2:5], "--force", "--judge", "world")
    place = ("--prompts", str(prompts), "--runs", str(tmp_path))
    assert main(["erase", "uce", *words, *place]) == 0
    run = only(tmp_path, "uce-*")
    before = run.record().numbers
    assert main(["judge", str(run.folder), "--judge", "clip:world", "vlm:world"]) == 0
    record = run.record()
    assert {*before} <= {*record.numbers}
    kappas = [n.name for n in record.numbers if n.name.startswith("κ")]
    assert kappas == ["κ, object, with world CLIP zero-shot", "κ, object, with world LLaVA"]


def test_a_recovery_by_another_judge_keeps_the_runs_clip(erased: Run):
    panel = Recover(erasure=erased.folder, judge=("world",))._panel(erased)
    assert panel.clip is not None
    assert panel.clip.spec == panel_of(erased, "cpu").clip.spec  # type: ignore[union-attr]


def test_what_was_fitted_by_another_concepts_prompts_is_fitted_again(shown):
    judge = open_judge("clip:world", OPENING)
    judge.fit([shown])  # type: ignore[attr-defined]
    Panel(judge).anew()
    assert judge.fitted == {}  # type: ignore[attr-defined]


def test_a_clip_that_looks_twice_is_loaded_once_and_keeps_its_name(erased: Run, tmp_path: Path):
    panel = panel_of(erased, "cpu")
    assert panel.clip is not None
    assert panel.clip.encoder is panel.others[0].clip.encoder  # type: ignore[attr-defined]
    folder = tmp_path / "clip"
    shutil.copytree(assets.clip(), folder)
    judge = open_judge(f"clip:{folder}", OPENING)
    again = references.load_clip(Entry("CLIP as typed", "1", 64, ref=str(folder)), "cpu", [judge])
    assert again is not None
    assert again.encoder is judge.clip.encoder  # type: ignore[attr-defined]
    assert again.spec.name == "CLIP as typed"
