"""Latents of many steps in one batch, and frozen answers ahead of time: the same as one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from methods import title
from PIL import Image

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator, stream
from palimpsest.erase import ESD, SRSME, CiE
from palimpsest.methods import Context
from palimpsest.toolbox.latents import Latents, ahead
from palimpsest.toolbox.optimise import draws

METHODS = [
    ESD(steps=3, lr=1e-3),
    CiE(steps=3, lr=1e-3, threshold=-9),
    SRSME(steps=3, threshold=-9, training="joint"),
]
CONCEPTS = [Concept("parachute"), Concept("cat")]


def curve(model, method, at_once: int) -> list[float]:
    """The losses of a training with pictures made so many at once."""
    rows = []
    view = model.with_sampling(replace(model.sampling, batch=at_once))
    method(view, CONCEPTS, context=Context(seed=3, log=rows.append))
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("source", ["frozen", "noised"])
@pytest.mark.parametrize("method", METHODS, ids=title)
def test_a_curve_does_not_depend_on_how_many_steps_are_worked_out_together(model, method, source):
    method = replace(method, latents=Latents(source, steps=3, pictures=2, wordings="sentences"))
    single = curve(model, method, 1)
    assert curve(model, method, 4) == pytest.approx(single, rel=1e-4, abs=1e-7)


def test_each_latent_stops_at_its_own_step(model):
    x, cond = model.noise(3, generator(1)), model.embed(["a cat", "a kite", "van gogh style"])
    together = model.sample(x, cond, steps=6, guidance=3.0, stop=torch.tensor([4, 0, 2]))
    assert torch.equal(together[1], x[1])
    assert not torch.equal(together[0], x[0])
    for i, stop in ((0, 4), (2, 2)):
        alone = model.sample(x[[i]], cond[[i]], steps=6, guidance=3.0, stop=stop)
        assert torch.allclose(together[[i]], alone, atol=1e-4)


def test_a_student_samples_with_the_weights_it_has_then(model):
    """Its weights are worked out once a sampling, not once and for all."""
    name = next(iter(model.parameters("xattn-kv")))
    delta = torch.zeros_like(model.parameters("xattn")[name], requires_grad=True)
    student, x, cond = model.student({name: delta}), model.noise(1, generator(1)), model.embed([""])
    before = student.sample(x, cond, steps=3, guidance=1.0)
    assert torch.equal(before, model.sample(x, cond, steps=3, guidance=1.0))
    with torch.no_grad():
        delta += torch.randn(delta.shape, generator=generator(2))
    after = student.sample(x, cond, steps=3, guidance=1.0)
    with model.patched(model.make_patch({name: delta}, {})):
        assert torch.allclose(after, model.sample(x, cond, steps=3, guidance=1.0), atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3)


def test_every_step_gets_what_its_own_generator_draws():
    """Also where a run begins in the middle of a stretch, and in the last, shorter one."""
    context, asked = Context(seed=5), []

    def work(gs):
        asked.append(len(gs))
        return (torch.cat([torch.rand(2, generator=g) for g in gs]),)

    own = ahead(work, steps=8, stretch=3, context=context)
    for step in (4, 5, 6, 7):
        assert torch.equal(own(step)[0], torch.rand(2, generator=draws(context, step)))
    assert asked == [3, 2]


def test_what_the_student_samples_is_not_worked_out_ahead(model):
    stretches = [
        Latents(source, steps=2, batch=4, pictures=2).of(model, CONCEPTS[1:], Context()).stretch
        for source in ("student", "frozen", "noised")
    ]
    assert stretches == [1, model.sampling.batch // 4, model.sampling.batch // 4]


@pytest.mark.parametrize("kind", [CiE, SRSME])
def test_pictures_come_from_a_folder(model, kind, tmp_path: Path):
    for name, colour in (("cat", "red"), ("parachute", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), colour).save(tmp_path / name / "one.png")
    rows = []
    method = kind(steps=1, latents=Latents("noised", folder=tmp_path / "cat"))
    method(model, CONCEPTS[:1], context=Context(seed=2, log=rows.append))
    red = model.encode(torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1).expand(1, 3, 64, 64))
    g = stream(2, "training", 0, 0)
    torch.randint(1, (1,), generator=g)
    t = torch.randint(1000, (1,), generator=g)
    x_t = model.add_noise(red, model.noise(1, g), t)
    with torch.no_grad():
        r = model.eps(x_t, t, model.embed(["parachute"])) - model.eps(x_t, t, model.embed([""]))
    assert rows[0]["loss"] == pytest.approx(float(r.square().mean()), rel=1e-3)
    if kind is SRSME:  # a folder for each concept
        latents = Latents("noised", folder=tmp_path)
        several = kind(steps=1, latents=latents, training="joint", sparsity=0)
        assert several(model, CONCEPTS, context=Context()).patch.edits
    with pytest.raises(PalimpsestError, match="looks at no picture"):
        method.changed({"latents.source": "student"})
