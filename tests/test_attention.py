"""What the cross-attention looks at, against Diffusers' own scores and by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator
from palimpsest.models.loading import load_model
from palimpsest.toolbox.attention import cross_attention, end_of_text, word_positions

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
    with torch.no_grad(), cross_attention(model, wanted) as maps:
        model.eps(*asked)
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
    x_t, t, cond = asked
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
        with cross_attention(model.student({name: delta}), wanted) as maps:
            model.student({name: delta}).eps(x_t, t, cond)
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
    with torch.no_grad(), cross_attention(model, torch.ones(1, 16, dtype=torch.bool)) as maps:
        model.eps(*asked)
    for A in maps.values():
        assert torch.allclose(A.sum(-1), torch.ones(A.shape[:3]), atol=1e-5)


def test_recording_changes_no_prediction_and_leaves_no_hook(model, asked):
    with torch.no_grad():
        before = model.eps(*asked)
        with cross_attention(model, torch.ones(1, 16, dtype=torch.bool)):
            during = model.eps(*asked)
        with (
            pytest.raises(ZeroDivisionError),
            cross_attention(model, torch.ones(1, 16, dtype=torch.bool)) as maps,
        ):
            raise ZeroDivisionError
        after = model.eps(*asked)
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert not maps
    modules = [m for m in model.unet.modules() if isinstance(m, Attention)]
    assert not any(m._forward_hooks or m.to_q._forward_hooks for m in modules)


def test_a_bfloat16_model_is_recorded_in_float32(model, asked):
    low = load_model("world", dtype="bfloat16")
    wanted = torch.zeros(1, 16, dtype=torch.bool)
    wanted[0, 2] = True
    with torch.no_grad():
        with cross_attention(low, wanted) as rough:
            low.eps(*asked)
        with cross_attention(model, wanted) as fine:
            model.eps(*asked)
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


def test_asked_for_alone_the_attention_and_its_gradient_are_the_same_and_nothing_runs_after(
    model, asked
):
    name = f"unet.{MID}.to_k.weight"
    delta = torch.zeros_like(model._parameters[name], requires_grad=True)
    wanted, student, after = torch.ones(1, 16, dtype=torch.bool), model.student({name: delta}), []
    found = {}
    hook = model.unet.conv_out.register_forward_pre_hook(lambda *_: after.append(1))
    try:
        for alone in (False, True):
            with cross_attention(student, wanted, alone=alone) as maps:
                student.eps(*asked)
            total = torch.stack([A[..., 2].square().sum() for A in maps.values()]).sum()
            found[alone] = (
                *(A.detach() for A in maps.values()),
                *torch.autograd.grad(total, delta),
            )
    finally:
        hook.remove()
    assert after == [1], "the prediction was finished once, not twice"
    assert len(found[True]) == 7 + 1
    assert all(torch.equal(a, b) for a, b in zip(found[False], found[True], strict=True))
    assert model._parameters[name] is model.unet.get_parameter(name.removeprefix("unet."))
    assert not model.unet.get_submodule(MID).to_q._forward_hooks, "no hook is left behind"
