"""What a recovery found, tried on other models."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import methods
import pytest
import sdxl
import torch

from palimpsest.cli import main
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion, Sampling
from palimpsest.patch import Patch
from palimpsest.patch.asking import Asking, Entry
from palimpsest.recover import RECOVERIES, Replay
from palimpsest.report.arrange import arrange
from palimpsest.report.sections.transfer import transfers
from palimpsest.runs.folder import Run
from palimpsest.toolbox.asking import answered, in_vectors, in_words
from palimpsest.world import suite

PARACHUTE = suite.concept("parachute", "balloon")
TABLE = """prompt,seed,object
a parachute,1,parachute
a picture of a parachute,2,parachute
a kite,3,kite
"""
SMALL = {
    "p4d": ["--tokens", "4", "--steps", "3", "--every", "3", "--prompts", "2"],
    "noising": ["--levels", "300", "600", "--pictures", "2", "--sampling.steps", "4"],
    "restoration": ["--measure.pictures", "3"],
    "concept_inversion": [
        *("--steps", "2", "--batch", "2", "--drawn.pictures", "2", "--drawn.steps", "2"),
        *("--measure.at", "0", "--measure.pictures", "2"),
    ],
}
"""Recoveries of every sort of find, made small."""


@pytest.fixture(scope="module")
def quick(model) -> Diffusion:
    return model.with_sampling(Sampling(steps=2, guidance=3.0, batch=4))


def told(*words: object) -> int:
    return main([*map(str, words)])


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two erasures, and of recoveries from the first."""
    place = tmp_path_factory.mktemp("replay")
    (place / "p.csv").write_text(TABLE)
    own = ["--prompts", place / "p.csv", "--draw.steps", "2", "--runs", place / "runs", "--force"]
    for eraser in ("uce", "negative_prompt"):
        assert told("erase", eraser, "--concept", "parachute", *own) == 0
    for name, settings in SMALL.items():
        assert told("recover", name, the(place, "uce-*"), "--subject", "erased", *settings) == 0
    return place


def the(place: Path, pattern: str) -> Path:
    (folder,) = place.glob(f"runs/{pattern}")
    return folder


def found_by(place: Path, name: str) -> Path:
    return the(place, f"{name}-parachute-on-uce-*")


@pytest.fixture(scope="module")
def replayed(ground: Path) -> Path:
    """The same, and each find tried on every model."""
    on = [the(ground, "uce-*"), the(ground, "negative_prompt-*"), the(ground, "gold-*"), "unedited"]
    for name in SMALL:
        assert told("recover", "replay", found_by(ground, name), "--on", *on) == 0
    return ground


@pytest.mark.parametrize("name", SMALL)
def test_where_it_was_found_it_gives_the_same_pictures(replayed: Path, name: str):
    own, again = found_by(replayed, name), the(replayed, f"replay-{name}-*-on-uce-????????")
    pictures = sorted(file.name for file in own.glob("images/*.png"))
    assert pictures == sorted(file.name for file in again.glob("images/*.png"))
    for file in pictures:
        assert (own / "images" / file).read_bytes() == (again / "images" / file).read_bytes()
    ours, theirs = Run.open(own).record(), Run.open(again).record()
    assert ours.numbers[0].value == theirs.numbers[0].value
    assert theirs.evaluations == 0


def test_on_another_model_it_is_that_model_that_answers(replayed: Path):
    """Noised pictures of the concept, and what each model makes of the very same latents."""
    (file,) = {f.name for f in found_by(replayed, "noising").glob("images/a-parachute-*.png")}
    places = ("uce", "negative_prompt", "gold", "unedited")
    pictures = {
        (the(replayed, f"replay-noising-*-on-{place}-????????") / "images" / file).read_bytes()
        for place in places
    }
    assert len(pictures) == len(places)


def test_the_report_shows_who_found_what_where_and_where_it_works(replayed: Path):
    page = replayed / "page.html"
    assert told("report", replayed / "runs", "--out", page) == 0
    (matrix,) = transfers(arrange([replayed / "runs"]))
    assert {row.name for row in matrix.rows} == {
        "P4D",
        "ConceptInversion",
        "NoisingProbe",
        "Restoration",
    }
    assert {*matrix.columns} == {"UCE", "NegativePrompt", "Gold", "the unedited model"}
    for row in matrix.rows:
        assert row.place == "UCE"
        assert [here for _, here in row.cells].count(True) == 1
        assert {share.n for share, _ in row.cells if share} == {2}, "of the same pictures each"
        assert all(share is not None for share, _ in row.cells)
    restored = next(row for row in matrix.rows if row.name == "Restoration")
    shares = dict(zip(matrix.columns, (share for share, _ in restored.cells), strict=True))
    run = Run.open(the(replayed, "replay-restoration-*-on-negative_prompt-*")).record()
    assert shares["NegativePrompt"].value == 1 - run.number("UA").value
    assert "Where else it works: parachute" in page.read_text()
    (home,) = [s for s in arrange([replayed / "runs"]) if s.lead.title == "UCE"]
    assert len(home.replays) == 4 * len(SMALL)
    assert len(home.recoveries) == len(SMALL), "a replay is no recovery of its own"


def test_a_replay_asks_by_the_finders_prompts_and_is_found_again(replayed: Path, capsys):
    before = {*replayed.glob("runs/*")}
    folder = the(replayed, "replay-p4d-*-on-gold-*")
    assert (
        told("recover", "replay", found_by(replayed, "p4d"), "--on", the(replayed, "gold-*")) == 0
    )
    assert {*replayed.glob("runs/*")} == before
    record = Run.open(folder).record()
    assert record.source == found_by(replayed, "p4d").name
    assert record.title == "P4D found on uce"
    assert record.found == Run.open(found_by(replayed, "p4d")).record().found


REFUSED = [
    (["{uce}", "--on", "unedited"], "a run of kind 'erase'; name a recovery's"),
    (["{replay}", "--on", "unedited"], "itself a replay; name the run p4d-parachute"),
    (["{p4d}", "--on", "{p4d}"], "a run of kind 'recover'; name an erasing run"),
    (["{p4d}", "--on", "nowhere"], "--on nowhere: no run; name erasing runs or `unedited`"),
    (["{p4d}"], "--on"),
    (["nowhere", "--on", "unedited"], "no run lies here"),
]


@pytest.mark.parametrize(("words", "why"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_replayed_is_said_in_one_sentence(replayed: Path, words, why, capsys):
    places = {
        "{uce}": the(replayed, "uce-*"),
        "{p4d}": found_by(replayed, "p4d"),
        "{replay}": the(replayed, "replay-p4d-*-on-gold-*"),
    }
    before = {*replayed.rglob("*")}
    assert told("recover", "replay", *(places.get(word, word) for word in words)) == 2
    said = capsys.readouterr().err
    assert why in said
    assert len(said.strip().splitlines()) == 1
    assert {*replayed.rglob("*")} == before


def test_a_run_that_kept_nothing_is_refused_with_what_to_do(replayed: Path, tmp_path: Path, capsys):
    run = found_by(replayed, "p4d")
    kept = run / "asking.safetensors"
    kept.rename(tmp_path / "kept")
    try:
        assert told("recover", "replay", run, "--on", "unedited") == 2
        assert "run it again: palimpsest recover p4d" in capsys.readouterr().err
    finally:
        (tmp_path / "kept").rename(kept)


def test_the_plan_says_what_is_tried_and_writes_nothing(replayed: Path, capsys):
    before = {*replayed.rglob("*")}
    on = ["--on", the(replayed, "gold-*"), "unedited", "--dry-run"]
    assert told("recover", "replay", found_by(replayed, "restoration"), *on) == 0
    said = capsys.readouterr().out
    assert "its patch is tried" in said
    assert "on Gold" in said
    assert {*replayed.rglob("*")} == before


# --- the value, and what another model makes of it ---


PROMPTS = (Prompt("a parachute", 3), Prompt("a parachute", 4, asks={"object": "parachute"}))


def samples(model: Diffusion) -> dict[str, Asking]:
    ids = model.text.ids([prompt.text for prompt in PROMPTS])
    slots = torch.zeros_like(ids, dtype=torch.bool)
    slots[:, 2] = True
    vectors = torch.randn(2, model.token_vectors().shape[1], generator=torch.Generator())
    noise = model.noise(2, torch.Generator())
    words = in_words(model, PROMPTS, ids)
    return {
        "words": words,
        "vectors": in_vectors(model, PROMPTS, ids, slots, vectors),
        "latents": replace(words, latents=noise, entry=Entry(1, 2, 3.0)),
        "nothing": Asking(asked=PROMPTS, latents=noise, entry=Entry(1, 2, 3.0)),
    }


@pytest.mark.parametrize("sort", ["words", "vectors", "latents", "nothing"])
def test_an_asking_read_again_asks_the_same(quick: Diffusion, tmp_path: Path, sort: str):
    asking = samples(quick)[sort]
    asking.save(tmp_path / "a.safetensors")
    again = Asking.load(tmp_path / "a.safetensors")
    assert again.asked == asking.asked
    assert again.entry == asking.entry
    assert again.texts == asking.texts
    pictures = [answered(quick, each, Context(), "") for each in (asking, again)]
    assert torch.equal(*pictures)
    assert len(pictures[0]) == 2


def test_words_are_asked_by_their_ids_where_the_tokens_are_the_same(quick: Diffusion):
    words = samples(quick)["words"]
    lies = replace(words, texts=("a church", "a church"))
    assert torch.equal(answered(quick, lies, Context(), ""), answered(quick, words, Context(), ""))
    written = replace(lies, vocabulary="another")
    church = quick.generate([replace(p, text="a church") for p in PROMPTS])
    assert torch.equal(answered(quick, written, Context(), ""), church)


def test_words_go_to_any_model_and_vectors_and_latents_to_their_like(quick: Diffusion, tmp_path):
    other = sdxl.load()
    mine = samples(quick)
    assert answered(other, mine["words"], Context(), "").isfinite().all()
    for sort, why in (("vectors", "another text encoder"), ("latents", "the found latents are")):
        mine[sort].save(tmp_path / f"{sort}.safetensors")
        replay = Replay(found=tmp_path / f"{sort}.safetensors")
        with pytest.raises(PalimpsestError, match=why):
            replay(other, PARACHUTE, None)


BROKEN = {
    "no prompts": {"asked": ()},
    "one prompt twice": {"asked": (PROMPTS[0], PROMPTS[0])},
    "ids of one": {"ids": torch.zeros(1, 77, dtype=torch.int64)},
    "ids below 0": {"ids": torch.full((2, 77), -1)},
    "ids that are no numbers of tokens": {"ids": torch.zeros(2, 77)},
    "slots without vectors": {"vectors": None},
    "vectors without slots": {"slots": None},
    "too few vectors": {"vectors": torch.zeros(1, 8)},
    "NaN": {"vectors": torch.full((2, 8), float("nan"))},
    "latents of no step": {"latents": torch.zeros(2, 4, 8, 8)},
    "a step outside the grid": {"latents": torch.zeros(2, 4, 8, 8), "entry": Entry(5, 5)},
    "latents of one": {"latents": torch.zeros(1, 4, 8, 8), "entry": Entry(1, 5)},
    "infinite latents": {"latents": torch.full((2, 4, 8, 8), float("inf")), "entry": Entry(1, 5)},
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_parts_that_do_not_fit_are_refused(quick: Diffusion, tmp_path: Path, wrong: str):
    path = tmp_path / "a.safetensors"
    replace(samples(quick)["vectors"], **BROKEN[wrong]).save(path)
    with pytest.raises(PalimpsestError, match="run the recovery again") as refusal:
        Replay(found=path)(quick, PARACHUTE, None)
    assert "\n" not in str(refusal.value)


def test_ids_that_the_model_does_not_have_are_refused(quick: Diffusion):
    words = samples(quick)["words"]
    far = replace(words, ids=words.ids + len(quick.token_vectors()))
    with pytest.raises(PalimpsestError, match="number tokens that 'world' does not have"):
        answered(quick, far, Context(), "")


def test_a_replay_of_nothing_is_refused(quick: Diffusion):
    with pytest.raises(PalimpsestError, match="recover replay RUN --on OTHER"):
        Replay()(quick, PARACHUTE, None)


@pytest.mark.parametrize("name", methods.ASKING)
def test_every_recovery_that_changes_what_is_asked_can_be_replayed(
    quick: Diffusion, judge, tmp_path: Path, name: str
):
    method = methods.small(RECOVERIES, name)
    patch = Patch({})
    result = method(quick, PARACHUTE, patch, context=Context(judge=judge))
    assert result.asking is not None
    assert result.asking.asked == result.asked
    result.asking.save(tmp_path / "asking.safetensors")
    again = Replay(found=tmp_path / "asking.safetensors")(quick, PARACHUTE, patch)
    assert torch.equal(again.answers, result.answers)
    assert again.prompts == result.prompts


# --- who is compared, and where runs lie ---


def test_a_replay_drawn_otherwise_is_not_set_beside_the_others(replayed: Path, tmp_path: Path):
    copy = tmp_path / "runs"
    shutil.copytree(replayed / "runs", copy)
    run = found_by(tmp_path, "p4d")
    before = transfers(arrange([copy]))
    assert told("recover", "replay", run, "--on", "unedited", "--draw.guidance", "9") == 0
    assert transfers(arrange([copy])) == before


def test_a_replay_is_found_again_where_the_runs_were_moved_to(replayed: Path, tmp_path: Path):
    shutil.copytree(replayed / "runs", tmp_path / "runs")
    (tmp_path / "link").symlink_to(the(tmp_path, "uce-*"))
    (tmp_path / "other").symlink_to(found_by(tmp_path, "p4d"))
    before = {*tmp_path.glob("runs/*")}
    assert told("recover", "replay", tmp_path / "other", "--on", tmp_path / "link", "unedited") == 0
    assert {*tmp_path.glob("runs/*")} == before


def test_what_cannot_be_tried_is_refused_before_anything_is_drawn(
    replayed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(replayed / "runs", tmp_path / "runs")
    run = found_by(tmp_path, "noising")
    file = run / "asking.safetensors"
    asking = Asking.load(file)
    replace(asking, latents=asking.latents[..., :8].contiguous()).save(file)
    before = {*tmp_path.rglob("*")}
    assert told("recover", "replay", run, "--on", "unedited", the(tmp_path, "uce-*")) == 2
    assert "--on unedited: the found latents are 4 × 16 × 8" in capsys.readouterr().err
    assert {*tmp_path.rglob("*")} == before


def test_ids_of_another_window_and_latents_of_half_precision(quick: Diffusion):
    mine = samples(quick)
    with pytest.raises(PalimpsestError, match="rows of 8, and the window of 'world' is 16"):
        answered(quick, replace(mine["words"], ids=mine["words"].ids[:, :8]), Context(), "")
    whole = mine["latents"]
    halves = replace(whole, latents=whole.latents.half())
    exact = replace(whole, latents=whole.latents.half().float())
    assert torch.equal(
        answered(quick, halves, Context(), ""), answered(quick, exact, Context(), "")
    )
