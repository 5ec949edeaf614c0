"""`palimpsest patch`: what a person sees of patches, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from test_export import ATTENTION, dense, low_rank, word_rows

from palimpsest.cli import main
from palimpsest.cli.patch.show import layer_group
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def files(model: Diffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a: low-rank. b: dense. twin: half of a, so that the two point the same way. row: a word."""
    folder = tmp_path_factory.mktemp("patches")
    made = {
        "a": low_rank(model, ATTENTION),
        "b": dense(model, ATTENTION[4:6]),
        "twin": low_rank(model, ATTENTION).scaled(0.5),
        "row": word_rows(model),
    }
    for name, patch in made.items():
        about = {"method": "esd", "concepts": ["parachute"], **patch.about, "versions": {"x": "1"}}
        Patch(patch.edits, patch.base, about).save(folder / f"{name}.safetensors")
    return folder


def run(*words: object) -> int:
    return main([str(word) for word in words])


# --- show ---


def test_show_explains_a_patch(files: Path, capsys: Said):
    patch = Patch.load(files / "a.safetensors")
    assert run("patch", "show", files / "a.safetensors") == 0
    said = capsys.readouterr().out
    assert re.search(r"^method +esd$", said, re.M)
    assert re.search(r'^concepts +\["parachute"\]$', said, re.M)
    assert "versions" not in said
    assert "U-Net, cross-attention k, v" in said
    assert "low-rank (rank 3)" in said
    assert patch.digest()[:16] in said
    assert re.search(r"base of unet: [0-9a-f]{16} over 8 of 8 tensors", said)
    assert ATTENTION[0] not in said
    (whole,) = re.findall(r"^ *all +8 .*$", said, re.M)
    assert f"{patch.norm():.4g}" in whole
    assert "100 %" in whole
    assert run("patch", "show", files / "a.safetensors", "--tensors") == 0
    assert patch.base[ATTENTION[0]] in capsys.readouterr().out


def test_show_tells_the_parts_of_a_merged_patch(files: Path, tmp_path: Path, capsys: Said):
    merged = tmp_path / "m.safetensors"
    names = [files / f"{name}.safetensors" for name in ("a", "row", "b")]
    assert run("patch", "merge", *names, "--scale", 0.5, 1, 1, "--out", merged) == 0
    capsys.readouterr()
    assert run("patch", "show", merged) == 0
    said = capsys.readouterr().out
    assert "part 3 of 3" in said
    assert re.search(r"^  scaled +0\.5$", said, re.M)
    assert said.count("esd") == 3
    assert "text encoder, token embeddings" in said


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", "k, v"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias", "q, out"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight", "self-attention"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.norm1.bias", "feed-forward"),
        ("unet.mid_block.attentions.0.proj_in.weight", "feed-forward"),
        ("unet.down_blocks.0.resnets.0.conv1.weight", "convolutions"),
        ("text_encoder.embeddings.token_embedding.weight", "token embeddings"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj.weight", "text encoder, attention"),
        ("text_encoder.encoder.layers.0.mlp.fc1.weight", "the rest"),
        ("vae.decoder.conv_in.weight", "vae"),
    ],
)
def test_every_parameter_has_a_group_of_layers(name: str, group: str):
    assert group in layer_group(name)


# --- merge and diff ---


def test_merging_adds_up_and_warns_with_numbers(files: Path, tmp_path: Path, capsys: Said):
    a, b, twin = (files / f"{name}.safetensors" for name in ("a", "b", "twin"))
    assert run("patch", "merge", a, b, "--out", tmp_path / "ab.safetensors") == 0
    assert capsys.readouterr().err == ""  # random shifts: hardly a common direction
    merged = Patch.load(tmp_path / "ab.safetensors")
    assert merged.digest() == (Patch.load(a) + Patch.load(b)).digest()
    assert run("patch", "merge", a, twin, "--out", tmp_path / "twins.safetensors") == 0
    said = capsys.readouterr().err
    assert "a.safetensors and twin.safetensors overlap in 8 parameters" in said
    assert "100% and 100% of their energy (cosine 1.00)" in said


def test_merging_takes_out_what_a_negative_scale_names(files: Path, tmp_path: Path):
    a, twin = files / "a.safetensors", files / "twin.safetensors"
    out = tmp_path / "none.safetensors"
    assert run("patch", "merge", a, twin, "--scale", 1, -2, "--out", out) == 0
    for (edit,) in Patch.load(out).edits.values():
        assert (edit.up @ edit.down).abs().max() < 1e-6


def test_diff_compares_and_writes_the_difference(files: Path, tmp_path: Path, capsys: Said):
    a, twin, out = files / "a.safetensors", files / "twin.safetensors", tmp_path / "d.safetensors"
    assert run("patch", "diff", a, twin, "--out", out) == 0
    (whole,) = re.findall(r"^ *all .*$", capsys.readouterr().out, re.M)
    norm = Patch.load(a).norm()
    # twin = a/2: the cosine is 1, and the difference is twin again
    cells = ["all", "8 / 8 (8)", f"{norm:.4g} / {norm / 2:.4g}", "1", f"{norm / 2:.4g}"]
    assert re.split(r" {2,}", whole.strip()) == cells
    assert run("patch", "diff", a, a) == 0
    assert "the very same tensors" in capsys.readouterr().out


# --- export and import ---


def test_a_lora_goes_out_and_comes_back(files: Path, tmp_path: Path, capsys: Said):
    out, back = tmp_path / "lora", tmp_path / "back.safetensors"
    assert run("patch", "export", files / "b.safetensors", "--out", out) == 0
    assert (out / "model_index.json").is_file()
    export = ("patch", "export", files / "b.safetensors", "--out", out, "--format", "lora")
    assert run(*export, "--rank", 8) == 2  # not empty
    assert run(*export, "--rank", 8, "--force") == 0
    lost = re.findall(r"misses (\d+\.\d)%", capsys.readouterr().err)
    assert run("patch", "import", out / "pytorch_lora_weights.safetensors", "--out", back) == 0
    missing = (Patch.load(files / "b.safetensors") - Patch.load(back)).edits
    energy = sum(
        float(
            sum(e.shift(torch.zeros(96, 256 if "attn2.to_k" in n else 96)) for e in es)
            .square()
            .sum()
        )
        for n, es in missing.items()
    )
    assert lost == [f"{100 * energy**0.5 / Patch.load(files / 'b.safetensors').norm():.1f}"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["merge", "a.safetensors", "--out", "o"], "two patches or more"),
        (
            ["merge", "a.safetensors", "b.safetensors", "--scale", "2", "--out", "o"],
            "1 factors for 2",
        ),
        (
            ["merge", "a.safetensors", "b.safetensors", "--out", "a.safetensors"],
            "exists; use --force",
        ),
        (["merge", "a.safetensors", "b.safetensors", "--out", "."], "a folder"),
        (["diff", "a.safetensors", "none.safetensors"], "no such file"),
        (["diff", "a.safetensors", "b.safetensors", "--out", "b.safetensors"], "exists"),
        (["import", "a.safetensors", "--out", "b.safetensors"], "exists"),
        (["import", "a.safetensors", "--out", "a.safetensors/o"], "is a file"),
        (["export", "a.safetensors", "--rank", "4", "--out", "o"], "--rank has no meaning"),
        (
            ["export", "a.safetensors", "--format", "unet", "--word", "x", "--out", "o"],
            "--word has",
        ),
        (["export", "a.safetensors", "--format", "lroa", "--out", "o"], "lora"),
    ],
)
def test_bad_input_is_one_sentence(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said, words: list[str], said: str
):
    monkeypatch.chdir(files)
    before = {path: path.stat().st_mtime_ns for path in files.rglob("*")}
    assert run("patch", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert {path: path.stat().st_mtime_ns for path in files.rglob("*")} == before
