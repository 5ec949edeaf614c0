"""Concept Ablation: its two losses by hand, its learning rate, its pictures and captions."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from exact import alike, same
from methods import tiny_flow
from PIL import Image

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import stream
from palimpsest.erase import ConceptAblation
from palimpsest.erase.ablation import reworded
from palimpsest.methods import Context
from palimpsest.toolbox.attention import begin_token_held
from palimpsest.toolbox.denoising import Examples
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
    assert (method.weight_decay, method.hold_begin) == (0.01, True)


def gradients(model, held: bool):
    """(prediction, gradient of every key and value matrix) of one loss of a student."""
    x_t, t, noise, c, _ = draws(model, 0)
    deltas = model.shifts("xattn-kv")
    with begin_token_held(model) if held else nullcontext():
        eps = model.student(deltas).eps(x_t, t, c)
        parts = torch.autograd.grad((eps - noise).square().mean(), list(deltas.values()))
    return eps.detach(), dict(zip(deltas, parts, strict=True))


def test_the_begin_tokens_key_and_value_get_no_gradient_and_no_value_changes(model):
    """∇W is Σⱼ (∂L/∂kⱼ) cⱼᵀ over the prompt's tokens j, here without the first."""
    x_t, t, noise, c, _ = draws(model, 0)
    deltas, keys = model.shifts("xattn-kv"), {}
    hooks = [
        getattr(layer, to).register_forward_hook(
            lambda _, args, out, name=f"unet.{name}.{to}.weight": keys.update({name: out})
        )
        for name, layer in model.sites.attention.items()
        for to in ("to_k", "to_v")
    ]
    plain = model.student(deltas).eps(x_t, t, c)
    for hook in hooks:
        hook.remove()
    loss = (plain - noise).square().mean()
    slopes = dict(zip(keys, torch.autograd.grad(loss, list(keys.values())), strict=True))
    held, found = gradients(model, held=True)
    whole = gradients(model, held=False)[1]
    assert alike(held, plain.detach())
    assert keys.keys() == found.keys()
    rows = c.rows("hidden")[0]
    for name, slope in slopes.items():
        assert torch.allclose(found[name], slope[0, 1:].T @ rows[1:], atol=1e-7, rtol=1e-4)
        first = slope[0, :1].T @ rows[:1]
        assert torch.allclose(whole[name] - found[name], first, atol=1e-7, rtol=1e-3)
        assert float(first.abs().max()) > 0
    attended = model.sites.attention.values()
    assert not any(to._forward_hooks for layer in attended for to in (layer.to_k, layer.to_v))


def test_a_first_step_follows_the_held_gradient(model):
    """Adam's first step goes by lr against the sign of every gradient that is not tiny."""
    method = replace(SMALL, target="noise", lr=1e-3)
    with_begin = replace(method, hold_begin=False)
    for each in (method, with_begin):
        patch = each(model, [PARACHUTE], context=Context(seed=5)).patch
        _, expected = gradients(model, held=each.hold_begin)
        for name, g in expected.items():
            large = g.abs() > 1e-5
            assert large.any()
            step = patch.edits[name][0].delta[large]
            assert torch.allclose(step, -1e-3 * g[large].sign(), rtol=1e-2)


def test_a_killed_and_resumed_run_holds_the_begin_token_too(model, tmp_path):
    def interrupt(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    method, context = replace(SMALL, steps=3), Context(seed=5, folder=tmp_path)
    whole = method(model, [PARACHUTE], context=Context(seed=5)).patch.tensors()
    with pytest.raises(KeyboardInterrupt):
        method(model, [PARACHUTE], context=replace(context, log=interrupt))
    assert same(method(model, [PARACHUTE], context=context).patch.tensors(), whole)
    without = replace(method, hold_begin=False)(model, [PARACHUTE], context=Context(seed=5))
    assert not same(without.patch.tensors(), whole)


def test_a_model_without_cross_attention_is_refused_unless_the_begin_token_is_trained():
    flow = tiny_flow()
    with pytest.raises(PalimpsestError, match=r"no cross-attention.*hold_begin to false"):
        SMALL(flow, [PARACHUTE], context=Context())
    assert replace(SMALL, hold_begin=False)(flow, [PARACHUTE], context=Context()).patch


def test_weight_decay_acts_on_the_shift(model):
    """The second step takes lr·λ of what the first one left, by AdamW's rule."""
    run = replace(SMALL, steps=2, lr=1e-2, weight_decay=0.0)
    patches = [
        replace(method, weight_decay=decay)(model, [PARACHUTE], context=Context(seed=5)).patch
        for method, decay in ((replace(run, steps=1), 0.0), (run, 0.0), (run, 0.01))
    ]
    for name, (first,) in patches[0].edits.items():
        plain, decayed = (patch.edits[name][0].delta for patch in patches[1:])
        assert torch.allclose(plain - decayed, 1e-2 * 0.01 * first.delta, atol=1e-8)


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
    file.write_text("prompt\na red Balloon at dawn\nthe sky.\n")
    method = replace(SMALL, captions=file)
    assert method._pairs(PARACHUTE) == [
        (("a red parachute at dawn",), "a red Balloon at dawn"),
        (("the sky.",), "the sky."),
    ]
    with pytest.raises(PalimpsestError, match=r"no sentence says 'house', the anchor"):
        method._pairs(Concept("church", anchor="house"))


def test_a_styles_sentence_is_kept_whole_and_said_in_the_authors_three_forms():
    assert reworded("Watercolor painting of a tree", "painting", "van gogh", "style") == (
        "Watercolor painting of a tree, in the style of van gogh",
        "van gogh inspired painting, Watercolor painting of a tree",
        "in van gogh's style, Watercolor painting of a tree",
        "Watercolor painting of a tree, in the style of van gogh van gogh",
        "van gogh van gogh inspired painting, Watercolor painting of a tree",
        "in van gogh van gogh's style, Watercolor painting of a tree",
    )


def test_each_picture_of_a_batch_draws_its_own_wording(model):
    """Six wordings of two sentences, set by set; the anchor's prompt stays that of the picture."""
    texts = [f"a {name}" for name in ("cat", "dog", "owl", "fish", "boat", "house")]
    cond, other = model.embed(texts), model.embed(["a castle", "a church"])
    examples = Examples(torch.zeros(2, *model.latents.shape), torch.arange(2), cond, other)
    batch = examples.batch(model, 40, stream(3, "batch"))
    g = stream(3, "batch")
    pick = torch.randint(2, (40,), generator=g)
    torch.randint(1000, (40,), generator=g)
    model.noise(40, g)
    said = pick + 2 * torch.randint(3, (40,), generator=g)
    assert torch.equal(batch.c.ids, cond.ids[said])
    assert torch.equal(batch.c_other.ids, other.ids[pick])
    assert set(said.tolist()) == set(range(6))


def test_a_style_with_captions_trains_on_a_wording_of_its_own(model, tmp_path):
    """The first loss by hand, of the picture and the wording that the step draws."""
    file = tmp_path / "captions.csv"
    file.write_text("prompt\na sketch of a cat\na house\n")
    rows = []
    method = replace(SMALL, captions=file)
    context = Context(seed=5, log=lambda row: rows.append(row["loss"]))
    method(model, [Concept("van gogh", "style", anchor="sketch")], context=context)
    texts = ["a sketch of a cat", "a house"]
    theirs = model.embed([texts[i % 2] for i in range(3)])
    x_0 = model.sample(model.noise(3, stream(5, "pictures")), theirs, steps=2, guidance=6.0)
    g = stream(5, "training", 0, 0)
    pick = int(torch.randint(3, (1,), generator=g))
    t, noise = torch.randint(1000, (1,), generator=g), model.noise(1, g)
    text = texts[pick % 2]
    said = reworded(text, "sketch", "van gogh", "style")[int(torch.randint(6, (1,), generator=g))]
    x_t = model.add_noise(x_0[pick : pick + 1], noise, t)
    with torch.no_grad():
        ours, goal = (model.eps(x_t, t, model.embed([prompt])) for prompt in (said, text))
    assert rows == [pytest.approx(float((ours - goal).square().mean()), rel=1e-2)]
