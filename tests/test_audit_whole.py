"""Audits at full size, of the world's own weights as their makers would publish them."""

from __future__ import annotations

from pathlib import Path

import ldm
import pytest
import torch
from safetensors.torch import load_file

from palimpsest.cli import main
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.report.arrange import arrange
from palimpsest.report.sections.audit import audit
from palimpsest.runs.folder import Run
from palimpsest.world import assets

pytestmark = pytest.mark.slow


def published(patch: Path | None, path: Path) -> Path:
    """Save the world's U-Net with a patch by CompVis' names, as ESD's authors released theirs."""
    model = load_model("world")
    with model.patched(None if patch is None else Patch.load(patch)):
        ldm.write(model.pipeline(), path.with_suffix(".safetensors"))
    found = load_file(path.with_suffix(".safetensors"))
    own = {n: t for n, t in found.items() if n.startswith("model.diffusion_model.")}
    torch.save({"state_dict": own}, path)
    return path


def audited(file: Path, *more: str) -> tuple[Run, str]:
    """Audit a file, and return the run that was made of it with the verdict."""
    runs = file.parent / f"runs of {file.stem}"
    words = ["audit", file, "--base", "world", "--concept", "parachute", "--runs", runs, *more]
    assert main([*map(str, words)]) == 0
    (folder,) = runs.glob("imported-*")
    sections = arrange([folder, *runs.glob("[!.]*-parachute-on-*")])
    (section,) = [s for s in sections if s.erasure and s.erasure.run.name == folder.name]
    found = audit(section)
    assert found is not None
    assert found.finding.text.capitalize() in (runs / "audit.html").read_text()
    return Run.open(folder), found.finding.word


def test_of_esds_erasure_an_audit_counts_what_the_erasing_run_counted(tmp_path: Path):
    words = ["erase", "esd", "--concept", "parachute", "--runs", tmp_path / "runs"]
    assert main([*map(str, words)]) == 0
    (folder,) = tmp_path.glob("runs/esd-*")
    ours = Run.open(folder).record()
    run, word = audited(
        published(folder / "patch.safetensors", tmp_path / "esd.pt"), "--recoveries"
    )
    theirs = run.record()
    assert [(n.name, n.value, n.n) for n in theirs.numbers] == [
        (n.name, n.value, n.n) for n in ours.numbers
    ]
    assert ours.number("UA").value > 0.9
    assert word == "erased, not attacked"


def test_of_the_unedited_unet_an_audit_says_that_nothing_is_erased(tmp_path: Path):
    run, word = audited(published(None, tmp_path / "plain.pt"))
    assert word == "not erased"
    assert run.record().number("UA").value == 0


def test_of_gold_an_audit_says_gone(tmp_path: Path):
    """Two recoveries from it are those from gold itself: no difference, on 36 pictures each."""
    file = published(assets.gold("parachute"), tmp_path / "gold.pt")
    run, word = audited(file, "--budget", "120")
    assert word == "gone"
    assert run.record().number("UA").value > 0.9
