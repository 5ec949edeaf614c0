"""What a run's record says of its judges and its sampling, and what commands make of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.cli import main
from palimpsest.cli.subjects import read
from palimpsest.cli.verbs.recover import Recover
from palimpsest.core.draw import Draw
from palimpsest.core.errors import PalimpsestError
from palimpsest.erase import UCE
from palimpsest.judge import references
from palimpsest.judge.clip import Clip
from palimpsest.judge.networks import Network
from palimpsest.judge.world import Classifier
from palimpsest.methods import Spec, Task
from palimpsest.models.diffusion import Sampling
from palimpsest.models.loading import load_model
from palimpsest.recover import Restoration
from palimpsest.runs import images as gallery
from palimpsest.runs.asked import Asked, On
from palimpsest.runs.folder import Run
from palimpsest.runs.record import ModelEntry, Record
from palimpsest.runs.runner import Runner
from palimpsest.runs.scoring import Panel, rejudge
from palimpsest.world import assets, suite

PARACHUTE = suite.concept("parachute", "balloon")
PROMPTS = [suite.pair("parachute", "photo", 188), suite.pair("cat", "photo", 188)]
TASK = Task((PARACHUTE,))
QUICK = Sampling(steps=2, guidance=2.5)
BOTH = {"published": {}, "world": {}}

Erase = Callable[..., Run]


@pytest.fixture(scope="module")
def own(judge: Classifier) -> Classifier:
    """Somebody's own judge: the same classes, and weights that were never trained."""
    torch.manual_seed(0)
    network = Network(judge.heads, judge.network.widths)
    return Classifier(network, judge.heads, Spec("my judge", "3", 64))


@pytest.fixture(scope="module")
def quick():
    """The world with a sampling of its own, set in Python."""
    return load_model("world", sampling=QUICK)


@pytest.fixture
def erase(quick, tmp_path: Path) -> Erase:
    """An erasure without training, in a folder of its own."""

    def make(panel: Panel, model=quick, root: Path = tmp_path / "runs") -> Run:
        runner = Runner(root, model, panel)
        return runner.run(TASK, UCE(), On(PROMPTS), panel.measures, force=True)

    return make


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that does not call itself the world's."""
    return Path(
        shutil.copytree(assets.stable_diffusion(), tmp_path_factory.mktemp("models") / "other")
    )


def age(run: Run) -> None:
    """Write a record in format 1, as the oldest versions did."""
    record = json.loads(run.path("run.json").read_text()) | {"format": 1}
    judge = {key: value for key, value in record["judge"].items() if key != "ref"}
    (concept,) = record["concepts"]
    old = {k: v for k, v in record.items() if k not in ("sampling", "clip", "concepts")}
    run.path("run.json").write_text(json.dumps(old | {"judge": judge, "concept": concept}))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def specs(run: Run) -> set[str]:
    record = run.record()
    return {row.spec for row in (*record.numbers, *record.baseline)}


def values(run: Run) -> dict[str, Any]:
    return {row.name: row.value for row in run.record().numbers}


# --- the judge ---


def test_a_record_says_how_its_judges_are_loaded(erase: Erase, judge, own, clip):
    record = erase(Panel(judge, clip)).record()
    assert record.judge.name == "world judge"
    assert (record.judge.ref, record.clip.ref) == ("world", "world")
    record = erase(Panel(own)).record()
    assert (record.judge.name, record.judge.ref) == ("my judge", None)
    assert record.clip is None


def test_the_reference_is_no_part_of_the_folders_name(erase: Erase, judge, clip, quick):
    runner = Runner(Path(), quick, Panel(judge, clip))
    asked = Asked(quick, runner.panel, TASK, UCE(), On(PROMPTS), [], 0).record
    assert asked.judge == replace(references.entry_of(judge), ref=None)
    assert asked.model.sampling == "DDIM 2 steps, guidance 2.5"
    assert asked.clip is None


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("words", [("judge",), ("recover", "restoration")])
def test_a_judge_that_cannot_be_loaded_is_not_replaced_by_the_worlds(
    words: tuple[str, ...], old: bool, erase: Erase, own, tmp_path: Path, capsys
):
    run = erase(Panel(own))
    if old:
        age(run)
    before = files(tmp_path)
    assert main([*words, str(run.folder)]) == 2
    said = capsys.readouterr().err
    assert "'my judge' v3" in said
    assert "in Python" in said
    assert len(said.splitlines()) == 1
    assert files(tmp_path) == before


def test_the_preset_follows_the_model_or_the_worlds_judge(erase: Erase, judge, own):
    for panel, elsewhere in (
        (Panel(judge), "world"),  # who looks with it says that the model is like the world
        (Panel(own), "published"),
        (Panel(), "published"),
    ):
        run = erase(panel)
        assert Recover(erasure=run.folder).preset_for(BOTH) == "world"
        run.update(model=replace(run.record().model, name="mine/model"))
        assert Recover(erasure=run.folder).preset_for(BOTH) == elsewhere


def test_a_judge_comes_back_from_its_own_file(erase: Erase, tmp_path: Path):
    """A judge trained anew is the world's by its name, and not by its weights."""
    file = tmp_path / "judge.safetensors"
    shutil.copy(assets.judge(), file)
    run = erase(Panel(Classifier.load(file)))
    before = run.record()
    assert before.judge.ref == str(file)
    assert Recover(erasure=run.folder).preset_for(BOTH) == "world"
    assert main(["judge", str(run.folder)]) == 0
    assert run.record() == before
    for spoil in (lambda: file.write_bytes(b"torn"), file.unlink):
        spoil()
        assert main(["judge", str(run.folder)]) == 2


@pytest.mark.parametrize("change", [{"version": "0"}, {"name": "my judge"}])
def test_what_a_reference_loads_must_be_what_the_record_names(change: dict[str, str], judge):
    entry = references.entry_of(judge)
    assert references.load_judge(entry).spec == judge.spec
    with pytest.raises(PalimpsestError, match=r"the judge .* in Python"):
        references.load_judge(replace(entry, **change))


def test_judges_do_not_share_what_they_said_of_the_original(
    erase: Erase, judge, own, clip, tmp_path: Path
):
    alone = erase(Panel(judge, clip), root=tmp_path / "alone")
    erase(Panel(own, clip))
    beside = erase(Panel(judge, clip))
    assert beside.record().baseline == alone.record().baseline


def test_judging_again_by_another_judge_is_recorded(erase: Erase, judge, own, quick):
    run = erase(Panel(own))
    rejudge(run, Panel(judge))
    assert run.record().judge == references.entry_of(judge)
    assert main(["judge", str(run.folder)]) == 0


# --- CLIP ---


def test_the_records_clip_looks_again(erase: Erase, judge):
    run = erase(Panel(judge, Clip.load(str(assets.clip()))))
    before = run.record()
    assert before.clip.ref == str(assets.clip())
    assert main(["judge", str(run.folder)]) == 0
    assert run.record() == before


def test_a_clip_that_cannot_be_loaded_is_not_replaced(erase: Erase, judge, clip, tmp_path, capsys):
    run = erase(Panel(judge, Clip(clip.encoder, Spec("my CLIP", "2", 64))))
    before = files(tmp_path)
    for words in (["judge"], ["recover", "restoration"]):
        assert main([*words, str(run.folder)]) == 2
        assert "'my CLIP' v2" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_a_path_is_the_worlds_clip_only_where_that_lies(tmp_path: Path):
    shutil.copytree(assets.clip(), tmp_path / "clip")
    assert Clip.load(assets.clip()).spec.name == Clip.load("world").spec.name == "world CLIP"
    other = Clip.load(tmp_path / "clip")
    assert (other.spec.name, other.ref) == (f"CLIP {tmp_path / 'clip'}", str(tmp_path / "clip"))


def test_the_worlds_clip_is_refused_for_other_models(elsewhere: Path, tmp_path: Path, capsys):
    words = ["evaluate", "object", str(elsewhere), "--concepts", "cat", "--pictures", "1"]
    words += ["--runs", str(tmp_path / "themes"), "--look-with"]
    for name in ("world", str(assets.clip())):
        assert main([*words, name]) == 2
        assert "the world's CLIP knows only the world's pictures" in capsys.readouterr().err
    assert not (tmp_path / "themes").exists()


def test_a_recovery_refuses_the_worlds_clip_likewise(
    erase: Erase, elsewhere: Path, tmp_path: Path, capsys
):
    run = erase(Panel(), load_model(str(elsewhere), sampling=QUICK))
    before = files(tmp_path)
    assert main(["recover", "restoration", str(run.folder), "--look-with", "world"]) == 2
    assert "the world's CLIP knows only the world's pictures" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_the_worlds_judge_is_not_taken_for_a_run_of_another(erase: Erase, own, judge, elsewhere):
    other = load_model(str(elsewhere), sampling=QUICK)
    for panel, world in ((Panel(own), False), (Panel(judge), True)):
        assert read(str(erase(panel, other).folder), "world", None).world == world


# --- sampling ---


def test_specs_name_the_pictures_own_sampling(erase: Erase, judge, clip):
    run = erase(Panel(judge, clip))
    record = run.record()
    assert record.sampling == Draw(2, 2.5)
    assert all("DDIM 2 steps, guidance 2.5" in spec for spec in specs(run))
    before = specs(run), values(run)
    assert main(["judge", str(run.folder)]) == 0
    assert (specs(run), values(run)) == before


def test_a_recovery_draws_as_its_erasure_did(erase: Erase, judge, clip):
    run = erase(Panel(judge, clip))
    words = ["recover", "restoration", str(run.folder)]
    assert main([*words, "--measure.pictures", "1"]) == 0
    (found,) = run.folder.parent.glob("restoration-*")
    assert Run(found).record().sampling == Draw(2, 2.5)
    assert Run(found).record().original == run.record().original


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (Record(sampling=Draw(7, 1.5)), Sampling(7, 1.5, 32)),
        (Record(sampling=Draw(7, 1.5, size=96)), Sampling(7, 1.5, 32, 96)),
        (Record(model=ModelEntry(sampling="DDIM 20 steps, guidance 3")), Sampling(20, 3.0, 32)),
        (Record(model=ModelEntry(sampling=str(Sampling(50, 7.5)))), Sampling(50, 7.5, 32)),
        (Record(), Sampling(1, 1.0, 32)),
    ],
)
def test_sampling_is_read_back_and_the_batch_is_the_models(said: Record, found: Sampling):
    assert Sampling(1, 1.0, 32).drawn(said.drawn) == found


def test_a_sampling_that_cannot_be_read_is_refused():
    with pytest.raises(PalimpsestError, match="'Euler, 20 steps'"):
        _ = Record(model=ModelEntry(sampling="Euler, 20 steps")).drawn


# --- older records ---


def test_an_old_record_is_judged_by_the_worlds_as_it_was(erase: Erase, judge, clip):
    run = erase(Panel(judge, clip))
    before = run.record()
    age(run)
    assert "clip" not in json.loads(run.path("run.json").read_text())
    assert run.record().format == 1
    assert Recover(erasure=run.folder).preset_for(BOTH) == "world"
    assert main(["judge", str(run.folder)]) == 0
    assert run.record().numbers == before.numbers
    assert run.record().baseline == before.baseline
    assert run.record().judge == before.judge, "judged again, it is written down anew"


def test_an_old_records_judge_of_another_version_is_refused(erase: Erase, judge, capsys):
    run = erase(Panel(judge))
    age(run)
    run.update(judge=replace(run.record().judge, version="0"))
    assert main(["judge", str(run.folder)]) == 2
    assert "'world judge' v0" in capsys.readouterr().err


def test_an_old_recoverys_clip_is_found_by_its_name(clip):
    about = replace(references.named(f"CLIP {assets.clip()}"), version="1", resolution=64)
    found = references.load_clip(about)
    assert found is not None
    assert (found.spec.name, found.ref) == (about.name, str(assets.clip()))
    assert references.named("world CLIP").ref == "world"
    assert references.named("my CLIP").ref is None


def test_an_old_originals_scores_are_of_nobody_known(erase: Erase, judge, own, quick, tmp_path):
    """Whose they are was not written down, so whoever looks next looks at all of it."""
    erase(Panel(own))
    (folder,) = (tmp_path / "runs").glob("original-*")
    original = Run(folder)
    original.update(judge=None)
    Runner(tmp_path / "runs", quick, Panel(judge)).original(PROMPTS)
    images = gallery.pictures(original, PROMPTS)
    assert gallery.labels(original, PROMPTS) == judge.read(images).labels
    assert original.record().judge == references.entry_of(judge)


def test_a_recovery_in_python_keeps_the_references_too(erase: Erase, judge, clip, quick):
    run = erase(Panel(judge, clip))
    runner = Runner(run.folder.parent, quick, Panel(judge, clip))
    method = Restoration().changed({"measure.pictures": 1})
    record = runner.run(TASK, method, On(PROMPTS, run), runner.panel.measures).record()
    assert (record.judge, record.clip) == (
        references.entry_of(judge),
        references.entry_of(clip),
    )


def test_what_no_version_knows_never_takes_the_place_of_what_is_known(tmp_path: Path):
    path = tmp_path / "run.json"
    path.write_text('{"format": 2, "kind": "erase", "more": {"kind": "none"}, "new": 1}')
    record = Record.read(path)
    record.write(path)
    assert Record.read(path).kind == record.kind == "erase"
    assert json.loads(path.read_text())["new"] == 1


def test_the_page_of_runs_names_every_field_of_a_record():
    page = (Path(__file__).parents[1] / "docs" / "runs.md").read_text(encoding="utf-8")
    rows = page.partition("### run.json")[2].partition("\n\nA recovery")[0]
    names = " ".join(row.split(" | ")[0] for row in rows.splitlines())
    assert {f.name for f in fields(Record)} == {*re.findall(r"`(\w+)`", names)}
