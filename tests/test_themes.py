"""Themed evaluations: the same question to every model, and who still knows the answer."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from palimpsest.cli import main
from palimpsest.cli.machine import Machine
from palimpsest.cli.subjects import Shelf, by_model, read
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.judge.references import Entry
from palimpsest.methods import Number
from palimpsest.metrics.rates import mean, wilson
from palimpsest.patch import Patch
from palimpsest.report.sections.themes import COLUMNS, standings, write_themes
from palimpsest.runs.folder import Run
from palimpsest.runs.images import picture_name
from palimpsest.runs.record import ModelEntry
from palimpsest.world import suite
from palimpsest.world.themes import Theme, chosen
from palimpsest.world.vocabulary import DOMAINS

PARACHUTE = suite.concept("parachute", "balloon")
TWO = ("--concepts", "parachute", "church", "--pictures", "2")
NAMES = ["world, unedited", "esd-parachute-1", "memora-parachute-on-esd-2"]


def write_run(folder: Path, kind: str, patch: Patch | None = None, **fields) -> Path:
    """A finished run of the world, as far as an evaluation looks into it."""
    record = {"kind": kind, "status": "done", "concepts": (PARACHUTE,), "judge": Entry("j")}
    record["model"] = ModelEntry("world", dtype="float32")
    folder.mkdir(parents=True)
    Run(folder).update(**record | fields)
    if patch is not None:
        patch.save(folder / "patch.safetensors")
    return folder


@pytest.fixture(scope="module")
def deafened(model) -> Patch:
    """No prompt is heard any more."""
    weights = model.parameters("xattn-kv")
    return model.make_patch({n: -p for n, p in weights.items()}, {"concepts": ["parachute"]})


@pytest.fixture(scope="module")
def runs(tmp_path_factory, deafened: Patch) -> Path:
    """An erasure that made the model deaf, and a recovery that made it hear again."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / NAMES[1], "erase", deafened)
    write_run(root / NAMES[2], "recover", deafened.scaled(-1), subject=NAMES[1])
    return root


@pytest.fixture(scope="module")
def told(tmp_path_factory, runs: Path) -> Path:
    """The folder of an evaluation."""
    root = tmp_path_factory.mktemp("evaluated")
    words = ["evaluate", "object", *(str(runs / name) for name in NAMES[1:]), *TWO]
    assert main([*words, "--runs", str(root / "themes"), "--out", str(root / "all.json")]) == 0
    return root


# --- what is asked ---


def test_a_theme_asks_for_its_concepts_in_their_own_sentences():
    theme = Theme("style", chosen("style", ("neon", "mosaic"), world=True), pictures=4, seed=7)
    assert [(p.text, p.seed) for p in theme.prompts[:4]] == [
        ("a picture in neon style", 7),
        ("neon style", 7),
        ("neon", 7),
        ("a picture in neon style", 8),
    ]
    assert [p.asks["style"] for p in theme.prompts] == ["neon"] * 4 + ["mosaic"] * 4


@pytest.mark.parametrize(
    ("theme", "kind"),
    [("object", "object"), ("style", "style"), ("identity", "identity"), ("unsafe", "hazard")],
)
def test_a_theme_has_all_that_the_world_has_of_its_kind(theme: str, kind: str):
    found = Theme(theme, chosen(theme, (), world=True))
    assert [concept.name for concept in found.concepts] == list(DOMAINS[kind])
    assert found.kind == kind


def test_elsewhere_concepts_are_named_and_may_be_any():
    assert [c.kind for c in chosen("unsafe", ("blood",), world=False)] == ["hazard"]
    with pytest.raises(PalimpsestError, match="name some with --concepts"):
        chosen("object", (), world=False)


# --- who is asked ---


def test_what_a_word_stands_for(runs: Path, tmp_path: Path, deafened: Patch):
    erasure, recovery = (read(str(runs / name), "world", None) for name in NAMES[1:])
    assert (erasure.name, erasure.erased) == (NAMES[1], ("parachute",))
    assert [p.digest() for p in erasure.patches()] == [deafened.digest()]
    assert len(recovery.patches()) == 2, "its subject's patch lies below its own"
    both = replace(deafened, about={"sum": [{"of": {"concepts": ["cat"]}}, {"without": "owl"}]})
    both.save(tmp_path / "both.safetensors")
    file = read(str(tmp_path / "both.safetensors"), "world", "bfloat16")
    assert (file.name, file.erased, file.model) == (
        "both",
        ("cat", "owl"),
        ("world", "bfloat16", ()),
    )
    assert read("CompVis/stable-diffusion-v1-4", "world", None).model[0].startswith("CompVis/")


def test_the_unedited_model_comes_first_and_nobody_twice(runs: Path):
    words = [str(runs / NAMES[1]), "world", str(runs / NAMES[1])]
    (some,) = by_model([read(word, "world", None) for word in words])
    assert [subject.name for subject in some] == NAMES[:2]


def test_one_model_is_held_at_a_time():
    loaded = []

    class Counted(Machine):
        def load(self, name: str, dtype: str = "float32", files=None):
            assert not shelf.held
            loaded.append(name)
            return name

    shelf = Shelf(Counted())
    for name in ("b", "a", "a", "b"):
        shelf.take((name, "float32", ()))
    assert loaded == ["b", "a", "b"]


# --- what is counted ---


def test_every_subject_answers_the_same_prompts(told: Path, model, judge, clip):
    """The judge's and CLIP's own words about the unedited model's pictures, counted by hand."""
    said = json.loads((told / "all.json").read_text())
    assert [each["subject"] for each in said["subjects"]] == NAMES
    theme = Theme("object", chosen("object", ("parachute", "church"), world=True), 2)
    images = model.generate(theme.prompts)
    labels = judge.read(images).labels["object"]
    hits = [label == p.asks["object"] for label, p in zip(labels, theme.prompts, strict=True)]
    unedited, deaf, hearing = (each["numbers"] for each in said["subjects"])
    assert unedited["accuracy"]["value"] == sum(hits) / 4
    assert unedited["on the erased"]["value"] == sum(hits[:2]) / 2
    assert unedited["on the others"]["value"] == sum(hits[2:]) / 2
    fit = mean(clip.cosine(images, [p.text for p in theme.prompts]).tolist())
    assert unedited["CLIP cosine"]["value"] == pytest.approx(fit.value, abs=2e-3)  # PNGs round
    assert deaf["accuracy"]["value"] < 0.5 <= unedited["accuracy"]["value"]
    assert hearing == unedited, "what was taken away is back, to the bit"
    asked = [run.parent / "images.jsonl" for run in (told / "themes").glob("*/run.json")]
    assert len({file.read_text() for file in asked}) == 1


def test_a_rerun_draws_nothing_and_writes_any_form(told: Path, runs: Path, capsys):
    before = {p: p.stat().st_mtime_ns for p in (told / "themes").rglob("*") if p.is_file()}
    words = ["evaluate", "object", *(str(runs / name) for name in NAMES[1:]), *TWO]
    words += ["--runs", str(told / "themes"), "--out"]
    assert main([*words, str(told / "all.md")]) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    table = capsys.readouterr().out
    assert all(word in table for word in (*NAMES, *COLUMNS))
    page = (told / "all.md").read_text()
    assert all(word in page for word in (*NAMES, *COLUMNS, "Accuracy by concept"))


def test_what_was_killed_goes_on(told: Path, runs: Path):
    run = Run(next((told / "themes").glob("object-world*")))
    kept, lost = sorted(run.path("images").iterdir())[:2]
    before, record = kept.stat().st_mtime_ns, run.record()
    run.update(status="running")
    lost.unlink()
    words = ["evaluate", "object", str(runs / NAMES[1]), *TWO]
    assert main([*words, "--runs", str(told / "themes")]) == 0
    assert lost.exists()
    assert kept.stat().st_mtime_ns == before
    assert run.record().numbers == record.numbers
    page = (told / "themes" / "object.html").read_text()
    assert page.count('src="data:image/webp') == 4  # two subjects, two concepts
    assert main(["report", str(told / "themes")]) == 0
    assert "Theme object, asked of 3 models" in (told / "themes" / "report.html").read_text()


def number(concept: str, hits: int, n: int) -> Number:
    return Number.of("accuracy", wilson(hits, n), concept=concept)


def test_the_erased_and_the_others_by_hand(tmp_path: Path):
    """Of 10 pictures each: 2 + 4 of the two erased, 9 of the third; Wilson over 20 and over 10."""
    rows = [number("cat", 2, 10), number("owl", 4, 10), number("fish", 9, 10)]
    asked = tuple(Concept(name) for name in ("cat", "owl", "fish"))
    about = {"theme": "object", "concepts": asked, "model": ModelEntry("m")}
    about |= {"by_concept": tuple(rows), "title": "a | <b>"}
    one, two = (Run(tmp_path / name) for name in "ab")
    one.update(**about)
    two.update(**about, patches=("x",), erased=("cat", "owl", "neon"))
    hits = {row.concept: round(row.value * row.n) for row in rows}
    files = [(f"{name} {k}.png", name, k) for name in hits for k in range(10)]
    drawn = [
        {"file": file, "prompt": file, "seed": i, "asks": {"object": name}}
        for i, (file, name, _) in enumerate(files)
    ]
    drawn = [d | {"file": picture_name(Prompt(d["prompt"], d["seed"]))} for d in drawn]
    said = [
        {"file": d["file"], "labels": {"object": name if k < hits[name] else "car"}}
        for d, (_, name, k) in zip(drawn, files, strict=True)
    ]
    for run in (one, two):
        run.write_rows("images.jsonl", drawn)
        run.write_rows("scores.jsonl", said)
    for each in standings([one, two]):
        assert each.gone == ("cat", "owl"), "of the theme, for the unedited model too"
        erased, others = (asdict(cell) for cell in each.cells[1:3])
        assert {k: erased[k] for k in asdict(wilson(6, 20))} == pytest.approx(asdict(wilson(6, 20)))
        assert {k: others[k] for k in asdict(wilson(9, 10))} == pytest.approx(asdict(wilson(9, 10)))
        assert each.cells[0] is each.cells[3] is None, "nobody looked"
    lines = (write_themes([one, two], tmp_path / "t.md")).read_text().splitlines()
    assert any(line.startswith(r"| a \| <b> | cat, owl, neon |") for line in lines)
    rows = list(csv.DictReader(write_themes([one, two], tmp_path / "t.csv").open()))
    assert {(r["subject"], r["concept"], r["value"]) for r in rows} >= {("a | <b>", "owl", "0.4")}


# --- bad input ---


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["objct", "world"], "no theme 'objct'; did you mean 'object'?"),
        (["object"], "needs SUBJECT"),
        (["object", "{runs}"], "neither a run"),
        (["object", "{runs}/esd-parachut-1"], "no such file or folder"),
        (["object", "{runs}/unfinished"], "this run is not finished"),
        (["object", "{runs}/answered"], "changed what is asked and has no patch"),
        (["object", "{runs}/clip"], "a run of kind 'clip'"),
        (["object", "{runs}/other.safetensors"], "other.safetensors: the patch was made for"),
        (["object", "{runs}/torn.safetensors"], "no weights can be read"),
        (["object", "world", "--concepts", "parachut"], "did you mean 'parachute'?"),
        (["object", "world", "--concepts", "neon"], "the judge knows no object 'neon'"),
        (["object", "world", "--pictures", "0"], "pictures is 0; it must be at least 1"),
        (["object", "world", "--seed", "-1", *TWO], "the seed is -1"),
        (["object", "world", "--judge", "none", *TWO], "nobody would look"),
        (["object", "a/b"], "name some with --concepts"),
        (["object", "world", "--out", "page.pdf"], "no page can be written as '.pdf'"),
        (["object", "world", "--out", "{runs}/torn.safetensors/page.md"], "is a file"),
        (["object", "world", "--look-with", "{runs}", *TWO], "or a Hub id of a CLIP"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything_is_drawn(
    words: list[str], told: str, runs: Path, deafened: Patch, tmp_path: Path, capsys
):
    if not (runs / "clip").exists():
        write_run(runs / "unfinished", "erase", status="running")
        write_run(runs / "answered", "recover", answers=3, subject=NAMES[1])
        write_run(runs / "clip", "clip")
        wrong = {name: "0" * 16 + "-" + "0" * 16 for name in deafened.base}
        replace(deafened, base=wrong).save(runs / "other.safetensors")
        (runs / "torn.safetensors").write_bytes(b"torn")
    given = [word.format(runs=runs) for word in words]
    assert main(["evaluate", *given, "--runs", str(tmp_path / "themes")]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "themes").exists()


def test_a_dry_run_says_who_is_asked_for_what(runs: Path, tmp_path: Path, capsys):
    words = ["evaluate", "object", str(runs / NAMES[1]), *TWO, "--runs", str(tmp_path / "themes")]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4 pictures, 2 of each concept" in said
    assert "8: 320 U-Net evaluations" in said  # 2 subjects x 4 pictures x 20 steps x 2 (guidance)
    assert ", ".join(NAMES[:2]) in said
    assert not (tmp_path / "themes").exists()
