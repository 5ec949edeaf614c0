"""Attention maps of the text, against Diffusers' own scores and by hand."""

from __future__ import annotations

import pytest
import torch

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator
from palimpsest.erase import FMN, MACE
from palimpsest.models.loading import load_model
from palimpsest.toolbox.attention import attention_maps, end_of_text, word_positions
from palimpsest.toolbox.pictures import Drawn

MID = "mid_block.attentions.0.transformer_blocks.0.attn2"


class Recorder:
    """An attention processor that keeps Diffusers' own probabilities of the whole window."""

    def __init__(self) -> None:
        self.seen = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *_, **__):
        q, k, v = (
            attn.head_to_batch_dim(project(x))
            for project, x in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        probabilities = attn.get_attention_scores(q, k)
        self.seen.append(probabilities.unflatten(0, (-1, attn.heads)))
        return attn.to_out[0](attn.batch_to_head_dim(probabilities @ v))


def recorded(model, x_t, t, cond) -> list[torch.Tensor]:
    """(n, heads, pixels, window) of every layer by Diffusers' own scores."""
    layers = [m for n, m in model.unet.named_modules() if n.endswith("attn2")]
    before, recorder = [layer.processor for layer in layers], Recorder()
    try:
        for layer in layers:
            layer.set_processor(recorder)
        with torch.no_grad():
            model.eps(x_t, t, cond)
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)
    return recorder.seen


@pytest.fixture(scope="module")
def asked(model):
    x_t = model.noise(2, generator(3))
    return x_t, torch.tensor([100, 700]), model.embed(["a cat", "a picture of a van gogh kite"])


def test_the_recorded_columns_are_those_of_diffusers_own_scores(model, asked):
    wanted = torch.zeros(2, 16, dtype=torch.bool)
    wanted[0, 2] = wanted[1, 5] = wanted[1, 7] = True
    with torch.no_grad():
        maps = attention_maps(model, *asked, wanted)
    theirs = recorded(model, *asked)
    assert len(maps) == len(theirs) == 7
    ours = sorted(maps.values(), key=lambda A: float(A.sum()))
    full = sorted(theirs, key=lambda A: float(A[0, ..., 2].sum() + A[1][..., [5, 7]].sum()))
    for A, P in zip(ours, full, strict=True):
        assert A.shape == (*P.shape[:3], 2)
        assert torch.allclose(A[0, ..., 0], P[0, ..., 2], atol=1e-6)
        assert torch.allclose(A[1], P[1][..., [5, 7]], atol=1e-6)
        assert not A[0, ..., 1].any(), "a prompt with fewer tokens has zeros at its end"


def test_one_pixel_by_hand_and_its_gradient_through_a_student(model, asked):
    """softmax(QKᵀ/√d) for one head, written out, with a shift on the keys."""
    cond = asked[-1]
    name = f"unet.{MID}.to_k.weight"
    delta = torch.randn(model._parameters[name].shape, generator=generator(1)) * 0.02
    delta.requires_grad_()
    inputs = {}
    layer = model.unet.get_submodule(MID)
    hook = layer.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.update(h=args[0].detach()), with_kwargs=True
    )
    wanted = torch.zeros(1, 16, dtype=torch.bool)
    wanted[0, 2] = True
    try:
        maps = attention_maps(model.student({name: delta}), *asked, wanted)
    finally:
        hook.remove()
    head, pixel, d = 3, 5, 32
    rows = slice(head * d, (head + 1) * d)
    q = layer.to_q.weight[rows] @ inputs["h"][0, pixel]
    k = cond.parts["hidden"][0] @ (layer.to_k.weight + delta)[rows].T  # (window, d)
    scores = torch.stack([(q * k[j]).sum() / d**0.5 for j in range(16)])
    expected = scores[2].exp() / scores.exp().sum()
    ours = maps[MID][0, head, pixel, 0]
    assert float(ours) == pytest.approx(float(expected), rel=1e-4)
    (got,) = torch.autograd.grad(ours, delta)
    (want,) = torch.autograd.grad(expected, delta)
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-7)
    assert want.norm() > 0


def test_over_the_whole_window_every_pixels_attention_sums_to_one(model, asked):
    with torch.no_grad():
        maps = attention_maps(model, *asked, torch.ones(1, 16, dtype=torch.bool))
    for A in maps.values():
        assert torch.allclose(A.sum(-1), torch.ones(A.shape[:3]), atol=1e-5)


def test_recording_changes_no_later_prediction_and_leaves_no_hook(model, asked):
    everything = torch.ones(1, 16, dtype=torch.bool)
    with torch.no_grad():
        before = model.eps(*asked)
        attention_maps(model, *asked, everything)
        with pytest.raises(RuntimeError):  # latents that the U-Net cannot read
            attention_maps(model, asked[0][:, :3], *asked[1:], everything)
        after = model.eps(*asked)
    assert torch.equal(before, after)
    assert not any(module._forward_hooks for module in model.unet.modules())


def test_a_bfloat16_model_is_recorded_in_float32(model, asked):
    low = load_model("world", dtype="bfloat16")
    wanted = torch.zeros(1, 16, dtype=torch.bool)
    wanted[0, 2] = True
    with torch.no_grad():
        rough = attention_maps(low, *asked, wanted)
        fine = attention_maps(model, *asked, wanted)
    for name, A in rough.items():
        assert A.dtype == torch.float32
        assert (A - fine[name]).abs().max() < 0.1


def test_every_occurrence_and_every_token_of_the_words_is_found(model):
    found = word_positions(model, "van gogh, a car in van gogh style", "van gogh")
    # begin, van, gogh, comma, a, car, in, van, gogh, style
    assert found.nonzero().flatten().tolist() == [1, 2, 7, 8]
    with pytest.raises(PalimpsestError, match="does not contain 'cat'"):
        word_positions(model, "a picture of a dog", "cat")
    with pytest.raises(PalimpsestError, match="window of 16"):
        word_positions(model, "a picture of " + "cat " * 20, "cat")


def test_end_of_text_covers_the_padding(model):
    assert end_of_text(model, model.text.ids(["a cat"]))[0].tolist() == [False] * 3 + [True] * 13


def finished(model, x_t, t, cond) -> list[torch.Tensor]:
    """(n, heads, pixels, window) of every layer, with gradient, from a prediction that is ended."""
    layers = [m for n, m in model.unet.named_modules() if n.endswith("attn2")]
    found, hooks = [], []
    for layer in layers:
        for project in (layer.to_q, layer.to_k):
            hooks.append(project.register_forward_hook(lambda *call: found.append(call[-1])))
    try:
        model.eps(x_t, t, cond)
    finally:
        for hook in hooks:
            hook.remove()
    maps = []
    heads = [p.unflatten(-1, (layers[0].heads, -1)).transpose(1, 2) for p in found]
    for q, k in zip(heads[::2], heads[1::2], strict=True):
        maps.append((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1))
    return maps


def test_nothing_is_computed_after_the_last_layer_and_maps_and_gradient_are_those_of_a_finished_one(
    model, asked
):
    name = f"unet.{MID}.to_k.weight"
    delta = torch.zeros_like(model._parameters[name], requires_grad=True)
    everything, student = torch.ones(1, 16, dtype=torch.bool), model.student({name: delta})
    after = []
    with model.unet.conv_out.register_forward_pre_hook(lambda *_: after.append(1)):
        broken = [*attention_maps(student, *asked, everything).values()]
        assert not after
        whole = finished(student, *asked)
        assert after == [1]
    assert len(broken) == len(whole) == 7
    assert all(torch.equal(A, P) for A, P in zip(broken, whole, strict=True))
    gradients = []
    for maps in (broken, whole):
        total = torch.stack([A[..., 2].square().sum() for A in maps]).sum()
        gradients += torch.autograd.grad(total, delta)
    assert torch.equal(*gradients)
    assert gradients[0].norm() > 0
    assert model._parameters[name] is model.unet.get_parameter(name.removeprefix("unet."))


@pytest.mark.parametrize("kind", [FMN, MACE])
def test_an_eraser_that_steers_attention_ends_no_prediction_that_it_trains_on(model, context, kind):
    method, ended = kind(steps=3, lr=1e-2, drawn=Drawn(1, steps=1)), []
    with model.unet.conv_out.register_forward_pre_hook(
        lambda *_: ended.append(torch.is_grad_enabled())
    ):
        method(model, [Concept("parachute")], context=context)
    assert ended == [False], "one picture was drawn in one step"
