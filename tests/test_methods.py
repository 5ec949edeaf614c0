"""Each method against its paper: the loss by hand, a closed form, or what it must do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from by_hand import noised, on_the_way

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator, stream
from palimpsest.erase import ESD, UCE
from palimpsest.methods import Context
from palimpsest.metrics import rates
from palimpsest.patch.edits import LowRank
from palimpsest.recover import MemoRa
from palimpsest.toolbox.interpolation import PAIRS, Interpolation, slerp
from palimpsest.toolbox.latents import Latents
from palimpsest.toolbox.lora import factors_of, lora
from palimpsest.toolbox.relearning_curve import Measured
from palimpsest.world import suite

PARACHUTE = suite.concept("parachute", "balloon")


def world(kind, **changes):
    return replace(kind(**kind.presets["world"]), **changes)


# --- ESD ---


@pytest.mark.parametrize("latents", ["student", "frozen", "noised"])
def test_esds_first_loss_is_eq_7_by_hand(model, latents):
    losses = []
    method = ESD(steps=1, latents=Latents(latents, steps=5, pictures=1), eta=1.5)
    context = Context(seed=3, log=lambda row: losses.append(row["loss"]))
    method(model, [PARACHUTE], context=context)

    g, cond, empty = stream(3, "training", 0, 0), model.embed(["parachute"]), model.embed([""])
    x_t, t = (noised if latents == "noised" else on_the_way)(model, cond, g, 5)
    with torch.no_grad():
        e_c, e_0 = model.eps(x_t, t, cond), model.eps(x_t, t, empty)
    # before any step the student is the frozen model: ε_c − [ε_0 − η(ε_c − ε_0)] = (1+η)(ε_c − ε_0)
    expected = float(((1 + 1.5) * (e_c - e_0)).square().mean())
    assert losses == [pytest.approx(expected, rel=1e-3)]


def test_esds_first_loss_of_an_attribute_by_hand(model):
    """Trained on prompts of *church*, from which *neon* is taken: ε_church − η(ε_neon − ε_0)."""
    losses = []
    source = Latents("frozen", steps=5, guidance=3.0)
    method = ESD(steps=1, latents=source, eta=1.5, erase_from="church")
    context = Context(seed=3, log=lambda row: losses.append(row["loss"]))
    method(model, [Concept("neon", "style")], context=context)
    church, neon, empty = (model.embed([text]) for text in ("church", "neon", ""))
    x_t, t = on_the_way(model, church, stream(3, "training", 0, 0), 5)
    with torch.no_grad():
        e_a, e_0 = model.eps(x_t, t, neon), model.eps(x_t, t, empty)
    # before any step the student is the frozen model: ε_church − [ε_church − η(ε_neon − ε_0)]
    expected = float((1.5 * (e_a - e_0)).square().mean())
    assert losses == [pytest.approx(expected, rel=1e-3)]
    with pytest.raises(PalimpsestError, match="one concept is wanted"):
        method(model, [Concept("neon", "style"), Concept("cat")], context=context)


def test_esd_moves_the_group_it_is_told_to(model, context):
    small = Latents("noised", steps=20, pictures=1)
    for group in ("xattn", "noxattn", "selfattn", "full"):
        method = world(ESD, steps=1, latents=small, train=group)
        patch = method(model, [PARACHUTE], context=context).patch
        assert set(patch.edits) == set(model.parameters(group)) == set(method.moves(model))


# --- UCE ---


def test_uce_solves_its_normal_equations(model, context):
    """The W of the closed form is where the gradient of the paper's objective vanishes."""
    method = UCE(lamb=0.3, erase_scale=2.0, preserve_scale=0.7)
    concept = Concept("parachute", anchor="balloon", keep=("church", "cat"))
    patch = method(model, [concept], context=context).patch
    name, W_0 = next(iter(model.parameters("xattn-kv").items()))
    W = W_0.double() + patch.edits[name][0].delta.double()
    hidden = model.rows(["parachute", "balloon", "church", "cat"]).double()
    c, c_star, *k = hidden[:, 1]  # each name is one token
    gradient = 2.0 * torch.outer(W @ c - W_0.double() @ c_star, c) + 0.3 * (W - W_0.double())
    for kept in k:
        gradient += 0.7 * torch.outer((W - W_0.double()) @ kept, kept)
    scale = 2.0 * torch.outer(W @ c, c).norm()
    assert gradient.norm() < 1e-4 * scale


def test_uce_without_an_anchor_leads_to_the_begin_token(model, context):
    patch = UCE(lamb=1e-4)(model, [Concept("parachute")], context=context).patch
    name, W_0 = next(iter(model.parameters("xattn-kv").items()))
    W = W_0 + patch.edits[name][0].delta
    hidden = model.rows(["parachute", ""])
    assert torch.allclose(W @ hidden[0, 1], W_0 @ hidden[1, 0], atol=1e-2)
    assert not torch.allclose(W @ hidden[0, 1], W_0 @ hidden[1, 1], atol=1e-1), "its end"


# --- MemoRa ---


def test_memoras_defaults_are_the_published_ones():
    method = MemoRa()
    assert method.interpolation.pairs == PAIRS == ((1805, 2821), (1405, 2421), (1705, 2721))
    assert method.interpolation.n == 33
    assert (method.rank, method.lr, method.steps, method.seed) == (4, 1e-4, 500, 2024)
    unsafe = MemoRa(**MemoRa.presets["unsafe"])
    assert (unsafe.seed, unsafe.interpolation.steps, unsafe.interpolation.start_step) == (
        1337,
        100,
        15,
    )


def test_slerp_keeps_to_the_arc():
    a, b = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b, atol=1e-6)
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert torch.allclose(slerp(x, y, 1 / 3), torch.tensor([3**0.5 / 2, 0.5]))
    assert torch.allclose(slerp(x, x, 0.5), x)


def test_offsets_reach_the_published_timesteps(model):
    times = model.schedule.grid(50)[:-1]
    assert times[15] == 681  # where denoising starts
    assert times[16] == 661  # where the authors' inversion ends


def test_a_lora_patch_draws_what_peft_draws(model, weights):
    x, t, cond = torch.randn(2, 4, 16, 16), torch.tensor([5, 800]), model.embed(["cat", "owl"])
    with lora(model, rank=2, g=generator(0)) as trained:
        with torch.no_grad():
            for i, parameter in enumerate(trained.values()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator(i)) * 0.05)
        theirs = model.eps(x, t, cond)
        edits = {n: (LowRank(up, down),) for n, (up, down) in factors_of(model).items()}
    assert len(edits) == 4 * 2 * 7, "q, k, v, out of self- and cross-attention in seven blocks"
    from palimpsest.patch import Patch

    with model.patched(Patch(edits)):
        assert torch.allclose(model.eps(x, t, cond), theirs, atol=1e-4)
    assert all(torch.equal(weights[n], p) for n, p in model._parameters.items())


def test_accumulation_is_one_batch(model, context):
    """batch 1 × 4 micro-steps and batch 4 × 1 train on the same draws."""
    made = Interpolation(steps=4, pairs=((1, 2),), between=2, start_step=1)
    small = {"steps": 2, "interpolation": made, "measure": Measured(())}
    a = world(MemoRa, **small, batch=1, accumulate=4)
    b = world(MemoRa, **small, batch=4, accumulate=1)
    ours, theirs = (m(model, PARACHUTE, None, context=context).patch for m in (a, b))
    assert ours.digest() == theirs.digest()


def test_a_start_step_outside_the_schedule_is_refused():
    with pytest.raises(PalimpsestError, match="start_step is 19; it must be 0 to 18"):
        Interpolation(steps=20, start_step=19)


# --- what an erasure is for ---


def test_the_concept_falls_and_its_neighbours_stay(model, judge, context):
    """UCE is instant, so the whole claim is checked here: parachutes go, the rest remains."""
    method = world(UCE)
    patch = method(model, [PARACHUTE], context=context).patch
    prompts = suite.suite(PARACHUTE, asked=8)
    prompts = prompts[:8] + prompts[8::24]
    asks = [p.asks for p in prompts]
    before = judge.read(model.generate(prompts)).labels
    with model.patched(patch):
        after = judge.read(model.generate(prompts)).labels
    was = rates.unlearning([("object", "parachute")], asks, before)
    now = rates.unlearning([("object", "parachute")], asks, after)
    assert was["UA"].value <= 0.1
    assert now["UA"].value >= 0.8
    assert now["IRA"].value >= was["IRA"].value - 0.2
    assert now["CRA"].value >= was["CRA"].value - 0.2


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Latents, {"pictures": 0}),
        (Latents, {"batch": 0}),
        (Latents, {"steps": -1}),
        (ESD, {"lr": -1.0}),
        (ESD, {"lr": float("nan")}),
        (ESD, {"steps": -5}),
        (UCE, {"lamb": 0.0}),
        (MemoRa, {"rank": 0}),
        (Interpolation, {"between": 1}),
        (Interpolation, {"pairs": ()}),
    ],
    ids=str,
)
def test_hyperparameters_out_of_range_are_refused_at_once(kind, changes):
    with pytest.raises(PalimpsestError, match=next(iter(changes))):
        kind(**changes)


def test_a_schedule_longer_than_the_models_is_refused(model):
    with pytest.raises(PalimpsestError, match="1 to 1000"):
        model.schedule.grid(2000)[:-1]
