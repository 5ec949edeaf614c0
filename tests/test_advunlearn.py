"""Soft prefixes, the text encoder as what is edited, and AdvUnlearn's loss by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from by_hand import on_the_way
from PIL import Image

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator, stream
from palimpsest.erase import AdvUnlearn
from palimpsest.erase.advunlearn import latents_of
from palimpsest.methods import Context
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.toolbox.latents import Latents
from palimpsest.toolbox.soft_tokens import embed_prefixed, random_words
from palimpsest.world import suite

PARACHUTE = suite.concept("parachute", "balloon")
TINY = AdvUnlearn(
    steps=1,
    warmup=0,
    attack_steps=0,
    retain="keep",
    latents=Latents("frozen", steps=4),
    retain_batch=2,
    lr=1e-3,
)


# --- prefixes ---


def rows_of(model, words: str) -> torch.Tensor:
    """The token embeddings of words, (k, width)."""
    ids = model.tokenizer(words, add_special_tokens=False).input_ids
    return model.weight(model.text.tables[0])[ids]


def test_a_prefix_of_words_embeddings_is_those_words(model):
    prefixed = embed_prefixed(model, ["a cat", "boat"], rows_of(model, "neon"))
    words = model.embed(["neon a cat", "neon boat"])
    assert torch.allclose(prefixed.parts["hidden"], words.parts["hidden"], atol=1e-5)


def test_each_prompt_may_have_its_own_prefix(model):
    own = torch.stack([rows_of(model, "neon"), rows_of(model, "sketch")])
    prefixed = embed_prefixed(model, ["a cat", "boat"], own)
    words = model.embed(["neon a cat", "sketch boat"])
    assert torch.allclose(prefixed.parts["hidden"], words.parts["hidden"], atol=1e-5)


def test_a_prompt_that_fills_the_window_loses_its_last_words_and_keeps_its_end(model):
    full, kept = (" ".join(["cat"] * (model.text.window - n)) for n in (2, 3))
    prefixed = embed_prefixed(model, [full], rows_of(model, "neon"))
    assert torch.allclose(prefixed.parts["hidden"], model.rows([f"neon {kept}"]), atol=1e-5)


def test_gradients_reach_the_prefix_and_the_shifts(model):
    weights = model.parameters("text")
    deltas = {
        n: torch.zeros_like(p, requires_grad=True)
        for n, p in weights.items()
        if n != model.text.tables[0]
    }
    prefix = random_words(model, (1, 1), generator(0)).requires_grad_()
    cond = embed_prefixed(model.student(deltas), ["a cat"], prefix)
    x_t = model.noise(1, generator(1))
    model.eps(x_t, torch.tensor([500]), cond).square().sum().backward()
    assert prefix.grad is not None
    assert prefix.grad.abs().sum() > 0
    assert all(d.grad is not None and d.grad.abs().sum() > 0 for d in deltas.values())


# --- an edit of the text encoder ---


def text_patch(model) -> Patch:
    g = torch.Generator().manual_seed(0)
    shifts = {
        n: 0.02 * torch.randn(p.shape, generator=g)
        for n, p in model.parameters("text").items()
        if n != model.text.tables[0]
    }
    return model.make_patch(shifts, {})


def test_pictures_are_drawn_with_the_edited_text_encoder(model, tmp_path):
    """Under the patch, from its file, prompts are read and pictures drawn as a student would."""
    text_patch(model).save(tmp_path / "patch.safetensors")
    patch = Patch.load(tmp_path / "patch.safetensors")
    assert patch.components == ("text_encoder",)
    prompts = ["a cat", ""]
    before, drawn = model.rows(prompts), model.generate(prompts[:1])
    student = model.student({n: edits[0].delta for n, edits in patch.edits.items()})
    theirs, pictures = student.rows(prompts), student.generate(prompts[:1])
    with model.patched(patch):
        assert torch.equal(model.rows(prompts), theirs)
        changed = model.generate(prompts[:1])
    assert torch.allclose(changed, pictures, atol=1e-5)
    assert (changed - drawn).abs().mean() > 1e-2
    assert torch.equal(model.rows(prompts), before)


def test_an_exported_folder_holds_the_edited_text_encoder(model, tmp_path, capsys):
    from palimpsest.cli import main

    patch = text_patch(model)
    patch.save(tmp_path / "patch.safetensors")
    words = ["patch", "export", str(tmp_path / "patch.safetensors"), "--out", str(tmp_path / "out")]
    assert main([*words, "--dtype", "float32"]) == 0
    with model.patched(patch):
        ours = model.rows(["a cat"])
    assert torch.allclose(load_model(str(tmp_path / "out")).rows(["a cat"]), ours)
    capsys.readouterr()
    assert main([*words[:-1], str(tmp_path / "unet"), "--format", "unet"]) == 2
    assert "text_encoder" in capsys.readouterr().err
    assert not (tmp_path / "unet").exists()


# --- AdvUnlearn ---


def losses_of(method: AdvUnlearn, model, concept: Concept = PARACHUTE) -> list[float]:
    losses = []
    method(model, [concept], context=Context(seed=3, log=lambda row: losses.append(row["loss"])))
    return losses


def test_the_first_loss_is_esds_by_hand(model):
    """Nothing has moved yet: the retain term is 0, and ESD's is ((1+η)(ε_c − ε_0))²."""
    g, cond, empty = stream(3, "training", 0, 0), model.embed(["parachute"]), model.embed([""])
    x_t, t = on_the_way(model, cond, g, 4)
    with torch.no_grad():
        e_c, e_0 = model.eps(x_t, t, cond), model.eps(x_t, t, empty)
    expected = float(((1 + 1.5) * (e_c - e_0)).square().mean())
    assert losses_of(replace(TINY, eta=1.5), model) == [pytest.approx(expected, rel=1e-3)]


def test_pictures_of_a_folder_stand_for_every_prompt_of_the_concept(model, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "one.png")
    latents = Latents("noised", folder=tmp_path, wordings="sentences")
    losses = losses_of(replace(TINY, retain_scale=0.0, latents=latents), model)
    red = model.encode(torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1).expand(1, 3, 64, 64))
    g, texts = stream(3, "training", 0, 0), PARACHUTE.sentences
    who = int(torch.randint(len(texts), (1,), generator=g))
    torch.randint(1, (1,), generator=g)
    t = torch.randint(1000, (1,), generator=g)
    x_t = model.add_noise(red, model.noise(1, g), t)
    with torch.no_grad():
        e_c, e_0 = model.eps(x_t, t, model.embed([texts[who]])), model.eps(x_t, t, model.empty())
    assert losses == [pytest.approx(float((2 * (e_c - e_0)).square().mean()), rel=1e-3)]


def test_what_is_retained_is_noised_from_pictures_of_its_own_prompt(model, context):
    """Two prompts, three pictures drawn: one of each, by the frozen model, and never swapped."""
    cond = model.embed(["a cat", "a red boat"])
    latents = Latents("noised", steps=2, pictures=3)
    source = latents_of(model, cond, latents, "retained pictures", context)
    noise = model.noise(2, context.stream("retained pictures"))
    x_0 = model.sample(noise, cond, steps=2, guidance=3.0)
    for who in ([0, 1, 1], [1, 0, 0]):
        x_t, _ = source(torch.tensor(who), generator(5))
        g = generator(5)
        torch.randint(1, (3,), generator=g)
        t = model.times(3, g)
        assert torch.allclose(x_t, model.add_noise(x_0[who], model.noise(3, g), t), atol=1e-5)


def attacked(method: AdvUnlearn, model, n: int = 1):
    """The prefix found, and the attack's loss of a prefix, both at one fixed x_t."""
    x_t, t = model.noise(n, generator(1)), torch.full((n,), 600)
    with torch.no_grad():
        # some other answer, since the unedited model gives its own without a prefix
        target = model.eps(x_t, t, model.embed(["umbrella"] * n))
    found = method._attacked(model, ["parachute"] * n, lambda: (x_t, t, target), generator(2))

    def loss(prefix: torch.Tensor) -> torch.Tensor:
        asked = embed_prefixed(model, ["parachute"] * n, prefix)
        return (model.eps(x_t, t, asked) - target).square().mean()

    return found, loss


@pytest.mark.parametrize("attack", ["adam", "sign"])
def test_the_attack_descends_from_random_words(model, attack):
    method = AdvUnlearn(attack=attack, attack_steps=8, attack_lr=1e-2, attack_gradients="fresh")
    found, loss = attacked(method, model)
    start = random_words(model, (1, 1), generator(2))
    assert loss(found) < loss(start)
    assert (found - start).abs().max() <= 8 * 1e-2 * 1.001, "no step is longer than attack_lr"


@pytest.mark.parametrize("gradients", ["summed", "fresh"])
def test_the_attacks_gradients_add_up_as_published(model, gradients):
    """Three steps of Adam (0.9, 0.999) by hand, from the sum of gradients or each alone."""
    found, loss = attacked(
        AdvUnlearn(attack_steps=3, attack_lr=1e-2, attack_gradients=gradients), model
    )
    p, total = random_words(model, (1, 1), generator(2)), torch.zeros(())
    m = v = torch.zeros_like(p)
    for k in (1, 2, 3):
        leaf = p.clone().requires_grad_()
        (own,) = torch.autograd.grad(loss(leaf), [leaf])
        total = total + own
        g = total if gradients == "summed" else own
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - 1e-2 * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
    assert torch.allclose(found, p, atol=1e-5)


def test_a_prompts_prefix_does_not_depend_on_its_neighbours(model):
    method = AdvUnlearn(attack="sign", attack_steps=1)
    together, _ = attacked(method, model, n=2)
    alone, _ = attacked(method, model)
    assert torch.equal(together[0], alone[0])
    assert not torch.equal(together[1], alone[0]), "another prompt has another prefix"


def test_it_moves_the_text_encoder_alone(model, context):
    everything = TINY(model, [PARACHUTE], context=context).patch
    names = set(model.parameters("text")) - {model.text.tables[0]}
    assert set(everything.edits) == names
    assert set(TINY.moves(model)) == names
    first = replace(TINY, layers=1)(model, [PARACHUTE], context=context).patch
    assert TINY.changed({"layers": 1}).moves(model).keys() == first.edits.keys()
    assert first.edits
    assert all(".layers.0." in name for name in first.edits)
    with pytest.raises(PalimpsestError, match="layers is 9; the text encoder has 3"):
        replace(TINY, layers=9)(model, [PARACHUTE], context=context)


def test_the_retain_set_never_names_the_concept():
    cat = Concept("cat", synonyms=("kitten",), keep=("a black cat", "a kitten", "a dog"))
    assert replace(TINY, retain="keep")._retained([cat]) == ["a dog"]
    coco = replace(TINY, retain="coco")._retained([cat])
    assert len(coco) == 79
    assert "a photo of teddy bear" in coco
    with pytest.raises(PalimpsestError, match="nothing to keep"):
        replace(TINY, retain="keep")._retained([Concept("cat")])
    assert replace(TINY, retain="keep", retain_scale=0)._retained([Concept("cat")]) == []


def test_retaining_holds_the_answers_to_the_retain_set(model):
    """A step that only retains, from shifted weights, moves back; γ = 0 leaves the term out."""
    alone = losses_of(replace(TINY, retain_scale=0.0), model)
    both = losses_of(replace(TINY, retain_scale=5.0), model)
    assert alone == pytest.approx(both), "before any step nothing has moved"
    twice = replace(TINY, steps=2, lr=1e-2)
    assert (
        losses_of(replace(twice, retain_scale=5.0), model)[1]
        > (losses_of(replace(twice, retain_scale=0.0), model)[1])
    )


def test_evaluations_by_hand():
    latents = Latents("frozen", steps=6, batch=2)
    method = AdvUnlearn(steps=10, warmup=4, attack_steps=3, retain_batch=5, latents=latents)
    # latents trained on: 10·2 of the concept, 10·5 retained, 6·3·2 attacked, each sampled over
    # half of 6 guided steps; two frozen answers for the first, one for the others
    n = 20 + 50 + 36
    assert method.evaluations() == (n * 6 + 2 * 20 + 50 + 36, n)
    # 8 pictures of the concept and 8 to retain, of 6 guided steps each, drawn once
    method = method.changed({"latents.source": "noised", "latents.pictures": 8})
    assert method.evaluations() == (2 * 8 * 12 + 2 * 20 + 50 + 36, n)


def test_hyperparameters_out_of_range_are_refused():
    for name, value in {"layers": 0, "prefix": 0, "retain_scale": -1.0, "attack_steps": -1}.items():
        with pytest.raises(PalimpsestError, match=name):
            AdvUnlearn(**{name: value})
    with pytest.raises(PalimpsestError, match=r"latents.source is 'student'.*'frozen'"):
        AdvUnlearn(latents=Latents("student"))
