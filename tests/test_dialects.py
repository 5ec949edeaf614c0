"""Edits under every name that people publish them by, with true key names, and the ways out.

The world's own weights, truly edited, stand in every file of a U-Net: whatever the dialect, the
patch must be that of the file by Diffusers' names, to the bit.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ldm
import pytest
import sdxl
import torch
from diffusers import (
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from pages import ROOT, fences
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from palimpsest.cli import main
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.erase.uce import UCE
from palimpsest.exchange import import_ as imports
from palimpsest.exchange.export import CHECKPOINT, FORMATS
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import load_model
from palimpsest.patch import Dense, LowRank, Patch
from palimpsest.patch.hooks import Transport
from palimpsest.world import assets, suite

State = dict[str, Tensor]
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
TO_K, TO_OUT = f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn1.to_out.0"
CONV = "down_blocks.1.resnets.0.conv1"
COMPVIS = "input_blocks_3_1_transformer_blocks_0"
"""The same block as CompVis numbers it, in a network of one layer a level."""


@pytest.fixture(scope="module")
def erased(model: Diffusion) -> Patch:
    """Parachute, erased from the world in closed form."""
    from palimpsest.methods import Context

    method = UCE(**UCE.presets["world"])
    return method(model, suite.concept("parachute", "balloon"), context=Context(seed=0)).patch


@pytest.fixture(scope="module")
def unet(model: Diffusion, erased: Patch) -> State:
    """The erased U-Net, by Diffusers' names."""
    with model.patched(erased):
        return {
            n: p.detach().clone(memory_format=torch.contiguous_format)
            for n, p in model.component("unet").named_parameters()
        }


@pytest.fixture(scope="module")
def plain(model: Diffusion, unet: State, tmp_path_factory: pytest.TempPathFactory) -> Patch:
    """The patch of the file by Diffusers' names."""
    path = tmp_path_factory.mktemp("plain") / "unet.safetensors"
    save_file(unet, path)
    return imports.read(path, model)


def same(found: Patch, wanted: Patch) -> None:
    assert found.edits.keys() == wanted.edits.keys()
    for name, (edit,) in wanted.edits.items():
        (own,) = found.edits[name]
        assert isinstance(own, Dense)
        assert isinstance(edit, Dense)
        assert torch.equal(own.delta, edit.delta), name


def compvis(state: State, before: str = "") -> State:
    """The world's U-Net by CompVis' names, by the tests' own map."""
    attends = lambda name: name.startswith(("up_blocks.0", "up_blocks.1"))  # noqa: E731
    return {before + ldm.of_unet(n, 1, attends(n)): t for n, t in state.items()}


def averages(state: State) -> State:
    """As CompVis' code keeps a running average: without dots."""
    named = compvis(state, "diffusion_model.")
    return {
        "model_ema." + n.replace("diffusion_model.", "diffusion_model").replace(".", ""): t
        for n, t in named.items()
    } | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}


def edited_only(state: State) -> State:
    return {n: t for n, t in state.items() if ".attn2.to_k." in n or ".attn2.to_v." in n}


class Callback:
    """What stands for Lightning's class while a file is written."""


def pickled_by_lightning(state: State, path: Path) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = ModuleType(name)
    Callback.__module__, Callback.__qualname__ = name, "ModelCheckpoint"
    module.ModelCheckpoint = Callback  # type: ignore[attr-defined]
    names = [name.rsplit(".", i)[0] for i in range(3)]
    sys.modules.update({each: module for each in names})
    try:
        held = {
            "epoch": 3,
            "global_step": 9,
            "state_dict": state,
            "callbacks": {Callback: Callback()},
        }
        torch.save({**held, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}]}, path)
    finally:
        for each in names:
            del sys.modules[each]


def saved(path: Path, value: Any, **how: Any) -> None:
    torch.save(value, path, **how)


def folder_of(path: Path, state: State, name: str) -> None:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    if name.endswith(".bin"):
        torch.save(state, path / name)
    else:
        save_file(state, path / name)


def shards(path: Path, state: State) -> None:
    names = sorted(state)
    for i, some in enumerate((names[::2], names[1::2])):
        file = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        path.mkdir(exist_ok=True)
        save_file({n: state[n] for n in some}, path / file)


UNETS: dict[str, tuple[str, Callable[[Path, State], object]]] = {
    "CompVis bare": ("esd.pt", lambda p, s: saved(p, compvis(s))),
    "model.diffusion_model": ("x.pt", lambda p, s: saved(p, compvis(s, "model.diffusion_model."))),
    "diffusion_model": ("x.safetensors", lambda p, s: save_file(compvis(s, "diffusion_model."), p)),
    "a Lightning ckpt": (
        "x.ckpt",
        lambda p, s: pickled_by_lightning(compvis(s, "model.diffusion_model."), p),
    ),
    "the older pickle": (
        "x.ckpt",
        lambda p, s: saved(p, {"state_dict": compvis(s)}, _use_new_zipfile_serialization=False),
    ),
    "averages alone": ("x.ckpt", lambda p, s: saved(p, averages(s))),
    "safetensors called ckpt": ("x.ckpt", lambda p, s: save_file(s, p)),
    "a pickle called safetensors": ("x.safetensors", saved),
    "no suffix": ("x", saved),
    "unet.": ("x.pt", lambda p, s: saved(p, {f"unet.{n}": t for n, t in s.items()})),
    "module.": ("x.pt", lambda p, s: saved(p, {f"module.{n}": t for n, t in s.items()})),
    "module.unet.": ("x.pt", lambda p, s: saved(p, {f"module.unet.{n}": t for n, t in s.items()})),
    "in unet": ("x.pt", lambda p, s: saved(p, {"unet": s, "epoch": 3, "args": {"lr": 1.0}})),
    "in model": ("x.bin", lambda p, s: saved(p, {"model": s, "optimizer": {"state": {0: s}}})),
    "in model, CompVis": ("x.pth", lambda p, s: saved(p, {"model": {"state_dict": compvis(s)}})),
    "in unet_state_dict": ("x.pt", lambda p, s: saved(p, {"unet_state_dict": s})),
    "parameters": ("x.pt", lambda p, s: saved(p, {n: torch.nn.Parameter(t) for n, t in s.items()})),
    "Concept Ablation's delta": ("delta.bin", lambda p, s: saved(p, {"unet": edited_only(s)})),
    "its CompVis delta": (
        "delta.ckpt",
        lambda p, s: saved(p, {"state_dict": compvis(edited_only(s), "model.diffusion_model.")}),
    ),
    "a folder of bin": ("u", lambda p, s: folder_of(p, s, "diffusion_pytorch_model.bin")),
    "a folder of safetensors": (
        "u",
        lambda p, s: folder_of(p, s, "diffusion_pytorch_model.safetensors"),
    ),
    "a folder's one file": (
        "u",
        lambda p, s: folder_of(p, compvis(s), "esd-parachute.safetensors"),
    ),
    "a folder of a delta": ("u", lambda p, s: folder_of(p, edited_only(s), "delta.bin")),
    "a folder of shards": ("u", shards),
}


@pytest.mark.parametrize("dialect", UNETS)
def test_a_unet_is_the_same_patch_in_every_dialect(
    model: Diffusion, unet: State, plain: Patch, tmp_path: Path, dialect: str
):
    name, write = UNETS[dialect]
    write(tmp_path / name, unet)
    before = set(sys.modules)
    same(imports.read(tmp_path / name, model), plain)
    assert not any("lightning" in module for module in set(sys.modules) - before)
    assert len(plain.edits) == len(edited_only(unet))


def test_a_file_of_half_precision_in_a_folder_moves_what_was_edited(
    model: Diffusion, unet: State, plain: Patch, tmp_path: Path
):
    half = {n: t.half() for n, t in unet.items()}
    folder_of(tmp_path / "u", half, "diffusion_pytorch_model.fp16.safetensors")
    found = imports.read(tmp_path / "u", model)
    assert found.edits.keys() == plain.edits.keys()
    save_file(unet, tmp_path / "u" / "diffusion_pytorch_model.safetensors")
    same(imports.read(tmp_path / "u", model), plain)  # the whole numbers come first


@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_a_whole_checkpoint_is_compared_and_loaded(
    model: Diffusion, erased: Patch, plain: Patch, tmp_path: Path, form: str
):
    path = tmp_path / f"whole.{form}"
    with model.patched(erased):
        ldm.write(model.pipeline(), tmp_path / "written.safetensors")
        drawn = model.generate(["a photo of a parachute"])
    state = load_file(tmp_path / "written.safetensors")
    tables = {"betas": torch.ones(9), "alphas_cumprod": torch.ones(9), "logvar": torch.ones(9)}
    state |= tables | {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.ones(1)
    }
    pickled_by_lightning(state, path) if form == "ckpt" else save_file(state, path)
    found = imports.read(path, model)
    same(found, plain)
    assert found.about["notes"] == ["the autoencoder in it is not compared"]
    loaded = load_model(str(path), base="world")
    loaded = loaded.with_sampling(model.sampling)
    assert torch.equal(loaded.generate(["a photo of a parachute"]), drawn)


def test_which_of_two_sets_was_taken_is_said(
    model: Diffusion, unet: State, plain: Patch, tmp_path: Path, capsys
):
    base = {n: p.detach().contiguous() for n, p in model.component("unet").named_parameters()}
    both = compvis(unet, "model.diffusion_model.") | averages(base)
    torch.save({"state_dict": both}, tmp_path / "both.ckpt")
    found = imports.read(tmp_path / "both.ckpt", model)
    same(found, plain)
    assert "model_ema): the weights are taken" in found.about["notes"][0]
    torch.save(averages(unet), tmp_path / "ema.ckpt")
    words = [
        "patch",
        "import",
        str(tmp_path / "ema.ckpt"),
        "--out",
        str(tmp_path / "p.safetensors"),
    ]
    assert main(words) == 0
    assert "averages of the weights (model_ema) are taken" in " ".join(
        capsys.readouterr().err.split()
    )
    twice = {**unet, **{f"unet.{n}": t for n, t in unet.items()}}
    torch.save(twice, tmp_path / "twice.pt")
    with pytest.raises(PalimpsestError, match="twice"):
        imports.read(tmp_path / "twice.pt", model)


# --- text encoders ---


@pytest.fixture(scope="module")
def tower(model: Diffusion) -> tuple[Patch, State]:
    """A patch of the text encoder, and its weights under it by the names of CLIPTextModel."""
    name = "text_encoder.encoder.layers.0.self_attn.q_proj.weight"
    g = torch.Generator().manual_seed(0)
    patch = model.make_patch({name: 0.1 * torch.randn(256, 256, generator=g)}, {})
    with model.patched(patch):
        state = model.component("text_encoder").state_dict()
        return patch, {f"text_model.{n}": t.clone() for n, t in state.items()}


TOWERS: dict[str, tuple[str, Callable[[State], Any]]] = {
    "AdvUnlearn's": ("x.pt", lambda s: {f"text_encoder.{n}": t for n, t in s.items()}),
    "CLIPTextModel's": ("x.pt", lambda s: s),
    "bare": ("x.pt", lambda s: {n.removeprefix("text_model."): t for n, t in s.items()}),
    "in text_encoder": ("x.pt", lambda s: {"text_encoder": s}),
    "CompVis'": (
        "x.ckpt",
        lambda s: {f"cond_stage_model.transformer.{n}": t for n, t in s.items()},
    ),
    "a whole CLIP's": (
        "x.bin",
        lambda s: {**s, "logit_scale": torch.ones(1), "vision_model.x": torch.ones(1)},
    ),
}


@pytest.mark.parametrize("dialect", TOWERS)
def test_a_text_encoder_is_the_same_patch_in_every_dialect(
    model: Diffusion, tower: tuple[Patch, State], tmp_path: Path, dialect: str
):
    name, renamed = TOWERS[dialect]
    torch.save(renamed(tower[1]), tmp_path / name)
    found = imports.read(tmp_path / name, model)
    assert found.edits.keys() == tower[0].edits.keys()
    for key, (edit,) in found.edits.items():
        assert torch.allclose(edit.delta, tower[0].edits[key][0].delta, atol=1e-6)


def test_a_hub_folder_of_a_text_encoder_is_read(model: Diffusion, tower, tmp_path: Path):
    folder_of(tmp_path / "hub", tower[1], "model.safetensors")
    assert imports.read(tmp_path / "hub", model).edits.keys() == tower[0].edits.keys()


def test_joined_projections_of_an_open_clip_are_taken_apart(tmp_path: Path):
    model = sdxl.load()
    name = "text_encoder_2.text_model.encoder.layers.1.self_attn.v_proj.weight"
    patch = model.make_patch({name: torch.ones(sdxl.WIDTHS[1], sdxl.WIDTHS[1])}, {})
    with model.patched(patch):
        ldm.write(model.pipeline(), tmp_path / "xl.safetensors")
    assert imports.read(tmp_path / "xl.safetensors", model).edits.keys() == {name}
    part = {
        n: t
        for n, t in load_file(tmp_path / "xl.safetensors").items()
        if n.startswith("conditioner.embedders.1.")
    }
    torch.save(part, tmp_path / "tower.pt")
    (edit,) = imports.read(tmp_path / "tower.pt", model).edits[name]
    assert torch.allclose(edit.delta, torch.ones(1), atol=1e-6)
    with pytest.raises(PalimpsestError, match="of a Stable Diffusion XL, and the base is none"):
        imports.read(tmp_path / "xl.safetensors", load_model("world"))


# --- LoRAs ---

G = torch.Generator().manual_seed(4)
DOWN, UP = torch.randn(4, 256, generator=G), torch.randn(96, 4, generator=G)
STEMS = {
    "kohya's": "lora_unet_" + TO_K.replace(".", "_"),
    "kohya's by CompVis' blocks": f"lora_unet_{COMPVIS}_attn2_to_k",
    "LyCORIS'": "lycoris_" + TO_K.replace(".", "_"),
    "LyCORIS' unet": "lycoris_unet_" + TO_K.replace(".", "_"),
    "LyCORIS' by CompVis' blocks": f"lycoris_{COMPVIS}_attn2_to_k",
    "its own": "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k",
}


def lora_of(stem: str, alpha: float = 2.0) -> State:
    named = {"lora_down.weight": DOWN, "lora_up.weight": UP, "alpha": torch.tensor(alpha)}
    return {f"{stem}.{n}": t for n, t in named.items()}


@pytest.mark.parametrize("form", ["safetensors", "pt"])
@pytest.mark.parametrize("dialect", STEMS)
def test_a_lora_is_the_same_shift_in_every_dialect(
    model: Diffusion, tmp_path: Path, dialect: str, form: str
):
    path, state = tmp_path / f"l.{form}", lora_of(STEMS[dialect])
    torch.save({"state_dict": state}, path) if form == "pt" else save_file(state, path)
    ((name, (edit,)),) = imports.read(path, model).edits.items()
    assert name == f"unet.{TO_K}.weight"
    assert isinstance(edit, LowRank)
    assert torch.allclose(edit.up @ edit.down, 0.5 * UP @ DOWN, atol=1e-5)  # α/rank = 2/4


def test_a_locon_moves_convolutions(model: Diffusion, tmp_path: Path):
    down, up = torch.randn(3, 64, 3, 3), torch.randn(96, 3, 1, 1)
    for stem in (f"lora_unet_{CONV.replace('.', '_')}", "lora_unet_input_blocks_3_0_in_layers_2"):
        save_file({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, tmp_path / "c")
        (edit,) = imports.read(tmp_path / "c", model).edits[f"unet.{CONV}.weight"]
        assert torch.allclose(edit.up @ edit.down, up.flatten(1) @ down.flatten(1), atol=1e-4)


def test_a_rank_above_the_layers_is_cut_to_what_it_can_be(model: Diffusion, tmp_path: Path):
    down, up = torch.randn(64, 4, 3, 3), torch.randn(64, 64, 1, 1)  # 36 columns
    stem = "lora_unet_conv_in"
    save_file({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, tmp_path / "r")
    (edit,) = imports.read(tmp_path / "r", model).edits["unet.conv_in.weight"]
    assert len(edit.down) == 36
    assert torch.allclose(edit.up @ edit.down, up.flatten(1) @ down.flatten(1), atol=1e-3)


def adapter(folder: Path, keys: State, form: str, **config: Any) -> None:
    folder.mkdir(parents=True)
    told = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "target_modules": ["to_k"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    if form == "bin":
        torch.save(keys, folder / "adapter_model.bin")
    else:
        save_file(keys, folder / "adapter_model.safetensors")


PEFT = {
    f"base_model.model.{TO_K}.lora_A.weight": DOWN,
    f"base_model.model.{TO_K}.lora_B.weight": UP,
}
QUERY = "encoder.layers.0.self_attn.q_proj"
OF_TEXT = {
    f"base_model.model.text_model.{QUERY}.lora_A.weight": DOWN,
    f"base_model.model.text_model.{QUERY}.lora_B.weight": DOWN.T.contiguous(),
}


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_an_adapter_folder_of_peft_has_an_alpha_of_its_own(
    model: Diffusion, tmp_path: Path, form: str
):
    adapter(tmp_path / "a", PEFT, form)
    for path in (tmp_path / "a", tmp_path / "a" / f"adapter_model.{form}"):
        (edit,) = imports.read(path, model).edits[f"unet.{TO_K}.weight"]
        assert torch.allclose(edit.up @ edit.down, 0.5 * UP @ DOWN, atol=1e-5)
    adapter(tmp_path / "b" / "unet", PEFT, form, use_rslora=True)
    adapter(tmp_path / "b" / "text_encoder", OF_TEXT, form, lora_alpha=4)
    both = imports.read(tmp_path / "b", model).edits
    (edit,) = both[f"unet.{TO_K}.weight"]
    assert torch.allclose(edit.up @ edit.down, UP @ DOWN, atol=1e-5)  # 2/√4
    (edit,) = both["text_encoder.encoder.layers.0.self_attn.q_proj.weight"]
    assert torch.allclose(edit.up @ edit.down, DOWN.T @ DOWN, atol=1e-4)
    (tmp_path / "a" / "adapter_config.json").unlink()
    assert "taken for the rank" in imports.read(tmp_path / "a", model).about["notes"][0]


def test_a_lora_in_a_pickle_of_diffusers_name_is_read(model: Diffusion, tmp_path: Path):
    named = {n.replace("base_model.model", "unet"): t for n, t in PEFT.items()}
    torch.save(named, tmp_path / "pytorch_lora_weights.bin")
    assert imports.read(tmp_path, model).edits.keys() == {f"unet.{TO_K}.weight"}


KOHYA = STEMS["kohya's"]
OTHERS: dict[str, tuple[State, str]] = {
    "LoHa": ({f"{KOHYA}.hada_w1_a": UP, f"{KOHYA}.hada_w1_b": DOWN}, "a LoHa, which"),
    "LoKr": ({f"lycoris_{COMPVIS}_attn2_to_k.lokr_w1": UP}, "a LoKr, which"),
    "DoRA": ({**lora_of(KOHYA), f"{KOHYA}.dora_scale": UP}, "a DoRA, which"),
    "PEFT's DoRA": (
        {**PEFT, f"base_model.model.{TO_K}.lora_magnitude_vector": UP},
        "a DoRA, which",
    ),
    "Tucker": ({**lora_of(KOHYA), f"{KOHYA}.lora_mid.weight": UP}, "Tucker's decomposition"),
    "OFT": ({f"{KOHYA}.oft_blocks": UP}, "an OFT, which"),
    "ControlNet": ({"control_model.input_blocks.0.0.weight": UP}, "a ControlNet, which"),
    "FLUX": ({"double_blocks.0.img_attn.qkv.weight": UP}, r"a transformer \(SD3, FLUX\)"),
    "XL": ({"conditioner.embedders.1.model.ln_final.weight": UP}, "of a Stable Diffusion XL"),
    "VAE": (
        {"encoder.conv_in.bias": torch.ones(24), "decoder.conv_in.bias": torch.ones(96)},
        "an aut",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_shift_of_weights_is_refused_by_its_name(
    model: Diffusion, tmp_path: Path, kind: str
):
    state, told = OTHERS[kind]
    save_file({n: t.clone() for n, t in state.items()}, tmp_path / "x.safetensors")
    torch.save(state, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        with pytest.raises(PalimpsestError, match=told) as refusal:
            imports.read(tmp_path / name, model)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>401</html>", "a web page"),
        (b"GGUF\3\0\0\0", "quantized weights"),
        (b"", "no weights can be read"),
    ],
)
def test_a_file_that_is_no_weights_is_refused_by_what_it_is(
    model: Diffusion, tmp_path: Path, content: bytes, told: str
):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(PalimpsestError, match=told):
        imports.read(tmp_path / "x.ckpt", model)
    with pytest.raises(PalimpsestError, match=told):
        load_model(str(tmp_path / "x.ckpt"), base="world")


def test_a_pickle_of_more_than_tensors_is_refused_by_what_it_holds(model, tmp_path: Path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    torch.save([UP, DOWN], tmp_path / "list.pt")
    for name, told in (
        ("whole.pt", r"it holds torch\.nn\.modules\.linear\.Linear, and of a pickle tensors alone"),
        ("list.pt", "a list of tensors, which says of none"),
    ):
        with pytest.raises(PalimpsestError, match=told):
            imports.read(tmp_path / name, model)


def test_an_adapter_of_another_type_is_refused_by_it(model: Diffusion, tmp_path: Path):
    adapter(tmp_path / "a", PEFT, "bin", peft_type="ADALORA")
    with pytest.raises(PalimpsestError, match="of the type ADALORA, which is no LoRA"):
        imports.read(tmp_path / "a", model)
    adapter(tmp_path / "b", PEFT, "bin", use_dora=True)
    with pytest.raises(PalimpsestError, match="a DoRA"):
        imports.read(tmp_path / "b", model)


# --- SPM ---


def spm_of(rank: int = 1) -> State:
    g = torch.Generator().manual_seed(5)
    return {
        f"{KOHYA}.lora_down.weight": torch.randn(rank, 256, generator=g),
        f"{KOHYA}.lora_up.weight": torch.randn(96, rank, generator=g),
        f"{KOHYA}.alpha": torch.tensor(1.0),
    }


@pytest.mark.parametrize("rank", [1, 2])
def test_an_spm_comes_with_its_gate(model: Diffusion, tmp_path: Path, rank: int):
    header = {"prompts": "parachute,van gogh", "rank": str(rank), "alpha": "1.0"}
    save_file(spm_of(rank), tmp_path / "spm.safetensors", header)
    patch = imports.read(tmp_path / "spm.safetensors", model)
    assert not patch.edits
    hook = patch.hook
    assert isinstance(hook, Transport)
    assert hook.adapters.keys() == {f"unet.{TO_K}.weight"}
    cond = model.embed(["parachute", "van gogh", "a cat in neon style"])
    opened = hook.scales(cond.rows(model.sites.sequence), cond.ids)
    assert opened.shape == (3, rank)
    assert torch.allclose(opened[:2], torch.ones(2, rank), atol=1e-5)
    assert float(opened[2].max()) < 0.9
    up, down = hook.adapters[f"unet.{TO_K}.weight"]
    state = spm_of(rank)
    product = state[f"{KOHYA}.lora_up.weight"] @ state[f"{KOHYA}.lora_down.weight"] / rank
    assert torch.allclose(up @ down, product, atol=1e-5)  # α/rank
    patch.save(tmp_path / "patch.safetensors")
    assert Patch.load(tmp_path / "patch.safetensors").digest() == patch.digest()


def test_an_spm_without_a_prompt_asks_for_one(model: Diffusion, tmp_path: Path):
    path, header = tmp_path / "spm.safetensors", {"prompts": "", "rank": "1", "alpha": "1.0"}
    save_file(spm_of(), path, header)
    with pytest.raises(PalimpsestError, match=r"an SPM that names no prompt.*--word"):
        imports.read(path, model)
    assert imports.read(path, model, concepts=["parachute"]).hook is not None
    save_file(spm_of(), path)  # no header at all: a LoRA of rank 1, or an SPM
    found = imports.read(path, model)
    assert found.hook is None
    assert "its gate is lost; name with --word" in found.about["notes"][0]
    assert isinstance(imports.read(path, model, "parachute").hook, Transport)
    save_file(spm_of(), path, {"ss_network_dim": "1"})
    with pytest.raises(PalimpsestError, match="--word has no meaning"):
        imports.read(path, model, "parachute")


# --- embeddings ---

VECTORS = torch.randn(2, 256, generator=torch.Generator().manual_seed(6))


def of_the_authors() -> dict[str, Any]:
    held = torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": held}


EMBEDDINGS: dict[str, tuple[str, Callable[[], Any]]] = {
    "Diffusers'": ("learned_embeds.bin", lambda: {"<mira-voss>": VECTORS}),
    "Diffusers' safetensors": ("learned_embeds.safetensors", lambda: {"<mira-voss>": VECTORS}),
    "A1111's": ("x.pt", lambda: {"string_to_param": {"*": VECTORS}, "name": "x", "step": 9}),
    "the authors'": ("x.pt", of_the_authors),
    "A1111's safetensors": ("x.safetensors", lambda: {"emb_params": VECTORS}),
    "a bare tensor": ("x.pt", lambda: VECTORS),
}


@pytest.mark.parametrize("maker", EMBEDDINGS)
def test_embeddings_of_all_makers_take_the_place_of_a_word(
    model: Diffusion, tmp_path: Path, maker: str
):
    name, made = EMBEDDINGS[maker]
    save = save_file if name.endswith(".safetensors") else torch.save
    save(made(), tmp_path / name)
    patch = imports.read(tmp_path / name, model, "mira voss")
    with model.patched(patch):
        rows = model.weight(model.text.tables[0])[model.text.plain("mira voss")]
    assert torch.allclose(rows, VECTORS, atol=1e-6)


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_a_word_of_two_text_encoders_is_read(tmp_path: Path, names: tuple[str, str]):
    model = sdxl.load()
    vectors = {n: torch.randn(2, w) for n, w in zip(names, sdxl.WIDTHS, strict=True)}
    save_file(vectors, tmp_path / "van-gogh.safetensors")
    patch = imports.read(tmp_path / "van-gogh.safetensors", model)
    assert patch.edits.keys() == set(model.text.tables)


# --- the ways out ---

PROMPTS = [Prompt("a cat in neon style", s, guidance=3.0) for s in (1, 2)]


def version_2(folder: Path) -> Path:
    """A small Stable Diffusion 2: OpenCLIP's text encoder, linear projections, v-prediction."""
    made = sdxl.pipeline()
    own, tokenizer = (
        made.unet.config,
        CLIPTokenizer.from_pretrained(assets.stable_diffusion() / "tokenizer", pad_token="!"),
    )
    width = sdxl.WIDTHS[1]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        told = {k: v for k, v in own.items() if not k.startswith(("addition_", "projection_", "_"))}
        unet = type(made.unet)(**{**told, "cross_attention_dim": width})
        text = CLIPTextModel(sdxl.tower_config(tokenizer, width, "gelu"))
    scheduler = DDIMScheduler.from_config(made.scheduler.config, prediction_type="v_prediction")
    StableDiffusionPipeline(
        unet=unet,
        vae=made.vae,
        text_encoder=text,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


BASES: dict[str, tuple[Callable[[Path], Path], Any]] = {
    "1": (lambda _: assets.stable_diffusion(), StableDiffusionPipeline),
    "2": (version_2, StableDiffusionPipeline),
    "XL": (lambda _: sdxl.folder(), StableDiffusionXLPipeline),
}


@pytest.mark.parametrize("version", BASES)
def test_a_checkpoint_is_drawn_alike_by_diffusers_and_by_us(tmp_path: Path, version: str):
    make, kind = BASES[version]
    folder = make(tmp_path / "base")
    model = load_model(str(folder))
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"
    shape = model.weight(name).shape
    own = {name: torch.randn(shape, generator=torch.Generator().manual_seed(7)).half().float()}
    patch = model.make_patch(own, {})
    (tmp_path / "out").mkdir()
    notes = FORMATS["checkpoint"][0](model, patch, tmp_path / "out")
    assert any("scheduler" in note for note in notes)
    file = tmp_path / "out" / CHECKPOINT

    def ours(drawing: Diffusion) -> Tensor:
        cond = drawing.embed([p.text for p in PROMPTS])
        return drawing.decode(drawing.sample(drawing.start(PROMPTS), cond, steps=4, guidance=3.0))

    with model.patched(patch):
        edited = ours(model)
    assert (edited - ours(model)).abs().max() > 1e-3
    again = load_model(str(file), base=str(folder))
    assert (ours(again) - edited).abs().max() < 2e-3
    theirs = kind.from_single_file(str(file), config=str(folder), local_files_only=True)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    pictures = theirs(
        [p.text for p in PROMPTS],
        latents=model.start(PROMPTS),
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="pt",
    ).images
    assert (pictures - edited).abs().max() < 5e-3
    found = imports.read(file, model).edits
    assert found.keys() == {name}


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


def test_an_exported_folder_keeps_what_its_base_has(
    model: Diffusion, erased: Patch, tmp_path: Path, umask: None, capsys
):
    import shutil

    base = shutil.copytree(assets.stable_diffusion(), tmp_path / "base")
    config = DDIMScheduler.from_pretrained(base / "scheduler").config
    PNDMScheduler.from_config(config, skip_prk_steps=True).save_pretrained(base / "scheduler")
    (base / "feature_extractor").mkdir()
    shutil.copy(assets.clip() / "preprocessor_config.json", base / "feature_extractor")
    index = json.loads((base / "model_index.json").read_text())
    index |= {
        "scheduler": ["diffusers", "PNDMScheduler"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }
    (base / "model_index.json").write_text(json.dumps(index))
    erased.save(tmp_path / "patch.safetensors")
    words = ["patch", "export", str(tmp_path / "patch.safetensors"), "--model", str(base)]
    for form, out in (("diffusers", tmp_path / "out"), ("checkpoint", tmp_path / "one")):
        assert main([*words, "--out", str(out), "--format", form]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert ("safety_checker is not in this folder" in said) == (form == "diffusers")
        assert "written in float16, as the base is" in said
        files = [file for file in out.rglob("*") if file.is_file()]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o644}
        for file in out.rglob("*.safetensors"):
            assert {t.dtype for t in load_file(file).values()} == {torch.float16}
    made = json.loads((tmp_path / "out" / "model_index.json").read_text())
    kept = ("scheduler", "feature_extractor", "unet", "vae", "text_encoder", "tokenizer")
    assert {part: made[part] for part in kept} == {part: index[part] for part in kept}
    scheduler = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["skip_prk_steps"] is True
    assert load_model("world").dtype == model.dtype == torch.float32  # put back
    assert main([*words, "--out", str(tmp_path / "whole"), "--dtype", "float32"]) == 0
    (file,) = (tmp_path / "whole" / "unet").glob("*.safetensors")
    assert {t.dtype for t in load_file(file).values()} == {torch.float32}


@pytest.mark.slow
def test_the_walk_to_comfyui_runs_as_it_stands(
    model: Diffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for body in fences(ROOT / "docs" / "comfyui.md", "bash"):
        for line in body.splitlines():
            if not line.startswith("palimpsest "):
                subprocess.run(line, shell=True, check=True, cwd=tmp_path)
                continue
            words = shlex.split(line)[1:]
            found = [sorted(map(str, Path().glob(w))) if "*" in w else [w] for w in words]
            assert main([word for some in found for word in some]) == 0, line
    (run,) = Path("runs").glob("esd-parachute-*")
    ran = Patch.load(run / "patch.safetensors")
    again = Patch.load(Path("again.safetensors"))
    assert again.edits.keys() <= ran.edits.keys()
    with model.patched(ran):
        edited = {name: model.weight(name).half() for name in ran.edits}
    with model.patched(again):
        assert all(torch.equal(model.weight(n).half(), edited[n]) for n in ran.edits)
    assert imports.read(Path("edited-lora"), model).edits
    assert (Path("look") / "grid.png").is_file()
