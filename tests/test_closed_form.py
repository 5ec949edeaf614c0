"""RECE: its closed form solves its own least squares, and what it derives is gone afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

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


def edited(patch, model) -> dict[str, torch.Tensor]:
    weights = closed_form.weights(model)
    return {name: W + patch.edits[name][0].delta.double() for name, W in weights.items()}


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
    W = closed_form.weights(model)
    c, _ = closed_form.rows(model, [PARACHUTE], "last-subject", "name")
    assert torch.allclose(derived(W, W, c, reg=1e-9), c, atol=1e-5)


@pytest.mark.parametrize("tokens", ["last-subject", "through-padding"])
def test_without_a_round_it_is_uce(model, context, tokens):
    same = {"lamb": 0.3, "erase_scale": 2.0, "preserve_scale": 0.7, "tokens": tokens}
    ours = RECE(rounds=0, **same)(model, [PARACHUTE], context=context)
    theirs = UCE(**same)(model, [PARACHUTE], context=context)
    for name, (edit,) in theirs.edits.items():
        assert torch.allclose(ours.edits[name][0].delta, edit.delta, atol=1e-6)


def test_after_a_round_the_derived_embedding_leads_to_the_anchor(model, context):
    """UCE's edit still answers c′ much as the unedited model answered c; RECE's answers c*."""
    method = RECE(tokens="last-subject", lamb=1e-4, reg=1e-3, rounds=1, edits="all")
    concept = Concept("parachute", anchor="balloon", keep=("church", "cat"))
    c, c_star = closed_form.rows(model, [concept], "last-subject", "name")
    W_0 = closed_form.weights(model)
    uce = edited(replace(method, rounds=0)(model, [concept], context=context), model)
    rece = edited(method(model, [concept], context=context), model)
    again = derived(uce, W_0, c, method.reg)

    def far(W: dict[str, torch.Tensor], goal: torch.Tensor) -> float:
        """How far the answers to c′ are from what `goal` meant, against the way from c to c*."""
        way = sum((w @ (c - c_star).T).square().sum() for w in W_0.values())
        gap = sum((W[n] @ again.T - w @ goal.T).square().sum() for n, w in W_0.items())
        return float((gap / way).sqrt())

    assert far(uce, c) < 0.5, "it evoked the concept"
    assert far(rece, c_star) < 0.05, "it is mapped where the concept was mapped"
    assert far(rece, c) > 0.9
    last = edited(replace(method, edits="last")(model, [concept], context=context), model)
    assert far(last, c_star) < 0.05


def test_the_concept_stays_erased_over_the_rounds(model, context):
    """Each c′ pulls the weights; unless c is edited along with it, c wanders back."""
    c, c_star = closed_form.rows(model, [PARACHUTE], "through-padding", "sentences")
    W_0 = closed_form.weights(model)
    way = sum(float((w @ (c - c_star).T).square().sum()) for w in W_0.values())

    def gone(edits: str) -> float:
        """How far c's answers are from c*'s, against the way there."""
        W = edited(world(RECE, edits=edits)(model, [PARACHUTE], context=context), model)
        left = sum(float((W[n] @ c.T - w @ c_star.T).square().sum()) for n, w in W_0.items())
        return (left / way) ** 0.5

    assert gone("all") < 0.05
    assert gone("last") > 0.3


def test_rece_keeps_what_is_preserved(model, context):
    concept = Concept("parachute", anchor="balloon", keep=("church", "cat"))
    method = RECE(tokens="last-subject", preserve_scale=1e4, reg=1.0)
    patch = method(model, [concept], context=context)
    k = closed_form.preserved(model, [concept], "last-subject")
    for name, W_0 in closed_form.weights(model).items():
        moved = patch.edits[name][0].delta.double() @ k.T
        assert moved.norm() < 1e-3 * (W_0 @ k.T).norm()


@pytest.mark.parametrize("changes", [{"rounds": -1}, {"reg": 0.0}, {"lamb": 0.0}], ids=str)
def test_hyperparameters_out_of_range_are_refused(changes):
    with pytest.raises(PalimpsestError, match=next(iter(changes))):
        RECE(**changes)
