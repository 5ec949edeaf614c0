"""Sampling hooks: what they change, that they go again, and what the algebra says to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from palimpsest.cli import main
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator
from palimpsest.erase import NegativePrompt
from palimpsest.exchange.export import FORMATS
from palimpsest.models.protocol import Conditioning
from palimpsest.patch import Patch
from palimpsest.patch.algebra import compose, overlaps, truncated
from palimpsest.patch.edits import Dense, LowRank
from palimpsest.patch.hooks import NegativeWords, Transport
from palimpsest.patch.patch import together
from palimpsest.recover import MemoRa
from palimpsest.toolbox.interpolation import Interpolation
from palimpsest.toolbox.lora import factors_of, lora
from palimpsest.toolbox.relearning_curve import Measured
from palimpsest.world import suite

LINEAR = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CONV = "unet.down_blocks.1.resnets.0.conv1.weight"
SHRUNK = "unet.down_blocks.0.downsamplers.0.conv.weight"  # strided
NEGATIVE = Patch({}, hook=NegativeWords("parachute"))


def rand(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.fixture(scope="module")
def transport(model) -> Transport:
    """Two adapters, of *parachute* and of *cat*, beside a linear layer and two convolutions."""
    up, down = {}, {}
    for seed, name in enumerate((LINEAR, CONV, SHRUNK)):
        weight = model._parameters[name]
        up[name] = rand(seed, len(weight), 2) * 0.3
        down[name] = rand(seed + 9, 2, weight[0].numel()) * 0.05
    called = ["parachute", "chute", "cat"]
    words = tuple(tuple(model.tokenizer(n, add_special_tokens=False).input_ids) for n in called)
    return Transport(up, down, model.rows(called), (0, 0, 1), words)


def opened(transport: Transport, scales: torch.Tensor) -> Patch:
    """The shifts of weights that adapters open to (K,) scales are."""
    shifts = {n: LowRank(up * scales, transport.down[n]) for n, up in transport.up.items()}
    return Patch({name: (shift,) for name, shift in shifts.items()})


# --- the negative prompt ---


def test_guidance_starts_from_the_negative_prompt(model):
    """One DDIM step by hand: ε(n) + w·(ε(c) − ε(n))."""
    x, cond, t = (
        rand(1, 1, 4, 16, 16),
        model.embed(["a cat"]),
        torch.tensor(model.schedule.grid(1)[:-1][0]),
    )
    with torch.no_grad():
        e_n, e_c = model.eps(x, t, model.embed(["parachute"])), model.eps(x, t, cond)
    a, b = model.schedule.alphas_cumprod[t], model.scheduler.final_alpha_cumprod
    eps = e_n + 2.5 * (e_c - e_n)
    by_hand = (x - (1 - a).sqrt() * eps) / a.sqrt() * b.sqrt() + (1 - b).sqrt() * eps
    with model.patched(NEGATIVE):
        ours = model.sample(x, cond, steps=1, guidance=2.5)
        plain = model.sample(x, cond, steps=1, guidance=1.0)
    assert torch.allclose(ours, by_hand, atol=1e-3)
    assert not torch.allclose(ours, model.sample(x, cond, steps=1, guidance=2.5), atol=1e-3)
    assert torch.equal(plain, model.sample(x, cond, steps=1, guidance=1.0)), "1 is no guidance"


def test_inversion_and_pictures_honour_the_hook(model):
    x, cond = rand(1, 1, 4, 16, 16), model.embed(["a cat"])
    settings = {"steps": 3, "guidance": 3.0, "until": 0}
    was = model.invert(x, cond, **settings)
    with model.patched(NEGATIVE):
        assert not torch.allclose(model.invert(x, cond, **settings), was, atol=1e-3)
        assert not torch.equal(model.rows(["", "x"])[:1], model.unconditional().parts["hidden"])
    assert torch.equal(model.unconditional().parts["hidden"], model.rows([""]))


def test_asking_for_the_negative_prompt_itself_gives_it_unguided(model):
    """The two predictions are one and the guidance cancels: ε(n) + w·(ε(n) − ε(n)) = ε(n)."""
    x, same = rand(1, 1, 4, 16, 16), model.embed(["parachute"])
    with model.patched(NEGATIVE):
        guided = model.sample(x, same, steps=4, guidance=7.5)
    assert torch.allclose(guided, model.sample(x, same, steps=4, guidance=1.0), atol=1e-2)


def test_the_eraser_names_concepts_and_their_synonyms(model, context):
    concepts = [Concept("parachute", synonyms=("chute",)), Concept("kite")]
    patch = NegativePrompt()(model, concepts, context=context).patch
    assert patch.hook == NegativeWords("parachute, chute, kite")
    plain = NegativePrompt(synonyms=False)(model, concepts, context=context).patch
    assert plain.hook == NegativeWords("parachute, kite")
    many = [Concept(f"parachute number {i}") for i in range(9)]
    with pytest.raises(PalimpsestError, match="window of 16 tokens"):
        NegativePrompt()(model, many, context=context)


# --- adapters that prompts open ---


def test_a_prompt_opens_what_it_asks_for(model, transport):
    """The concept, its synonym and a sentence with its words: 1. Another: the larger cosine."""
    prompts = ["parachute", "chute", "a picture of a parachute", "a picture of a boat", "a cat"]
    cond = model.embed(prompts)
    scales = transport.scales(cond.parts["hidden"], cond.ids)
    assert scales.shape == (5, 2)
    assert torch.allclose(scales[:3, 0], torch.ones(3), atol=1e-5)
    assert torch.allclose(scales[4, 1], torch.ones(()), atol=1e-5)
    boat = cond.parts["hidden"][3].flatten()
    references = [row.flatten() for row in transport.references]
    cosines = [float(boat @ r / (boat.norm() * r.norm())) for r in references]
    assert float(scales[3, 0]) == pytest.approx(max(cosines[:2]), abs=1e-5)
    assert float(scales[3, 1]) == pytest.approx(cosines[2], abs=1e-5)
    words = replace(transport, match="tokens").scales(cond.parts["hidden"], cond.ids)
    assert words.tolist() == [[1, 0], [1, 0], [1, 0], [0, 0], [0, 1]]


def test_half_of_a_concepts_words_open_it_half(model):
    words = tuple(model.tokenizer("van gogh", add_special_tokens=False).input_ids)
    assert len(words) == 2
    hook = Transport({}, {}, model.rows(["van gogh"]), (0,), (words,), "tokens")
    cond = model.embed(["a van", "van gogh style"])
    assert hook.scales(cond.parts["hidden"], cond.ids).tolist() == [[0.5], [1.0]]


@pytest.mark.parametrize(("power", "factor"), [(1, 0.5), (2, 0.25)])
def test_half_of_a_concepts_words_open_a_quarter_of_it_where_both_factors_are_scaled(
    model, transport, power, factor
):
    words = tuple(model.tokenizer("van gogh", add_special_tokens=False).input_ids)
    up = {name: part[:, :1] for name, part in transport.up.items()}
    down = {name: part[:1] for name, part in transport.down.items()}
    hook = Transport(up, down, model.rows(["van gogh"]), (0,), (words,), "tokens", power)
    x, t, cond = rand(1, 1, 4, 16, 16), torch.tensor(500), model.embed(["a van"])
    with model.patched(Patch({}, hook=hook)), torch.no_grad():
        found = model.eps(x, t, cond)
    with model.patched(opened(hook, torch.tensor([factor]))), torch.no_grad():
        shifted = model.eps(x, t, cond)
    assert torch.allclose(found, shifted, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(found, model.eps(x, t, cond), atol=1e-2)
    assert Transport.build(hook.arguments(), hook.tensors()).power == power


def test_vectors_that_came_from_no_words_share_none(model, transport):
    hidden = model.rows(["parachute"])
    words = replace(transport, match="tokens")
    assert words.scales(hidden, None).tolist() == [[0, 0]]
    mixed = Conditioning({"hidden": hidden}) + model.embed(["parachute"])
    assert words.scales(mixed.parts["hidden"], mixed.ids).tolist() == [[0, 0], [1, 0]]


def test_each_row_of_a_batch_has_its_own_scale(model, transport):
    x, t, cond = rand(1, 2, 4, 16, 16), torch.tensor([100, 700]), model.embed(["a boat", "a cat"])
    scales = transport.scales(cond.parts["hidden"], cond.ids)
    with model.patched(Patch({}, hook=transport)), torch.no_grad():
        together = model.eps(x, t, cond)
    for i in range(2):
        with model.patched(opened(transport, scales[i])), torch.no_grad():
            alone = model.eps(x[i : i + 1], t[i : i + 1], cond[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(together, model.eps(x, t, cond), atol=1e-2)


def test_guidance_opens_both_predictions_by_the_prompt_asked_for(model, transport):
    x, cond = rand(1, 1, 4, 16, 16), model.embed(["a boat"])
    (scales,) = transport.scales(cond.parts["hidden"], cond.ids)
    with model.patched(Patch({}, hook=transport)):
        ours = model.sample(x, cond, steps=2, guidance=3.0)
    with model.patched(opened(transport, scales)):
        by_weights = model.sample(x, cond, steps=2, guidance=3.0)
    assert torch.allclose(ours, by_weights, atol=1e-3)


# --- putting on and taking off ---


def no_hook_is_left(model) -> bool:
    return not any(module._forward_hooks for module in model.unet.modules())


@pytest.mark.parametrize("which", ["negative", "transport"])
def test_a_hook_goes_also_after_an_exception(which, model, transport, weights):
    patch = NEGATIVE if which == "negative" else Patch({}, hook=transport)
    x, t, cond = rand(1, 1, 4, 16, 16), torch.tensor(500), model.embed(["parachute"])
    was = model.eps(x, t, cond)

    def fail() -> None:
        with model.patched(patch):
            model.sample(x, cond, steps=1, guidance=2.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert no_hook_is_left(model)
    assert model._hook is None
    assert model._gate.scale is None
    assert torch.equal(model.eps(x, t, cond), was)
    assert all(torch.equal(weights[n], p) for n, p in model._parameters.items())


def test_a_model_wears_one_hook(model, transport):
    other = Patch({}, hook=transport)
    with pytest.raises(PalimpsestError, match="can have one"):
        together([NEGATIVE, other])
    with (
        pytest.raises(PalimpsestError, match="applied already"),
        model.patched(NEGATIVE),
        model.patched(other),
    ):
        pass
    assert model._hook is None


def test_an_adapter_of_no_layer_is_refused(model, transport):
    norm = "unet.conv_norm_out.weight"
    strange = replace(transport, up={norm: rand(1, 64, 2)}, down={norm: rand(1, 2, 1)})
    with (
        pytest.raises(PalimpsestError, match="no linear layer"),
        model.patched(Patch({}, hook=strange)),
    ):
        pass
    assert model._hook is None


# --- other patches beside it ---


def test_a_recoverys_lora_lies_over_a_model_with_a_hook(model, transport):
    """Trained under the hook through PEFT, worn with it as a patch: the same prediction."""
    x, t, cond = rand(1, 2, 4, 16, 16), torch.tensor([5, 800]), model.embed(["parachute", "owl"])
    erased = Patch({}, hook=transport)
    with model.patched(erased), lora(model, rank=2, g=generator(0)) as trained:
        for i, parameter in enumerate(trained.values()):
            parameter.data.copy_(rand(i, *parameter.shape) * 0.05)
        with torch.no_grad():
            theirs = model.eps(x, t, cond)
        edits = {n: (LowRank(up, down),) for n, (up, down) in factors_of(model).items()}
    assert LINEAR in edits, "both change this layer"
    with model.patched(erased, Patch(edits)), torch.no_grad():
        assert torch.allclose(model.eps(x, t, cond), theirs, atol=1e-4)
    with model.patched(Patch(edits)), torch.no_grad():
        assert not torch.allclose(model.eps(x, t, cond), theirs, atol=1e-2)


@pytest.mark.parametrize("which", ["negative", "transport"])
def test_a_recovery_runs_on_what_a_hook_erased(which, model, transport, context):
    erased = NEGATIVE if which == "negative" else Patch({}, hook=transport)
    made = Interpolation(steps=4, pairs=((1, 2),), between=2, start_step=1)
    method = MemoRa(steps=1, interpolation=made, measure=Measured(()))
    attempt = method(model, suite.concept("parachute"), model.checked(erased), context=context)
    with model.patched(erased, attempt.patch):
        assert model.generate(["a cat"]).isfinite().all()
    assert no_hook_is_left(model)


def test_the_algebra_refuses_a_hook():
    shift = Patch({LINEAR: (Dense(torch.ones(96, 256)),)})
    for wrong in (
        lambda: NEGATIVE + shift,
        lambda: shift + NEGATIVE,
        lambda: NEGATIVE - shift,
        lambda: shift - NEGATIVE,
        lambda: NEGATIVE.scaled(0.5),
        lambda: compose([NEGATIVE]),
        lambda: overlaps(shift, NEGATIVE),
        lambda: truncated(replace(shift, hook=NEGATIVE.hook), 4),
    ):
        with pytest.raises(PalimpsestError, match="sampling hook"):
            wrong()
    both = together([NEGATIVE, shift])
    assert both.hook is NEGATIVE.hook
    assert both.edits.keys() == shift.edits.keys()
    assert torch.tensor(both.norm()).isnan()


@pytest.mark.parametrize("form", FORMATS)
def test_no_format_takes_a_hook(model, form, tmp_path: Path):
    hooked = Patch({LINEAR: (Dense(torch.ones(96, 256)),)}, hook=NEGATIVE.hook)
    with pytest.raises(PalimpsestError, match="cannot be exported"):
        FORMATS[form][0](model, hooked, tmp_path)
    assert not [*tmp_path.iterdir()]


# --- files ---


def test_a_hook_survives_its_file(model, transport, tmp_path: Path):
    for patch in (
        NEGATIVE,
        Patch({}, hook=transport),
        together([opened(transport, torch.ones(2)), NEGATIVE]),
    ):
        own = model.checked(patch)
        own.save(tmp_path / "p.safetensors")
        loaded = Patch.load(tmp_path / "p.safetensors")
        assert loaded.digest() == own.digest()
        assert loaded.base == own.base == {n: model.fingerprint(n) for n in patch.names}
        assert loaded.edits.keys() == patch.edits.keys()
        assert type(loaded.hook) is type(patch.hook)
    cond = model.embed(["a boat", "chute"])
    Patch({}, hook=transport).save(tmp_path / "t.safetensors")
    again = Patch.load(tmp_path / "t.safetensors").hook
    assert again is not None
    scales = transport.scales(cond.parts["hidden"], cond.ids)
    assert torch.equal(again.scales(cond.parts["hidden"], cond.ids), scales)


def test_a_hook_of_another_base_model_is_refused(model, transport):
    strange = Patch({}, {LINEAR: "0123456789abcdef"}, hook=transport)
    with pytest.raises(PalimpsestError, match="another base model"), model.patched(strange):
        pass


def test_other_words_are_another_patch_and_cannot_be_slipped_in(tmp_path: Path):
    assert NEGATIVE.digest() != Patch({}, hook=NegativeWords("kite")).digest()
    path = tmp_path / "p.safetensors"
    NEGATIVE.save(path)
    with safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["palimpsest"])
    assert manifest["format"] == 2, "an older version would lose the hook without a word"
    manifest["hook"]["arguments"]["words"] = "kite"
    save_file(load_file(path), path, metadata={"palimpsest": json.dumps(manifest)})
    with pytest.raises(PalimpsestError, match="altered"):
        Patch.load(path)


def test_a_hook_that_changes_nothing_is_refused(model, transport):
    shut = replace(transport, up={n: torch.zeros_like(t) for n, t in transport.up.items()})
    for hook in (NegativeWords(""), shut):
        with pytest.raises(PalimpsestError, match="changes no weight"):
            model.checked(Patch({}, hook=hook))


def test_what_is_trained_on_top_computes_under_the_hook(model, transport):
    x, t, cond = rand(1, 1, 4, 16, 16), torch.tensor(500), model.embed(["parachute"])
    with model.patched(Patch({}, hook=transport)), torch.no_grad():
        student = model.student({LINEAR: torch.zeros_like(model._parameters[LINEAR])})
        assert torch.allclose(student.eps(x, t, cond), model.eps(x, t, cond), atol=1e-5)


# --- the command line ---


def test_the_command_line_shows_a_hook_and_refuses_the_algebra(tmp_path: Path, capsys):
    path = tmp_path / "negative.safetensors"
    replace(NEGATIVE, about={"method": "negative_prompt"}).save(path)
    assert main(["patch", "show", str(path)]) == 0
    assert 'sampling hook: negative-words, {"words": "parachute"}' in capsys.readouterr().out
    shift, out = tmp_path / "shift.safetensors", tmp_path / "out"
    Patch({LINEAR: (Dense(torch.ones(96, 256)),)}).save(shift)
    for words, verb in (
        (["export", path, "--out", out], "exported"),
        (["merge", shift, path, "--out", out], "composed"),
        (["merge", shift, path, "--scale", "1", "2", "--out", out], "scaled"),
        (["diff", path, shift, "--out", out], "compared"),
    ):
        assert main(["patch", *map(str, words)]) == 2
        assert f"cannot be {verb}" in capsys.readouterr().err
        assert not out.exists()


def test_the_command_line_shows_adapters(model, transport, tmp_path: Path, capsys):
    path = tmp_path / "transport.safetensors"
    model.checked(Patch({}, about={"method": "spm"}, hook=transport)).save(path)
    assert main(["patch", "show", str(path)]) == 0
    said = capsys.readouterr().out
    assert "it lies beside 3 layers, 2 adapters each" in said
    assert "over 3 of 3 tensors" in said
