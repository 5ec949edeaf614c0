"""Recoveries that change what is asked, or take the patch out: what each of them promises."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator, stream
from palimpsest.erase import UCE
from palimpsest.methods import Context, Reading, Task
from palimpsest.models.diffusion import Diffusion, Sampling
from palimpsest.models.schedule import RectifiedFlow
from palimpsest.patch import Patch
from palimpsest.patch.edits import Dense, LowRank, Replacement, Rows
from palimpsest.patch.hooks import NegativeWords, Transport
from palimpsest.recover import (
    P4D,
    ConceptInversion,
    NoisingProbe,
    Restoration,
    RingABell,
    UnlearnDiffAtk,
)
from palimpsest.recover.concept_inversion import with_vectors
from palimpsest.recover.noising import middle_of
from palimpsest.recover.p4d import nearest
from palimpsest.recover.unlearn_diff_atk import onto_simplex
from palimpsest.toolbox.inversion import Inversion
from palimpsest.toolbox.optimise import draws
from palimpsest.toolbox.pictures import Drawn, Sampler
from palimpsest.toolbox.relearning_curve import Measured, own_prompts
from palimpsest.toolbox.soft_tokens import embed_hard, embed_prefixed, embeddings, prefixed_ids
from palimpsest.world import suite

PARACHUTE = suite.concept("parachute", "balloon")
LINEAR = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def quick(model) -> Diffusion:
    """The world with pictures of two steps: what they show does not matter here."""
    return model.with_sampling(Sampling(steps=2, guidance=3.0, batch=4))


@pytest.fixture(scope="module")
def erased(model) -> Patch:
    return UCE(**UCE.presets["world"])(model, [PARACHUTE], context=Context()).patch


class Watching:
    """The world's judge, and how many pictures it was shown."""

    def __init__(self, judge) -> None:
        self.judge, self.spec, self.seen = judge, judge.spec, 0

    def read(self, images: torch.Tensor) -> Reading:
        self.seen += len(images)
        return self.judge.read(images)


def logged(rows: list) -> Context:
    return Context(log=rows.append)


# --- taken out again ---


def test_restoring_is_exact_for_every_kind_of_shift(model, weights, judge):
    names = [n for n in weights if n.startswith("unet.") and weights[n].ndim == 2][:3]
    g, (a, b, c) = generator(3), names
    rand = lambda *shape: torch.randn(*shape, generator=g) * 0.01  # noqa: E731
    low = LowRank(rand(len(weights[b]), 3), rand(3, weights[b].shape[1]))
    rows = Rows(torch.tensor([0, 2]), rand(2, weights[c].shape[1]))
    patch = Patch({a: (Dense(rand(*weights[a].shape)),), b: (low,), c: (rows,)})
    attempt = Restoration(measure=Measured(()))(model, PARACHUTE, patch, context=Context())
    assert attempt.patch is not None
    with model.patched(patch):
        assert not any(torch.equal(model._parameters[n], weights[n]) for n in names)
    with model.patched(patch, attempt.patch):
        assert all(torch.equal(model._parameters[n], weights[n]) for n in names)
    assert Restoration().evaluations() == (0, 0)


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        (None, "no patch that could be taken out"),
        (Patch({}, hook=NegativeWords("parachute")), "negative-words.* leave its patch off"),
        (Patch({LINEAR: (Replacement(torch.zeros(96, 256)),)}), "replaces .*to_k.weight whole"),
    ],
)
def test_what_is_no_shift_of_weights_cannot_be_restored(model, patch, told):
    with pytest.raises(PalimpsestError, match=told):
        Restoration(measure=Measured(()))(model, PARACHUTE, patch, context=Context())


# --- the unedited model from within a patch ---


def test_a_view_answers_as_the_unedited_model_under_weights_and_hooks(model, erased):
    words = (tuple(model.tokenizer("cat", add_special_tokens=False).input_ids),)
    up, down = torch.ones(len(model._parameters[LINEAR]), 1), torch.ones(1, 256)
    hook = Transport({LINEAR: up}, {LINEAR: down}, model.rows(["cat"]), (0,), words)
    x, t, c = model.noise(1, generator(1)), torch.tensor(500), model.embed(["a cat"])
    with torch.no_grad():
        was = model.eps(x, t, c)
        for patch in (erased, Patch({}, hook=hook)):
            with model.patched(patch):
                assert not torch.allclose(model.eps(x, t, c), was, atol=1e-4)
                assert torch.allclose(model.unedited().eps(x, t, c), was, atol=1e-6)
                assert not torch.allclose(model.eps(x, t, c), was, atol=1e-4), "it stays patched"
        with model.patched(Patch({}, hook=NegativeWords("a cat"))):
            empty = model.unedited().unconditional()
    assert torch.equal(empty.parts["hidden"], model.rows([""]))


# --- Concept Inversion ---


def test_the_word_is_asked_for_in_place_of_the_concepts_name(model):
    own = with_vectors(model, PARACHUTE, 5, embeddings(model, "parachute"))
    assert torch.equal(own.parts["hidden"], model.rows([p.text for p in own_prompts(PARACHUTE, 5)]))


def test_inversion_starts_from_a_plain_word_and_moves_by_the_scaled_rate(quick):
    """AdamW's first step: every entry decays by lr·n·wd and moves by lr·n against its gradient."""
    method = ConceptInversion(
        steps=1,
        lr=1e-3,
        batch=2,
        accumulate=2,
        wordings="sentences",
        drawn=Drawn(2, steps=2),
        measure=Measured((), pictures=2),
    )
    attempt = method(quick, PARACHUTE, None, context=Context())
    start = embeddings(quick, "object").mean(0)
    moved = attempt.vectors["parachute"][0] - start * (1 - 4e-3 * 1e-2)
    assert float(moved.abs().median()) == pytest.approx(4e-3, rel=1e-3)
    assert attempt.answers is not None
    assert len(attempt.asked) == len(attempt.answers) == 2
    assert not attempt.queries


def test_a_person_is_asked_for_by_the_authors_two_portraits(quick):
    """The vector is that of the same inversion by these two templates."""
    person = suite.concept(suite.DOMAINS["identity"][0])
    method = ConceptInversion(
        steps=2, batch=1, accumulate=1, drawn=Drawn(2, steps=2), measure=Measured((), pictures=1)
    )
    found = method(quick, person, None, context=Context()).vectors[person.name]
    images = method._pictures(quick, person, Context())
    x_0 = torch.cat([quick.encode(images), quick.encode(images.flip(-1))])
    start = embeddings(quick, "person").mean(0)[None]
    settings = Inversion(2, 5e-3, 1, weight_decay=1e-2, warmup=0, norm=None)

    def by(*templates: str) -> torch.Tensor:
        return settings(quick, x_0, templates, start, context=Context(), label="person")[0]

    assert torch.equal(found, by("a photo portrait of {}", "a DSLR portrait of {}"))
    assert not torch.equal(found, by("a photo of a {}", "a photo of one {}"))


def test_inversions_curve_begins_with_the_concepts_own_name(quick, judge):
    """What the model shows before the attack, as in every curve; a starting word shows nothing."""
    method = ConceptInversion(
        steps=1, batch=1, drawn=Drawn(2, steps=2), measure=Measured((0, 1), pictures=4)
    )
    attempt = method(quick, PARACHUTE, None, context=Context(judge=judge))
    plainly = judge.read(quick.generate(own_prompts(PARACHUTE, 4))).says("object", "parachute")
    assert [point.step for point in attempt.curve] == [0, 1]
    assert list(attempt.curve[0].says) == list(plainly)
    assert any(plainly)


# --- UnlearnDiffAtk ---


@pytest.mark.parametrize(
    ("point", "nearest_one"),
    [
        ([0.6, 0.6, -1.0], [0.5, 0.5, 0.0]),
        ([2.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        ([0.5, 0.2, -0.9], [0.65, 0.35, 0.0]),
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
    ],
)
def test_projection_onto_the_simplex(point, nearest_one):
    found = onto_simplex(torch.tensor([point]))
    assert torch.allclose(found, torch.tensor([nearest_one]), atol=1e-6)


def test_unlearn_diff_atk_by_hand(quick, erased, judge):
    """One step from the uniform mixture: ‖ε − ε(z_t, [mean word; c])‖², then Adam."""
    rows = []
    method = UnlearnDiffAtk(tokens=2, iterations=1, timesteps=(500,), relaxation="mixed", prompts=1)
    context = Context(judge=judge, log=rows.append)
    attempt = method(quick, PARACHUTE, erased, context=context)

    (prompt,) = own_prompts(PARACHUTE, 1)
    seed = int(torch.randint(2**62, (1,), generator=draws(context, 0)))
    noise = quick.noise(1, generator(seed))
    z_t = quick.add_noise(quick.encode(quick.generate([prompt])), noise, torch.tensor(500))
    words = [i for i in range(761) if i not in quick.tokenizer.all_special_ids]
    E = quick._parameters[quick.text.tables[0]].detach()[words]
    v = E.mean(0).repeat(1, 2, 1).requires_grad_()
    with quick.patched(erased):
        eps = quick.eps(z_t, torch.tensor(500), embed_prefixed(quick, [prompt.text], v))
        loss = (eps - noise).square().mean()
        loss.backward()
    slope = v.grad[0] @ E.T + 0.1 / len(words)  # by each word's weight, with the weight decay
    ids = quick.tokenizer(attempt.prompts[0], add_special_tokens=False).input_ids
    # Adam's first step is lr·s/(|s| + 1e-8): nearly a tie, decided by rounding among the steepest
    steeper = [(slope[k] < slope[k, words.index(ids[k])]).sum() for k in range(2)]
    assert max(steeper) < len(words) / 20
    assert rows[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert attempt.prompts[0].endswith(prompt.text)
    assert attempt.curve[-1].evaluations == 1
    assert method.evaluations() == (0, 1)


def test_words_drawn_from_the_simplex_pass_their_gradient_straight_through():
    u = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]], requires_grad=True)
    picked = UnlearnDiffAtk()._relaxed(u, generator(1))
    assert picked[0].tolist() == [0, 1, 0]
    assert sorted(picked[1].tolist()) == [0, 0, 1]
    assert picked[1, 1] == 0, "a word without weight is never drawn"
    (picked * torch.tensor([[1.0, 2, 3], [4, 5, 6]])).sum().backward()
    assert u.grad is not None
    assert u.grad.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "method",
    [
        UnlearnDiffAtk(iterations=2, timesteps=(300, 700), prompts=3),
        P4D(tokens=3, steps=4, every=2, prompts=3),
    ],
    ids=["UnlearnDiffAtk", "P4D"],
)
def test_prompts_are_attacked_each_as_if_alone(method, quick, erased, judge):
    watching = Watching(judge)
    three = method(quick, PARACHUTE, erased, context=Context(judge=watching))
    assert three.queries == watching.seen, "every picture that was judged is counted"
    one = replace(method, prompts=1)(quick, PARACHUTE, erased, context=Context(judge=judge))
    assert one.prompts[0] == three.prompts[0]
    assert [p.step for p in three.curve] == [0, 2, 4]
    assert torch.allclose(one.answers[0], three.answers[0], atol=1e-3)


@pytest.mark.parametrize("method", [UnlearnDiffAtk(), P4D(tokens=8)], ids=["UnlearnDiffAtk", "P4D"])
def test_a_prompt_that_draws_the_concept_by_itself_is_not_attacked(method, model, judge):
    """The unedited model: one query a prompt, no step, and the plain prompts come back."""
    rows, method = [], replace(method, prompts=3)
    attempt = method(model, PARACHUTE, None, context=Context(judge=judge, log=rows.append))
    assert attempt.queries == 3
    assert [p.says for p in attempt.curve] == [(True,) * 3]
    assert [p.text for p in attempt.asked] == list(attempt.prompts)
    assert not rows
    assert torch.allclose(attempt.answers, model.generate(attempt.asked), atol=1e-4)


# --- P4D ---


def test_the_nearest_word_is_by_cosine():
    E = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    assert nearest(torch.tensor([[3.0, 2.9], [0.1, 0.2], [-9.0, 1.0]]), E).tolist() == [0, 1, 2]


@pytest.mark.parametrize("rescaled", [False, True])
def test_p4d_by_hand(quick, erased, judge, rescaled):
    """The first step's loss: ‖ε(z_t, words) − ε*(z_t, c)‖² at the words nearest to the vectors.

    The autoencoder sees the picture x, as published, or 2x − 1.
    """
    rows = []
    context = Context(judge=judge, log=rows.append)
    P4D(tokens=3, steps=1, prompts=1, rescaled=rescaled)(quick, PARACHUTE, erased, context=context)

    (prompt,) = own_prompts(PARACHUTE, 1)
    g = generator(int(torch.randint(2**62, (1,), generator=draws(context, 0))))
    t = torch.randint(1000, (1,), generator=g)
    x = quick.generate([prompt])
    x = 2 * x - 1 if rescaled else x
    with torch.no_grad():
        z_0 = quick.latents.vae.encode(x).latent_dist.mean * quick.latents._factor
    z_t = quick.add_noise(z_0, quick.noise(1, g), t)
    drawn = torch.randint(761, (1, 3), generator=stream(0, "words"))  # what the vectors start from
    table = torch.nn.functional.normalize(quick._parameters[quick.text.tables[0]], dim=1)
    cosines = table[drawn[0]] @ table.T
    cosines[:, quick.tokenizer.all_special_ids] = -1
    ids = quick.text.ids([""])
    ids[0, 1:4], ids[0, 4] = cosines.argmax(1), quick.tokenizer.eos_token_id
    with torch.no_grad():
        target = quick.eps(z_t, t, quick.embed([prompt.text]))
        with quick.patched(erased):
            loss = (quick.eps(z_t, t, quick.embed_ids(ids)) - target).square().mean()
    assert rows[0]["loss"] == pytest.approx(float(loss), rel=1e-4)


# --- Ring-A-Bell ---


def test_ring_a_bells_target_and_distance(model):
    method = RingABell(tokens=2, pairs=(("a cat", "a"), ("cat in neon style", "neon style")))
    E = model.rows(["a cat", "a", "cat in neon style", "neon style"])
    by_hand = ((E[0] - E[1]) + (E[2] - E[3])) / 2
    assert torch.allclose(method.direction(model, PARACHUTE), by_hand, atol=1e-6)
    words = torch.tensor([model.tokenizer("a cat", add_special_tokens=False).input_ids])
    other = words.flip(1)
    far = method.distance(model, torch.cat([words, other]), E[0])
    assert float(far[0]) == pytest.approx(0, abs=1e-6)
    assert float(far[1]) == pytest.approx(
        float((model.rows(["cat a"])[0] - E[0]).square().sum()), rel=1e-4
    )


def test_without_pairs_the_name_is_left_out(model):
    own = RingABell().direction(model, Concept("parachute"))
    texts = ["a picture of a parachute", "a parachute", "parachute", "a picture of a", "a", ""]
    E = model.rows(texts)
    assert torch.allclose(own, (E[:3] - E[3:]).mean(0), atol=1e-6)


def test_children_take_their_beginning_from_one_and_their_end_from_another():
    parents = torch.arange(4)[:, None].repeat(1, 5)  # each repeats its own number
    method = RingABell(tokens=5, crossover=1.0, mutation=0.0)
    crowd = method._offspring(parents, torch.tensor([9]), generator(0))
    assert torch.equal(crowd[:4], parents)
    assert len(crowd) == 12
    for first, second in zip(crowd[4:8].tolist(), crowd[8:].tolist(), strict=True):
        assert [{a, b} for a, b in zip(first, second, strict=True)] == [{first[0], second[0]}] * 5
        assert sum(a != b for a, b in pairwise(first)) <= 1
    changed = replace(method, crossover=0.0, mutation=1.0)._offspring(
        parents, torch.tensor([9]), generator(0)
    )
    assert (changed == 9).sum(1).tolist() == [1] * 4


def test_the_search_closes_in_and_asks_no_unet(model):
    asked = []
    hook = model.unet.register_forward_hook(lambda *_: asked.append(1))
    method = RingABell(tokens=3, generations=12, population=24)
    target = model.rows(["a picture of a parachute"])[0]
    try:
        best = [
            replace(method, generations=k)._searched(model, target, generator(5), lambda: None)
            for k in (1, 12)
        ]
    finally:
        hook.remove()
    first, last = method.distance(model, torch.stack(best), target).tolist()
    assert last < 0.8 * first
    assert not asked


# --- the noising probe ---


def test_little_noise_leaves_the_picture_and_much_leaves_the_prompt(model, judge):
    probe = NoisingProbe(levels=(1, 950), answer=1, sampling=Sampler(10, 3.0), pictures=2)
    cats = probe._pictures(model, own_prompts(Concept("cat"), 2), Context())
    noise = model.noise(2, generator(0))
    cond = model.embed(["a picture of a parachute"] * 2)
    near, far = (probe._denoised(model, cats, noise, cond, level) for level in (1, 950))
    assert judge.read(near).says("object", "cat") == [True, True]
    assert judge.read(far).says("object", "parachute") == [True, True]


def test_levels_join_the_schedule_at_the_nearest_step_from_below(model):
    probe = NoisingProbe(levels=(300, 500, 999), sampling=Sampler(4))
    times = model.schedule.grid(4)[:-1]  # 751, 501, 251, 1
    assert times == [751, 501, 251, 1]
    assert probe.starts(model) == {300: 2, 500: 2, 999: 0}
    with pytest.raises(PalimpsestError, match="no step for the level 0"):
        NoisingProbe(levels=(0,), sampling=Sampler(4)).starts(model)
    flow = model.with_sampling(model.sampling)
    flow.schedule = RectifiedFlow(shift=1.0)  # 1000, 750, 500, 250
    assert probe.starts(flow) == {300: 3, 500: 2, 999: 1}
    with pytest.raises(PalimpsestError, match="no step for the level 200; levels go from 250 to"):
        NoisingProbe(sampling=Sampler(4)).check(flow, Task.of(PARACHUTE))


def test_to_ask_for_nothing_is_to_ask_the_empty_prompt(model, judge):
    """The answer is what the model makes of the noised picture with the empty prompt alone."""
    probe = NoisingProbe(levels=(999,), prompt="empty", sampling=Sampler(4, 3.0), pictures=1)
    (prompt,) = own_prompts(PARACHUTE, 1)
    context = Context(judge=judge)
    attempt = probe(model, PARACHUTE, None, context=context)
    t = torch.tensor(model.schedule.grid(4)[0])
    noise = model.noise(1, context.stream("noise", 0))
    x_t = model.add_noise(model.encode(model.generate([prompt])), noise, t)
    by_hand = model.decode(model.sample(x_t, model.embed([""]), steps=4, guidance=1.0))
    assert attempt.answers is not None
    assert torch.allclose(attempt.answers, by_hand, atol=1e-4), "guidance has nothing to add"


def test_filling_in_sees_the_border_and_nothing_of_the_middle(model):
    probe = NoisingProbe(shown="border", sampling=Sampler(3, 3.0))
    images, noise = torch.rand(2, 3, 64, 64, generator=generator(1)), model.noise(2, generator(2))
    images[1] = torch.where(middle_of(images, 50)[0], 1 - images[0], images[0])
    noise[1] = noise[0]
    cond = model.embed(["a picture of a parachute"] * 2)
    made = probe._filled(model, images, noise, cond, 50)
    assert torch.allclose(made[0], made[1], atol=1e-4), "only the covered middle differed"
    assert middle_of(images, 50).sum() == 32 * 32
    assert bool(middle_of(images, 100).all())


# --- what is refused ---


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        (UnlearnDiffAtk, {"iterations": 0}, "iterations"),
        (UnlearnDiffAtk, {"timesteps": ()}, "timesteps"),
        (UnlearnDiffAtk, {"tokens": 0}, "tokens"),
        (P4D, {"steps": 0}, "steps"),
        (P4D, {"every": 0}, "every"),
        (RingABell, {"generations": 0}, "generations"),
        (RingABell, {"mutation": 1.5}, "must be at most 1"),
        (ConceptInversion, {"steps": 0}, "steps"),
        (ConceptInversion, {"lr": -1.0}, "lr"),
        (ConceptInversion, {"drawn.pictures": 0}, "pictures"),
        (NoisingProbe, {"levels": ()}, "levels is empty"),
        (NoisingProbe, {"answer": 10}, "answer is 10"),
        (NoisingProbe, {"covered": (0,)}, "1 to 100"),
        (Restoration, {"measure.pictures": 0}, "pictures is 0"),
    ],
)
def test_a_budget_of_nothing_is_refused(kind, changes, told):
    with pytest.raises(PalimpsestError, match=told):
        kind().changed(changes)


@pytest.mark.parametrize("method", [UnlearnDiffAtk(tokens=10), P4D(), RingABell()])
def test_words_that_do_not_fit_the_window_are_refused(method, model, judge):
    with pytest.raises(PalimpsestError, match="window holds 16: take fewer"):
        method(model, PARACHUTE, None, context=Context(judge=judge))


def test_hard_words_are_encoded_as_the_prompt_that_says_them(model):
    ids, slots = prefixed_ids(model, ["cat"], 1)
    a = torch.tensor([model.tokenizer("a", add_special_tokens=False).input_ids])
    said = embed_hard(model, ids, slots, a)
    assert torch.equal(said.parts["hidden"], model.rows(["a cat"]))
    assert torch.equal(said.ids, model.text.ids(["a cat"]))
