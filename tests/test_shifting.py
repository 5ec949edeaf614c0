"""A shift that is trained as two factors is an edit like any other, and a LoRA as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from methods import PARACHUTE, small

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator
from palimpsest.erase import ERASERS
from palimpsest.exchange.export import FORMATS
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.factors import parameters, untrained
from palimpsest.models.shapes import true_shape
from palimpsest.patch import LowRank
from palimpsest.toolbox.memory_count import count
from palimpsest.world import assets

TWO = {"as_": "lora", "steps": 2, "lr": 1e-2}
CASES: dict[str, dict[str, Any]] = {
    "ablation": {},
    "advunlearn": {"warmup": 0},
    "cie": {"sparsity": 0.0},
    "erasediff": {"rank": 2},
    "esd": {"train": "full"},
    "fmn": {"rank": 3},
    "fmn_correction": {},
}
"""Eraser → what it is tried with besides."""


def method_of(name: str, **changes: Any) -> Any:
    return small(ERASERS, name).changed({**TWO, **CASES[name], **changes})


@pytest.fixture(scope="module")
def patches(model: Diffusion) -> dict[str, Any]:
    """What each eraser made, with its method."""
    return {
        name: (method_of(name), method_of(name)(model, PARACHUTE, context=Context()).patch)
        for name in CASES
    }


def test_every_eraser_that_shifts_a_group_can_train_factors():
    can = {name for name in ERASERS.own if hasattr(ERASERS.load(name), "as_")}
    assert can == CASES.keys()
    for name in can:
        assert ERASERS.load(name)().as_ == "dense", "as published"


@pytest.mark.parametrize("name", CASES)
def test_the_patch_is_factored_moves_the_prediction_and_comes_off(
    name: str, patches: dict[str, Any], model: Diffusion, weights: dict[str, torch.Tensor]
):
    method, patch = patches[name]
    factors = [edit for edits in patch.edits.values() for edit in edits]
    assert all(isinstance(edit, LowRank) for edit in factors)
    assert max(edit.up.shape[1] for edit in factors) == method.rank or method.rank is None
    trained = {n: e.up.numel() + e.down.numel() for n, (e,) in patch.edits.items()}
    assert method.moves(model) == trained
    assert method.changes(model) == {n: model.weight(n).numel() for n in patch.edits}
    x, t = model.noise(1, generator(0)), torch.tensor([500])

    def predicted() -> torch.Tensor:
        with torch.no_grad():
            return model.eps(x, t, model.embed([PARACHUTE.name]))

    before = predicted()
    with model.patched(patch):
        assert (predicted() - before).abs().max() > 1e-3
    assert torch.equal(predicted(), before)
    assert all(torch.equal(weights[n], p) for n, p in model._parameters.items())
    assert patch.about["arguments"]["as_"] == "lora"


@pytest.mark.parametrize("form", ["lora", "kohya"])
@pytest.mark.parametrize("name", ["esd", "advunlearn"])
def test_diffusers_computes_the_same_with_the_exported_lora(
    name: str, form: str, patches: dict[str, Any], model: Diffusion, tmp_path: Path
):
    patch = patches[name][1]
    assert {n.partition(".")[0] for n in patch.edits} in ({"unet"}, {"text_encoder"})
    assert FORMATS[form][0](model, patch, tmp_path) == [], "nothing is lost or left out"
    theirs = StableDiffusionPipeline.from_pretrained(assets.stable_diffusion())
    (file,) = tmp_path.iterdir()
    theirs.load_lora_weights(str(tmp_path), weight_name=file.name)
    x, t = model.noise(2, generator(0)), torch.tensor([500, 900])
    ids = model.text.ids(["a parachute", "a cat"])
    with torch.no_grad():
        hidden = theirs.text_encoder(ids)[0]
        found = theirs.unet(x, t, hidden).sample
        assert (found - model.eps(x, t, model.embed_ids(ids))).abs().max() > 1e-3
        with model.patched(patch):
            ours = model.eps(x, t, model.embed_ids(ids))
    assert (found - ours).abs().max() < 1e-5 * max(1, float(ours.abs().max()))


def test_a_product_of_factors_is_the_shift_of_its_entries(model: Diffusion):
    """Both students predict the same, and the factors' gradient is that of Δ by the chain rule."""
    names = ["unet.conv_in.weight", "unet.mid_block.attentions.0.proj_in.weight"]
    own = {name: model.weight(name) for name in names}
    pairs = untrained(own, 2, generator(1))
    for up, _ in pairs.values():
        up.data.normal_(std=0.1, generator=generator(2))
    whole = {
        n: (up @ down).detach().reshape(own[n].shape).requires_grad_()
        for n, (up, down) in pairs.items()
    }
    x, t, cond = model.noise(2, generator(0)), torch.tensor([100, 800]), model.embed(["a cat"])
    losses = [model.student(d).eps(x, t, cond).square().mean() for d in (parameters(pairs), whole)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for name, (up, down) in pairs.items():
        grad = whole[name].grad
        assert grad is not None
        matrix = grad.reshape(len(up), -1)
        assert torch.allclose(up.grad, matrix @ down.T, rtol=1e-4, atol=1e-9)  # type: ignore[arg-type]
        assert torch.allclose(down.grad, up.T @ matrix, rtol=1e-4, atol=1e-9)  # type: ignore[arg-type]


def test_factors_begin_by_the_seed_and_shift_nothing(model: Diffusion):
    starts = [model.factored(4, generator(seed)).shifts("full") for seed in (0, 0, 1)]
    a, b, c = starts
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not any(torch.equal(a[n], c[n]) for n in a if n.endswith("|down"))
    assert not any(bool(a[n].any()) for n in a if n.endswith("|up"))
    assert all(model.weight(n.partition("|")[0]).ndim in (2, 4) for n in a), "no norm, no bias"
    assert a["unet.conv_out.weight|up"].shape == (4, 4)
    highest = model.factored(64, generator(0)).shifts("full")["unet.conv_out.weight|up"]
    assert highest.shape == (4, 4), "no rank above its layer's"


def test_what_factors_take_is_counted():
    """Of all of SD 1.4 but the cross-attention the moved part is next to nothing; W + Δ stays."""
    model, kind = true_shape("sd14"), ERASERS.load("esd")
    dense, lora = (count(model, kind(train="noxattn", as_=sort)) for sort in ("dense", "lora"))
    entries = sum(kind(train="noxattn", as_="lora").moves(model).values())
    assert lora.moved * 2**30 == pytest.approx(12 * entries, rel=0.02)
    assert lora.moved < dense.moved / 100
    assert dense.training - lora.training > dense.moved, "nor is a gradient of all entries held"
    assert lora.pictures == pytest.approx(dense.pictures, rel=0.02), "whole weights are edited"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["salun", "--as", "lora"], "SalUn has no --as: its mask is of single entries"),
        (["scissorhands", "--as=lora"], "ScissorHands has no --as: what it draws anew"),
        (["srs_me", "--as", "lora"], "SRSME has no --as: its shifts have factors of their own"),
        (["cie", "--as", "lora"], "set sparsity to 0"),
        (["esd", "--as", "lroa"], "invalid choice 'lroa' for argument '--as'"),
        (["esd", "--as", "lora", "--rank", "500"], "rank is 500, but no matrix"),
        (["esd", "--as", "lora", "--rank", "0"], "rank is 0; it must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_factored_is_refused_in_one_sentence(words: list[str], told: str, refused):
    refused(words, told, "--judge", "none")


def test_python_is_told_why_too():
    with pytest.raises(PalimpsestError, match="SalUn has no setting 'as_': its mask is of single"):
        ERASERS.load("salun")(as_="lora")
