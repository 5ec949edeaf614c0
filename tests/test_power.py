"""Every method does what it is for, at its preset for the built-in world. Slow: `make test-slow`.

Concepts, seeds and bounds were fixed before the first run. A bound is what must hold for the method
to have any power at all; the committed tables say how well it does.
"""

from __future__ import annotations

from functools import cache

import pytest

from palimpsest.core.concepts import Concept
from palimpsest.erase import ERASERS, OF_DIFFUSION
from palimpsest.methods import Context
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.recover import RECOVERIES
from palimpsest.world import suite

pytestmark = pytest.mark.slow

PICTURES = 24
"""Pictures judged; the unedited model shows the concept in all of them."""

ERASED = {
    "ablation": 0.25,
    "advunlearn": 0.25,
    "cie": 0.25,
    "erasediff": 0.25,
    "esd": 0.25,
    "fmn": 0.25,
    "gold": 0.1,
    "mace": 0.1,
    "rece": 0.1,
    "salun": 0.25,
    "scissorhands": 0.25,
    "slug": 0.25,
    "spm": 0.4,
    "srs_me": 0.25,
    "uce": 0.1,
}
"""Eraser → share of the pictures that may still show the parachute."""

EARLY = {"parachute": 40, "van gogh": 25}
"""Steps after which ESD is stopped: what it leaves hidden must be found."""

RECOVERED = {
    "benign": ("parachute", 0.5),
    "concept_inversion": ("van gogh", 0.25),
    "illusion": ("parachute", 0.6),
    "memora": ("parachute", 0.8),
    "noising": ("parachute", 0.4),
    "p4d": ("parachute", 0.4),
    "restoration": ("parachute", 0.9),
    "ring_a_bell": ("parachute", 0.5),
    "unlearn_diff_atk": ("parachute", 0.5),
}
"""Recovery → the concept, and the share of pictures in which it must be back."""


@pytest.fixture(scope="module")
def concept(clip):
    """A concept of the world with the anchor that the command line would choose."""

    @cache
    def made(name: str) -> Concept:
        return suite.concept(name, clip.nearest(name, suite.anchors(name)))

    return made


@pytest.fixture(scope="module")
def model():
    return load_model("world")


def shown(model, judge, concept: Concept, *patches: Patch | None) -> float:
    """The share of the concept's own pictures in which the judge sees it."""
    with model.patched(*patches):
        says = judge.read(model.generate(concept.prompts(PICTURES, seed=5500))).says(
            concept.kind, concept.name
        )
    return sum(says) / len(says)


def test_the_tables_leave_nobody_out():
    others = {
        "fmn_correction",
        "negative_prompt",
        "imported",
    }  # a word's meanings; no methods, like replay
    assert {*ERASED} == {*OF_DIFFUSION} - others
    assert {*RECOVERED} == {*RECOVERIES.own} - {"replay"}


@pytest.mark.parametrize("name", ERASED)
def test_the_concept_falls(name: str, model, judge, concept):
    kind = ERASERS.load(name)
    parachute = concept("parachute")
    assert shown(model, judge, parachute) >= 0.9, "there is something to erase"
    eraser = kind(**kind.presets["world"])
    patch = eraser(model, parachute, context=Context(seed=7, judge=judge)).patch
    assert shown(model, judge, parachute, patch) <= ERASED[name]


@pytest.fixture(scope="module")
def early(model, concept):
    """ESD stopped early, by concept."""
    kind = ERASERS.load("esd")

    @cache
    def made(name: str) -> Patch:
        eraser = kind(**{**kind.presets["world"], "steps": EARLY[name]})
        patch = eraser(model, concept(name), context=Context(seed=7)).patch
        assert patch is not None
        return patch

    return made


@pytest.mark.parametrize("name", RECOVERED)
def test_what_was_hidden_comes_back(name: str, model, judge, clip, concept, early):
    kind = RECOVERIES.load(name)
    asked, bound = RECOVERED[name]
    recovery = kind(**kind.presets["world"])
    context = Context(seed=7, judge=judge, clip=clip)
    result = recovery(model, concept(asked), early(asked), context=context)
    assert result.curve[-1].rate.value >= bound
