"""What rounding to the model's precision leaves of an edit: measured, kept and told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan, sqrt
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from palimpsest.cli import main
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import NoDifferenceError
from palimpsest.core.prompts import Prompt
from palimpsest.exchange.export import FORMATS
from palimpsest.methods import Eraser, Result
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import DTYPES, load_model
from palimpsest.patch import LowRank, Patch, Replacement, precision
from palimpsest.report import write_report
from palimpsest.runs.asked import On
from palimpsest.runs.runner import Runner

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def lost(base: torch.Tensor, patch: Patch, dtype: torch.dtype) -> float:
    return precision.lost(patch.edits, lambda name: base, lambda name: dtype)


# --- counted by hand: above 1 a step of bfloat16 is 2^-7, of float16 2^-10 ---


@pytest.mark.parametrize(
    ("deltas", "dtype", "share"),
    [
        ([2**-7, 2**-6], BF16, 0.0),  # whole steps
        ([2**-9, -(2**-10)], BF16, 1.0),  # below half a step, and below 1 half of one: W stays
        ([3 * 2**-9, 0.0], BF16, 1 / 3),  # ¾ of a step becomes a whole one: ¼ of ¾
        ([3 * 2**-9, 2**-9], BF16, 1 / sqrt(5)),  # (¼² + ¼²) of (¾² + ¼²)
        ([3 * 2**-9, 2**-9], F16, 0.0),  # the same in float16
        ([3 * 2**-9, 2**-9], F32, 0.0),
        ([0.0, 0.0], BF16, nan),
    ],
)
def test_the_share_lost_is_that_counted_by_hand(
    deltas: list[float], dtype: torch.dtype, share: float
):
    patch = Patch.dense({"w": torch.tensor(deltas)})
    assert lost(torch.ones(2), patch, dtype) == pytest.approx(share, abs=1e-7, nan_ok=True)


def test_every_kind_of_edit_is_counted_and_no_norm_grows():
    g = torch.Generator().manual_seed(0)
    base = torch.randn(6, 5, generator=g).bfloat16()
    up, down = torch.randn(6, 1, generator=g), torch.randn(1, 5, generator=g)
    shift = 2e-3 * up @ down
    every = [
        Patch({"w": (LowRank(2e-3 * up, down),)}),
        Patch.dense({"w": shift}),
        Patch({"w": (Replacement(base.float() + shift),)}),
    ]
    shares = [lost(base, patch, BF16) for patch in every]
    assert shares == pytest.approx([shares[0]] * 3, rel=1e-3)
    assert 0.05 < shares[0] < 1
    # as stated, of all tensors together: that of one beside one that keeps all is smaller
    whole = Patch.dense({"w": shift, "v": torch.full((1,), 1.0)})
    two = precision.lost(whole.edits, lambda n: base if n == "w" else torch.ones(1), lambda n: BF16)
    norms = float(shift.norm()), float((shift.square().sum() + 1).sqrt())
    assert two == pytest.approx(shares[0] * norms[0] / norms[1], rel=1e-3)


# --- on a model ---

NAME = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def coarse() -> Diffusion:
    return load_model("world", dtype="bfloat16")


def quarter(model: Diffusion) -> Patch:
    """Every weight goes ¾ of a step of bfloat16 away from 0, which becomes a whole one."""
    weight = model.weight(NAME).float()
    step = 2.0 ** (torch.frexp(weight).exponent - 8)
    return model.make_patch({NAME: 0.75 * step * weight.sign()})


def test_a_patch_says_what_its_model_lost_of_it(
    model: Diffusion, coarse: Diffusion, tmp_path: Path
):
    patch = quarter(coarse)
    assert patch.about["rounding"] == {"dtype": "bfloat16", "lost": pytest.approx(1 / 3, abs=1e-3)}
    patch.save(tmp_path / "p.safetensors")
    assert precision.share(Patch.load(tmp_path / "p.safetensors").about) == pytest.approx(
        1 / 3, 1e-3
    )
    assert "rounding" not in model.checked(patch).about  # float32 keeps it
    with pytest.raises(
        NoDifferenceError, match=r"rounding to bfloat16 takes 100 % .*--dtype float32"
    ):
        coarse.make_patch({NAME: 1e-9 * torch.ones_like(coarse.weight(NAME).float())})
    with pytest.raises(NoDifferenceError) as refused:
        model.make_patch({NAME: torch.zeros_like(model.weight(NAME))})
    assert "rounding" not in str(refused.value)


@dataclass(frozen=True)
class Nudge(Eraser):
    """Moves one matrix by ¾ of a step of bfloat16."""

    presets: ClassVar = {}

    def __call__(self, model, task, *, context):
        return Result(quarter(model))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_run_tells_it_and_keeps_it(
    model: Diffusion, coarse: Diffusion, tmp_path: Path, dtype: str
):
    told: list[str] = []
    own = coarse if dtype == "bfloat16" else model
    own = own.with_sampling(replace(own.sampling, steps=2))
    runner = Runner(tmp_path, own, tell=told.append)
    on = On([Prompt("a photo of a church", 1)])
    run = runner.run(Concept("church"), Nudge(), on, ())
    kept = run.record().lost_in_rounding
    if dtype == "float32":
        assert (kept, told) == (None, [])
    else:
        assert kept == pytest.approx(1 / 3, abs=1e-3)
        (sentence,) = told
        assert "rounding to bfloat16 takes 33.3 % of the edit's norm" in sentence
        assert "--dtype float32" in sentence
        page = tmp_path / "page.html"
        write_report([run.folder], page)
        assert "33.3 % of the norm, to bfloat16" in page.read_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_evaluation_tells_it_of_patches_made_elsewhere(
    model: Diffusion, coarse: Diffusion, tmp_path: Path, dtype: str
):
    told: list[str] = []
    own = coarse if dtype == "bfloat16" else model
    own = own.with_sampling(replace(own.sampling, steps=2))
    patch = replace(quarter(coarse), about={})
    on = On([Prompt("a photo of a church", 1)], name="it", patches=(patch,), theme="object")
    run = Runner(tmp_path, own, tell=told.append).run(Concept("church"), None, on, ())
    share = None if dtype == "float32" else pytest.approx(1 / 3, abs=1e-3)
    assert run.record().lost_in_rounding == share
    assert len(told) == (share is not None)


def test_an_export_in_another_type_says_what_that_loses(tmp_path: Path, capsys):
    base = load_model("world")
    patch = Patch.dense({NAME: torch.full_like(base.weight(NAME), 1e-3)})
    base.checked(patch).save(tmp_path / "p.safetensors")
    words = ["patch", "export", str(tmp_path / "p.safetensors"), "--format", "unet"]
    for dtype in DTYPES:
        out = tmp_path / dtype
        assert main([*words, "--out", str(out), "--dtype", dtype]) == 0
        said = " ".join(capsys.readouterr().err.split())
        written = load_file(out / "unet.safetensors")[NAME.removeprefix("unet.")]
        assert written.dtype == getattr(torch, dtype)
        stored = base.weight(NAME).to(getattr(torch, dtype)).float()
        share = float((written.float() - stored - 1e-3).norm() / (1e-3 * written.numel() ** 0.5))
        if dtype == "float32":
            assert share < 1e-3
            assert "rounding" not in said
        else:
            assert f"written in {dtype}: rounding takes {100 * share:.3g} % of the edit" in said
            assert ("--dtype float32" in said) == (share > 0.05)
    assert "lora" not in said  # the edit is no product of factors


def test_a_lora_is_named_where_it_would_keep_the_edit(model: Diffusion, tmp_path: Path):
    up = torch.full((model.weight(NAME).shape[0], 1), 1e-5)
    patch = Patch({NAME: (LowRank(up, torch.ones(1, model.weight(NAME).shape[1])),)})
    (note,) = FORMATS["diffusers"][0](model, patch, tmp_path)  # the world lies in float16
    assert "as the base is: rounding takes" in note
    assert "--dtype float32, or as `lora`" in note
    assert FORMATS["lora"][0](model, patch, tmp_path) == []
