"""UCE and RECE in closed form: the least squares they solve, and one edit per part of the text."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import pytest
import torch
from methods import tiny_flow

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.erase import RECE, UCE
from palimpsest.erase.rece import derived
from palimpsest.toolbox import closed_form
from palimpsest.world import suite

PARACHUTE = suite.concept("parachute", "balloon")


def world(kind, **changes):
    return replace(kind(**kind.presets["world"]), **changes)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def edited(result, W_0: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: W + result.patch.edits[name][0].delta.double() for name, W in W_0.items()}


def test_a_derived_embedding_is_where_its_gradient_vanishes():
    old = {"k": random(5, 4, seed=0), "v": random(7, 4, seed=1)}
    new = {"k": random(5, 4, seed=2), "v": random(7, 4, seed=3)}
    c = random(3, 4, seed=4)
    found = derived(new, old, c, reg=0.2).requires_grad_()
    loss = sum(((new[n] @ found.T - old[n] @ c.T) ** 2).sum() for n in old)
    (loss + 0.2 * found.square().sum()).backward()
    assert found.grad is not None
    assert found.grad.abs().max() < 1e-10


def test_a_derived_embedding_by_hand():
    """One matrix of one entry: c′ = w·w₀/(λ + w²)·c = 2·3/(1 + 4)·5 = 6."""
    w, w_0, c = (torch.tensor([[x]], dtype=torch.float64) for x in (2.0, 3.0, 5.0))
    assert float(derived({"": w}, {"": w_0}, c, reg=1.0)) == pytest.approx(6.0)


def test_an_unedited_model_needs_no_other_embedding(model):
    ((W_0, c, *_),) = closed_form.parts(model, [PARACHUTE], "last-subject", "name")
    assert torch.allclose(derived(W_0, W_0, c, reg=1e-9), c, atol=1e-5)


@pytest.mark.parametrize("tokens", ["last-subject", "through-padding"])
def test_without_a_round_it_is_uce(model, context, tokens):
    same = {"erase_scale": 2.0, "tokens": tokens}
    first = {"first_lamb": 0.3, "first_preserve": 0.7}
    ours = RECE(rounds=0, **first, **same)(model, [PARACHUTE], context=context).patch
    theirs = UCE(lamb=0.3, preserve_scale=0.7, **same)(model, [PARACHUTE], context=context).patch
    for name, (edit,) in theirs.edits.items():
        assert torch.allclose(ours.edits[name][0].delta, edit.delta, atol=1e-6)


LIGHT = {"round_tokens": "same", "first_lamb": 1e-4, "first_preserve": 0.1, "lamb": 1e-4}
"""Weights that hold the matrices little, so that an edit reaches its aim."""


def test_after_a_round_the_derived_embedding_leads_to_the_anchor(model, context):
    """UCE's edit still answers c′ much as the unedited model answered c; RECE's answers c*."""
    method = RECE(tokens="last-subject", **LIGHT, reg=1e-3, rounds=1, edits="all")
    concept = Concept("parachute", anchor="balloon", keep=("church", "cat"))
    ((W_0, c, c_star, *_),) = closed_form.parts(model, [concept], "last-subject", "name")
    uce = edited(replace(method, rounds=0)(model, [concept], context=context), W_0)
    rece = edited(method(model, [concept], context=context), W_0)
    again = derived(uce, W_0, c, method.reg)

    def far(W: dict[str, torch.Tensor], goal: torch.Tensor) -> float:
        """How far the answers to c′ are from what `goal` meant, against the way from c to c*."""
        way = sum((w @ (c - c_star).T).square().sum() for w in W_0.values())
        gap = sum((W[n] @ again.T - w @ goal.T).square().sum() for n, w in W_0.items())
        return float((gap / way).sqrt())

    assert far(uce, c) < 0.5, "it evoked the concept"
    assert far(rece, c_star) < 0.05, "it is mapped where the concept was mapped"
    assert far(rece, c) > 0.9
    last = edited(replace(method, edits="last")(model, [concept], context=context), W_0)
    assert far(last, c_star) < 0.05


def test_the_concept_stays_erased_over_the_rounds(model, context):
    """Each c′ pulls the weights; unless c is edited along with it, c wanders back."""
    ((W_0, c, c_star, *_),) = closed_form.parts(model, [PARACHUTE], "through-padding", "sentences")
    way = sum(float((w @ (c - c_star).T).square().sum()) for w in W_0.values())

    def gone(edits: str) -> float:
        """How far c's answers are from c*'s, against the way there."""
        W = edited(world(RECE, edits=edits)(model, [PARACHUTE], context=context), W_0)
        left = sum(float((W[n] @ c.T - w @ c_star.T).square().sum()) for n, w in W_0.items())
        return (left / way) ** 0.5

    assert gone("all") < 0.05
    assert gone("last") > 0.3


def test_rece_keeps_what_is_preserved(model, context):
    concept = Concept("parachute", anchor="balloon", keep=("church", "cat"))
    method = RECE(tokens="last-subject", first_preserve=1e4, preserve_scale=1e4, reg=1.0)
    patch = method(model, [concept], context=context).patch
    ((W_0, _, _, k, _),) = closed_form.parts(model, [concept], "last-subject", "name")
    for name, w in W_0.items():
        moved = patch.edits[name][0].delta.double() @ k.T
        assert moved.norm() < 1e-3 * (w @ k.T).norm()


# --- a family that reads the text in two parts ---


@pytest.fixture(scope="module")
def flow():
    """The family of the docs: it reads token embeddings and a pooled vector."""
    return tiny_flow()


def alone(flow, part: str):
    """The same model as if it read one part only."""
    view = copy(flow)
    view.sites = replace(flow.sites, text_inputs={part: flow.sites.text_inputs[part]})
    return view


CONCEPT = Concept("parachute", anchor="balloon", keep=("church", "cat"))


@pytest.mark.parametrize("tokens", ["last-subject", "through-padding"])
@pytest.mark.parametrize("kind", [UCE, RECE])
def test_each_part_has_an_edit_of_its_own(flow, context, kind, tokens):
    method = kind(tokens=tokens)
    both = method(flow, CONCEPT, context=context).patch.edits
    assert set(both) == {n for names in flow.sites.text_inputs.values() for n in names}
    assert {name: edit.delta.numel() for name, (edit,) in both.items()} == method.moves(flow)
    for part in flow.sites.text_inputs:
        for name, (edit,) in method(
            alone(flow, part), CONCEPT, context=context
        ).patch.edits.items():
            assert torch.equal(both[name][0].delta, edit.delta)


def test_a_pooled_vector_is_led_to_its_anchors_and_those_kept_stay(flow, context):
    """UCE's normal equations, with one row a prompt: the gradient of its objective vanishes."""
    method = UCE(lamb=0.3, erase_scale=2.0, preserve_scale=0.7)
    patch = method(flow, CONCEPT, context=context).patch
    (name,) = flow.sites.text_inputs["pooled"]
    W_0, move = flow.weight(name).double(), patch.edits[name][0].delta.double()
    with torch.no_grad():  # asked of the encoder itself
        ids = flow.text.ids(["parachute", "balloon", "church", "cat"])
        c, c_star, *kept = flow.text.encoder(ids).pooler_output.double()
    gradient = 2.0 * torch.outer((W_0 + move) @ c - W_0 @ c_star, c) + 0.3 * move
    for k in kept:
        gradient += 0.7 * torch.outer(move @ k, k)
    assert gradient.norm() < 1e-4 * torch.outer(W_0 @ c, c).norm()


def test_rece_derives_from_each_parts_own_embedding(flow, context):
    method = RECE(tokens="last-subject", **LIGHT, reg=1e-3, rounds=1, edits="all")
    concept = replace(CONCEPT, keep=())
    for W_0, c, c_star, k, _ in closed_form.parts(flow, [concept], "last-subject", "name"):
        assert c.shape == c_star.shape == (1, flow.text.width)
        assert k.shape == (0, flow.text.width)
        uce = edited(replace(method, rounds=0)(flow, concept, context=context), W_0)
        rece = edited(method(flow, concept, context=context), W_0)
        again = derived(uce, W_0, c, method.reg)
        for name, w in W_0.items():
            gap = rece[name] @ again.T - w @ c_star.T
            assert gap.norm() < 0.05 * (w @ (c - c_star).T).norm()


@pytest.mark.parametrize("changes", [{"rounds": -1}, {"reg": 0.0}, {"lamb": 0.0}], ids=str)
def test_hyperparameters_out_of_range_are_refused(changes):
    with pytest.raises(PalimpsestError, match=next(iter(changes))):
        RECE(**changes)


@pytest.mark.parametrize("preset", ["published", "older"])
def test_without_an_anchor_the_concept_becomes_the_begin_token(model, context, preset):
    """What the authors' codes do; the end token in its place would be another edit."""
    method = UCE(**UCE.presets[preset])
    found = method(model, [Concept("parachute")], context=context).patch
    c, empty = (model.rows([text])[0].double() for text in ("parachute", ""))
    name, W = next(iter(model.matrices("xattn-kv").items()))
    n = 1 if preset == "published" else len(c) - 1  # "parachute" is the one token after BEGIN
    c, W = c[1 : 1 + n], W.double()
    k = c[:0] if preset == "published" else empty

    def shift(c_star: torch.Tensor) -> torch.Tensor:
        gram = method.lamb * torch.eye(W.shape[1]) + c.T @ c + k.T @ k
        return W @ (c_star - c).T @ c @ torch.linalg.inv(gram)

    begin, end = shift(empty[:n]), shift(empty[1 : 1 + n])
    (edit,) = found.edits[name]
    assert torch.allclose(edit.delta.double(), begin, atol=1e-5)
    assert (begin - end).norm() > 0.25 * begin.norm()


@pytest.mark.parametrize(("kept", "weight"), [(0, 1.0), (1, 0.5), (4, 0.2), (9, 0.1), (30, 0.1)])
def test_the_older_code_weighs_what_is_preserved_by_its_number(model, context, kept, weight):
    """max(0.1, 1/(n + 1)), the empty prompt counted; λ is 0.5 in the authors' call."""
    concept = Concept("parachute", "object", "balloon", tuple(f"{i} cats" for i in range(kept)))
    older = UCE(**UCE.presets["older"])
    assert (older.lamb, older.preserve_scale) == (0.5, None)
    found = older(model, [concept], context=context).patch
    said = replace(older, preserve_scale=weight)(model, [concept], context=context).patch
    rece = RECE(rounds=0)(model, [concept], context=context).patch
    other = replace(older, preserve_scale=2 * weight)(model, [concept], context=context).patch
    for name, (edit,) in found.edits.items():
        assert torch.equal(edit.delta, said.edits[name][0].delta)
        assert torch.allclose(edit.delta, rece.edits[name][0].delta, atol=1e-6), "RECE's first edit"
        assert not torch.allclose(edit.delta, other.edits[name][0].delta, atol=1e-4)


@pytest.mark.parametrize("preset", ["published", "older"])
def test_an_attribute_is_taken_out_of_a_name_by_hand(model, context, preset):
    """*church* becomes itself less what *neon* adds to the empty prompt; *neon* by itself stays."""
    method = replace(UCE(**UCE.presets[preset]), erase_from="church", lamb=1e-3)
    found = method(model, [Concept("neon", "style")], context=context).patch
    church, neon, empty = model.rows(["church", "neon", ""]).double()
    n = 1 if preset == "published" else len(church) - 1
    c, a, c_0 = church[1 : 1 + n], neon[1 : 1 + n], empty[:n]  # one token each, after BEGIN
    for name, weight in list(model.matrices("xattn-kv").items())[:2]:
        W, delta = weight.double(), found.edits[name][0].delta.double()
        wanted = W @ (c - (a - c_0)).T
        assert ((W + delta) @ c.T - wanted).norm() < 0.05 * (W @ c.T - wanted).norm()
        if preset == "published":
            assert (delta @ a[0]).norm() < 0.5 * (delta @ c[0]).norm()


@pytest.mark.parametrize("anchor", [None, "balloon"])
def test_a_published_round_edits_the_whole_window_row_by_row_by_hand(model, context, anchor):
    """The derived rows 0 … last are mapped to the anchor's rows 0 … last, from W as it stands."""
    concept = Concept("parachute", anchor=anchor)
    first = edited(RECE(rounds=0)(model, concept, context=context), W_0 := model_matrices(model))
    found = edited(RECE(rounds=1)(model, concept, context=context), W_0)
    same = edited(RECE(rounds=1, round_tokens="same")(model, concept, context=context), W_0)
    c, c_star = (model.rows([text])[0].double() for text in ("parachute", anchor or ""))
    left = 0.1 * torch.eye(c.shape[1]) + sum(W.T @ W for W in first.values())
    again = torch.linalg.solve(left, sum(W.T @ W_0[n] for n, W in first.items()) @ c.T).T
    k = model.rows([""])[0].double()
    inverse = torch.linalg.inv(0.1 * torch.eye(c.shape[1]) + again.T @ again + 0.1 * k.T @ k)
    for name, W in first.items():
        by_hand = W + (W_0[name] @ c_star.T - W @ again.T) @ again @ inverse
        assert torch.allclose(found[name], by_hand, atol=1e-4)
        assert (same[name] - by_hand).norm() > 0.1 * (by_hand - W_0[name]).norm()


def model_matrices(model) -> dict[str, torch.Tensor]:
    return {name: W.double() for name, W in model.matrices("xattn-kv").items()}
