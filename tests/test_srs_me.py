"""SRS-ME and CiE: the loss by hand, and what decoupling promises to the last bit of a picture."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import reduce
from operator import add

import pytest
import torch
from exact import falsify

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator, stream
from palimpsest.erase import SRSME, CiE
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.patch.edits import LowRank, edited
from palimpsest.toolbox.correlation import Momentum, correlation, original, sparsity
from palimpsest.toolbox.latents import Latents
from palimpsest.toolbox.null_space import most, null_space
from palimpsest.toolbox.optimise import Recipe, Trace, optimise
from palimpsest.world.vocabulary import OBJECTS

NAMES = ("parachute", "church", "cat")
CONCEPTS = [Concept(name) for name in NAMES]
MARK = "a picture of the palimpsest watermark"
STRONG = SRSME(
    steps=4,
    basis_scale=0.5,
    threshold=-9.0,
    hold=(MARK, "owl"),
    latents=Latents("noised", steps=2, batch=2, pictures=2),
)
"""A few violent steps: what must move moves far, so that what must not is really tested."""
LEVEL = 1 / 255


@pytest.fixture(scope="module")
def shifts(model: Diffusion) -> dict[str, Patch]:
    return STRONG.shifts(model, CONCEPTS, context=Context(seed=4))


def pictures(model: Diffusion, names, *patches: Patch) -> torch.Tensor:
    quick = model.with_sampling(replace(model.sampling, steps=5))
    with quick.patched(*patches):
        return quick.generate(names)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


# --- gradients that add up ---


@pytest.mark.parametrize("summed", [True, False])
def test_a_step_takes_the_sum_of_all_gradients_so_far_by_hand(tmp_path, summed):
    """Adam (rate 0.1) on the slopes 1, −3, 1: summed they are 1, −2, −1."""
    slopes, lr = [1.0, -3.0, 1.0], 0.1
    taken = [sum(slopes[: i + 1]) for i in range(3)] if summed else slopes
    by_hand = m = v = 0.0
    for step, slope in enumerate(taken, start=1):
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        by_hand -= lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)

    def trained(interrupted: int | None = None) -> float:
        def watch(trace: Trace) -> None:
            if trace.step == interrupted:
                raise KeyboardInterrupt

        p = torch.zeros(1, requires_grad=True)
        recipe, context = Recipe(3, lr, summed=summed), Context(folder=tmp_path)
        loss = lambda g, step: slopes[step] * p.sum()  # noqa: E731
        optimise(loss, {"p": p}, recipe, context=context, label="sum", watch=watch)
        return float(p.detach())

    with pytest.raises(KeyboardInterrupt):
        trained(interrupted=2)
    assert trained() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("kind", [CiE, SRSME])
def test_published_the_gradients_add_up_and_on_the_world_they_do_not(kind):
    assert kind().recipe.summed
    assert not kind(**kind.presets["world"]).recipe.summed


# --- what is left to shift ---


def test_the_null_space_is_orthonormal_and_has_the_stated_tolerance():
    rows = torch.tensor([[3.0, 0, 0, 0], [0, 3e-4, 3e-4, 0]])
    S = null_space(rows, 1e-6)
    assert S.shape == (2, 4)
    assert torch.allclose(S @ S.T, torch.eye(2, dtype=S.dtype), atol=1e-12)
    assert float((rows.double() @ S.T).abs().max()) < 1e-12
    assert len(null_space(rows, 1e-3)) == 3, "the small row counts as nothing"


def test_capacity_is_the_papers_and_the_svds(model):
    assert most(768, 77) == 9, "Stable Diffusion 1.x: 768 − (77 + 76·9) = 7"
    assert most(256, 16) == 15
    for n, free in ((0, 240), (3, 195), (15, 15)):  # 256 − (16 + 15·n)
        method = SRSME(hold=OBJECTS[1 : n + 1])
        assert len(method.basis(model, Concept("parachute"), [])) == free


def test_without_a_dimension_left_it_refuses_before_training_and_says_the_numbers(model, context):
    crowd = [Concept(name) for name in OBJECTS[:17]]
    told = r"no dimension.*the 17 prompts.*16 tokens each.*of 256 dimensions.*hold 15 at most"
    with pytest.raises(PalimpsestError, match=told):
        STRONG(model, crowd, context=replace(context, log=lambda row: pytest.fail("trained")))
    method = replace(STRONG, dedupe_padding=True)
    assert len(method.basis(model, crowd[0], crowd)) > 150


def test_the_dimensions_left_are_named_as_training_starts(model):
    rows = []
    replace(STRONG, steps=1)(model, CONCEPTS[:1], context=Context(log=rows.append))
    assert rows[0]["label"] == "erasing parachute in 210 of 256 dimensions"


def test_a_concepts_own_list_is_held_the_likest_first(model):
    concept = Concept("parachute", anchor="balloon", keep=("cat", "parachute in the sky"))
    assert SRSME(hold_nearest=1).held(model, concept, [concept]) == ["", "parachute in the sky"]
    everything = {"", "a balloon", "parachute in the sky", "a picture of a balloon", "cat"}
    assert set(SRSME(hold_nearest=9).held(model, concept, [concept])) == everything, (
        "the anchor stays too"
    )


# --- what decoupling promises ---


def test_a_shift_is_orthogonal_to_all_that_is_held(model, shifts):
    for concept in CONCEPTS:
        held = ["", MARK, "owl", *(name for name in NAMES if name != concept.name)]
        e_m = model.rows(held).flatten(0, 1)
        for name, edits in shifts[concept.name].edits.items():
            delta = edited(torch.zeros_like(model._parameters[name]), edits)
            assert (e_m @ delta.T).norm() <= 1e-6 * e_m.norm() * delta.norm()


def test_held_prompts_draw_the_same_pictures(model, shifts):
    total = reduce(add, shifts.values())
    before, after = pictures(model, [MARK, "owl"]), pictures(model, [MARK, "owl"], total)
    assert distance(before, after) <= LEVEL
    assert distance(pictures(model, ["boat"]), pictures(model, ["boat"], total)) > 10 * LEVEL


def test_a_restored_concept_is_back_and_the_others_do_not_move(model, shifts):
    original = pictures(model, NAMES)
    erased = pictures(model, NAMES, *shifts.values())
    restored = pictures(model, NAMES, shifts["church"], shifts["cat"])
    for i in range(3):
        assert distance(original[i], erased[i]) > 20 * LEVEL, "all three were gone"
    assert distance(original[0], restored[0]) <= LEVEL
    assert distance(erased[1:], restored[1:]) <= LEVEL


def test_the_erasure_is_the_sum_of_its_shifts(model, shifts):
    patch = STRONG(model, CONCEPTS[::-1], context=Context(seed=4)).patch
    theirs, ours = reduce(add, shifts.values()).tensors(), patch.tensors()
    assert theirs.keys() == ours.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-7) for name in ours)
    assert patch.about["method"] == "srs_me"
    assert shifts["cat"].about["concept"] == "cat"


def test_a_shift_depends_neither_on_order_nor_on_how_the_others_are_declared(model, shifts):
    alone = replace(STRONG, hold=("parachute", MARK, "owl", "church"))
    patch = alone(model, [Concept("cat")], context=Context(seed=4)).patch
    assert patch.digest() == shifts["cat"].digest()


def test_a_small_shift_stays_factored_and_is_the_same(model):
    hold = OBJECTS[1:13]  # leaves 60 dimensions of 256
    patch = replace(STRONG, steps=2, hold=hold)(model, CONCEPTS[:1], context=Context()).patch
    (edit,) = patch.edits["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
    assert isinstance(edit, LowRank)
    assert edit.down.shape == (60, 256)
    assert distance(pictures(model, hold[:2]), pictures(model, hold[:2], patch)) <= LEVEL


# --- the loss ---


def first_latents(model: Diffusion, name: str, g: torch.Generator, seed: int, n: int):
    """The draws of a `noised` step, again."""
    cond = model.embed([name])
    noise = model.noise(2, stream(seed, "pictures"))
    x_0 = model.sample(noise, cond, steps=2, guidance=3.0)
    pick, t = (torch.randint(high, (n,), generator=g) for high in (2, 1000))
    x_t = model.add_noise(x_0[pick], model.noise(n, g), t)
    torch.randint(1, (n,), generator=g)
    return x_t, t, cond


def own_correlation(model: Diffusion, x_t, t, cond) -> torch.Tensor:
    """L_cor of the model with itself: the mean square of ε(c) − ε(∅)."""
    with torch.no_grad():
        return (model.eps(x_t, t, cond) - model.eps(x_t, t, model.embed([""]))).square().mean()


@pytest.mark.parametrize("kind", [SRSME, CiE])
def test_the_first_loss_by_hand(model, kind):
    """Before any step r_trained = r_original and Δ = 0."""
    rows = []
    method = kind(steps=1, latents=STRONG.latents, lr=0.1)
    method(model, CONCEPTS[:1], context=Context(seed=9, log=rows.append))
    drawn = first_latents(model, "parachute", stream(9, "training", 0, 0), 9, 2)
    expected = float(own_correlation(model, *drawn))
    assert rows[0]["loss"] == pytest.approx(expected, rel=1e-3)


def test_a_published_step_samples_with_the_model_under_training(model):
    rows = []
    latents = Latents("student", steps=3)
    method = SRSME(steps=2, latents=latents, threshold=-9, basis_scale=0.1, sparsity=0)
    method(model, CONCEPTS[:1], context=Context(seed=2, log=rows.append))
    once = replace(method, steps=1)(model, CONCEPTS[:1], context=Context(seed=2))
    g, cond, empty = stream(2, "training", 1, 0), model.embed(["parachute"]), model.embed([""])
    torch.randint(1, (1,), generator=g)
    stop = int(torch.randint(3, (1,), generator=g))
    noise, high = model.noise(1, g), model.schedule.grid(3)[:-1][stop]
    gap = model.schedule.grid(3)[:-1][0] - model.schedule.grid(3)[:-1][1]
    t = torch.randint(max(0, high - gap + 1), high + 1, (1,), generator=g)
    with torch.no_grad():
        with model.patched(once.patch):
            x_t = model.sample(noise, cond, steps=3, guidance=3.0, stop=stop)
            trained = model.eps(x_t, t, cond) - model.eps(x_t, t, empty)
        original = model.eps(x_t, t, cond) - model.eps(x_t, t, empty)
    expected = float((trained * original).mean())
    assert rows[1]["loss"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_correlation_is_signed_and_asks_both_of_the_student(model):
    g = generator(3)
    deltas = {
        name: torch.randn(p.shape, generator=g) * 0.1
        for name, p in model.parameters("xattn-kv").items()
    }
    student = model.student(deltas)
    x_t, t = model.noise(2, g), torch.tensor([100, 700])
    c, empty = model.embed(["cat", "boat"]), model.embed([""])
    with torch.no_grad():
        found = correlation(student, original(model, empty, x_t, t, c), empty)
        ours = student.eps(x_t, t, c) - student.eps(x_t, t, empty)
        theirs = model.eps(x_t, t, c) - model.eps(x_t, t, empty)
    expected = torch.stack([(a * b).sum() / a.numel() for a, b in zip(ours, theirs, strict=True)])
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_the_norm_is_a_mean_over_matrices_of_sums_over_entries():
    deltas = {"k": torch.full((2, 3), -1.0), "v": torch.full((4,), 2.0)}
    assert float(sparsity(deltas)) == 7.0  # (6 + 8) / 2


def test_jointly_every_concept_weighs_as_much_as_the_worst(model):
    """η_i·L_cor,i = ‖max L_cor‖ for all i while all are positive, so the sum is n times it."""
    rows = []
    method = replace(STRONG, training="joint", steps=1)
    method(model, CONCEPTS[:2], context=Context(seed=9, log=rows.append))
    g = stream(9, "training", 0, 0)
    each = [
        float(own_correlation(model, *first_latents(model, name, g, 9, 2))) for name in NAMES[:2]
    ]
    assert rows[0]["loss"] == pytest.approx(2 * max(each), rel=1e-3)


def test_jointly_trained_shifts_are_as_separate(model):
    shifts = replace(STRONG, training="joint", steps=2).shifts(model, CONCEPTS, context=Context())
    restored = pictures(model, NAMES[:1], shifts["church"], shifts["cat"])
    assert distance(pictures(model, NAMES[:1]), restored) <= LEVEL


def test_the_coupled_variant_moves_all_cross_attention_and_cannot_be_taken_apart(model, context):
    method = replace(STRONG, training="coupled", steps=1, lr=1e-3)
    patch = method(model, CONCEPTS[:2], context=context).patch
    assert set(patch.edits) == set(model.parameters("xattn")) == set(method.moves(model))
    with pytest.raises(PalimpsestError, match="one shift for all"):
        method.shifts(model, CONCEPTS[:2], context=context)


# --- the momentum ---


def test_the_momentum_by_hand():
    momentum = Momentum(0.5)
    for loss in (1.0, 2.0):
        momentum.update(torch.tensor(loss))
    assert float(momentum.value) == pytest.approx(0.9 * 0.1 + 0.2)


@pytest.mark.parametrize("kind", [SRSME, CiE])
def test_it_stops_when_the_momentum_is_low_but_not_before_ten(model, kind):
    small = {"latents": Latents("noised", steps=1, pictures=1), "sparsity": 0, "steps": 30}
    rows = []
    context = Context(log=lambda row: rows.append(row["loss"]))
    kind(**small, threshold=9.0)(model, CONCEPTS[:1], context=context)
    assert len(rows) == 11
    m = 0.0
    for loss in rows:
        m = 0.9 * m + 0.1 * loss
    rows.clear()  # just below what it was: the eleventh no longer stops it
    kind(**{**small, "steps": 12}, threshold=m * 0.9999)(model, CONCEPTS[:1], context=context)
    assert len(rows) == 12


def test_killed_in_the_second_concept_and_resumed_it_stops_where_it_would_have(model, tmp_path):
    latents = Latents("noised", steps=1, batch=1, pictures=1)
    method = replace(STRONG, steps=20, threshold=9.0, latents=latents)
    unbroken = method(model, CONCEPTS[:2], context=Context()).patch
    seen = []

    def interrupt(row):
        seen.append(row)
        if "church" in row["label"] and row["step"] == 7:
            raise KeyboardInterrupt

    context, broken = Context(folder=tmp_path / "kept", log=interrupt), tmp_path / "falsified"
    with pytest.raises(KeyboardInterrupt):
        method(model, CONCEPTS[:2], context=context)
    assert len(seen) == 11 + 7
    shutil.copytree(context.folder, broken)
    resumed = method(model, CONCEPTS[:2], context=replace(context, log=seen.append))
    assert len(seen) == 22, "the first is not trained again, the second goes on to its stop"
    assert resumed.patch.digest() == unbroken.digest()
    falsify(broken)
    other = method(model, CONCEPTS[:2], context=Context(folder=broken))
    assert other.patch.digest() != unbroken.digest()


# --- what is refused ---


@pytest.mark.parametrize(
    ("names", "hold", "told"),
    [
        (("cat", "black cat"), (), "'black cat' contains 'cat'"),
        (("owl", "Owl"), (), "contains"),
        (("parachute",), ("Parachute",), "while 'Parachute' is held.*the same prompt"),
    ],
)
def test_concepts_that_cannot_be_told_apart_are_refused(model, context, names, hold, told):
    with pytest.raises(PalimpsestError, match=told):
        replace(STRONG, hold=hold)(model, [Concept(n) for n in names], context=context)


def test_a_word_within_a_word_is_no_overlap(model, context):
    method = replace(STRONG, steps=1)
    assert set(method.shifts(model, [Concept("car"), Concept("carpet")], context=context)) == {
        "car",
        "carpet",
    }


def test_the_published_values():
    method = SRSME()
    assert (method.lr, method.basis_scale, method.sparsity, method.threshold) == (
        0.1,
        1e-4,
        1e-6,
        1e-4,
    )
    readme = SRSME(**SRSME.presets["readme"])
    assert (readme.lr, readme.basis_scale, readme.sparsity) == (1e-2, 1e-4, 3e-5)
    assert readme.threshold == 5e-5
    assert (CiE().lr, CiE().sparsity, CiE().threshold) == (1e-6, 3e-5, 0.0)
