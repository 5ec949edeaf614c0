"""Bad input: one clear sentence on stderr, exit code 2 (130 for Ctrl-C), nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from palimpsest.cli import main
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.erase import (
    FMN,
    SPM,
    SRSME,
    AdvUnlearn,
    ConceptAblation,
    EraseDiff,
    FMNCorrection,
    SalUn,
    ScissorHands,
)
from palimpsest.judge import references
from palimpsest.methods import Eraser, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.runs import images as gallery
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.record import ModelEntry
from palimpsest.runs.runner import Runner
from palimpsest.toolbox.checks import check_concepts
from palimpsest.toolbox.latents import Latents
from palimpsest.toolbox.pictures import Drawn
from palimpsest.world import suite
from palimpsest.world.render import render

QUICK = ("--steps", "3", "--latents.pictures", "2", "--latents.batch", "2")
SCRIPT = """
import resource, signal, sys
from palimpsest.cli import main
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
sys.exit(main())
"""
ONE = "prompt,object,style\nA parachute image in photo style.,parachute,photo\n"

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command line that must be refused; returns its one sentence."""

    def check(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        return one_sentence(capsys.readouterr().err)

    return check


PROGRESS = re.compile(r": \d+ of \d+(, .* left)?")
"""A line of a command that took long, as on a busy machine."""


def one_sentence(err: str) -> str:
    shown = [line for line in err.splitlines() if not PROGRESS.search(line)]
    said = [line for line in shown if "warning:" not in line]
    assert len(said) == 1, err
    assert said[0].startswith("palimpsest: ")
    assert "Traceback" not in err
    return said[0]


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def csv(folder: Path, text: str = ONE) -> Path:
    path = folder / "prompts.csv"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def world() -> Diffusion:
    return load_model("world")


@pytest.fixture(scope="module")
def deaf(world: Diffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's model with its cross-attention at zero: it hears no prompt."""
    weights = world.parameters("xattn-kv")
    patch = world.make_patch({name: -p for name, p in weights.items()}, {})
    folder = tmp_path_factory.mktemp("models") / "deaf"
    file = folder.with_suffix(".safetensors")
    patch.save(file)
    assert main(["patch", "export", str(file), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def unattentive(world: Diffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion whose U-Net has no attention at all."""
    unet = UNet2DConditionModel(
        sample_size=world.latents.shape[-1],
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        block_out_channels=(32,),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=world.text_encoder.config.hidden_size,
    )
    pipeline = StableDiffusionPipeline(
        vae=world.vae,
        text_encoder=world.text_encoder,
        tokenizer=world.tokenizer,
        unet=unet,
        scheduler=world.scheduler,  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("models") / "unattentive"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def patch_file(world: Diffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = world.parameters("xattn-kv")
    patch = world.make_patch({n: torch.full_like(p, 0.01) for n, p in weights.items()}, {})
    path = tmp_path_factory.mktemp("patches") / "patch.safetensors"
    patch.save(path)
    return path


# --- names ---


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["erasr"], "'erase'"),
        (["--versoin"], "'--version'"),
        (["erase", "edd"], "'esd'"),
        (["erase", "esd", "--concpet", "parachute"], "--concept"),
        (["erase", "esd", "--concept", "parachut"], "'parachute'"),
        (["erase", "esd", "--concept", "parachute", "--anchor", "baloon"], "'balloon'"),
        (["erase", "esd", "--concept", "parachute", "--preset", "wold"], "'world'"),
        (["erase", "esd", "--concept", "parachute", "--train", "xatn"], "'xattn'"),
        (["recover", "memorra"], "'memora'"),
        (["world", "shw"], "'show'"),
        (["world", "train", "--without", "parachut"], "'parachute'"),
        (["cite", "ecd"], "'esd'"),
    ],
    ids=" ".join,
)
def test_an_unknown_name_is_met_with_the_nearest(
    refused: Refused,
    words: list[str],
    meant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert meant in refused(*words)
    assert not tree(tmp_path)


@pytest.mark.parametrize("words", [["judge"], ["report"], ["cite"], ["recover", "memora"]])
def test_what_is_missing_is_named(refused: Refused, words: list[str]) -> None:
    assert "needs " in refused(*words)


def test_a_model_that_is_nowhere(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "model_index.json" in refused("generate", "a", "--model", tmp_path / "empty")
    assert "no such file" in refused("generate", "a", "--model", tmp_path / "no.safetensors")


@pytest.mark.parametrize("seed", ["1.5", "one", ""])
def test_a_seed_that_is_no_whole_number(refused: Refused, seed: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "--seed" in refused("generate", "a cat", "--seed", seed, "--out", out)
    path = csv(tmp_path, f"prompt,evaluation_seed\na cat,{seed or 'x'}\n")
    said = refused("generate", "--csv", path, "--out", out)
    assert "row 2" in said
    assert "whole number" in said
    assert not out.exists()


# --- prompts ---


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("text\na cat\n", "no column named 'prompt'"),
        ("prompt\n   \n\n", "holds no prompts (empty: row 2)"),
        ("prompt\n", "holds no prompts"),
        ("prompt,evaluation_guidance\na cat,much\n", "row 2"),
    ],
)
def test_a_csv_that_cannot_be_used(refused: Refused, text: str, told: str, tmp_path: Path) -> None:
    path, out = csv(tmp_path, text), tmp_path / "out"
    assert told in refused("generate", "--csv", path, "--out", out)
    runs = tmp_path / "runs"
    assert told in refused(
        "erase", "esd", "--concept", "parachute", "--prompts", path, "--runs", runs
    )
    assert tree(tmp_path) == {"prompts.csv"}


def test_a_csv_that_asks_for_a_class_the_judge_does_not_know(
    refused: Refused, tmp_path: Path
) -> None:
    path = csv(tmp_path, "prompt,object\na parachute,parachute\na ballon,ballon\n")
    words = ("erase", "uce", "--concept", "parachute", "--prompts", path, "--runs")
    told = refused(*words, tmp_path / "runs")
    assert "'a ballon'" in told
    assert "did you mean 'balloon'?" in told
    assert tree(tmp_path) == {"prompts.csv"}


@pytest.mark.parametrize(
    "flag",
    [("--seed", -1), ("--draw.guidance", "nan"), ("--draw.steps", 0), ("--draw.size", 7)],
    ids=str,
)
def test_a_picture_with_an_impossible_number(
    refused: Refused, flag: tuple[str, object], tmp_path: Path
) -> None:
    assert "must be" in refused("generate", "a cat", *flag, "--out", tmp_path / "out")
    assert not tree(tmp_path)


def test_prompts_over_the_window_are_cut_and_named(
    world: Diffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = " ".join(["cat"] * world.text.window)  # with begin and end two tokens too many
    kept = " ".join(["cat"] * (world.text.window - 2))
    path = csv(tmp_path, f"prompt\na cat\n{words}\n{kept}\n{words} fish\n")
    assert main(["generate", "--csv", str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert f"{path}, rows 3, 5: longer than" in said
    assert torch.equal(world.rows([words]), world.rows([kept]))


def test_prompts_that_never_ask_for_the_concept(refused: Refused, tmp_path: Path) -> None:
    path, runs = csv(tmp_path), tmp_path / "runs"
    said = refused("erase", "esd", "--concept", "fish", "--prompts", path, "--runs", runs)
    assert "no prompt asks for 'fish'" in said
    assert not list(runs.glob("esd-*"))


# --- concepts ---


def test_a_concept_whose_name_does_not_fit_the_window(
    refused: Refused, world: Diffusion, tmp_path: Path
) -> None:
    name = " ".join(["cat"] * world.text.window)
    runs = tmp_path / "runs"
    for method in ("esd", "uce", "rece"):
        said = refused("erase", method, "--concept", name, "--judge", "none", "--runs", runs)
        assert f"does not fit the model's window of {world.text.window} tokens" in said
    assert not list(tmp_path.glob("runs/*"))


def test_concepts_that_cannot_be_told_apart(world: Diffusion) -> None:
    fits = " ".join(["cat"] * (world.text.window - 2))
    check_concepts(world, [Concept("cat", anchor="dog"), Concept("cathedral"), Concept("black")])
    check_concepts(world, [Concept(fits)])
    for names in (["cat", "black cat"], ["Black Cat", "black cat"], ["black cat", "boat", "cat"]):
        with pytest.raises(PalimpsestError, match="contains"):
            check_concepts(world, [Concept(name) for name in names])
    for concept in (
        Concept("cat", anchor=f"{fits} cat"),
        Concept("cat", synonyms=(f"{fits} cat",)),
    ):
        with pytest.raises(PalimpsestError, match="does not fit"):
            check_concepts(world, [concept])


def test_words_beyond_the_window_have_no_tokens(world: Diffusion) -> None:
    prompt = " ".join(["cat"] * (world.text.window - 2))
    with pytest.raises(PalimpsestError, match="window of 16 tokens and is cut before 'boat'"):
        world.text.span(f"{prompt} boat", "boat")


@pytest.mark.parametrize(
    ("method", "concept", "told"),
    [
        (ConceptAblation(), Concept("parachute"), "no anchor"),
        (AdvUnlearn(retain="keep"), Concept("parachute"), "nothing to keep"),
        (AdvUnlearn(layers=99), Concept("parachute"), "layers is 99"),
        (EraseDiff(), Concept("parachute"), "nothing to keep"),
        (FMN(rank=500), Concept("parachute"), "rank is 500"),
        (FMN(templates=("a boat",)), Concept("parachute"), "does not contain 'parachute'"),
        (FMNCorrection(hold=True), Concept("parachute"), "no anchor"),
        (
            FMNCorrection(words="boat", templates=("a kite",)),
            Concept("parachute"),
            "does not contain 'boat'",
        ),
        (SalUn(), Concept("parachute"), "nothing to keep"),
        (ScissorHands(), Concept("parachute"), "nothing to keep"),
        (SPM(anchors="keep"), Concept("parachute"), "keeps nothing"),
        (SRSME(hold=("Parachute",)), Concept("parachute"), "the same prompt"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_method_refuses_before_a_picture_is_made(
    world: Diffusion, tmp_path: Path, method: Eraser, concept: Concept, told: str
) -> None:
    prompts = [Prompt("a parachute", asks={"object": "parachute"})]
    with pytest.raises(PalimpsestError, match=told):
        Runner(tmp_path, world).run(Task((concept,)), method, On(prompts), [])
    assert not list(tmp_path.rglob("*"))


def test_a_folder_of_pictures_is_looked_into_first(world: Diffusion, tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    for folder in (empty, broken):
        folder.mkdir()
    (broken / "a.png").write_text("no picture")
    runner, concept = Runner(tmp_path / "runs", world), Concept("parachute", keep=("a cat",))
    prompts = [Prompt("a parachute", asks={"object": "parachute"})]
    for method, told in (
        (FMN(drawn=Drawn(folder=empty)), "holds no picture"),
        (SalUn(forget=Drawn(folder=broken)), "a.png: cannot be read as a picture"),
        (SRSME(latents=Latents("noised", folder=tmp_path / "none")), "no such folder"),
    ):
        with pytest.raises(PalimpsestError, match=told):
            runner.run(Task((concept,)), method, On(prompts), [])
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_refusal_does_not_wait_for_gold(refused: Refused, tmp_path: Path, more) -> None:
    runs = tmp_path / "runs"
    said = refused(
        "erase", "srs_me", "--concept", "parachute", "--runs", runs, *more, "--hold", "Parachute"
    )
    assert "the same prompt" in said
    assert not runs.exists()


# --- the model and the edit ---


def test_a_concept_the_model_does_not_know(refused: Refused, deaf: Path, tmp_path: Path) -> None:
    command = ["erase", "esd", "--concept", "parachute", "--model", deaf, "--judge", "world"]
    command += ["--prompts", csv(tmp_path), "--runs", tmp_path / "runs", *QUICK]
    said = refused(*command)
    assert "hardly knows 'parachute'" in said
    assert "--force" in said
    assert not list(tmp_path.glob("runs/esd-*"))


def test_force_erases_what_the_model_does_not_know(deaf: Path, tmp_path: Path) -> None:
    command = ["erase", "esd", "--concept", "parachute", "--model", deaf, "--judge", "world"]
    command += ["--prompts", csv(tmp_path), "--runs", tmp_path / "runs", "--force", *QUICK]
    assert main([str(word) for word in command]) == 0


def test_an_empty_selection_of_parameters(
    refused: Refused, unattentive: Path, tmp_path: Path
) -> None:
    command = ["erase", "esd", "--concept", "parachute", "--model", unattentive]
    command += ["--prompts", csv(tmp_path), "--runs", tmp_path / "runs", *QUICK]
    assert "selects no parameter" in refused(*command)
    assert not list(tmp_path.glob("runs/esd-*"))


def test_an_edit_that_changes_nothing(refused: Refused, tmp_path: Path) -> None:
    command = ["erase", "esd", "--concept", "parachute", "--lr", "0", "--force", *QUICK]
    command += ["--prompts", csv(tmp_path), "--runs", tmp_path / "runs"]
    said = refused(*command)
    assert "changes no weight" in said
    assert not list(tmp_path.glob("runs/esd-*"))


# --- recoveries ---


def erasure(runs: Path, patch: Patch, model: str = "world") -> Path:
    """A finished erasing run of the church, as far as a recovery looks into it."""
    run = Run(runs / "esd-church-1")
    run.folder.mkdir(parents=True)
    run.update(
        kind="erase",
        status="done",
        concepts=(suite.concept("church", "house"),),
        judge=references.named("world judge"),
        clip=references.named("world CLIP"),
        model=ModelEntry(model, dtype="float32"),
        seed=0,
    )
    run.write_rows("images.jsonl", [gallery.row(suite.pair("church", "photo", 188))])
    patch.save(run.path("patch.safetensors"))
    return run.folder


def captioned(folder: Path, caption: str, shows: str) -> Path:
    """Two pictures of one thing, under any caption."""
    rows = []
    for seed in (1, 2):
        folder.mkdir(exist_ok=True)
        Image.fromarray(render(shows, "photo", seed)).save(folder / f"{seed}.png")
        rows.append(json.dumps({"file_name": f"{seed}.png", "text": caption}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows))
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["illusion", "--accuracy-threshold", "1.5"], "accuracy_threshold is 1.5"),
        (["illusion", "--clip-threshold", "31"], "must be below 1"),
        (["illusion", "--clip-margin", "-1"], "clip_margin is -1.0"),
        (["illusion", "--cuts", "10", "5"], "cut points must begin at 1 or more and increase"),
        (["memora", "--steps", "0"], "steps is 0"),
        (["benign", "--steps", "0"], "steps is 0"),
        (["concept_inversion", "--steps", "0"], "steps is 0"),
        (["unlearn_diff_atk", "--iterations", "0"], "iterations is 0"),
        (["p4d", "--steps", "0"], "steps is 0"),
        (["ring_a_bell", "--generations", "0"], "generations is 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_recoverys_setting_or_budget_out_of_range(
    refused: Refused, patch_file: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    run = erasure(tmp_path, Patch.load(patch_file))
    before = tree(tmp_path)
    assert told in refused("recover", words[0], run, *words[1:])
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("caption", "shows", "cut", "told"),
    [
        ("a kite", "kite", 9, "cut point 9 lies beyond the 2 pictures"),
        ("two Churches", "kite", 2, "names 'church', which was erased"),
        ("a kite", "church", 2, "shows 'church', which was erased, as the judge sees it"),
    ],
)
def test_a_curriculum_that_cannot_be_used(
    refused: Refused,
    patch_file: Path,
    tmp_path: Path,
    caption: str,
    shows: str,
    cut: int,
    told: str,
) -> None:
    run = erasure(tmp_path / "runs", Patch.load(patch_file))
    folder = captioned(tmp_path / "folder", caption, shows)
    words = ("--data.source", "folder", "--data.folder", folder, "--cuts", cut)
    assert told in refused("recover", "illusion", run, *words)
    assert not [name for name in tree(tmp_path) if "illusion" in name]


def test_a_recovery_of_what_the_unedited_model_does_not_know(
    refused: Refused, world: Diffusion, deaf: Path, tmp_path: Path
) -> None:
    bias = world.parameters("full")["unet.conv_in.bias"]
    patch = world.make_patch({"unet.conv_in.bias": torch.full_like(bias, 0.1)}, {})
    run = erasure(tmp_path, patch, str(deaf))
    said = refused("recover", "illusion", run, "--measure.pictures", 2)
    assert "hardly knows 'church'" in said
    assert not [name for name in tree(tmp_path) if "illusion" in name]


def test_a_recovery_from_a_patch_of_another_base_model(
    refused: Refused, deaf: Path, patch_file: Path, tmp_path: Path
) -> None:
    run = erasure(tmp_path, Patch.load(patch_file), str(deaf))
    before = tree(tmp_path)
    assert "another base model" in refused("recover", "memora", run)
    assert tree(tmp_path) == before


# --- patches ---


def test_a_patch_of_another_base_model(
    refused: Refused, deaf: Path, patch_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = refused("generate", "a cat", "--model", deaf, "--patch", patch_file, "--out", out)
    assert "another base model" in said
    said = refused("patch", "export", patch_file, "--model", deaf, "--out", out)
    assert "another base model" in said
    assert not tree(tmp_path)


def test_a_truncated_patch(refused: Refused, patch_file: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(patch_file.read_bytes()[:-100])
    assert "no weights can be read from it" in refused("patch", "show", short)
    short.write_bytes(patch_file.read_bytes()[:5])
    assert "no weights can be read from it" in refused("patch", "show", short)


def test_an_altered_patch(refused: Refused, patch_file: Path, tmp_path: Path) -> None:
    altered, data = tmp_path / "altered.safetensors", bytearray(patch_file.read_bytes())
    data[-1] ^= 1
    altered.write_bytes(data)
    out = tmp_path / "out"
    assert "altered" in refused("generate", "a cat", "--patch", altered, "--out", out)
    assert tree(tmp_path) == {"altered.safetensors"}


# --- places ---


def test_an_output_path_under_a_file(refused: Refused, tmp_path: Path) -> None:
    file = csv(tmp_path)
    under = file / "deeper"
    assert "--runs" in refused("erase", "esd", "--concept", "parachute", "--runs", under)
    assert "--runs" in refused("demo", "--runs", under)
    assert "--out" in refused("generate", "a cat", "--out", under)
    assert "cannot be written" in refused("world", "show", "--out", under / "world.png")
    assert tree(tmp_path) == {"prompts.csv"}


def child(*words: object, limit: int = -1) -> subprocess.Popen[str]:
    """The program in a process of its own, which may write files of at most `limit` bytes."""
    return subprocess.Popen(
        [sys.executable, "-B", "-c", SCRIPT, str(limit), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk_while_erasing(tmp_path: Path) -> None:
    command = ["erase", "esd", "--concept", "parachute", "--force", *QUICK]
    command += ["--prompts", csv(tmp_path), "--runs", tmp_path / "runs", "--draw.steps", 2]
    broken = child(*command, limit=30_000)  # pictures fit, a checkpoint does not
    _, err = broken.communicate()
    assert broken.returncode == 2
    assert "cannot be written" in one_sentence(err)
    assert not [name for name in tree(tmp_path) if ".part" in name]
    assert main([str(word) for word in command]) == 0  # with room it goes on


def test_a_full_disk_while_writing_pictures(tmp_path: Path) -> None:
    broken = child("generate", "a cat", "--out", tmp_path / "out", limit=200)
    _, err = broken.communicate()
    assert broken.returncode == 2
    assert "disk is full" in one_sentence(err)
    assert not tree(tmp_path)


def test_a_run_of_a_newer_format(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "esd-parachute-00000000"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"format": 99, "kind": "erase"}))
    for words in (["recover", "memora", folder], ["judge", folder], ["report", folder]):
        assert "newer Palimpsest" in refused(*words)
    assert tree(tmp_path) == {folder.name, f"{folder.name}/run.json"}


def test_what_is_no_run(refused: Refused, tmp_path: Path) -> None:
    assert "no run lies here" in refused("recover", "memora", tmp_path)
    assert not tree(tmp_path)


# --- Ctrl-C ---


@pytest.mark.slow
def test_stopped_and_run_again_equals_unbroken(tmp_path: Path) -> None:
    command = ["erase", "esd", "--concept", "parachute", "--prompts", csv(tmp_path)]
    command += ["--force", "--steps", "16", "--latents.pictures", "2", "--latents.batch", "2"]
    command += ["--no-gold", "--judge", "world", "--latents.steps", "20"]
    broken = child(*command, "--runs", tmp_path / "broken")
    stop_after(broken, tmp_path / "broken", steps=5)
    _, err = broken.communicate()
    assert broken.returncode == 130
    assert "run the same command" in one_sentence(err)
    names = tree(tmp_path / "broken")
    assert not [name for name in names if ".part" in name]
    assert not list((tmp_path / "broken").glob("esd-*/patch.safetensors"))
    assert [name for name in names if name.endswith(".checkpoint")]
    for folder in ("broken", "whole"):
        done = child(*command, "--runs", tmp_path / folder)
        _, err = done.communicate()
        assert done.returncode == 0, err
    digests = [Patch.load(patch_of(tmp_path / f)).digest() for f in ("broken", "whole")]
    assert digests[0] == digests[1]
    log = next((tmp_path / "broken").glob("esd-*/log.jsonl")).read_text()
    assert [int(step) for step in re.findall(r'"step": (\d+)', log)] == list(range(1, 17))
    shutil.rmtree(tmp_path / "broken")


def stop_after(process: subprocess.Popen[str], runs: Path, steps: int) -> None:
    """Press Ctrl-C once the log has so many lines."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        logs = list(runs.glob("esd-*/log.jsonl"))
        if logs and logs[0].read_text().count("\n") >= steps:
            process.send_signal(signal.SIGINT)
            return
        time.sleep(0.01)
    pytest.fail("it ended, or took too long, before it could be stopped")


def patch_of(runs: Path) -> Path:
    return next(runs.glob("esd-*/patch.safetensors"))
