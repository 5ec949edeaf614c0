"""The shipped world, loaded once; and settings small enough for a test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from killing import Worker, make_ground

from palimpsest.cli import main
from palimpsest.judge.clip import Clip
from palimpsest.judge.world import Classifier
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import load_model
from palimpsest.world import assets

CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def model() -> Diffusion:
    """The world's model, which draws in 8 steps here: enough for its judge to see what it draws."""
    model = load_model("world")
    return model.with_sampling(replace(model.sampling, steps=8))


@pytest.fixture(scope="session")
def judge() -> Classifier:
    return Classifier.load(assets.judge())


@pytest.fixture(scope="session")
def clip() -> Clip:
    return Clip.load(assets.clip())


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A process that forks one for each command."""
    worker = Worker(tmp_path_factory.mktemp("kills"))
    yield worker
    worker.process.kill()


@pytest.fixture(scope="session")
def ground(worker: Worker) -> Path:
    """A folder with all that killed commands start from; it stays as it is."""
    return make_ground(worker)


@pytest.fixture
def context(judge: Classifier) -> Context:
    return Context(seed=0, judge=judge)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., None]:
    """Hold that an erasure is refused by a sentence, and leaves nothing."""

    def hold(words: list[str], told: str, *more: str) -> None:
        runs = tmp_path / "runs"
        asked = ["erase", *words, "--concept", "parachute", "--runs", str(runs), *more]
        assert main(asked) == 2
        assert told in capsys.readouterr().err
        assert not [*runs.glob("*")]

    return hold


@pytest.fixture(scope="session")
def weights(model: Diffusion) -> dict[str, torch.Tensor]:
    """The model's weights as they were loaded, to see that nothing changed them."""
    return {name: p.detach().clone() for name, p in model._parameters.items()}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A browser to look at reports with."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("PALIMPSEST_CHROMIUM") or shutil.which("chromium")
    if not path or not Path(path).is_file():
        pytest.fail(
            f"no Chromium at {path or 'PATH'}: install it (apt-get install chromium) or set "
            "PALIMPSEST_CHROMIUM to its program; the report must be looked at in a browser"
        )
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield opened
        opened.close()
