"""Which files make a model, which are refused, and by what name; nothing is ever downloaded."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import ldm
import pytest
import sdxl
import torch
from safetensors.torch import load_file, save_file

from palimpsest.cli import main
from palimpsest.core.errors import PalimpsestError
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.families.sd import StableDiffusion
from palimpsest.models.families.sdxl import StableDiffusionXL
from palimpsest.models.loading import WORLD, load_model
from palimpsest.patch import Patch
from palimpsest.runs.folder import Run
from palimpsest.world import assets

PATCH = "patch.safetensors"


@pytest.fixture(scope="module")
def model() -> Diffusion:
    return sdxl.load()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the small model's folder."""
    return shutil.copytree(sdxl.folder(), tmp_path / "model")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache of the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache: Path, folder: Path, name: str, revision: str = "main", at: str = "a") -> None:
    """Put a folder where the Hub's client keeps what it has downloaded."""
    home, commit = cache / ("models--" + name.replace("/", "--")), at * 40
    shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / revision).write_text(commit)


def refused(name: object, told: str, **files: str) -> None:
    with pytest.raises(PalimpsestError, match=told) as refusal:
        load_model(str(name), **files)
    assert "\n" not in str(refusal.value)


def changed(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# --- a single file ---


def test_a_single_file_is_read_with_the_configuration_of_its_base(model, tmp_path: Path):
    ldm.write(sdxl.pipeline(), tmp_path / "xl.safetensors")
    read = load_model(str(tmp_path / "xl.safetensors"), base=str(sdxl.folder()))
    assert isinstance(read, StableDiffusionXL)
    assert (read.identity, bool(read.empty().parts["pooled"].any())) == (model.identity, False)
    ours, theirs = (m.with_sampling(WORLD).generate(["a cat"]) for m in (read, model))
    assert torch.allclose(ours, theirs, atol=1e-5)
    world = load_model("world")
    ldm.write(world.pipeline(), tmp_path / "world.safetensors")
    read = load_model(str(tmp_path / "world.safetensors"), base="world")
    assert isinstance(read, StableDiffusion)
    assert read.identity == world.identity != model.identity


def test_a_single_file_asks_for_a_base_that_is_here(model, tmp_path: Path, cache: Path):
    file = tmp_path / "xl.safetensors"
    refused(file, "no such file", base="world")
    ldm.write(sdxl.pipeline(), file)
    refused(file, "a single file holds weights alone; name with --base")
    refused(file, "--base some/where: neither a Diffusers folder nor", base="some/where")
    refused(file, "name the --base that it was made with", base="world")  # another family
    refused(tmp_path / "x.ckpt", "no such file")
    (tmp_path / "x.ckpt").touch()
    refused(tmp_path / "x.ckpt", "no weights can be read from it", base=str(sdxl.folder()))
    refused("clip:world", "no text-to-image model", base="world")
    cached(cache, sdxl.folder(), "some/where")
    assert load_model(str(file), base="some/where").identity == model.identity


# --- the Hub ---


def test_a_revision_of_the_hub_is_that_one(model, folder: Path, cache: Path):
    cached(cache, sdxl.folder(), "some/xl")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: t + 1 for name, t in load_file(weights).items()}, weights)
    cached(cache, folder, "some/xl", "other", at="b")
    assert load_model("some/xl").identity == model.identity
    moved = load_model("some/xl", revision="other")
    name = "unet.conv_in.weight"
    assert torch.equal(moved.weight(name), model.weight(name) + 1)
    refused("some/xl", "can be loaded here", revision="third")
    refused("another/xl", "neither 'world', nor a Diffusers folder")


OTHERS = ("StableDiffusion3Pipeline", "FluxPipeline", "StableDiffusionXLInpaintPipeline")


@pytest.mark.parametrize("kind", OTHERS)
def test_another_family_is_refused_by_its_name_before_its_weights(
    kind: str, tmp_path: Path, cache: Path
):
    """There is nothing but the index, neither in the folder nor in the cache."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    cached(cache, tmp_path / "other", "some/other")
    for name in (tmp_path / "other", "some/other"):
        refused(name, f"other: a {kind}, which no family is made of; there are StableDiff")


@pytest.mark.parametrize("family", [sdxl.folder, assets.stable_diffusion])
def test_a_unet_that_reads_a_picture_is_refused_before_its_weights(
    family, tmp_path: Path, cache: Path
):
    for file in ("model_index.json", "unet/config.json"):
        (tmp_path / "m" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(family() / file, tmp_path / "m" / file)
    changed(tmp_path / "m" / "unet" / "config.json", in_channels=9)
    cached(cache, tmp_path / "m", "some/inpainting")
    for name in (tmp_path / "m", "some/inpainting"):
        refused(name, "a U-Net of 9 channels in and 4 out, which reads a picture beside")
    changed(tmp_path / "m" / "model_index.json", text_encoder=[None, None])
    refused(tmp_path / "m", "a StableDiffusion(XL)?Pipeline without text_encoder")


def test_what_is_no_folder_of_diffusers_is_refused(tmp_path: Path):
    refused(tmp_path, "no model_index.json, so not a Diffusers folder")


# --- which files of a folder ---


def test_a_variant_is_read_by_its_name(model, tmp_path: Path):
    made = sdxl.pipeline(seed=1)
    made.to(torch.float16)
    made.save_pretrained(tmp_path, variant="fp16")
    read = load_model(str(tmp_path), variant="fp16", dtype="float16")
    weights = load_file(tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(read.weight("unet.conv_in.weight"), weights["conv_in.weight"])
    alone = load_model(str(tmp_path), dtype="float16")  # there is no other
    assert alone.identity == read.identity
    refused(sdxl.folder(), "variant", variant="fp16")


def pickled(folder: Path) -> Path:
    """Make pickles of a folder's weights."""
    for file in folder.glob("*/*.safetensors"):
        name = "pytorch_model.bin" if file.name == "model.safetensors" else f"{file.stem}.bin"
        torch.save(load_file(file), file.with_name(name))
        file.unlink()
    return folder


class Code:
    """What makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self):
        return Path.touch, (self.made,)


@pytest.mark.parametrize("part", ["unet", "text_encoder_2"])
def test_pickles_are_read_as_tensors_alone(model, folder: Path, tmp_path: Path, part: str):
    assert load_model(str(pickled(folder))).identity == model.identity
    (file,) = (folder / part).glob("*.bin")
    file.write_bytes(pickle.dumps(Code(tmp_path / "made")))
    refused(folder, "can be loaded here")
    assert not (tmp_path / "made").exists()
    pickle.loads(file.read_bytes())  # noqa: S301 - that it would have made a file
    assert (tmp_path / "made").exists()
    shutil.copytree(sdxl.folder(), folder, dirs_exist_ok=True)
    assert load_model(str(folder)).identity == model.identity, "safetensors come first"


# --- the command line ---


def test_a_run_of_a_single_file_remembers_its_base(tmp_path: Path, capsys):
    file, runs = tmp_path / "xl.safetensors", tmp_path / "runs"
    ldm.write(sdxl.pipeline(), file)
    (tmp_path / "asked.csv").write_text("prompt,evaluation_seed\na photo of a cat,1\n")
    words = ["erase", "uce", "--concept", "cat", "--model", str(file), "--runs", str(runs)]
    words += ["--draw.steps", "2", "--prompts", str(tmp_path / "asked.csv")]
    assert main(words) == 2
    assert "name with --base a Diffusers folder" in " ".join(capsys.readouterr().err.split())
    assert not runs.exists()
    words += ["--base", str(sdxl.folder()), "--draw.empty", "text"]
    assert main(words) == 0
    (folder,) = runs.glob("uce-*")
    record = Run.open(folder).record()
    assert record.model.files == {"base": str(sdxl.folder())}
    assert record.model.sampling.endswith("∅ as text")
    assert (record.drawn.empty, record.drawn.steps) == ("text", 2)
    assert main(["patch", "export", str(folder), "--out", str(tmp_path / "out")]) == 0
    edited = load_model(str(tmp_path / "out"))
    before, after = load_model(str(file), base=str(sdxl.folder())), Patch.load(folder / PATCH)
    with before.patched(after):
        assert all(torch.equal(p, edited.weight(n)) for n, p in before._parameters.items())


def test_flags_of_files_reach_the_loader(tmp_path: Path, capsys):
    words = ["generate", "a cat", "--out", str(tmp_path / "out"), "--model", str(sdxl.folder())]
    assert main([*words, "--variant", "fp16"]) == 2
    assert "variant" in capsys.readouterr().err
    told = ["erase", "slug", "--concept", "cat", "--model", "clip:world", "--variant", "fp16"]
    assert main([*told, "--runs", str(tmp_path / "runs")]) == 2
    assert "takes no variant or base" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
