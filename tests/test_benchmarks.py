"""The benchmarks' plain loops compute what our erasers compute, or no ratio means anything."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from palimpsest.models.loading import load_model

ROOT = Path(__file__).parents[1] / "benchmarks"
QUICK = {"sampling_steps": 4, "lr": 1e-3}
"""Steps large enough for a difference in any of them to show in the next loss."""


@pytest.fixture(scope="module")
def speed():
    sys.path.insert(0, str(ROOT))
    try:
        yield import_module("speed")
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def folder(speed, tmp_path_factory) -> Path:
    return speed.pictures(tmp_path_factory.mktemp("pictures"), 2, 64)


@pytest.mark.parametrize("name", ["ESD-x (paper)", "ESD-x (newer code)", "CiE", "SRS-ME", "FMN"])
def test_both_loops_have_one_loss_curve(speed, folder, monkeypatch, name):
    changed = QUICK if name != "SRS-ME" else {"sampling_steps": 4, "lr": 1.0}
    monkeypatch.setitem(speed.METHODS, name, replace(speed.METHODS[name], **changed))
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
