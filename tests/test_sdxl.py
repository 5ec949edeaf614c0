"""Stable Diffusion XL as a family: what it draws, and what it reads."""

from __future__ import annotations

import diffusers
import pytest
import sdxl
import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from palimpsest.core.concepts import Concept
from palimpsest.core.draw import Draw
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.erase import ESD, FMN, RECE, SRSME, UCE
from palimpsest.models.diffusion import Sampling
from palimpsest.models.families.sd import SCHEDULERS
from palimpsest.models.families.sdxl import StableDiffusionXL
from palimpsest.toolbox.inversion import Inversion
from palimpsest.toolbox.soft_tokens import (
    embed_hard,
    embed_prefixed,
    embed_vectors,
    embeddings,
    prefixed_ids,
)
from palimpsest.world.vocabulary import OBJECTS

TEXTS = ("a cat in neon style", "a photo of a boat!", "church")
PROMPTS = [Prompt(text, seed) for seed, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def model():
    return sdxl.load()


def theirs(
    noise: torch.Tensor, guidance: float, zeros: bool = True, sampler: str = "ddim", **changed
) -> torch.Tensor:
    """Draw with the pipeline of Diffusers, prompt by prompt."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl.folder(zeros))
    pipeline.set_progress_bar_config(disable=True)
    scheduler = getattr(diffusers, SCHEDULERS[sampler])
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    how = {"num_inference_steps": 4, "guidance_scale": guidance, "output_type": "pt"}
    drawn = [
        pipeline(text, latents=noise[i, None], **how, **changed).images
        for i, text in enumerate(TEXTS)
    ]
    return torch.cat(drawn)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("zeros", [True, False])
def test_pictures_equal_those_of_diffusers(guidance: float, zeros: bool):
    model = sdxl.load(zeros=zeros, sampling=Sampling(steps=4, guidance=guidance))
    ours, noise = model.generate(PROMPTS), model.start(PROMPTS)
    assert (ours - theirs(noise, guidance, zeros)).abs().max() <= 1 / 255
    told_of_another_size = theirs(noise, guidance, zeros, original_size=(32, 32))
    assert (ours - told_of_another_size).abs().max() > 2 / 255
    if guidance != 1:
        assert (ours - theirs(noise, guidance, not zeros)).abs().max() > 2 / 255


@pytest.mark.parametrize("sampler", [name for name in SCHEDULERS if name != "ddim"])
def test_every_sampler_draws_as_in_diffusers(sampler: str):
    sampling = Sampling(steps=4, guidance=5.0, sampler=sampler)  # type: ignore[arg-type]
    model = sdxl.load(sampling=sampling)
    ours, noise = model.generate(PROMPTS), model.start(PROMPTS)
    apart = (ours - theirs(noise, 5.0, sampler=sampler)).abs().max()
    assert apart <= 1 / 255
    assert (ours - theirs(noise, 5.0)).abs().max() > 10 * apart, "DDIM draws others"


@pytest.mark.parametrize(("empty", "zeros"), [("text", False), ("zeros", True)])
def test_the_empty_prompt_is_what_is_asked_for(empty: str, zeros: bool):
    model = sdxl.load(zeros=not zeros, sampling=Sampling(steps=4, guidance=5.0))
    noise, own = model.start(PROMPTS), model.generate(PROMPTS)
    told = model.with_sampling(model.sampling.drawn(Draw(empty=empty)))
    assert (told.generate(PROMPTS) - theirs(noise, 5.0, zeros)).abs().max() <= 1 / 255
    assert (told.generate(PROMPTS) - own).abs().max() > 2 / 255
    assert bool(told.empty().parts["hidden"].any()) != zeros
    assert str(told.sampling) == f"DDIM 4 steps, guidance 5, ∅ as {empty}"


def test_another_size_is_drawn_as_such(model):
    model = model.with_sampling(Sampling(steps=4, guidance=5.0, size=96))
    ours, noise = model.generate(PROMPTS), model.start(PROMPTS)
    assert ours.shape == (3, 3, 96, 96)
    assert (ours - theirs(noise, 5.0, height=96, width=96)).abs().max() <= 1 / 255
    wrong = theirs(noise, 5.0, height=96, width=96, original_size=(64, 64))
    assert (ours - wrong).abs().max() > 2 / 255


def test_the_second_tower_reads_what_its_own_tokenizer_writes(model):
    second = CLIPTokenizer.from_pretrained(sdxl.folder() / "tokenizer_2")
    texts = ["", *TEXTS, "a cat! a dog! wow", "a cat " * 20]
    how = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    theirs = second(texts, **how).input_ids
    ours = model.text.ids(texts)
    assert torch.equal(model.text._as_second(ours), theirs)
    assert not torch.equal(ours, theirs)


def test_words_in_place_of_themselves_as_vectors_change_nothing(model):
    """Both tables serve, and the pooled vector is read at the prompt's end, not at a slot."""
    vectors, plain = embeddings(model, "cat"), model.embed(["a photo of a cat"])
    assert vectors.shape == (1, sum(sdxl.WIDTHS))
    soft = embed_vectors(model, ["a photo of a {}"], vectors)
    front = embed_prefixed(model, ["photo of a cat"], embeddings(model, "a"))
    for part in ("hidden", "pooled"):
        assert torch.allclose(soft.parts[part], plain.parts[part], atol=1e-5)
        assert torch.allclose(front.parts[part], plain.parts[part], atol=1e-5)
    for half in (slice(None, sdxl.WIDTHS[0]), slice(sdxl.WIDTHS[0], None)):
        moved = vectors.clone()
        moved[:, half] += 1
        other = embed_vectors(model, ["a photo of a {}"], moved).parts["hidden"]
        assert not torch.allclose(other[..., half], plain.parts["hidden"][..., half], atol=1e-3)


def test_groups_reach_both_towers_and_all_text_inputs(model):
    towers = {name.split(".")[0] for name in model.parameters("text")}
    assert towers == {"text_encoder", "text_encoder_2"}
    full, xattn, rest = (set(model.parameters(g)) for g in ("full", "xattn", "noxattn"))
    assert {n.split(".")[1] for n in full - xattn - rest} == {
        *("time_embedding", "conv_norm_out", "conv_out"),
    }
    assert any(".add_embedding." in name for name in rest)
    read = model.sites.text_inputs["hidden"]
    assert set(read) == set(model.parameters("xattn-kv"))
    assert {model.weight(name).shape[1] for name in read} == {sum(sdxl.WIDTHS)}
    assert model.token_vectors().shape == (761, sum(sdxl.WIDTHS))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_autoencoder_stays_in_float32_where_it_would_overflow(dtype: str):
    low, model = sdxl.load(dtype), sdxl.load()
    assert (low.dtype, low.vae.dtype) == (getattr(torch, dtype), torch.float32)
    latents = model.noise(2, torch.Generator().manual_seed(0))
    assert (low.decode(latents) - model.decode(latents)).abs().max() < 0.02
    assert (low.generate(PROMPTS) - model.generate(PROMPTS)).abs().mean() < 0.05


def test_two_vocabularies_are_refused():
    made = sdxl.pipeline()
    made.tokenizer_2.add_tokens(["<other>"])
    with pytest.raises(PalimpsestError, match="two tokenizers differ"):
        StableDiffusionXL("x", made, Sampling())


# --- methods, where two towers make a difference ---


PARACHUTE = Concept("parachute", "object", anchor="balloon")


def test_closed_forms_move_every_matrix_that_reads_the_joined_rows(model, context):
    for method in (UCE(), RECE()):
        patch = method(model, PARACHUTE, context=context).patch
        assert set(patch.edits) == set(model.sites.text_inputs["hidden"])
        width = sum(sdxl.WIDTHS)
        for edits in patch.edits.values():
            (delta,) = (e.delta for e in edits)
            first, second = delta[:, : sdxl.WIDTHS[0]], delta[:, sdxl.WIDTHS[0] :]
            assert delta.shape[1] == width
            assert first.any()
            assert second.any()


def test_esds_preset_is_strict(model, context):
    method = ESD(**ESD.presets["sdxl"])
    assert (method.train, method.steps, method.lr) == ("xattn-kv", 200, 2e-4)
    assert (method.latents.source, method.latents.guidance) == ("frozen", 2.0)
    small = method.changed({"steps": 2, "latents.steps": 2})
    patch = small(model, PARACHUTE, context=context).patch
    assert set(patch.edits) == set(model.parameters("xattn-kv"))


def test_another_empty_prompt_gives_another_edit(model, context):
    """Methods follow the choice, as drawing does."""
    esd = ESD(**ESD.presets["sdxl"]).changed({"steps": 2, "latents.steps": 2})
    told = model.with_sampling(model.sampling.drawn(Draw(empty="text")))
    a, b, c = (esd(m, PARACHUTE, context=context).patch.edits for m in (model, told, model))
    name = next(iter(a))
    assert torch.equal(a[name][0].delta, c[name][0].delta)
    assert not torch.equal(a[name][0].delta, b[name][0].delta)


def test_srs_me_says_how_wide_the_joined_rows_are(model, context):
    names = [name for name in OBJECTS if name != "parachute"][:12]
    told = r"leave 0 of 160 dimensions of the text embedding.* hold 9 at most in all"
    with pytest.raises(PalimpsestError, match=told):
        SRSME(steps=1, hold=tuple(names))(model, PARACHUTE, context=context)


def test_fmn_turns_from_the_ends_of_both_towers(model):
    """The second pads with a word, at the places where the first has ends."""
    method = FMN()
    asked = method._widened(model, method._words(model, [PARACHUTE]))
    ids = model.text.ids(["a photo of parachute"])
    padding = model.text._as_second(ids).eq(model.text.towers[1].pad)
    assert padding.sum() > 5
    assert asked.wanted[0][padding[0]].all()
    assert not asked.wanted[0][:3].any()


def test_an_inverted_word_is_trained_in_both_tables(model, context):
    start = embeddings(model, "object")
    x_0 = model.encode(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    how = Inversion(steps=3, lr=0.05, warmup=0, norm=None)
    found, _ = how(model, x_0, ["a photo of a {}"], start, context=context, label="inverting")
    moved = (found - start).abs().split(sdxl.WIDTHS, 1)
    assert all(half.min() > 0 for half in moved)


def test_found_words_are_words_of_both_tables(model):
    ids, slots = prefixed_ids(model, ["a cat"], 2)
    words = torch.tensor([model.text.plain("boat fish")])
    hard = embed_hard(model, ids, slots, words)
    written = model.embed(["boat fish a cat"]).parts["hidden"]
    assert torch.allclose(hard.parts["hidden"], written, atol=1e-5)
    assert model.text.decode(hard.ids[0]) == "boat fish a cat"
