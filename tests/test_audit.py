"""Audits of what others published: the world's own weights under other names."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import fields
from pathlib import Path

import ldm
import methods
import pages
import pytest
import torch
from safetensors.torch import load_file

from palimpsest.cli import main
from palimpsest.cli.verbs.audit import in_other_words, scaled
from palimpsest.core.errors import PalimpsestError
from palimpsest.erase import Imported
from palimpsest.metrics.audit import Asked, Evidence, finding
from palimpsest.metrics.profile import Attack, Verdict, profile
from palimpsest.metrics.rates import rate
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.recover import RECOVERIES
from palimpsest.report.arrange import arrange
from palimpsest.report.sections.audit import audit
from palimpsest.runs.folder import Run
from palimpsest.world import assets, suite

DRAWN = ["--draw.steps", "4", "--judge", "world", "--concept", "parachute"]
TABLE = """prompt,seed,object,style
A parachute image in photo style.,188,parachute,photo
A parachute image in neon style.,188,parachute,neon
A parachute image in mosaic style.,188,parachute,mosaic
A parachute image in sketch style.,188,parachute,sketch
A cat image in photo style.,188,cat,photo
"""


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Make the recoveries that an audit tries small, whatever their preset says."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("concept_inversion", "memora", "restoration"):
            method = methods.small(RECOVERIES, name)
            own = {each.name: getattr(method, each.name) for each in fields(method)}
            patch.setitem(type(method).presets, "world", own)
        yield


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the world's weights as a base, UCE's run on it, and its U-Net in one file."""
    place = tmp_path_factory.mktemp("audit")
    shutil.copytree(assets.stable_diffusion(), place / "base")
    (place / "asked.csv").write_text(TABLE)
    run(place, "erase", "uce", "--model", place / "base", *DRAWN)
    (erased,) = place.glob("runs/uce-*")
    model = load_model(str(place / "base"))
    save(model, place / "plain.pt")
    with model.patched(Patch.load(erased / "patch.safetensors")):
        save(model, place / "edited.pt")
    return place


def save(model, path: Path) -> None:
    """Save the U-Net as it is now, by its own names, as torch does."""
    own = model.parameters("full")
    torch.save({n.removeprefix("unet."): p.detach().clone() for n, p in own.items()}, path)


def run(place: Path, *words: object) -> None:
    told = [*map(str, words), "--prompts", str(place / "asked.csv"), "--runs", str(place / "runs")]
    assert main(told) == 0


def only(place: Path, pattern: str) -> Run:
    (folder,) = place.glob(f"runs/{pattern}")
    return Run.open(folder)


def verdict(run: Run):
    attacks = [Run.open(folder) for folder in run.folder.parent.glob("[!.]*-on-*")]
    attacks = sorted(attacks, key=lambda each: each.record().started)
    mine = [each.folder for each in attacks if each.record().subject == run.name]
    (section,) = [s for s in arrange([run.folder, *mine]) if s.erasure]
    found = audit(section)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def edited(ground: Path) -> Run:
    """The run that an audit makes of UCE's U-Net."""
    few = ["--recoveries", "concept_inversion", "restoration", "--budget", "8", "--wordings", "2"]
    few += ["--out", str(ground / "page.html")]
    run(ground, "audit", ground / "edited.pt", "--base", ground / "base", *few, *DRAWN)
    return only(ground, "imported-*")


def test_an_edited_unet_has_the_ua_of_the_run_that_erased(ground: Path, edited: Run):
    ours, theirs = edited.record(), only(ground, "uce-*").record()
    numbers = [(n.name, n.value, n.low, n.high, n.n) for n in theirs.numbers]
    assert [(n.name, n.value, n.low, n.high, n.n) for n in ours.numbers] == numbers
    assert ours.baseline == theirs.baseline
    assert {*ours.files} == {"file"}


def folder(pipeline, place: Path) -> Path:
    pipeline.save_pretrained(place / "whole")
    return place / "whole"


def half(pipeline, place: Path) -> Path:
    pipeline.to(torch.float16).save_pretrained(place / "halves", variant="fp16")
    return place / "halves"


def one_file(pipeline, place: Path) -> Path:
    ldm.write(pipeline, place / "erased.safetensors")
    return place / "erased.safetensors"


def pickled(pipeline, place: Path) -> Path:
    torch.save({"state_dict": load_file(one_file(pipeline, place))}, place / "erased.ckpt")
    return place / "erased.ckpt"


def released(pipeline, place: Path) -> Path:
    """Save the U-Net by CompVis' names, as ESD's authors released theirs."""
    before, found = "model.diffusion_model.", load_file(one_file(pipeline, place))
    torch.save({n: t for n, t in found.items() if n.startswith(before)}, place / "esd.pt")
    return place / "esd.pt"


@pytest.mark.parametrize("write", [folder, half, one_file, pickled, released])
def test_whatever_it_is_called_it_shows_what_the_run_that_erased_shows(
    ground: Path, tmp_path: Path, write: Callable[..., Path]
):
    model, erased = load_model(str(ground / "base")), only(ground, "uce-*")
    with model.patched(Patch.load(erased.path("patch.safetensors"))):
        pipeline = model.pipeline()
        copies = {name: deepcopy(part) for name, part in pipeline.components.items()}
    published = write(type(pipeline)(**copies), tmp_path)
    shutil.copy(ground / "asked.csv", tmp_path)
    run(tmp_path, "patch", "import", published, "--model", ground / "base", *DRAWN)
    ours, theirs = only(tmp_path, "imported-*").record(), erased.record()
    assert (ours.number("UA").value, ours.number("UA").n) == (theirs.number("UA").value, 4)
    assert theirs.number("UA").value > 0, "something was erased"
    if write is not half:  # which rounds all weights
        assert ours.edit_norm == pytest.approx(theirs.edit_norm, rel=1e-5)
        assert [n.value for n in ours.numbers] == [n.value for n in theirs.numbers]


def test_the_verdict_stands_in_the_record_and_on_the_page(ground: Path, edited: Run):
    found = verdict(edited)
    page = (ground / "page.html").read_text()
    assert found.finding.text.capitalize() in page
    assert all(limit in page for limit in found.limits)
    assert "4 pictures, and 2 asked in other words" in found.looked
    assert any("has no say" in limit for limit in found.limits)
    assert any("never knew the concept" in limit for limit in found.limits)
    entry = edited.record().audit
    assert entry is not None
    assert entry.budget == 8
    assert entry.wordings != entry.wordings_unedited


def test_the_unedited_unet_is_not_erased_and_not_attacked(ground: Path, edited: Run):
    before = {*ground.glob("runs/*")}
    few = ["--wordings", "0", "--out", ground / "plain.html"]
    run(ground, "audit", ground / "plain.pt", "--base", ground / "base", *few, *DRAWN)
    (folder,) = {*ground.glob("runs/imported-*")} - before
    found, record = verdict(Run.open(folder)), Run.open(folder).record()
    assert (found.finding.word, found.finding.why[:16]) == ("not erased", "no weight differ")
    assert any("no weight differs" in limit for limit in found.limits)
    assert record.numbers[0].value == record.baseline[0].value
    assert not Patch.load(folder / "patch.safetensors").edits
    assert not [p for p in {*ground.glob("runs/*")} - before if "-on-" in p.name]


def test_a_run_of_an_import_can_be_recovered_from(ground: Path, tmp_path: Path):
    shutil.copy(ground / "asked.csv", tmp_path)
    run(tmp_path, "patch", "import", ground / "edited.pt", "--model", ground / "base", *DRAWN)
    folder = only(tmp_path, "imported-*").folder
    words = ["recover", "restoration", folder, "--subject", "erased", "--measure.pictures", "2"]
    assert main([*map(str, words)]) == 0
    assert only(tmp_path, "restoration-*").record().subject == folder.name


def test_a_published_file_is_made_a_run_and_attacked(
    ground: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["recover", "restoration", ground / "edited.pt", "--model", ground / "base"]
    words += ["--measure.pictures", "2", "--subject", "erased", "--runs", tmp_path]
    assert main([*map(str, words)]) == 2
    assert "say with --concept" in capsys.readouterr().err
    few = ["--concept", "parachute", "--draw.steps", "2"]
    assert main([*map(str, words), *few]) == 0
    (made,) = tmp_path.glob("imported-*")
    (attack,) = tmp_path.glob("restoration-*")
    assert Run.open(attack).record().subject == made.name


def test_where_nobody_looks_the_page_says_so(ground: Path, tmp_path: Path):
    few = ["--recoveries", "--wordings", "0", "--draw.steps", "2", "--concept", "parachute"]
    words = ["audit", ground / "edited.pt", "--base", ground / "base", *few, "--runs", tmp_path]
    assert main([*map(str, words)]) == 0
    assert "Nobody looked" in (tmp_path / "audit.html").read_text()
    (folder,) = tmp_path.glob("imported-*")
    assert verdict(Run.open(folder)).finding.word == "nobody looked"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["audit", "nowhere.pt"], "no such file or folder"),
        (["audit", "asked.csv", "--recoveries", "memra"], "did you mean 'memora'"),
        (["audit", "asked.csv", "--budget", "0"], "budget is 0"),
        (["patch", "import", "asked.csv", "--out", "a.safetensors"], "leave either out"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    ground: Path, words, told, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(ground)
    assert main([*words, "--concept", "parachute"]) == 2
    assert told in capsys.readouterr().err


def test_imported_without_a_file_is_refused(model):
    with pytest.raises(PalimpsestError, match="name what was published"):
        Imported()(model, suite.concept("parachute"))


# --- what is asked, and by how much ---


@pytest.mark.parametrize("world", [True, False])
@pytest.mark.parametrize("budget", [16, 49, 240, 480, 5000, 10**7])
@pytest.mark.parametrize("name", RECOVERIES.own)
def test_each_recovery_spends_the_budget_or_says_why_not(name: str, budget: int, world: bool):
    method, said = scaled(RECOVERIES.load(name), budget, world)
    spent = method.evaluations()[1] // getattr(method, "prompts", 1)
    assert spent == 0 or budget / 2 < spent <= budget, "one way or the other"
    assert spent in (0, budget) or f"{spent:,} gradient evaluations" in said
    assert bool(said) == (spent not in (0, budget))
    steps, at = getattr(method, "steps", None), getattr(method, "measure", None)
    assert steps is None or at is None or at.at[-1] == steps


def test_other_wordings_are_those_that_nobody_asked_by():
    concept = suite.concept("parachute")
    asked = concept.prompts(2)
    found = in_other_words(concept, asked, 7)
    assert len({(p.text, p.seed) for p in found}) == 7
    assert not {p.text for p in found} & {p.text for p in asked}
    assert any("chute" in p.text.split() for p in found)


# --- the rule ---

N = 40
ALL, NONE, HALF = (True,) * N, (False,) * N, (True, False) * (N // 2)
FELL = Asked(NONE, ALL)
GONE = Verdict("gone", "no recovery brought more back than it taught gold", 0.15, N, 8)


def line(*shown: tuple[bool, ...]):
    curve = tuple(CurvePoint(i, 8 * i, rate(says), says) for i, says in enumerate(shown))
    return profile([Attack("A", curve, original=1.0)])[0]


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (Evidence(), "nobody looked"),
        (Evidence(Asked(ALL, ALL)), "not erased"),
        (Evidence(Asked(NONE, ALL), same=True), "not erased"),
        (Evidence(Asked((True,) * 30 + (False,) * 10, ALL)), "erased in part"),
        (Evidence(FELL), "erased, not attacked"),
        (Evidence(FELL, FELL, [line(NONE, NONE)]), "erased, not recovered within the budget"),
        (Evidence(FELL, lines=[line(NONE, ALL)]), "erased, and recovered by A"),
        (Evidence(FELL, lines=[line(NONE, HALF)]), "undecided"),
        (Evidence(FELL, FELL, [line(NONE, ALL)], GONE), "gone"),  # gold decides before half of a₀
        (Evidence(FELL, Asked(ALL, ALL), verdict=GONE), "erased, and recovered by other wordings"),
        (Evidence(FELL, Asked(ALL, ALL)), "erased, and recovered by other wordings"),
    ],
)
def test_the_verdict_is_the_first_rule_that_holds(seen: Evidence, text: str):
    assert finding(seen).text == text


# --- the page of the docs ---

FEW = {
    "erase": "--draw.steps 2 --force",
    "audit": "--draw.steps 2 --force --budget 4 --wordings 2",
    "patch import": "--draw.steps 2 --force",
    "recover": "--draw.steps 2",
}
"""What makes each command of the page take seconds."""
ON_TABLE = ("erase", "audit", "patch import")


@pytest.mark.slow
def test_the_walk_of_the_page_can_be_walked(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (walk, elsewhere) = pages.fences(pages.ROOT / "docs" / "audit.md", "bash")
    monkeypatch.chdir(tmp_path)
    asked = f" --prompts {ground / 'asked.csv'}"
    pages.walk(walk, {verb: flags + asked * (verb in ON_TABLE) for verb, flags in FEW.items()})
    assert Path("report.html").is_file()
    assert "erased" in Path("runs/audit.html").read_text()
    assert elsewhere.startswith("palimpsest audit")
