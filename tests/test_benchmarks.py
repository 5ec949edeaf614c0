"""The benchmarks' plain loops compute what our erasers compute, or no ratio means anything."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.core.concepts import Concept
from palimpsest.models.loading import load_model

ROOT = Path(__file__).parents[1] / "benchmarks"
QUICK = {
    "ESD-x (paper)": {"lr": 1e-3, "latents.steps": 4},
    "ESD-x (newer code)": {"lr": 1e-3, "latents.steps": 4},
    "CiE": {"lr": 1e-3},
    "SRS-ME": {"lr": 1.0},
    "FMN": {"lr": 1e-3},
}
"""Steps large enough for a difference in any of them to show in the next loss."""
SHARE = {"SRS-ME": 3 / 4, "FMN": 0.63, "ESD-x (newer code)": 1.6}
"""The most that we compute of the plain loop's multiplications: SRS-ME knows what its student says
of the empty prompt, one prediction of four; FMN leaves the U-Net after the last cross-attention.
ESD's latents are sampled in calls of eight rows on the CPU, so that they hang on no batch; here
there are few of them, and the calls are filled up."""


@pytest.fixture(scope="module")
def named() -> Iterator[Callable[[str], Any]]:
    """Imports a program of the folder."""
    sys.path.insert(0, str(ROOT))
    try:
        yield import_module
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def speed(named):
    return named("speed")


@pytest.fixture(scope="module")
def folder(speed, tmp_path_factory) -> Path:
    return speed.pictures(tmp_path_factory.mktemp("pictures"), 2, 64)


@pytest.mark.parametrize("name", QUICK)
def test_both_loops_have_one_loss_curve(speed, folder, monkeypatch, name):
    assert speed.METHODS.keys() == QUICK.keys()
    monkeypatch.setitem(speed.METHODS, name, speed.METHODS[name].changed(QUICK[name]))
    torch.manual_seed(0)
    model = load_model("world")  # the plain loop trains it
    counts = {}
    curves = {}
    for who in ("ours", "plain"):
        with speed.counted(model) as counts[who]:
            curves[who] = speed.run(name, who, model, 3, folder)
    assert curves["ours"] == pytest.approx(curves["plain"], rel=1e-4)
    assert len(set(curves["ours"])) == 3
    assert counts["ours"]["calls"] <= counts["plain"]["calls"]
    assert counts["ours"]["graded"] <= counts["plain"]["graded"]
    assert counts["ours"]["work"] <= SHARE.get(name, 1) * counts["plain"]["work"]


@pytest.mark.parametrize("file", sorted(ROOT.glob("*.py")), ids=lambda file: file.stem)
def test_every_program_finds_what_it_imports(named, file):
    assert vars(named(file.stem))


def test_the_plain_closed_form_is_ours(named):
    whole, model = named("whole"), load_model("world")
    concepts = [Concept(n, anchor="owl", keep=whole.KEEP) for n in ("parachute", "snow globe")]
    ours, plain = whole.our_uce(model, concepts), whole.plain_uce(model, concepts)
    assert ours.keys() == plain.keys()
    assert whole.largest(ours, plain) < 1e-5
    unedited = {name: model.weight(name) for name in plain}
    assert whole.largest(unedited, plain) > 1e-3


def test_pictures_of_both_drawers_are_compared_at_one_number_of_steps(named):
    gpu, model = named("gpu"), load_model("world")
    short = model.with_sampling(replace(model.sampling, steps=2))
    theirs, ours = gpu.drawers(short, gpu.plain_pipeline(short, "world"), 2)
    assert theirs().shape == ours().shape == (2, 3, 64, 64)
