"""Concept Ablation: its two losses by hand, its learning rate, its pictures and captions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import stream
from palimpsest.erase import ConceptAblation
from palimpsest.erase.ablation import reworded
from palimpsest.methods import Context
from palimpsest.toolbox.pictures import Drawn

PARACHUTE = Concept("parachute", anchor="balloon")
SMALL = ConceptAblation(steps=1, batch=1, drawn=Drawn(3, steps=2, guidance=6.0))
PAIRS = [
    ("a picture of a parachute", "a picture of a balloon"),
    ("a parachute", "a balloon"),
    ("parachute", "balloon"),
]


def draws(model, step: int):
    """A noised picture of the anchor, its noise, and the prompts that it goes with."""
    theirs = model.embed([b for _, b in PAIRS])
    x_0 = model.sample(model.noise(3, stream(5, "pictures")), theirs, steps=2, guidance=6.0)
    g = stream(5, "training", step, 0)
    pick = int(torch.randint(3, (1,), generator=g))
    t, noise = torch.randint(1000, (1,), generator=g), model.noise(1, g)
    x_t = model.add_noise(x_0[pick : pick + 1], noise, t)
    ours = model.embed([PAIRS[pick][0]])
    return x_t, t, noise, ours, theirs[pick : pick + 1]


@pytest.mark.parametrize("target", ["model", "noise"])
def test_the_first_loss_by_hand(model, target):
    rows = []
    context = Context(seed=5, log=lambda row: rows.append(row["loss"]))
    replace(SMALL, target=target)(model, [PARACHUTE], context=context)
    x_t, t, noise, c, c_anchor = draws(model, 0)
    with torch.no_grad():
        goal = noise if target == "noise" else model.eps(x_t, t, c_anchor)
        expected = float((model.eps(x_t, t, c) - goal).square().mean())
    assert rows == [pytest.approx(expected, rel=1e-3)]


def test_the_teacher_is_the_student_itself_without_gradient(model):
    """After a step the target has moved with the weights: it is not the frozen model's."""
    rows = []
    method = replace(SMALL, steps=2, lr=1e-2)
    context = Context(seed=5, log=lambda row: rows.append(row["loss"]))
    method(model, [PARACHUTE], context=context)
    once = replace(method, steps=1)(model, [PARACHUTE], context=Context(seed=5)).patch
    x_t, t, _, c, c_anchor = draws(model, 1)
    with torch.no_grad():
        frozen = model.eps(x_t, t, c_anchor)
        with model.patched(once):
            answer, own = model.eps(x_t, t, c), model.eps(x_t, t, c_anchor)
    assert rows[1] == pytest.approx(float((answer - own).square().mean()), rel=1e-3)
    assert rows[1] != pytest.approx(float((answer - frozen).square().mean()), rel=0.05)


def test_the_learning_rate_counts_every_picture_of_a_step(model):
    """Adam's first step moves an entry by its learning rate: lr × batch × accumulate."""
    method = replace(SMALL, batch=2, accumulate=3)
    patch = method(model, [PARACHUTE], context=Context()).patch
    largest = max(float(e.delta.abs().max()) for (e,) in patch.edits.values())
    assert largest == pytest.approx(2e-6 * 2 * 3, rel=1e-2)
    assert set(patch.edits) == set(model.parameters("xattn-kv"))


def test_the_published_values():
    method = ConceptAblation()
    assert (method.steps, method.lr, method.train) == (100, 2e-6, "xattn-kv")
    assert method.drawn == Drawn(1000, steps=200, guidance=6.0)


def test_without_an_anchor_it_refuses(model, context):
    with pytest.raises(PalimpsestError, match=r"'parachute' has no anchor.*--anchor"):
        SMALL(model, [Concept("parachute")], context=context)


def test_its_pictures_may_come_from_a_folder(model, tmp_path):
    for i in range(2):
        Image.new("RGB", (90, 70), (40 * i, 90, 160)).save(tmp_path / f"{i}.png")
    method = SMALL.changed({"drawn.folder": tmp_path})
    rows = []
    method(model, [PARACHUTE], context=Context(seed=5, log=lambda row: rows.append(row["loss"])))
    shown = torch.tensor([[0, 90, 160], [40, 90, 160]]).float() / 255
    x_0 = model.encode(shown[:, :, None, None].expand(-1, -1, 64, 64))
    g = stream(5, "training", 0, 0)
    pick = int(torch.randint(2, (1,), generator=g))
    t = torch.randint(1000, (1,), generator=g)
    x_t = model.add_noise(x_0[pick : pick + 1], model.noise(1, g), t)
    with torch.no_grad():
        ours, theirs = (model.eps(x_t, t, model.embed([text])) for text in PAIRS[pick])
    assert rows == [pytest.approx(float((ours - theirs).square().mean()), rel=1e-2)]
    two = [PARACHUTE, Concept("church", anchor="house")]
    with pytest.raises(PalimpsestError, match="several anchors"):
        method(model, two, context=Context())


def test_captions_are_reworded_for_the_concept(tmp_path):
    file = tmp_path / "captions.csv"
    file.write_text("prompt\na red balloon at dawn\nthe sky.\n")
    method = replace(SMALL, captions=file)
    assert method._pairs(PARACHUTE) == [
        ("a red parachute at dawn", "a red balloon at dawn"),
        ("the sky in the style of parachute", "the sky."),
    ]
    assert reworded("painting of a tree", "photo", "van gogh") == (
        "painting of a tree in the style of van gogh"
    )
