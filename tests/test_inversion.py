"""Textual inversion: vectors stand exactly where words would, and nothing else learns."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from exact import alike, falsify

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator, stream
from palimpsest.methods import Context
from palimpsest.toolbox.inversion import Inversion, first_vectors
from palimpsest.toolbox.pictures import Sampler
from palimpsest.toolbox.soft_tokens import embed_vectors, embeddings, token_ids

TEMPLATES = ("a picture of a {}", "a {}", "{}")


@pytest.mark.parametrize("words", ["parachute", "van gogh"])
def test_the_vectors_of_words_embed_as_these_words(model, words):
    prompts = ["a picture of a {} in neon style", "{}"]
    ours = embed_vectors(model, prompts, embeddings(model, words))
    theirs = model.embed([prompt.format(words) for prompt in prompts])
    assert torch.equal(ours.parts["hidden"], theirs.parts["hidden"])
    ids, slots = token_ids(model, prompts, len(embeddings(model, words)))
    assert torch.equal(ids[~slots], model.text.ids([p.format(words) for p in prompts])[~slots])
    assert [row.nonzero()[0].item() for row in slots] == [5, 1]


def test_gradient_reaches_the_vectors_alone(model, weights):
    vectors = embeddings(model, "cat").requires_grad_()
    cond = embed_vectors(model, ["a picture of a {}"], vectors)
    model.eps(model.noise(1, generator(0)), torch.tensor(500), cond).square().mean().backward()
    assert vectors.grad is not None
    assert vectors.grad.norm() > 0
    assert all(p.grad is None for p in model._parameters.values())
    assert torch.equal(model.rows(["a cat"]), model.rows(["a cat"]))
    assert not model.text_encoder.get_input_embeddings()._forward_hooks


def test_vectors_start_from_words_and_then_at_random(model):
    start = first_vectors(model, ("van gogh", "cat"), 4, generator(1))
    assert torch.allclose(start[0], embeddings(model, "van gogh").mean(0))
    assert torch.equal(start[1], embeddings(model, "cat")[0])
    spread = model.text_encoder.get_input_embeddings().weight.std()
    assert float(start[2:].std()) == pytest.approx(float(spread), rel=0.1)
    assert not torch.equal(start[2], start[3])


def test_one_step_by_hand(model):
    """AdamW's first step moves every entry by lr after the decay; then the length moves."""
    start = embeddings(model, "cat")
    x_0 = torch.zeros(1, 4, 16, 16)
    settings = Inversion(steps=1, lr=1e-3, weight_decay=0.1, warmup=0, norm=0.4)
    found, _ = settings(model, x_0, ["a {}"], start, context=Context(), label="cat")

    g = stream(0, "training", 0, 0)
    torch.randint(1, (1,), generator=g)
    torch.randint(1, (1,), generator=g)
    t = torch.randint(1000, (1,), generator=g)
    noise = model.noise(1, g)
    v = start.clone().requires_grad_()
    x_t = model.add_noise(x_0, noise, t)
    (model.eps(x_t, t, embed_vectors(model, ["a {}"], v)) - noise).square().mean().backward()
    moved = start * (1 - 1e-3 * 0.1) - 1e-3 * v.grad / (v.grad.abs() + 1e-8)
    length = moved.norm()
    moved = moved / length * (length + 0.1 * (0.4 - length))  # min(1, 100·1e-3) = 0.1 of the way
    assert torch.allclose(found, moved, atol=1e-6)


def test_a_killed_and_resumed_inversion_equals_an_unbroken_one(model, tmp_path):
    start, x_0 = first_vectors(model, (), 2, generator(0)), torch.randn(2, 4, 16, 16)
    settings = Inversion(steps=3, batch=2, warmup=2)

    def run(context):
        return settings(model, x_0, TEMPLATES, start, context=context, label="two words")[0]

    def interrupt(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    context, whole = Context(seed=1, folder=tmp_path / "kept"), run(Context(seed=1))
    with pytest.raises(KeyboardInterrupt):
        run(replace(context, log=interrupt))
    broken = shutil.copytree(context.folder, tmp_path / "falsified")
    assert alike(run(context), whole)
    assert alike(run(context), whole), "a finished one returns the same"
    falsify(broken)
    assert not alike(run(replace(context, folder=broken)), whole)


def test_a_new_word_learns_what_the_pictures_show(model):
    cond = model.embed(["a picture of a castle"])
    x_0, _ = Sampler(6, 3.0).draw(model, cond, 4, generator(2), Context(), "")
    start = embeddings(model, "fish")
    settings = Inversion(steps=15, lr=2e-2, batch=2, warmup=0, norm=None)
    found, _ = settings(model, x_0, TEMPLATES, start, context=Context(), label="castle")

    def error(vectors):
        t, noise = torch.linspace(100, 900, 4).long(), model.noise(4, generator(9))
        cond = embed_vectors(model, ["a picture of a {}"], vectors)
        with torch.no_grad():
            return float(
                (model.eps(model.add_noise(x_0, noise, t), t, cond) - noise).square().mean()
            )

    assert error(found) < error(start)


@pytest.mark.parametrize(
    ("prompts", "k", "told"),
    [
        (["a cat"], 1, "must hold one {}"),
        (["a {} and a {}"], 1, "must hold one {}"),
        (["a picture of a {}"], 12, "window holds 16"),
    ],
)
def test_prompts_that_cannot_hold_the_vectors_are_refused(model, prompts, k, told):
    with pytest.raises(PalimpsestError, match=told):
        token_ids(model, prompts, k)


def test_bad_starts_are_refused(model):
    with pytest.raises(PalimpsestError, match="2 starting words for 1"):
        first_vectors(model, ("cat", "owl"), 1, generator(0))
    with pytest.raises(PalimpsestError, match="no token"):
        first_vectors(model, ("",), 1, generator(0))
    with pytest.raises(PalimpsestError, match="batch"):
        Inversion(batch=0)
