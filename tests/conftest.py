"""The shipped world, loaded once; and settings small enough for a test."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from palimpsest.judge.classifier import Classifier
from palimpsest.judge.clip import Clip
from palimpsest.models.loading import load_model
from palimpsest.models.stable_diffusion import Diffusion
from palimpsest.types import Context
from palimpsest.world import assets


@pytest.fixture(scope="session")
def model() -> Diffusion:
    return load_model("world")


@pytest.fixture(scope="session")
def judge() -> Classifier:
    return Classifier.load(assets.judge())


@pytest.fixture(scope="session")
def clip() -> Clip:
    return Clip.load(assets.clip())


@pytest.fixture
def context(judge: Classifier) -> Context:
    return Context(seed=0, judge=judge)


@pytest.fixture(scope="session")
def weights(model: Diffusion) -> dict[str, torch.Tensor]:
    """The model's weights as they were loaded, to see that nothing changed them."""
    return {name: p.detach().clone() for name, p in model._parameters.items()}
