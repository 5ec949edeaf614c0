"""Recoveries that change what is asked: what the bench keeps of them, and what a person sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from palimpsest.cli import console, open_run
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.erase import NegativePrompt
from palimpsest.methods import Recovery, Result, Task
from palimpsest.metrics.rates import rate
from palimpsest.metrics.relearning import CurvePoint
from palimpsest.models.diffusion import Sampling
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.patch.edits import Dense
from palimpsest.recover import MemoRa
from palimpsest.report import write_report
from palimpsest.runs import images as gallery
from palimpsest.runs import store
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import Runner
from palimpsest.runs.scoring import Panel, rejudge
from palimpsest.toolbox.relearning_curve import SEED
from palimpsest.world import suite

PARACHUTE = suite.concept("parachute", "balloon")
TASK = Task((PARACHUTE,))
EVIL = "<script>owned</script> [bold]chute[/bold] \x1b[2J"
ASKED = 3


@dataclass(frozen=True)
class Reworded(Recovery):
    """Ask for the concept in other words: as plain an attack through the prompt as there is."""

    words: str = "chute"
    broken: bool = False

    presets: ClassVar[dict[str, dict[str, Any]]] = {"published": {}}
    bibtex: ClassVar[str] = ""

    def recover(self, model, concept: Concept, erased: Patch | None, context) -> Result:
        if self.broken:
            raise KeyboardInterrupt
        asked = concept.prompts(ASKED, seed=SEED)
        with model.patched(erased):
            answers = model.generate([replace(p, text=self.words) for p in asked])
        says = context.needs_judge().read(answers).says(concept.kind, concept.name)
        return Result(
            curve=(CurvePoint(7, 7, rate(says), tuple(says)),),
            prompts=tuple(f"{EVIL} {i}" for i in range(ASKED)),
            asked=tuple(asked),
            answers=answers,
            vectors={"token": torch.arange(4.0)},
            queries=ASKED,
        )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, judge) -> Runner:
    model = load_model("world")
    model.sampling = Sampling(steps=4, guidance=3.0)
    return Runner(tmp_path_factory.mktemp("runs"), model, Panel(judge))


@pytest.fixture(scope="module")
def erased(bench: Runner) -> Run:
    prompts = [suite.pair("parachute", "photo", 188), suite.pair("cat", "photo", 188)]
    return bench.run(TASK, NegativePrompt(), On(prompts), bench.panel.measures, force=True)


@pytest.fixture(scope="module")
def recover(bench: Runner, erased: Run) -> Callable[..., Run]:
    def start(method, subject: Run | None = erased) -> Run:
        on = On(gallery.asked(erased), subject)
        return bench.run(TASK, method, on, bench.panel.measures)

    return start


@pytest.fixture(scope="module")
def attacked(recover) -> Run:
    return recover(Reworded())


def test_the_run_is_the_answers_and_their_accuracy(attacked: Run, bench: Runner, judge):
    record, asked = attacked.record(), PARACHUTE.prompts(ASKED, seed=SEED)
    assert gallery.asked(attacked) == asked, "the suite's prompts are not asked"
    assert len(list(attacked.path("images").iterdir())) == ASKED
    says = judge.read(gallery.pictures(attacked, asked)).says("object", "parachute")
    (number,) = record.numbers
    expected = rate(says)
    assert number.name == "Concept shown"
    assert (number.value, number.low, number.high, number.n) == (
        expected.value,
        expected.low,
        expected.high,
        ASKED,
    )
    (baseline,) = record.baseline
    assert baseline.spec != number.spec, "the unedited model was asked the plain prompts"
    assert (record.queries, record.evaluations, record.answers) == (ASKED, 7, ASKED)
    assert record.found[0] == f"{EVIL} 0"
    assert load_file(attacked.path("vectors.safetensors"))["token"].tolist() == [0, 1, 2, 3]
    assert not attacked.path("patch.safetensors").exists()
    assert attacked.done


def test_a_rerun_computes_nothing_and_judging_again_says_the_same(attacked, recover, bench):
    before = attacked.record()
    assert recover(Reworded()).record() == before
    rejudge(attacked, bench.panel)
    assert attacked.record().numbers == before.numbers


def test_a_run_that_was_killed_while_judged_does_not_attack_again(recover, attacked, monkeypatch):
    attacked.update(status="running", numbers=())
    monkeypatch.setattr(Reworded, "recover", lambda *_, **__: pytest.fail("attacked again"))
    assert recover(Reworded()).record().numbers[0].n == ASKED


def test_it_has_no_patch_to_apply(attacked: Run, erased: Run):
    with pytest.raises(PalimpsestError, match=f"no patch; name the run .* {erased.name}"):
        open_run.patches_from(attacked.folder)


def test_what_was_found_is_shown_and_never_obeyed(attacked: Run, tmp_path: Path, capsys):
    console.found("on erased", attacked)
    said = capsys.readouterr().out
    assert "[bold]chute[/bold]" in said
    assert "\x1b" not in said
    assert "7 gradient evaluations, 3 queries" in said
    page = write_report([attacked.folder], tmp_path / "report.html").read_text()
    assert "<script>owned" not in page
    assert "<script>owned</script> [bold]chute" in unescape(page)
    assert "Asked otherwise: Reworded" in page
    assert page.count("answered: a picture of a parachute") == 1


def test_a_recovery_that_comes_back_with_nothing_or_with_both_is_refused(tmp_path: Path):
    run, method = Run(tmp_path / "run"), Reworded()
    run.update(kind="recover")
    with pytest.raises(PalimpsestError, match="neither"):
        store.keep(run, Result(), method)
    images, patch = torch.zeros(1, 3, 4, 4), Patch({})
    both = Result(patch, asked=(PARACHUTE.prompts(1)[0],), answers=images)
    with pytest.raises(PalimpsestError, match="change one"):
        store.keep(run, both, method)
    with pytest.raises(PalimpsestError, match="answered 0 prompts with 1"):
        store.keep(run, Result(answers=images), method)


def test_the_record_says_all_that_was_spent(tmp_path: Path):
    """Also behind the curve's last point, and before the budget's end."""
    run, method = Run(tmp_path / "run"), MemoRa(steps=500)
    points = (CurvePoint(0, 0, rate([False])), CurvePoint(10, 40, rate([False])))
    assert store.keep(run, Result(Patch({}), points), method)["evaluations"] == 500 * 4
    found = store.keep(run, Result(Patch({}), points, evaluations=60), method)
    assert found["evaluations"] == 60


def test_an_empty_curve_is_a_run_and_a_report_too(bench: Runner, erased: Run, tmp_path: Path):
    """As of a recovery that takes an edit out: a patch, and nothing measured on the way."""
    name = "unet.conv_in.weight"

    @dataclass(frozen=True)
    class Shift(Reworded):
        """A patch without a curve."""

        def recover(self, model, concept, erased, context) -> Result:
            delta = torch.full_like(model.parameters("full")[name], 1e-3)
            return Result(model.checked(Patch({name: (Dense(delta),)}, about={"method": "x"})))

    on = On(gallery.asked(erased), erased)
    run = bench.run(TASK, Shift(), on, bench.panel.measures)
    assert run.record().curve == ()
    assert run.record().answers == 0
    console.curves([("on erased", run)])
    assert "Shift" in write_report([run.folder], tmp_path / "report.html").read_text()


def test_a_patch_of_another_model_is_refused_before_anything_is_spent(bench, erased, recover):
    strange = Run(bench.root / "strange-parachute-1")
    strange.update(**vars(erased.record()))
    name = "unet.conv_in.weight"
    shift = Dense(torch.ones_like(bench.model.parameters("full")[name]))
    Patch({name: (shift,)}, {name: "0123456789abcdef"}).save(strange.path("patch.safetensors"))
    before = {path.name for path in bench.root.iterdir()}
    with pytest.raises(PalimpsestError, match=r"strange.*another base model"):
        recover(Reworded(broken=True), strange)
    assert {path.name for path in bench.root.iterdir()} == before


def test_records_stay_plain_json(attacked: Run):
    text = attacked.path("run.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["kind"] == "recover"


# --- several commands at once ---


def test_commands_that_run_at_the_same_time_share_the_unedited_models_pictures(
    tmp_path: Path, bench: Runner
) -> None:
    """None loses what another has asked for, drawn or scored meanwhile."""
    asked = [[suite.pair(name, "photo", 700 + i) for i in range(2)] for name in ("cat", "owl")]
    both = replace(bench, root=tmp_path)
    with ThreadPoolExecutor(len(asked)) as pool:
        runs = list(pool.map(both.original, asked))
    files = {gallery.picture_name(p) for prompts in asked for p in prompts}
    assert runs[0].folder == runs[1].folder
    for rows in ("images.jsonl", "scores.jsonl"):
        assert {row["file"] for row in runs[0].rows(rows)} == files
