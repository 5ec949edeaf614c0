"""The pages "write your own": their examples run as they stand and do what the pages say."""

from __future__ import annotations

from colorsys import rgb_to_hsv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from types import ModuleType

import numpy as np
import pages
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextImageProcessorPil,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from palimpsest.cli import main
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.erase import UCE
from palimpsest.judge import JUDGES, MEASURES
from palimpsest.judge.references import load_judge
from palimpsest.methods import Context
from palimpsest.models.diffusion import Sampling
from palimpsest.models.loading import load_model
from palimpsest.recover import RECOVERIES
from palimpsest.runs import images
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import On, Runner
from palimpsest.runs.scoring import Panel
from palimpsest.world import suite
from palimpsest.world.render import render

PARACHUTE, CAT = suite.concept("parachute", "balloon"), suite.concept("cat", "fish")
PROMPTS = [*PARACHUTE.prompts(3, seed=188), *CAT.prompts(3, seed=188)]
KNOWN = ("parachute", "cat", "church")
LABELS = dict(enumerate((NONE, *KNOWN)))


@pytest.fixture(scope="module")
def quick():
    return load_model("world", sampling=Sampling(steps=2, guidance=3.0))


# --- a judge ---


def resnet() -> tuple[ResNetForImageClassification, ConvNextImageProcessorPil]:
    """A small network, and a processor that resizes and crops."""
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        id2label=LABELS,
        label2id={name: i for i, name in LABELS.items()},
    )
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 48}, crop_pct=0.875)
    return ResNetForImageClassification(config), processor


def vit() -> tuple[ViTForImageClassification, ViTImageProcessorPil]:
    """A small transformer, and a processor that makes pictures smaller."""
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        id2label=LABELS,
        label2id={name: i for i, name in LABELS.items()},
    )
    return ViTForImageClassification(config), ViTImageProcessorPil(size={"height": 32, "width": 32})


def shown(name: str, seeds: range) -> list[np.ndarray]:
    """Renders of a class; of none of these, another object's."""
    return [render("fish" if name == NONE else name, "photo", seed) for seed in seeds]


def teach(classifier, processor) -> None:
    """Fit the last layer by least squares, so that its random features name renders."""
    features: list[torch.Tensor] = []
    head = [m for m in classifier.eval().modules() if isinstance(m, torch.nn.Linear)][-1]
    hook = head.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    pictures = [picture for name in LABELS.values() for picture in shown(name, range(100, 140))]
    with torch.no_grad():
        classifier(**processor(pictures, return_tensors="pt"))
        hook.remove()
        x, y = features[0], torch.eye(len(LABELS)).repeat_interleave(40, 0)
        weight = torch.linalg.lstsq(x - x.mean(0), 8 * (y - y.mean(0))).solution.T
        head.weight.copy_(weight)
        head.bias.copy_(-weight @ x.mean(0))


@pytest.fixture(params=[resnet, vit], ids=lambda build: build.__name__)
def judging(request, tmp_path: Path, monkeypatch) -> ModuleType:
    """The judge's page as a file, beside a saved classifier."""
    torch.manual_seed(0)
    classifier, processor = request.param()
    teach(classifier, processor)
    classifier.save_pretrained(tmp_path / "classifier")
    processor.save_pretrained(tmp_path / "classifier")
    return pages.as_module(pages.own("judge"), "object_judge", tmp_path, monkeypatch)


@pytest.fixture
def judged(judging: ModuleType, quick, tmp_path: Path) -> Run:
    """A run that the judge of the page looks at."""
    runner = Runner(tmp_path / "runs", quick, Panel(judging.ObjectJudge()))
    return runner.run(PARACHUTE, UCE(), On(PROMPTS), force=True)


def by_hand(run: Run, folder: Path) -> list[str]:
    """What the saved classifier says of a run's files, opened and classified one by one."""
    processor = AutoImageProcessor.from_pretrained(folder)
    classifier = AutoModelForImageClassification.from_pretrained(folder)
    said = []
    for prompt in PROMPTS:
        with Image.open(run.path(images.picture_name(prompt))) as picture, torch.no_grad():
            pixels = processor(picture.convert("RGB"), return_tensors="pt")
            said.append(LABELS[int(classifier(**pixels).logits.argmax())])
    return said


def test_the_judge_names_what_its_classifier_names(judging: ModuleType):
    judge, seeds = judging.ObjectJudge(), range(600, 640)
    pictures = np.stack([picture for name in KNOWN for picture in shown(name, seeds)])
    reading = judge.read(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255)
    assert judge.classes == {"object": KNOWN}, "`none of these` is no class that one can ask for"
    assert reading.labels.keys() == reading.confidence.keys() == {"object"}
    wanted = [name for name in KNOWN for _ in seeds]
    right = sum(said == name for said, name in zip(reading.labels["object"], wanted, strict=True))
    assert right / len(wanted) > 0.4, "chance is a quarter"
    assert all(1 / len(LABELS) <= sure <= 1 for sure in reading.confidence["object"])
    assert len(judge.read(torch.rand(2, 3, 100, 70)).labels["object"]) == 2, "of any size"


def test_a_run_is_counted_by_the_judge_of_the_page(judging: ModuleType, judged: Run):
    said, record = images.labels(judged, PROMPTS)["object"], judged.record()
    assert said == by_hand(judged, judging.FOLDER)
    entry = record.judge
    assert (entry.name, entry.ref, entry.classes) == ("object judge", "object_judge", KNOWN)
    ua, ira = record.number("UA"), record.number("IRA")
    assert (ua.n, ua.value) == (3, sum(name != "parachute" for name in said[:3]) / 3)
    assert (ira.n, ira.value) == (3, sum(name == "cat" for name in said[3:]) / 3)
    assert ua.spec.startswith(f"object judge v{entry.version}, {entry.resolution} px, DDIM 2")
    assert {row.name for row in record.numbers} == {"UA", "IRA"}, "no features, no distance"


def test_a_prompt_for_an_unknown_class_is_refused_before_anything_is_spent(
    judging: ModuleType, quick, tmp_path: Path
):
    runner = Runner(tmp_path / "runs", quick, Panel(judging.ObjectJudge()))
    balloon = suite.concept("balloon").prompts(1)
    with pytest.raises(PalimpsestError, match="the object 'balloon', which the judge does not"):
        runner.run(PARACHUTE, UCE(), On([*PROMPTS, *balloon]))
    assert not (tmp_path / "runs").exists()


def test_the_records_reference_loads_the_same_judge(
    judging: ModuleType, judged: Run, monkeypatch, capsys
):
    entry, numbers = judged.record().judge, judged.record().numbers
    with pytest.raises(PalimpsestError, match="cannot be loaded"):
        load_judge(entry)
    name = pages.register(pages.own("judge"), JUDGES.group, monkeypatch)
    again = load_judge(entry)
    assert name == entry.ref
    assert type(again) is judging.ObjectJudge
    assert list(again.read(images.pictures(judged, PROMPTS)).labels["object"]) == by_hand(
        judged, judging.FOLDER
    )
    judged.write_rows("scores.jsonl", [])
    assert main(["judge", str(judged.folder)]) == 0
    assert (judged.record().judge, judged.record().numbers) == (entry, numbers)
    assert main(["recover", "restoration", str(judged.folder), "--measure.pictures", "1"]) == 0
    found = [Run(path).record() for path in judged.folder.parent.glob("restoration-*")]
    assert {record.judge for record in found} == {entry}
    (judging.FOLDER / "README.md").write_text("another version\n")
    assert main(["judge", str(judged.folder)]) == 2
    assert f"its version there is {judging.ObjectJudge().spec.version!r}" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_judge_without_its_classifier_is_refused(tmp_path: Path, monkeypatch):
    module = pages.as_module(pages.own("judge"), "object_judge", tmp_path, monkeypatch)
    with pytest.raises(PalimpsestError, match="no classifier is here"):
        module.ObjectJudge()


# --- a measure ---


@pytest.fixture
def saturation(tmp_path: Path, monkeypatch) -> ModuleType:
    """The measure's page as a file."""
    return pages.as_module(pages.own("measure"), "saturation", tmp_path, monkeypatch)


def colour(run: Run) -> list[float]:
    """The mean saturation of a run's files, pixel by pixel."""
    means = []
    for prompt in PROMPTS:
        with Image.open(run.path(images.picture_name(prompt))) as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3) / 255
        means.append(sum(rgb_to_hsv(*pixel)[1] for pixel in pixels.tolist()) / len(pixels))
    return means


def student(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of six values; 2.5706 is Student's quantile at 5 degrees."""
    assert len(values) == 6
    half = 2.5706 * stdev(values) / 6**0.5
    return fmean(values), fmean(values) - half, fmean(values) + half


def test_the_measure_of_the_page_counts_what_it_says(
    saturation: ModuleType, quick, judge, tmp_path
):
    panel = Panel(judge)
    runner = Runner(tmp_path / "runs", quick, panel)
    measures = [*panel.measures, saturation.Saturation()]
    record = runner.run(PARACHUTE, UCE(), On(PROMPTS), measures, force=True).record()
    (run,) = [Run.open(path) for path in (tmp_path / "runs").glob("uce-*")]
    now, was = colour(run), colour(Run.open(tmp_path / "runs" / record.original))
    for name, values in (
        ("saturation", now),
        ("saturation change", [a - b for a, b in zip(now, was, strict=True)]),
    ):
        row = record.number(name)
        assert (row.value, row.low, row.high) == pytest.approx(student(values), abs=1e-5), name
        assert (row.n, row.unit, row.spec) == (6, "", "saturation of HSV, DDIM 2 steps, guidance 3")
        assert row.meaning == saturation.Saturation.meanings[name]
    assert record.number("saturation change").value != 0
    before = {row.name: row for row in record.baseline}
    assert before["saturation"].value == pytest.approx(fmean(was), abs=1e-5)
    assert "saturation change" not in before, "the unedited model is not compared with itself"
    assert {"UA", "IRA"} <= {row.name for row in record.numbers}


def test_the_measure_is_found_by_its_entry_point(saturation: ModuleType, monkeypatch):
    name = pages.register(pages.own("measure"), MEASURES.group, monkeypatch)
    assert name in MEASURES
    assert MEASURES.load(name) is saturation.Saturation


# --- a recovery ---


def test_the_command_judge_counts_a_measure_by_its_name_and_keeps_it(
    saturation: ModuleType, quick, judge, tmp_path: Path, monkeypatch, capsys
):
    pages.register(pages.own("measure"), MEASURES.group, monkeypatch)
    run = Runner(tmp_path, quick, Panel(judge)).run(PARACHUTE, UCE(), On(PROMPTS), force=True)
    assert "saturation" not in {row.name for row in run.record().numbers}
    for flags in (["--measures", "saturation"], []):
        assert main(["judge", str(run.folder), *flags]) == 0
        assert run.record().number("saturation").value == pytest.approx(
            fmean(colour(run)), abs=1e-5
        )
    for name, told in (("saturatoin", "did you mean"), ("cosine", "leave it out")):
        before = run.path("run.json").read_bytes()
        assert main(["judge", str(run.folder), "--measures", name]) == 2
        assert told in capsys.readouterr().err
        assert run.path("run.json").read_bytes() == before


@pytest.fixture
def paraphrase(tmp_path: Path, monkeypatch) -> ModuleType:
    """The recovery's page as a file."""
    return pages.as_module(pages.own("recovery"), "paraphrase", tmp_path, monkeypatch)


@pytest.mark.parametrize(("strength", "won"), [(1.0, False), (0.57, True), (0.0, False)])
def test_the_recovery_of_the_page_asks_until_the_judge_sees_it(
    paraphrase: ModuleType, context: Context, strength: float, won: bool
):
    """Against a whole edit, against one that other words get past, and where nothing is erased."""
    model = load_model("world", sampling=Sampling(steps=6, guidance=3.0))
    patch = UCE()(model, PARACHUTE, context=context).patch
    erased = patch.scaled(strength) if strength else None
    method = paraphrase.Paraphrase(prompts=6)
    before = {name: p.clone() for name, p in model._parameters.items()}
    result = method(model, PARACHUTE, erased, context=context)
    assert all(torch.equal(before[name], p) for name, p in model._parameters.items())
    says = [point.says for point in result.curve]
    assert (sum(says[-1]) > sum(says[0])) == won
    assert {t for t, p in zip(result.prompts, result.asked, strict=True) if t != p.text} <= {
        wording.replace("{name}", "parachute") for wording in method.wordings
    }
    assert [point.step for point in result.curve] == [0, 1, 2, 3]
    assert all(now >= was for a, b in pairwise(says) for was, now in zip(a, b, strict=True))
    assert result.queries == 6 + sum(6 - sum(seen) for seen in says[:-1])
    assert [prompt.text for prompt in result.asked] == [p.text for p in PARACHUTE.prompts(6)]
    asked = [replace(p, text=t) for p, t in zip(result.asked, result.prompts, strict=True)]
    with model.patched(erased):
        answers = model.generate(asked)
    assert torch.allclose(answers, result.answers, atol=1e-4)
    assert list(says[-1]) == context.needs_judge().read(answers).says("object", "parachute")


def test_the_recovery_refuses_before_it_draws(paraphrase: ModuleType, quick, monkeypatch):
    monkeypatch.setattr(type(quick), "generate", lambda *_, **__: pytest.fail("it drew"))
    with pytest.raises(PalimpsestError, match="no judge is at hand"):
        paraphrase.Paraphrase()(quick, PARACHUTE, None, context=Context())
    with pytest.raises(PalimpsestError, match="prompts is 0"):
        paraphrase.Paraphrase(prompts=0)
    with pytest.raises(PalimpsestError, match="every wording must hold"):
        paraphrase.Paraphrase(wordings=("kite",))


def test_a_run_of_the_recovery_is_judged_by_its_answers(
    paraphrase: ModuleType, saturation: ModuleType, quick, judge, tmp_path: Path, monkeypatch
):
    name = pages.register(pages.own("recovery"), RECOVERIES.group, monkeypatch)
    method = RECOVERIES.load(name)(prompts=6)
    runner = Runner(tmp_path / "runs", quick, Panel(judge))
    erased = runner.run(PARACHUTE, UCE(), On(PROMPTS), force=True)
    measures = [*runner.panel.measures, saturation.Saturation()]
    run = runner.run(PARACHUTE, method, On(PROMPTS, erased), measures)
    record = run.record()
    assert (record.method, record.answers, len(record.found)) == ("paraphrase", 6, 6)
    assert record.number("Concept shown").value == fmean(record.curve[-1].says)
    assert record.number("saturation").n == 6
    assert record.number("saturation").spec.endswith("answers to what was found")
