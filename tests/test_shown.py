"""What values show of themselves in one line and in a notebook; what the package says of itself."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from palimpsest.core.bibliography import ENTRIES
from palimpsest.core.memory import Peak
from palimpsest.methods import Number, Result
from palimpsest.patch import Patch
from palimpsest.runs.folder import Run
from palimpsest.runs.record import Record
from palimpsest.runs.scoring import Panel

ROOT = Path(__file__).parents[1]


def test_models_patches_and_judges_are_worth_a_line(model, judge, clip):
    millions = sum(p.numel() for p in model._parameters.values()) / 1e6
    assert repr(model) == f"StableDiffusion('world', {millions:.1f} M, float32, cpu)"
    name = next(iter(model.parameters("xattn")))
    patch = Patch.dense(
        {name: torch.zeros(4, 96)}, about={"method": "esd", "concepts": ["parachute"]}
    )
    assert repr(patch) == "Patch(esd, parachute, 1 tensor, 1.5 kB)"
    assert repr(Patch({})) == "Patch(0.0 kB)"
    assert repr(Result(patch)) == f"Result({patch!r})"
    assert repr(Result(prompts=("a", "b"))) == "Result(2 prompts)"
    assert repr(clip.encoder).startswith("ContrastiveEncoder(")
    panel = repr(Panel(judge, clip))
    assert panel == f"Panel({judge!r}, {clip!r})"
    assert re.fullmatch(r"Panel\(Classifier\('[^']+'(, \d+ names)?\), Clip\('[^']+'\)\)", panel)


def test_a_run_says_how_far_it_came_and_a_notebook_reads_its_record_as_text(tmp_path):
    run = Run(tmp_path / "esd-1")
    assert repr(run) == "Run('esd-1', empty)"
    shown = Number("UA", 0.75, 0.5, 0.9, 16, "%")
    run.write(Record(title="<b>ESD</b>", status="done", numbers=(shown,)))
    assert repr(run) == "Run('esd-1', <b>ESD</b>, done, UA 75.0 %)"
    page = run._repr_html_()
    assert "75.0 % [50.0, 90.0]" in page
    assert "<b>" not in page
    assert "&lt;b&gt;ESD" in page
    run.path("run.json").write_text("{")
    assert repr(run) == "Run('esd-1', unreadable)"


def test_the_memory_of_a_gpu_is_read_where_one_is_used(monkeypatch: pytest.MonkeyPatch):
    with Peak() as peak:
        assert peak.gpu_megabytes is None, "there is no GPU in use, so no figure"
    reset: list[int] = []
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 2,
        reset_peak_memory_stats=reset.append,
        max_memory_allocated=lambda device: (device + 1) * 2**20,
    )
    monkeypatch.setitem(sys.modules, "torch.cuda", cuda)
    with Peak() as peak:
        assert reset == [0, 1]
        assert peak.gpu_megabytes == 3.0


def test_the_package_says_that_it_is_typed():
    assert files("palimpsest").joinpath("py.typed").is_file()


def test_the_citation_is_that_of_this_version_and_names_every_paper():
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (said["cff-version"], said["type"], said["license"]) == (
        "1.2.0",
        "software",
        "Apache-2.0",
    )
    assert said["version"] == version("palimpsest-ml")
    assert said["title"] == "Palimpsest"
    assert said["abstract"]
    assert said["message"]
    assert said["authors"] == [{"name": "Palimpsest contributors"}]
    ours = {" ".join(re.sub(r"[{}]", "", _field(e, "title")).split()) for e in ENTRIES.values()}
    assert {paper["title"] for paper in said["references"]} == ours
    assert all(paper["authors"] and paper["year"] > 1990 for paper in said["references"])


def _field(entry: str, name: str) -> str:
    found = re.search(rf"^\s*{name}=\{{(.*?)\}},\n", entry, re.M | re.S)
    assert found, entry
    return found[1]
