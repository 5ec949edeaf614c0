"""The command line as a person meets it: quick to answer, fully explained, true to what it says."""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image
from tyro import _docstrings

import palimpsest
from palimpsest.cli import main, tree
from palimpsest.cli.tree import GROUPS, VERBS, parse
from palimpsest.core.registry import Registry
from palimpsest.data.read import read_folder, read_pairs
from palimpsest.erase import ERASERS
from palimpsest.judge.world import Classifier
from palimpsest.models.devices import usable
from palimpsest.patch import Patch
from palimpsest.recover import RECOVERIES, Illusion
from palimpsest.runs.folder import Run
from palimpsest.world import assets, suite

QUICK = (
    "--steps",
    "4",
    "--latents.pictures",
    "4",
    "--latents.batch",
    "2",
    "--force",
    "--draw.steps",
    "8",
)
"""ESD in seconds; it erases nothing worth the name."""
QUICK_RECOVERY = (
    *("--steps", "4", "--interpolation.between", "2"),
    *("--interpolation.steps", "4", "--interpolation.start-step", "1"),
    *("--measure.at", "0", "4", "--measure.pictures=2"),
)
PROMPTS = """prompt,evaluation_seed,object,style
A parachute image in photo style.,188,parachute,photo
A parachute image in watercolor style.,288,parachute,watercolor
A church image in photo style.,188,church,photo
A fish image in watercolor style.,188,fish,watercolor
"""


def run(*words: object) -> int:
    return main([str(word) for word in words])


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    path.write_text(PROMPTS)
    return path


@pytest.fixture(scope="module")
def erased(tmp_path_factory: pytest.TempPathFactory, prompts: Path) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    command = ("erase", "esd", "--concept", "parachute", "--runs", runs, "--prompts", prompts)
    assert run(*command, *QUICK, "--judge", "world") == 0
    return next(runs.glob("esd-parachute-*"))


# --- answers at once ---


@pytest.mark.parametrize(
    "words",
    [
        *([], ["--help"], ["list"], ["--version"], ["erase", "--help"], ["world"], ["erasr"]),
        *(["erase", "esd", "--help"], ["recover", "illusion", "--help"], ["cite", "fmn", "memora"]),
        *(["erase", "esdd"], ["erase", "esd", "--stpes", "3"], ["erase", "esd", "--steps", "0"]),
    ],
)
def test_what_needs_no_model_imports_no_torch(words: list[str]) -> None:
    script = (
        "import sys; from palimpsest.cli import main; main(sys.argv[1:]); "
        "sys.exit('torch.nn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, *words], check=False).returncode == 0


def test_no_file_of_a_method_a_judge_or_a_measure_loads_what_is_heavy() -> None:
    script = """if True:
        import sys
        from palimpsest.cli.tree import load_late
        from palimpsest.core.lazily import HEAVY, Late

        load_late()
        from palimpsest.erase import ERASERS
        from palimpsest.judge import JUDGES, MEASURES
        from palimpsest.recover import RECOVERIES

        for registry in (ERASERS, RECOVERIES, JUDGES, MEASURES):
            for name in registry:
                registry.load(name)
                for heavy in HEAVY:
                    assert type(sys.modules[heavy]) is Late, f"{name} loads {heavy}"
        import torch.nn.functional, diffusers, transformers

        print(type(torch).__name__, torch.nn.functional.relu(torch.tensor([-1.0, 2.0])).tolist())
        print(diffusers.DDIMScheduler.__name__, transformers.CLIPTokenizer.__name__)
        import scipy.stats, torch.fft, torch.utils.data

        print(scipy.stats.norm.cdf(0.0), torch.fft.__spec__.loader)
    """
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["module [0.0, 2.0]", "DDIMScheduler CLIPTokenizer"]
    assert done.stdout.split("\n")[2].startswith("0.5 <_frozen_importlib_external.Source")


def test_threads_that_ask_at_once_find_a_package_whole(tmp_path: Path) -> None:
    (tmp_path / "slowly.py").write_text("import time\ntime.sleep(0.3)\nwhole = 1\n")
    script = """if True:
        from concurrent.futures import ThreadPoolExecutor
        from palimpsest.core.lazily import lazily

        lazily("slowly")
        import slowly

        with ThreadPoolExecutor(8) as pool:
            print(sum(pool.map(lambda _: slowly.whole, range(8))), type(slowly).__name__)
    """
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == "8 module\n", done.stderr


@pytest.mark.parametrize("words", [["--help"], ["list"]])
def test_help_and_list_answer_in_under_a_second(words: list[str]) -> None:
    script = "import sys; from palimpsest.cli import main; sys.exit(main())"
    took = []
    for _ in range(3):  # the best of three: what else the machine does is not measured
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", script, *words], capture_output=True, check=True)
        took.append(time.perf_counter() - start)
    assert min(took) < 1


def test_importing_the_package_imports_no_torch() -> None:
    script = "import sys, palimpsest as p; dir(p); p.ERASERS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_package_offers_its_nouns() -> None:
    for name in ("Concept", "Prompt", "Patch", "Context", "load_model", "PalimpsestError"):
        assert name in dir(palimpsest)
        assert getattr(palimpsest, name).__name__ == name


# --- explains itself ---


@pytest.mark.parametrize(
    ("registry", "name"),
    [
        (registry, name)
        for registry in (VERBS, *GROUPS.values(), ERASERS, RECOVERIES)
        for name in registry.own
    ],
    ids=lambda value: value if isinstance(value, str) else value.noun,
)
def test_every_flag_is_documented(registry: Registry, name: str) -> None:
    kind = registry.load(name)
    assert not kind.__doc__.startswith(f"{kind.__name__}("), "the class has no docstring"
    for field in fields(kind):
        assert _docstrings.get_field_docstring(kind, field.name, ()), field.name


def test_list_names_every_method_and_concept(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    said = capsys.readouterr().out
    for name in (*ERASERS, *RECOVERIES, "parachute", "van gogh", "zuri okan", "hazard sign"):
        assert name in said


def commands() -> list[str]:
    """Every command that has flags, the methods' own included."""
    methods = {"erase": ERASERS, "recover": RECOVERIES}
    found = [name for name in VERBS if name not in (*methods, "clip", "llava")]
    found += [f"{verb} {name}" for verb, every in methods.items() for name in every.own]
    found += [f"{group} {name}" for group, every in GROUPS.items() for name in every]
    return [*found, "clip slug", "llava slug"]


@pytest.mark.parametrize("command", commands())
def test_help_ends_with_a_command_that_can_be_said(
    command: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is understood; what it names need not be there."""
    monkeypatch.chdir(tmp_path)
    assert run(*command.split(), "--help") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 110
    title, line = text.rstrip().splitlines()[-2:]
    assert title == "example:"
    assert line.startswith(f"  palimpsest {command}")
    said: list[tree.Call] = []
    monkeypatch.setattr(tree, "_run", lambda verb, call: said.append(call) or 0)
    assert run(*shlex.split(line)[1:]) == 0
    assert [call.words for call in said] == [tuple(shlex.split(line)[1:])]


def test_help_names_each_flag_once_under_what_it_is_about(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("erase", "esd", "--help") == 0
    text = capsys.readouterr().out
    heads = [line for line in text.splitlines() if line.startswith("  --")]
    assert max(map(len, text.splitlines())) <= 80
    flags = [line.split()[0].rstrip(",") for line in heads]
    assert len({*flags}) == len(flags)
    places = [text.index(f"\n{title}") for title in ("what", "the method", "latents:", "judging")]
    more = [text.index(f"\n{title}") for title in ("drawing", "where and how", "the model's files")]
    assert [*places, *more] == sorted([*places, *more])
    assert text.index("  --eta") < text.index("  --judge") < text.index("  --draw.steps")


@pytest.mark.parametrize("words", [[], ["erase"], ["recover"], ["world"], ["patch"]])
def test_what_there_is_fits_the_terminal(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert run(*words) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 72


def test_python_m_is_the_same_command() -> None:
    command = [sys.executable, "-m", "palimpsest", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("palimpsest ")


def test_a_methods_help_shows_its_preset_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("erase", "esd", "--help") == 0
    on_the_world = capsys.readouterr().out
    assert run("erase", "esd", "--preset", "published", "--help") == 0
    published = capsys.readouterr().out
    assert "(default: 1000)" in published  # Gandikota et al. 2023: 1000 steps
    assert "(default: 1000)" not in on_the_world


def test_a_list_of_numbers_may_have_commas() -> None:
    for words in (["--cuts", "50,100,150"], ["--cuts=50,100,150"], ["--cuts", "50", "100", "150"]):
        assert parse(Illusion, words, "recover").cuts == (50, 100, 150)
    method = parse(Illusion, ["--data.related", "a kite, a bird"], "x")
    assert method.data.related == ("a kite, a bird",)


def test_cite_prints_bibtex(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cite", "esd", "memora") == 0
    assert capsys.readouterr().out.count("@") == 2


# --- does what it says ---


def test_a_rerun_returns_at_once_and_changes_nothing(erased: Path, prompts: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in erased.rglob("*")}
    command = ("erase", "esd", "--concept", "parachute", "--runs", erased.parent)
    assert run(*command, "--prompts", prompts, *QUICK, "--judge", "world") == 0
    assert {path: path.stat().st_mtime_ns for path in erased.rglob("*")} == before


def test_the_record_holds_preset_command_and_resolved_arguments(erased: Path) -> None:
    record = Run.open(erased).record()
    assert record.preset == "world"
    assert record.command.startswith("palimpsest erase esd --concept parachute")
    assert record.arguments["steps"] == 4
    assert record.concept.anchor in ("balloon", "umbrella", "kite")
    assert {row.name for row in record.numbers} >= {"UA", "IRA", "CRA"}


def test_recover_stands_against_gold_and_takes_other_subjects_and_pictures(
    erased: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("recover", "memora", erased, *QUICK_RECOVERY) == 0
    assert "above gold" in capsys.readouterr().out
    control = ("--subject", "unedited", "--pictures", "plain")
    assert run("recover", "memora", erased, *control, *QUICK_RECOVERY) == 0
    records = [Run.open(folder).record() for folder in erased.parent.glob("memora-*")]
    assert {(r.subject, r.arm) for r in records} == {
        (erased.name, "published"),
        (Run.open(erased).record().gold, "published"),
        (None, "published"),
        (None, "plain"),
    }
    assert all([point.step for point in r.curve] == [0, 4] for r in records)


def test_look_with_names_the_clip_that_looks(erased: Path, capsys: pytest.CaptureFixture) -> None:
    """The world's own CLIP by its folder: another spec, and the same values."""
    clip = str(assets.clip())
    words = ("recover", "restoration", erased, "--measure.pictures", 2, "--look-with")
    assert run(*words, clip) == 0
    (folder,) = erased.parent.glob("restoration-*")
    shown = {n.name: n for n in Run.open(folder).record().numbers if "CLIP" in n.name}
    assert set(shown) == {"CLIP cosine, concept", "CLIP cosine, others"}
    assert Run.open(folder).record().clip.name == f"CLIP {clip}", "another CLIP, another run"
    assert all(n.spec.startswith(f"CLIP {clip} v1, 64 px") for n in shown.values())
    before = {n.name: n for n in Run.open(erased).record().baseline}
    for name, number in shown.items():  # restored to the bit, so the pictures are the original's
        assert before[name].spec.startswith("world CLIP")
        assert number.value == pytest.approx(before[name].value, abs=1e-6)
    there = {path.name for path in erased.parent.iterdir()}
    capsys.readouterr()
    for wrong, told in (
        ("no/where", "'no/where' is neither 'world', nor a Transformers folder"),
        (assets.stable_diffusion(), "Hub id of a CLIP"),
        (assets.llava(), "a model of type 'llava'; name a CLIPModel"),
    ):
        assert run(*words[:3], "--measure.pictures", 3, "--look-with", wrong) == 2
        assert told in capsys.readouterr().err
    assert {path.name for path in erased.parent.iterdir()} == there


def test_where_no_judge_looks_the_clip_named_does(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("erase", "uce", "--concept", "parachute", "--anchor", "balloon", "--judge", "none")
    assert run(*words, "--prompts", prompts, "--runs", tmp_path, "--draw.steps", 4) == 0
    (folder,) = tmp_path.glob("uce-*")
    words = ("recover", "benign", folder, "--data.source", "world", "--measure.by", "clip")
    words += ("--steps=1", "--pictures=2", "--unrelated=1", "--batch=1", "--lr", 1e-3)
    words += ("--measure.at", 0, 1, "--measure.pictures=2", "--data.steps=2")
    assert run(*words) == 2
    assert "no CLIP is at hand" in capsys.readouterr().err
    assert run(*words, "--look-with", assets.clip()) == 0
    record = Run.open(next(tmp_path.glob("benign-*"))).record()
    assert record.judge is None
    assert record.clip.name == f"CLIP {assets.clip()}", "another CLIP is another run"
    assert [test["step"] for test in record.notes["tests"]] == [0, 1]
    assert all(-1 <= test["CLIP cosine"] <= 1 for test in record.notes["tests"])
    assert {n.name for n in record.numbers} == {"CLIP cosine, concept", "CLIP cosine, others"}


def test_an_erasure_is_compared_with_gold(erased: Path) -> None:
    record = Run.open(erased).record()
    gold = Run.open(erased.parent / record.gold).record()
    assert gold.method == "gold"
    shown = {row.name: row.value for row in gold.numbers}
    assert shown["UA"] >= 0.95, "gold does not know the concept"
    distances = {row.name: row.value for row in record.numbers if "gold" in row.name}
    assert set(distances) == {"world-FID to gold, others", "world-FID to gold, concept"}
    assert all(value > 0 for value in distances.values())
    assert not any("to gold" in row.name for row in gold.numbers)


def test_gold_is_refused_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("erase", "gold", "--concept", "church") == 2
    said = capsys.readouterr().err
    assert "no gold model without 'church'" in said
    assert "parachute" in said
    assert "world train --part unet --without 'church'" in said
    assert run("erase", "gold", "--concept", "parachute", "--file", tmp_path / "absent") == 2
    assert "absent: no such file" in capsys.readouterr().err
    assert not files(tmp_path), "refused before any picture was made"


def test_judging_again_gives_the_same_numbers(
    erased: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Run.open(erased).record().numbers
    assert run("judge", erased) == 0
    assert "UA" in capsys.readouterr().out
    assert Run.open(erased).record().numbers == before


def test_a_dry_run_says_what_and_how_long_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("erase", "esd", "--concept", "church", "--runs", tmp_path / "r", "--dry-run") == 0
    said = capsys.readouterr().out
    for word in ("parameters that move", "entries in", "evaluations", "time", "memory", "steps"):
        assert word in said
    assert not files(tmp_path)
    assert not (tmp_path / "r").exists()


def test_a_dry_run_of_a_recovery_counts_all_its_subjects(
    erased: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {path.name for path in erased.parent.iterdir()}
    assert run("recover", "memora", erased, "--dry-run") == 0
    assert "with gradient, 3 times: on erased, gold, unedited" in capsys.readouterr().out
    assert run("recover", "restoration", erased, "--dry-run") == 0
    assert "3 times" not in capsys.readouterr().out, "nothing else wears the patch"
    assert {path.name for path in erased.parent.iterdir()} == there


def test_generate_writes_pictures_a_sheet_and_the_prompts(tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    assert run("generate", "a photo of a cat", "a fish", "--n", 2, "--out", out) == 0
    assert len(files(out)) == 4 + 2
    assert Image.open(out / "grid.png").size == (2 * 66 - 2, 2 * 66 - 2)
    rows = list(csv.DictReader((out / "prompts.csv").open()))
    assert [row["prompt"] for row in rows] == ["a photo of a cat", "a fish"]
    assert run("generate", "a cat", "--out", out) == 2  # not without --force
    assert len(files(out)) == 4 + 2


def test_pictures_to_train_on_are_captioned_and_read_back(tmp_path: Path) -> None:
    out = tmp_path / "cats"
    words = ("generate", "--concept", "cat", "--n", 2, "--seed", 7, "--for-training", "--out", out)
    assert run(*words) == 0
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert files(out) == {"metadata.jsonl", *(row["file_name"] for row in rows)}
    captions = [s for s in suite.concept("cat").sentences for _ in range(2)]
    assert [row["text"] for row in rows] == captions
    assert {(row["seed"], row["guidance"], row["model"]) for row in rows} == {(7, 3.0, "world")}
    assert {row["sampling"] for row in rows} == {"DDIM 20 steps, guidance 3"}
    assert len({row["index"] for row in rows}) == len(rows), "no two start from the same noise"
    world = palimpsest.load_model("world")
    assert {row["identity"] for row in rows} == {world.identity}
    read = read_pairs(out, 64, strict=True)
    images = read.floats
    assert read.texts == tuple(captions)
    last = palimpsest.Prompt(captions[-1], 7, index=len(rows) - 1)
    assert (world.generate([last])[0] - images[-1]).abs().max() <= 1 / 255
    assert torch.equal(read_folder(out, 64)[0], images)
    assert run(*words, "--force") == 2, "it may hold nothing else"


def test_pictures_of_a_concept_without_training(tmp_path: Path) -> None:
    words = ("generate", "--concept", "dragon", "--kind", "hazard", "--out", tmp_path / "out")
    assert run(*words) == 0
    with (tmp_path / "out" / "prompts.csv").open() as file:
        said = [row["prompt"] for row in csv.DictReader(file)]
    assert said == ["a picture of a dragon", "a dragon", "dragon"]
    assert run("generate", "a cat", "--concept", "cat", "--out", tmp_path / "both") == 2
    assert run("generate", "--concept", "dragon", "--out", tmp_path / "unknown") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_patch_is_shown_and_exported(
    erased: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("patch", "show", erased) == 0
    said = capsys.readouterr().out
    patch = Patch.load(erased / "patch.safetensors")
    assert patch.digest()[:16] in said
    assert "esd" in said
    exact = ("--dtype", "float32")  # the world itself is stored in half precision
    assert run("patch", "export", erased, "--out", tmp_path / "folder", *exact) == 0
    model, base = palimpsest.load_model(str(tmp_path / "folder")), palimpsest.load_model("world")
    with base.patched(patch):
        for name, ours in model.parameters("full").items():
            assert torch.equal(ours, base.parameters("full")[name]), name


def test_a_report_is_written_beside_the_runs(erased: Path) -> None:
    assert run("report", erased.parent) == 0
    assert "<html" in (erased.parent / "report.html").read_text()


def test_world_show_draws_a_sheet(tmp_path: Path) -> None:
    assert run("world", "show", "--out", tmp_path / "world.png") == 0
    assert Image.open(tmp_path / "world.png").width > 64 * 8


def test_plain_progress_speaks_seldom(capsys: pytest.CaptureFixture[str]) -> None:
    from palimpsest.core.bars import Lines

    with Lines().task("work", 1000) as task:
        for _ in range(1000):
            task.advance()
    assert capsys.readouterr().err == ""


def test_output_cut_short_is_no_error() -> None:
    script = "import sys; from palimpsest.cli import main; sys.exit(main())"
    command = f"{sys.executable} -c '{script}' list | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_run_records_are_plain_json(erased: Path) -> None:
    text = (erased / "run.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["kind"] == "erase"


@pytest.mark.parametrize("name", ["AC/DC", "../x"])
def test_a_name_that_is_a_path_has_one_folder_and_its_recoveries_beside_it(
    name: str, prompts: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "deep" / "runs"
    words = ("--judge", "none", "--prompts", prompts, "--runs", runs, "--draw.steps", 1)
    assert run("erase", "uce", "--concept", name, "--anchor", "balloon", *words) == 0
    (erased,) = runs.glob("uce-*")
    recover = ("recover", "restoration", erased, "--measure.pictures", 1, "--draw.steps", 1)
    assert run(*recover) == 0
    made = {Run.open(path).record().kind: path for path in runs.iterdir() if path.is_dir()}
    assert set(made) == {"erase", "recover", "original"}
    for path in (made["erase"], made["recover"]):
        assert [c.name for c in Run.open(path).record().concepts] == [name]
    assert {path.name for path in tmp_path.iterdir()} == {"deep"}
    assert {path.name for path in runs.parent.iterdir()} == {"runs"}
    assert all((path / "run.json").is_file() for path in runs.iterdir() if path.is_dir())
    with_report = tmp_path / "report.html"
    assert run("report", *made.values(), "--out", with_report) == 0
    assert name in with_report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "verb", ["erase uce --concept parachute", "generate a_cat", "judge", "demo"]
)
def test_a_device_that_is_not_here_is_one_sentence(
    verb: str, erased: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*verb.split(), *([str(erased)] if verb == "judge" else [])]
    place = {"erase": ["--runs"], "demo": ["--runs"], "generate": ["--out"]}.get(words[0], [])
    for device in ("gpu", "cuda:99", "meta", ""):
        assert run(*words, "--device", device, *(f"{x}={tmp_path / 'o'}" for x in place)) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"the device {device!r} cannot be used here" in said
    assert not (tmp_path / "o").exists()


def test_a_run_on_any_device_records_the_one_that_was_taken(prompts: Path, tmp_path: Path) -> None:
    command = ("erase", "uce", "--concept", "parachute", "--prompts", prompts, "--force")
    assert run(*command, "--device", "auto", "--runs", tmp_path, "--draw.steps", 1) == 0
    (folder,) = tmp_path.glob("uce-*")
    taken = usable("auto")
    assert torch.device(Run.open(folder).record().device).type == torch.device(taken).type
    assert Classifier.load(assets.judge(), "auto").device == taken


@pytest.mark.parametrize(
    ("cuda", "mps", "taken"), [(1, 1, "cuda"), (1, 0, "cuda"), (0, 1, "mps"), (0, 0, "cpu")]
)
def test_any_device_is_the_fastest_that_is_here(
    cuda: int, mps: int, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert usable("auto") == taken
