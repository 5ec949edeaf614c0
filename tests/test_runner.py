"""The runner takes anybody's judge and measure, several concepts, and goes on where it broke."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor

from palimpsest.cli import console, main
from palimpsest.core.concepts import Concept
from palimpsest.core.draw import Draw
from palimpsest.core.errors import PalimpsestError
from palimpsest.erase import UCE
from palimpsest.judge import JUDGES, MEASURES
from palimpsest.judge.rates import Rates
from palimpsest.methods import Eraser, Judge, Number, Reading, Result, Seen, Spec, Task
from palimpsest.models.diffusion import Diffusion, Sampling
from palimpsest.models.loading import load_model
from palimpsest.recover import Restoration
from palimpsest.report import write_report
from palimpsest.runs import images
from palimpsest.runs.asked import Asked, On
from palimpsest.runs.folder import Run
from palimpsest.runs.record import Record
from palimpsest.runs.runner import Runner
from palimpsest.runs.scoring import Panel, rejudge
from palimpsest.toolbox.relearning_curve import Measured
from palimpsest.world import suite

PARACHUTE, CAT = suite.concept("parachute", "balloon"), suite.concept("cat", "fish")
PROMPTS = [suite.pair(name, "photo", 188) for name in ("parachute", "cat", "church")]
WEIGHT = "unet.conv_in.weight"


class Bright:
    """A judge of a few lines: whether a picture is bright. It keeps to the protocol alone."""

    spec = Spec("my eyes", "1", 64)
    classes: ClassVar = {"object": ("parachute", "cat", "church"), "style": ("photo",)}

    def read(self, images: Tensor) -> Reading:
        """Call a bright picture a parachute, a dark one a cat; the first cannot be judged."""
        bright = images.mean((1, 2, 3)).tolist()
        said: list[str | None] = ["parachute" if b > 0.5 else "cat" for b in bright]
        said[0] = None
        labels = {"object": said, "style": ["photo"] * len(said)}
        return Reading(labels, {kind: [1.0] * len(said) for kind in labels})


class Brightness:
    """A measure of a few lines."""

    spec = "mean of all entries"
    meanings: ClassVar = {"brightness": "how light the pictures are. Neither end is good."}

    def collect(self, seen: Seen) -> list[float]:
        return seen.pictures(seen.prompts).mean((1, 2, 3)).tolist()

    def numbers(self, seen: Seen, found: Any, beside: Callable[[str], Any]) -> list[Number]:
        before = beside("unedited")
        change = sum(found) / len(found) - sum(before) / len(before)
        return [
            Number("brightness", sum(found) / len(found), n=len(found)),
            Number("brightness, change", change, n=len(found)),
        ]


@dataclass(frozen=True)
class Shift(Eraser):
    """Shift one weight a little."""

    by: float = 0.01
    pictures: Path | None = None

    def erase(self, model, task: Task, context) -> Result:
        delta = torch.full_like(model.parameters("full")[WEIGHT], self.by)
        return Result(model.make_patch({WEIGHT: delta}))


@pytest.fixture(scope="module")
def quick():
    return load_model("world", sampling=Sampling(steps=2, guidance=3.0))


@pytest.fixture
def runner(quick, tmp_path: Path) -> Runner:
    return Runner(tmp_path / "runs", quick, Panel(Bright()))


# --- a judge and a measure of one's own ---


def test_a_judge_of_ones_own_is_its_protocol_and_nothing_else(runner: Runner, tmp_path: Path):
    run = runner.run(PARACHUTE, Shift(), On(PROMPTS), force=True)
    record = run.record()
    assert (record.judge.name, record.judge.ref) == ("my eyes", None)
    said = images.labels(run, PROMPTS)["object"]
    pictures = images.pictures(run, PROMPTS).mean((1, 2, 3)).tolist()
    assert said == [None, *("parachute" if b > 0.5 else "cat" for b in pictures[1:])]
    found = {row.name: row for row in record.numbers}
    assert set(found) == {"UA", "IRA", "CRA"}, "no features, no distance"
    assert found["UA"].spec == "my eyes v1, 64 px, DDIM 2 steps, guidance 3"
    assert found["UA"].meaning.startswith("unlearning accuracy")
    assert (found["IRA"].value, found["IRA"].n) == (sum(s == "cat" for s in said[1:2]) / 2, 2)


class Dim(Judge):
    """A judge as a type checker wants it, derived from the protocol; classes in lists."""

    @property
    def spec(self) -> Spec:
        return Spec("dim eyes", "2", 32)

    @property
    def classes(self) -> dict[str, list[str]]:
        return {"object": ["parachute", "cat", "church"], "style": ["photo"]}

    def read(self, images: Tensor) -> Reading:
        n = len(images)
        labels = {"object": ("cat",) * n, "style": ("photo",) * n}
        return Reading(labels, {kind: torch.full((n,), 0.5).tolist() for kind in labels})


def test_a_judge_derived_from_the_protocol_erases_recovers_and_looks_again(
    quick: Diffusion, tmp_path: Path
):
    runner = Runner(tmp_path / "runs", quick, Panel(Dim()))
    erased = runner.run(PARACHUTE, Shift(), On(PROMPTS), force=True)
    method = Restoration(measure=Measured(pictures=1))
    recovered = runner.run(PARACHUTE, method, On(PROMPTS, erased))
    for run in (erased, recovered):
        assert {n.name: n.value for n in run.record().numbers}["UA"] == 1, "it never says it"
        rejudge(run, runner.panel)
        assert {n.name: n.value for n in run.record().numbers}["UA"] == 1
    page = write_report([erased.folder, recovered.folder], tmp_path / "report.html").read_text()
    assert "dim eyes v2" in page


def test_what_cannot_be_judged_is_null_counted_and_shown(runner: Runner, tmp_path: Path, capsys):
    run = runner.run(PARACHUTE, Shift(), On(PROMPTS), force=True)
    (ua,) = [row for row in run.record().numbers if row.name == "UA"]
    assert (ua.n, ua.missing) == (0, 1), "the one picture of it could not be judged"
    assert ua.value != ua.value
    rows = json.loads(run.path("run.json").read_text(), parse_constant=pytest.fail)["numbers"]
    assert next(row for row in rows if row["name"] == "UA")["value"] is None
    console.numbers("", [("erased", run)])
    assert "0 (1 not judged)" in capsys.readouterr().out
    assert "1 not judged" in write_report([run.folder], tmp_path / "report.html").read_text()


def test_a_measure_of_ones_own_stands_with_its_meaning_and_its_spec(runner: Runner, tmp_path: Path):
    measures = [Rates(Bright()), Brightness()]
    run = runner.run(PARACHUTE, Shift(), On(PROMPTS), measures, force=True)
    record = run.record()
    number = record.number("brightness")
    assert number.value == pytest.approx(images.pictures(run, PROMPTS).mean().item())
    assert number.meaning == Brightness.meanings["brightness"]
    assert number.spec == "mean of all entries, DDIM 2 steps, guidance 3"
    (before,) = [row for row in record.baseline if row.name == "brightness"]
    change = record.number("brightness, change")
    assert change.value == pytest.approx(number.value - before.value)
    assert change.meaning == number.meaning
    page = write_report([run.folder], tmp_path / "report.html").read_text()
    assert Brightness.meanings["brightness"] in page


def test_another_measure_counts_the_same_pictures_afresh(runner: Runner):
    run = runner.run(PARACHUTE, Shift(), On(PROMPTS), [Rates(Bright())], force=True)
    made = {p: p.stat().st_mtime_ns for p in run.path("images").iterdir()}
    again = runner.run(PARACHUTE, Shift(), On(PROMPTS), [Brightness()], force=True)
    assert again.folder == run.folder
    assert {row.name for row in again.record().numbers} == {"brightness", "brightness, change"}
    assert {p: p.stat().st_mtime_ns for p in run.path("images").iterdir()} == made
    rejudge(run, runner.panel)
    assert {row.name for row in run.record().numbers} == {"UA", "IRA", "CRA"}


@pytest.mark.parametrize("lacks", ["spec", "classes", "read"])
def test_what_is_no_judge_is_refused_at_once(lacks: str):
    names = {name: getattr(Bright, name) for name in ("spec", "classes", "read") if name != lacks}
    with pytest.raises(PalimpsestError, match=f"Half is no judge: it has no {lacks};"):
        Panel(type("Half", (), names)())
    with pytest.raises(PalimpsestError, match="must be a mapping"):
        Panel(type("Half", (Bright,), {"classes": ["cat"]})())


def test_the_registries_know_their_own():
    assert JUDGES.load("world").__name__ == "Classifier"
    for name in MEASURES.own:
        assert MEASURES.load(name).meanings


# --- several concepts, and none ---


def test_several_concepts_are_erased_in_one_task(quick, judge, tmp_path: Path):
    runner = Runner(tmp_path / "runs", quick, Panel(judge))
    run = runner.run((PARACHUTE, CAT), UCE(), On(PROMPTS), force=True)
    record = run.record()
    assert run.name.startswith("uce-parachute-cat-")
    assert record.names == ("parachute", "cat")
    said = images.labels(run, PROMPTS)["object"]
    ua = record.number("UA")
    assert (ua.value, ua.n) == ((said[0] != "parachute") / 2 + (said[1] != "cat") / 2, 2)
    each = {row.concept: row for row in record.by_concept}
    assert {name: row.n for name, row in each.items()} == {"parachute": 1, "cat": 1}
    assert each["cat"].value == (said[1] != "cat")
    assert record.number("IRA").n == 1, "the church alone is neither"
    patch = json.loads(run.path("run.json").read_text())
    assert [concept["name"] for concept in patch["concepts"]] == ["parachute", "cat"]


def test_a_run_that_only_evaluates_has_no_method(runner: Runner):
    task, on = Task((PARACHUTE, CAT)), On(PROMPTS[:2], name="mine", theme="object")
    run = runner.run(task, None, on)
    record = run.record()
    assert (record.kind, record.method, record.title) == ("evaluate", "", "mine")
    assert not run.path("patch.safetensors").exists()
    assert {row.concept for row in record.by_concept} == {"parachute", "cat"}
    assert record.baseline == ()


# --- going on ---


def test_a_run_that_broke_anywhere_ends_as_an_unbroken_one(quick, tmp_path: Path, monkeypatch):
    def start(name: str) -> Run:
        runner = Runner(tmp_path / name, quick, Panel(Bright()))
        return runner.run(PARACHUTE, Shift(), On(PROMPTS), force=True)

    def breaks(where: str, owner: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(owner, where, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                start("broken")

    breaks("erase", Shift)
    breaks("save_png", images)
    breaks("read", Bright)
    breaks("numbers", Rates)
    broken, whole = start("broken").record(), start("whole").record()
    assert (broken.numbers, broken.baseline) == (whole.numbers, whole.baseline)
    assert broken.edit_norm == whole.edit_norm


# --- what a run depends on ---


def picture(folder: Path, shade: int) -> None:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(folder / "a.png")


def test_a_folder_of_pictures_enters_a_run_by_its_content(runner: Runner, tmp_path: Path):
    folder, other = tmp_path / "pictures", tmp_path / "same"
    method = Shift(pictures=folder)

    def asked(method: Shift = method) -> Record:
        asked = Asked(runner.model, runner.panel, Task((PARACHUTE,)), method, On(PROMPTS), [], 0)
        return asked.record

    picture(folder, 10)
    first = asked()
    assert first.files.keys() == {"pictures"}
    picture(folder, 10)
    assert asked() == first, "the same bytes are the same run"
    picture(folder, 11)
    assert asked() != first
    picture(other, 10)
    assert asked(replace(method, pictures=other)).files == first.files
    run = runner.run(PARACHUTE, method, On(PROMPTS), [], force=True)
    picture(folder, 12)
    assert runner.run(PARACHUTE, method, On(PROMPTS), [], force=True).folder != run.folder
    assert run.record().files["pictures"] not in (first.files["pictures"], "")


def test_drawing_is_a_part_of_the_run_and_of_every_spec_and_read_back(tmp_path: Path, capsys):
    csv = tmp_path / "prompts.csv"
    csv.write_text("prompt,object\na parachute,parachute\n")
    words = ["erase", "uce", "--concept", "parachute", "--prompts", str(csv), "--force"]
    words += ["--no-gold", "--runs", str(tmp_path / "runs")]
    for more in ([], ["--draw.size", "96"]):
        assert main([*words, "--draw.steps", "2", "--draw.guidance", "2", *more]) == 0
    runs = [Run(path) for path in (tmp_path / "runs").glob("uce-*")]
    small, large = sorted(runs, key=lambda run: run.record().sampling.size or 0)
    assert small.record().sampling == Draw(2, 2.0)
    assert large.record().sampling == Draw(2, 2.0, size=96)
    assert all("2 steps, guidance 2, 96 px" in row.spec for row in large.record().numbers)
    assert images.pictures(large, images.asked(large)).shape == (1, 3, 96, 96)
    assert main(["recover", "restoration", str(large.folder), "--measure.pictures", "1"]) == 0
    (found, *_) = [Run(path) for path in (tmp_path / "runs").glob("restoration-*")]
    assert found.record().sampling == Draw(2, 2.0, size=96)
    assert found.record().original == large.record().original


# --- what is no record ---


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("torn", "not a run record"),
        ("[]", "not a run record"),
        ("{}", "not a run record"),
        ('{"format": "two"}', "not a run record"),
        ('{"format": 2, "numbers": 3}', "not a run record"),
        ('{"format": 2, "concepts": [{"kind": "object"}]}', "not a run record"),
        ('{"format": 2, "seconds": {"train": "long"}}', "not a run record"),
        ('{"format": 9}', "written by a newer Palimpsest"),
    ],
)
def test_what_is_no_record_is_refused_in_one_sentence(text: str, told: str, tmp_path: Path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(PalimpsestError, match=told) as refused:
        Run.open(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_record_is_read_as_it_was_written_and_loses_nothing(tmp_path: Path):
    path = tmp_path / "run.json"
    record = Record(
        kind="erase",
        concepts=(Concept("a", "style", "b", ("c",), ("d",)),),
        numbers=(Number("UA", float("nan"), n=0, missing=3, meaning="m", spec="s"),),
        sampling=Draw(3, 1.5),
        arguments={"nested": {"steps": 3}, "none": None},
        more={"a newer field": [1, {"x": None}]},
    )
    record.write(path)
    back = Record.read(path)
    assert repr(back) == repr(record), "NaN is not equal to itself"
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["a newer field"]
