"""MemoRa's variants: guidance between two models, several LoRAs at once, and its ablations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator, stream
from palimpsest.erase import UCE
from palimpsest.methods import Context
from palimpsest.patch import Patch
from palimpsest.patch.edits import LowRank
from palimpsest.patch.hooks import NegativeWords, TwoModels
from palimpsest.recover import MemoRa
from palimpsest.toolbox.interpolation import random_captions, spread
from palimpsest.toolbox.lora import added
from palimpsest.world import suite

PARACHUTE = suite.concept("parachute", "balloon")
SMALL = {
    "steps": 2,
    "lr": 2e-2,
    "measure.at": (),
    "interpolation.pairs": ((1, 2),),
    "interpolation.between": 3,
    "interpolation.steps": 4,
    "interpolation.start_step": 1,
}


def small(**changes) -> MemoRa:
    return MemoRa(**MemoRa.presets["world"]).changed({**SMALL, **changes})


@pytest.fixture(scope="module")
def erased(model) -> Patch:
    return UCE(**UCE.presets["world"])(model, [PARACHUTE], context=Context()).patch


@pytest.fixture(scope="module")
def auto(model, erased) -> Patch:
    return small(auto=1.0)(model, PARACHUTE, erased, context=Context()).patch


@pytest.fixture(scope="module")
def plain(auto) -> Patch:
    """The same LoRA over the weights."""
    return Patch({n: (LowRank(up, auto.hook.down[n]),) for n, up in auto.hook.up.items()})


def drawn(model, *patches: Patch) -> torch.Tensor:
    with model.patched(*patches):
        return model.generate(["a picture of a parachute", "a cat"])


def test_the_first_loss_is_the_denoising_loss_by_hand(model, erased):
    """A LoRA begins at zero, so the erased model itself answers; pick, t and noise by the draws."""
    losses, method = [], small(steps=1)
    context = Context(seed=3, log=lambda row: losses.append(row["loss"]))
    images = method(model, PARACHUTE, erased, context=context).images
    g, n = stream(3 + method.seed, "training", 0, 0), method.batch * method.accumulate
    pick = torch.randint(2 * len(images), (n,), generator=g)
    t = torch.randint(1000, (n,), generator=g)
    noise = model.noise(n, g)
    expected = []
    with model.patched(erased), torch.no_grad():
        cond = model.embed(["a picture of a parachute"])
        for i in range(n):
            k, mirrored = int(pick[i]) % len(images), int(pick[i]) >= len(images)
            x_0 = model.encode((images[k].flip(-1) if mirrored else images[k])[None])
            alpha = model.schedule.alphas_cumprod[t[i]]
            x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise[i]
            eps = model.eps(x_t, t[i : i + 1], cond)
            expected.append(float(((eps[0] - noise[i]) ** 2).mean()))
    assert losses == [pytest.approx(sum(expected) / n, rel=1e-4)]


# --- Auto-MemoRa ---


def test_auto_at_1_is_the_lora_model_and_at_0_the_erased_one(model, erased, auto, plain):
    def hooked(w: float, main: str) -> Patch:
        return replace(auto, hook=replace(auto.hook, w=w, main=main))

    lora, none = drawn(model, erased, plain), drawn(model, erased)
    assert (lora - none).abs().max() > 10 / 255, "the LoRA does something"
    for w, main, expected in (
        (1.0, "lora", lora),
        (0.0, "lora", none),
        (1.0, "erased", none),
        (0.0, "erased", lora),
    ):
        found = drawn(model, erased, hooked(w, main))
        assert (found - expected).abs().max() <= 1 / 255, (w, main)


@pytest.mark.parametrize("main", ["lora", "erased"])
def test_auto_is_its_equation(model, erased, auto, plain, main):
    """ε̂ = ε_bad + w·(ε_main − ε_bad), each guided by itself, at w = 2.5 and guidance 3."""
    x, t, cond = torch.randn(2, 4, 16, 16), torch.tensor(400), model.embed(["parachute", "owl"])
    empty, three = model.embed([""]), torch.full((2, 1, 1, 1), 3.0)

    def guided(*patches: Patch) -> torch.Tensor:
        with model.patched(*patches), torch.no_grad():
            return model.guided(x, t, cond, empty, three)

    with_lora, without = guided(erased, plain), guided(erased)
    first, bad = (with_lora, without) if main == "lora" else (without, with_lora)
    by_hand = bad + 2.5 * (first - bad)
    ours = guided(erased, replace(auto, hook=replace(auto.hook, w=2.5, main=main)))
    assert torch.allclose(ours, by_hand, atol=1e-3)


def test_autos_lora_is_memoras(model, erased, auto, plain):
    same = small()(model, PARACHUTE, erased, context=Context()).patch
    assert same.edits.keys() == plain.edits.keys()
    for name, (edit,) in same.edits.items():
        assert torch.equal(edit.up @ edit.down, auto.hook.up[name] @ auto.hook.down[name])


def test_two_models_survive_their_file_and_gradients_pass(model, auto, tmp_path: Path):
    auto.save(tmp_path / "p.safetensors")
    loaded = Patch.load(tmp_path / "p.safetensors")
    assert isinstance(loaded.hook, TwoModels)
    assert loaded.digest() == auto.digest()
    assert loaded.hook.blend == ((1.0, 1.0),)
    assert replace(loaded.hook, w=3.0).blend == ((3.0, 1.0), (-2.0, 0.0))
    with model.patched(replace(loaded, hook=replace(loaded.hook, w=3.0))):
        x = torch.randn(1, 4, 16, 16, requires_grad=True)
        model.eps(x, torch.tensor(300), model.embed(["cat"])).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_auto_over_another_hook_is_refused_before_anything_is_drawn(model, monkeypatch):
    monkeypatch.setattr(type(model), "sample", lambda *_, **__: pytest.fail("drew"))
    hooked = Patch({}, hook=NegativeWords("parachute"))
    with pytest.raises(PalimpsestError, match="can have one; leave `auto` out"):
        small(auto=1.0)(model, PARACHUTE, hooked, context=Context())


# --- Multi-MemoRa ---


def test_the_result_says_which_arm_it_is(model):
    for pictures, arm in (("interpolated", "published"), ("plain", "plain")):
        method = small(pictures=pictures, steps=1)
        assert method(model, PARACHUTE, None, context=Context()).arm == arm


def test_several_loras_at_once_add_up(model, erased):
    both = small(also=("style:van gogh",), steps=1)
    patch = both(model, PARACHUTE, erased, context=Context()).patch
    alone = small(steps=1)
    one = alone(model, PARACHUTE, erased, context=Context()).patch
    two = alone(model, Concept("van gogh", "style"), erased, context=Context(seed=1)).patch
    for name, (edit,) in patch.edits.items():
        assert len(edit.down) == 2 * alone.rank
        (a,), (b,) = one.edits[name], two.edits[name]
        assert torch.allclose(edit.up @ edit.down, a.up @ a.down + b.up @ b.down, atol=1e-6)
    assert both.evaluations()[1] == 2 * alone.evaluations()[1]
    assert sum(both.moves(model).values()) == 2 * sum(alone.moves(model).values())


def test_adding_loras_scales_each():
    up, down = torch.randn(3, 2), torch.randn(2, 4)
    twice = added([{"w": (up, down)}, {"w": (up, down)}], 0.5)["w"]
    assert torch.allclose(twice[0] @ twice[1], up @ down, atol=1e-6)


def test_a_kind_that_there_is_not_is_refused(model):
    with pytest.raises(PalimpsestError, match="'colour' is no kind of concept"):
        small(also=("colour:red",))(model, PARACHUTE, None, context=Context())


# --- ablations ---


def test_the_number_of_pictures_is_what_is_asked_for(model):
    for changes, n in (
        ({}, 3),
        ({"interpolation.count": 2}, 2),
        ({"interpolation.join": "none"}, 2),
        ({"pictures": "plain"}, 3),
        ({"pictures": "plain", "interpolation.count": 1}, 1),
        ({"interpolation.pairs": ((1, 2), (3, 4))}, 6),
    ):
        images = small(**changes, steps=1)(model, PARACHUTE, None, context=Context()).images
        assert len(images) == n, changes


def test_pictures_are_chosen_evenly():
    assert spread(33, 5) == [0, 8, 16, 24, 32]
    assert spread(33, 33) == list(range(33))
    assert spread(33, 1) == [16]


def test_latents_are_joined_by_arc_line_or_not_at_all(model):
    a, b = model.noise(2, generator(0)).split(1)
    x_t = torch.cat([a, b])
    way = small().interpolation
    chosen = {j: replace(way, join=j)._chosen(x_t) for j in ("slerp", "linear", "none")}
    assert torch.allclose(chosen["linear"][1:2], (a + b) / 2, atol=1e-6)
    assert chosen["slerp"][1].norm() > chosen["linear"][1].norm() * 1.2, "the arc keeps the length"
    assert torch.equal(chosen["none"], x_t)


def test_random_captions_say_nothing_of_the_concept(model):
    captions = random_captions(model, PARACHUTE, 20, generator(0))
    assert captions == random_captions(model, PARACHUTE, 20, generator(0))
    assert len(set(captions)) > 10
    own = {word for sentence in PARACHUTE.sentences for word in sentence.split()}
    for caption in captions:
        assert len(caption.split()) == 5, "as many words as in `a picture of a parachute`"
        assert not own & set(caption.split())


def test_random_captions_make_another_lora(model, erased):
    one, other = (
        small(captions=c)(model, PARACHUTE, erased, context=Context()).patch
        for c in ("concept", "random")
    )
    assert one.digest() != other.digest()


@pytest.mark.parametrize("offset", ["aligned", "published"])
def test_every_latent_of_the_pictures_is_counted(model, offset, monkeypatch):
    counted, predicted = [], model._predict  # the network's calls are filled up
    monkeypatch.setattr(
        model, "_predict", lambda x, *rest: [counted.append(len(x)), predicted(x, *rest)][1]
    )
    method = small(**{"interpolation.offset": offset})
    ends = method.interpolation.ends(model, PARACHUTE)
    method.interpolation.interpolated(model, PARACHUTE, model.encode(ends))
    assert sum(counted) == method.evaluations()[0]


@pytest.mark.parametrize("offset", ["aligned", "published"])
def test_both_offsets_run(model, erased, offset):
    method = small(**{"interpolation.offset": offset})
    attempt = method(model, PARACHUTE, erased, context=Context())
    assert attempt.images.isfinite().all()
    assert attempt.patch.edits


@pytest.mark.parametrize(
    "changes",
    [
        {"interpolation.count": 0},
        {"interpolation.count": 4},
        {"interpolation.start_step": 3},
        {"auto": float("nan")},
        {"steps": 0},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_at_once(changes):
    name = next(iter(changes)).rpartition(".")[2]
    with pytest.raises(PalimpsestError, match=f"{name} is"):
        small(**changes)
