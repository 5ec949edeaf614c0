"""Runs and patches of format 1 and 2, as they were once written: they open ever after.

What each fixture is, and the command that made it, stands in fixtures/README.md.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from palimpsest import Patch
from palimpsest.cli import main
from palimpsest.models.loading import load_clip, load_llava
from palimpsest.report import write_report
from palimpsest.runs.folder import Run

FIXTURES = Path(__file__).parent / "fixtures"
RUNS = FIXTURES / "runs"
SPM, NEGATIVE = "spm-church-c002e18f", "negative_prompt-church-223a366e"
ORIGINAL = "original-270e9b45"
MEMORA = "memora-church-on-spm-678cfdfc"
INVERSION = "concept_inversion-church-on-spm-4e63f007"
ATTACK = "unlearn_diff_atk-church-on-spm-992d988b"
CLIP, LLAVA = "clip/slug-church-e477fd08", "llava/slug-church-24b39d05"
THEMED = ("themes/object-world_unedited-d4b9795d", "themes/object-spm-church-c002e18f-804948e0")
FOUND = ["truck an style a picture of a church", "fortress mosaic picture a church"]

NUMBERS = {
    SPM: ("UA", 0.5, 2),
    NEGATIVE: ("CLIP cosine, concept", 0.56698, 2),
    MEMORA: ("world-FID, others", 0.26877, 2),
    INVERSION: ("Concept shown", 0.0, 2),
    ATTACK: ("Concept shown", 0.0, 2),
    CLIP: ("membership inference", 0.50625, 32),
    LLAVA: ("others named", 22 / 23, 23),
    THEMED[0]: ("accuracy", 1.0, 2),
    THEMED[1]: ("accuracy", 0.5, 2),
}
"""One of each run's numbers, as it was printed when the run was made: value and n."""

EDITS = ("dense", "half", "low-rank", "replacement", "rows", "sum")
HOOKS = ("negative-words", "transport", "two-models")

Named = dict[str, torch.Tensor]


def numbers(run: Run, key: str = "numbers") -> dict[str, float]:
    return {row.name: row.value for row in getattr(run.record(), key)}


def told_again(new: Run, old: Run) -> dict[str, float]:
    """What a new run says of all that the old one said; another judge looks now, too."""
    return {name: value for name, value in numbers(new).items() if name in numbers(old)}


def every_run() -> list[Run]:
    return [Run.open(path.parent) for path in sorted(RUNS.rglob("run.json"))]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs in the working folder, as a person has them."""
    shutil.copytree(RUNS, tmp_path / "runs")
    shutil.copy(FIXTURES / "prompts.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


# --- runs ---


def test_there_is_a_finished_run_of_every_kind():
    kinds = Counter(run.record().kind for run in every_run())
    assert kinds == {"original": 1, "erase": 2, "recover": 3, "clip": 1, "llava": 1, "evaluate": 2}
    for run in every_run():
        record = run.record()
        assert run.done
        assert (record.format, record.model.name) == (1, "world")


def test_no_fixture_names_a_place_of_the_machine_it_was_made_on():
    for name, data in contents(FIXTURES).items():
        assert not re.search(rb"/(tmp|home|root|work|Users|mnt)/", data), name


@pytest.mark.parametrize("name", NUMBERS)
def test_a_run_says_what_it_said(name: str):
    title, value, n = NUMBERS[name]
    (row,) = [row for row in Run.open(RUNS / name).record().numbers if row.name == title]
    assert row.value == pytest.approx(value, abs=1e-5)
    assert row.n == n


@pytest.mark.parametrize("name", [ORIGINAL, *NUMBERS])
def test_the_rows_of_a_run_are_those_of_its_pictures(name: str):
    """A LLaVA's pictures stand in its answers, a CLIP has none."""
    run = Run.open(RUNS / name)
    rows = run.rows("images.jsonl") or run.rows("answers.jsonl")
    files = {f"images/{path.name}" for path in run.path("images").glob("*")}
    assert {row["file"] for row in rows} == files
    assert bool(files) == (run.record().kind != "clip")
    for file in files:
        assert Image.open(run.path(file)).size == (64, 64)
    if run.rows("images.jsonl"):
        scores = {row["file"]: row for row in run.rows("scores.jsonl")}
        assert scores.keys() == files
        assert all({"object", "style"} <= row["labels"].keys() for row in scores.values())


def test_what_recoveries_found_is_there():
    memora, inversion, attack = (Run.open(RUNS / name) for name in (MEMORA, INVERSION, ATTACK))
    assert [point.step for point in memora.record().curve] == [0, 20]
    assert [run.record().evaluations for run in (memora, inversion, attack)] == [80, 40, 12]
    assert load_file(inversion.path("vectors.safetensors"))["church"].shape == (4, 256)
    assert list(attack.record().found) == FOUND
    assert attack.record().queries == 8
    assert {run.record().subject for run in (memora, inversion, attack)} == {SPM}
    assert [row["loss"] for row in memora.rows("log.jsonl")]
    assert len(list(memora.path("training").iterdir())) == 2


def test_the_report_tells_every_run(tmp_path: Path):
    page = unescape(write_report([RUNS], tmp_path / "report.html").read_text())
    for run in every_run():
        assert run.name in page
        assert run.record().command in page
    for said in (*FOUND, "What is shown in this picture?", "others named, identity", "95.7"):
        assert said in page


@pytest.mark.parametrize("name", [SPM, NEGATIVE, MEMORA, ATTACK])
def test_a_run_is_judged_afresh_to_the_same_numbers(copied: Path, name: str):
    run = Run.open(copied / name)
    before, scores = run.record(), run.rows("scores.jsonl")
    run.path("scores.jsonl").unlink()
    run.update(numbers=(), baseline=())
    assert main(["judge", str(run.folder)]) == 0
    for key in ("numbers", "baseline"):
        was = {row.name: row.value for row in getattr(before, key)}
        assert numbers(run, key) == pytest.approx(was, abs=1e-3)
    labels = {row["file"]: row["labels"] for row in scores}
    assert {row["file"]: row["labels"] for row in run.rows("scores.jsonl")} == labels


def test_an_erasing_command_makes_a_run_of_the_new_format_beside_the_old_and_says_so(
    copied: Path, capsys: pytest.CaptureFixture[str]
):
    before, old = contents(copied), Run.open(copied / NEGATIVE)
    command = shlex.split(old.record().command)[1:]
    assert main(command) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "older format" in line]
    assert len(said) == 1
    assert NEGATIVE in said[0]
    (new,) = (Run(f) for f in copied.glob("negative_prompt-*") if f.name != NEGATIVE)
    assert new.name in said[0]
    assert new.record().format == 2
    assert new.record().original == ORIGINAL, "the unedited model's pictures are found again"
    assert told_again(new, old) == pytest.approx(numbers(old), abs=1e-3)
    before.pop(f"{ORIGINAL}/run.json")  # says now whose its scores are
    assert {name: contents(copied)[name] for name in before} == before, "nothing old was touched"
    made = contents(copied)
    assert main(command) == 0
    assert "older format" not in capsys.readouterr().err
    answers = {name for name in contents(copied) if "/again-" in name}  # not where one was warned
    assert {n: c for n, c in contents(copied).items() if n not in answers} == made, (
        "the new run is found again, and nothing computed"
    )


def test_an_evaluation_says_again_what_it_said_and_writes_its_page(copied: Path):
    runs = [Run.open(copied / name) for name in THEMED]
    before, records = contents(copied), [run.record() for run in runs]
    assert main(shlex.split(records[1].command)[1:]) == 0
    page = contents(copied)["themes/object.html"].decode()
    assert {name: contents(copied)[name] for name in before} == before, "nothing old was touched"
    for run, record in zip(runs, records, strict=True):
        title = run.name.rpartition("-")[0]
        (new,) = (Run(f) for f in (copied / "themes").glob(f"{title}-*") if f.name != run.name)
        assert told_again(new, run) == pytest.approx(numbers(run), abs=1e-3)
        assert new.record().by_concept[0].concept == record.by_concept[0].concept
    made = contents(copied)
    assert main(shlex.split(records[1].command)[1:]) == 0
    assert contents(copied) == made, "the new runs are found again, and nothing computed"
    assert "world, unedited" in page
    assert SPM in page


def recovered(copied: Path, *words: str) -> Run:
    """The run that a recovery makes."""
    before = set(copied.iterdir())
    assert main(["recover", *words]) == 0
    (folder,) = {path for path in copied.iterdir() if path.is_dir()} - before
    return Run.open(folder)


def test_a_run_is_the_subject_of_a_recovery(copied: Path):
    """Restoration takes the edit out: what the unedited model knew is back."""
    run = recovered(copied, "restoration", f"runs/{SPM}", "--measure.pictures", "2")
    assert run.record().subject == SPM
    assert run.record().original == ORIGINAL, "the unedited model's pictures are found again"
    unedited, erased = numbers(run, "baseline"), numbers(Run.open(copied / SPM))
    for key in ("UA", "IRA", "CRA"):
        assert numbers(run)[key] == unedited[key]
    assert numbers(run)["UA"] < erased["UA"]


def test_a_run_with_a_hook_is_the_subject_of_a_recovery(copied: Path):
    small = ("--subject", "erased", "--sampling.steps", "4", "--levels", "600", "--pictures", "2")
    run = recovered(copied, "noising", f"runs/{NEGATIVE}", *small)
    assert run.record().subject == NEGATIVE
    assert run.record().answers == 2
    assert numbers(run, "baseline")["Concept shown"] == 1


def test_a_recovered_run_is_evaluated_with_the_patch_of_its_subject_below(copied: Path):
    words = ("--concepts", "church", "--pictures", "1", "--out", "table.json")
    assert main(["evaluate", "object", f"runs/{MEMORA}", *words]) == 0
    (run,) = [Run.open(f) for f in (copied / "themes").iterdir() if f.name.startswith("object-mem")]
    digests = [Patch.load(copied / each / "patch.safetensors").digest() for each in (SPM, MEMORA)]
    assert list(run.record().patches) == digests
    assert run.record().erased == ("church",)


@pytest.mark.parametrize(("name", "load"), [(CLIP, load_clip), (LLAVA, load_llava)])
def test_the_patch_of_a_lesson_is_laid_over_its_model(name: str, load: Any):
    lesson, run = load("world"), Run.open(RUNS / name)
    patch = Patch.load(run.path("patch.safetensors"))
    assert patch.about["run"] == run.name
    assert patch.norm() == pytest.approx(run.record().edit_norm)
    (layer,) = patch.names
    before = lesson.weight(layer).clone()
    with lesson.patched(patch):
        moved = (lesson.weight(layer) - before).norm().item()
    assert moved == pytest.approx(patch.norm(), rel=1e-3)
    assert torch.equal(lesson.weight(layer), before)


# --- patches ---


def stored(name: str) -> tuple[dict[str, Any], Named]:
    """Manifest and tensors of a patch file, read without our own code."""
    with safe_open(FIXTURES / "patches" / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["palimpsest"]), tensors


def load(name: str) -> Patch:
    return Patch.load(FIXTURES / "patches" / f"{name}.safetensors")


def by_hand(base: torch.Tensor, name: str, tensors: Named) -> torch.Tensor:
    """W′ = R + Δ + up·down, and some rows moved."""
    own = {k.removeprefix(f"{name}|"): t for k, t in tensors.items() if k.startswith(f"{name}|")}
    out = own.get("replacement.value", base).clone()
    out += own.get("dense.delta", torch.zeros(()))
    if "lowrank.up" in own:
        out += (own["lowrank.up"] @ own["lowrank.down"]).reshape(out.shape)
    if "rows.index" in own:
        out[own["rows.index"].long()] += own["rows.delta"]
    return out


def test_there_is_a_patch_of_every_form():
    assert {p.stem for p in (FIXTURES / "patches").iterdir()} == {*EDITS, *HOOKS}
    kinds = {key.split("|")[1] for name in EDITS for key in stored(name)[1]}
    assert kinds == {
        *("dense.delta", "lowrank.up", "lowrank.down"),
        *("rows.index", "rows.delta", "replacement.value"),
    }
    assert [stored(name)[0]["hook"]["kind"] for name in HOOKS] == [*HOOKS]


@pytest.mark.parametrize("name", [*EDITS, *HOOKS])
def test_a_patch_is_whole_and_of_this_model(name: str, model, capsys):
    manifest, _ = stored(name)
    patch = load(name)
    assert manifest["format"] == (2 if name in HOOKS else 1)
    assert patch.digest() == manifest["digest"]
    assert dict(patch.base) == {n: model.fingerprint(n) for n in patch.names}
    part = patch.about["sum"][0] if name == "sum" else patch.about
    assert part["concepts"] == ["church"]
    assert part["arguments"]["form"] == ("dense" if name in ("half", "sum") else name)
    assert main(["patch", "show", str(FIXTURES / "patches" / f"{name}.safetensors")]) == 0
    assert manifest["digest"][:16] in capsys.readouterr().out


@pytest.mark.parametrize("name", [*EDITS, *HOOKS])
def test_a_patch_written_again_is_the_same(name: str, tmp_path: Path):
    load(name).save(tmp_path / "again.safetensors")
    assert Patch.load(tmp_path / "again.safetensors").digest() == load(name).digest()


@pytest.mark.parametrize("name", EDITS)
def test_a_patch_moves_weights_as_its_form_says_and_gives_them_back(name: str, model, weights):
    patch, (_, tensors) = load(name), stored(name)
    with model.patched(patch):
        moved = {n: model.weight(n).clone() for n in weights}
    assert {n for n, w in moved.items() if not torch.equal(w, weights[n])} == set(patch.names)
    for n in patch.names:
        assert torch.allclose(moved[n], by_hand(weights[n], n, tensors), atol=1e-5)
    assert all(torch.equal(model.weight(n), w) for n, w in weights.items())


@pytest.fixture
def drawn(model, weights) -> Iterator[dict[str, torch.Tensor]]:
    """Noise, and what the unedited model makes of it; afterwards it is as it was."""
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    cond = model.embed(["church"])
    with torch.no_grad():
        eps = model.eps(noise, torch.tensor(500), cond)
    sampled = model.sample(noise, cond, steps=2, guidance=3.0)
    yield {"noise": noise, "eps": eps, "sampled": sampled}
    assert torch.equal(model.sample(noise, cond, steps=2, guidance=3.0), sampled)
    assert all(torch.equal(model.weight(n), w) for n, w in weights.items())


def test_negative_words_are_where_guidance_starts(model, drawn: Named):
    with model.patched(load("negative-words")):
        start = model.unconditional().parts["hidden"]
        sampled = model.sample(drawn["noise"], model.embed(["church"]), steps=2, guidance=3.0)
    assert torch.equal(start, model.rows(["church, chapel"]))
    assert not torch.allclose(sampled, drawn["sampled"], atol=1e-2)


def opened(tensors: Named, scales: torch.Tensor) -> Patch:
    """The adapters of a hook's file as shifts of weights, open to (K,) scales."""
    names = [key.removeprefix("hook|up.") for key in tensors if key.startswith("hook|up.")]
    ups, downs = ({n: tensors[f"hook|{side}.{n}"] for n in names} for side in ("up", "down"))
    shapes = {n: (96, 256) if n.endswith("to_k.weight") else (64, 4, 3, 3) for n in names}
    return Patch.dense({n: ((ups[n] * scales) @ downs[n]).reshape(shapes[n]) for n in names})


def test_a_prompt_opens_the_adapters_of_transport(model, drawn: Named):
    """Its own concept's wholly, that of another as far as the embeddings are alike."""
    patch, (_, tensors) = load("transport"), stored("transport")
    cond, t = model.embed(["church"]), torch.tensor(500)
    own, other = tensors["hook|hidden"].flatten(1)
    scales = torch.tensor([1.0, float(torch.cosine_similarity(own, other, 0))])
    assert scales[1] < 0.99
    with model.patched(patch), torch.no_grad():
        eps = model.eps(drawn["noise"], t, cond)
    with model.patched(opened(tensors, scales)), torch.no_grad():
        assert torch.allclose(eps, model.eps(drawn["noise"], t, cond), atol=1e-3)
    assert not torch.allclose(eps, drawn["eps"], atol=1e-2)


def test_two_models_are_guided_apart(model, drawn: Named):
    """ε̂ = w·ε(with the adapters) + (1 − w)·ε(without), w = 2.5."""
    patch, (_, tensors) = load("two-models"), stored("two-models")
    cond, t = model.embed(["church"]), torch.tensor(500)
    with model.patched(patch), torch.no_grad():
        eps = model.eps(drawn["noise"], t, cond)
    with model.patched(opened(tensors, torch.ones(2))), torch.no_grad():
        with_adapters = model.eps(drawn["noise"], t, cond)
    assert torch.allclose(eps, 2.5 * with_adapters - 1.5 * drawn["eps"], atol=1e-3)
    assert not torch.allclose(eps, with_adapters, atol=1e-2)
