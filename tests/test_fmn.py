"""Forget-Me-Not: the loss by hand, what its options change, and what it refuses."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_attention import recorded

from palimpsest.cli import main
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator, stream
from palimpsest.data.read import read_masks
from palimpsest.erase import FMN, FMNCorrection
from palimpsest.methods import Context
from palimpsest.patch.edits import Dense, LowRank
from palimpsest.toolbox.attention import attention_maps, word_positions
from palimpsest.toolbox.attention_steering import batches, norm
from palimpsest.toolbox.inversion import Inversion, first_vectors
from palimpsest.toolbox.pictures import Drawn

VAN_GOGH = Concept("van gogh", "style")
ONE = Drawn(1, steps=2, guidance=3.0)
TINY = {"steps": 1, "drawn": ONE, "train": "xattn-kv"}
PROMPT, TOKENS = "a photo in the style of van gogh", [7, 8]


def first_loss(model, concepts=(VAN_GOGH,), kind=FMN, **changes) -> float:
    losses = []
    context = Context(seed=3, log=lambda row: losses.append(row["loss"]))
    own = {"pooler": False} if kind is FMN else {}  # the concept's words alone, if not said
    kind(**{**TINY, **own, **changes})(model, list(concepts), context=context)
    return losses[0]


def drawn(model, noise_alone: bool = False, concept: Concept = VAN_GOGH):
    """(x_t, t) of the first step, drawn as the method must draw them."""
    g = stream(3, "training", 0, 0)
    torch.randint(1, (1,), generator=g)
    t = torch.randint(1000, (1,), generator=g)
    noise = model.noise(1, g)
    if noise_alone:
        return noise, t
    cond = model.embed(concept.sentences[:1])
    x_0 = model.sample(model.noise(1, stream(3, "pictures", 0)), cond, steps=2, guidance=3.0)
    return model.add_noise(x_0, noise, t), t


def probabilities(model, x_t, t) -> list[torch.Tensor]:
    return [P[0].double() for P in recorded(model, x_t, t, model.embed([PROMPT]))]


@pytest.mark.parametrize("latents", ["pictures", "noise"])
def test_the_first_loss_is_one_norm_over_layers_heads_and_pixels(model, latents):
    P = probabilities(model, *drawn(model, latents == "noise"))
    joined = torch.cat([A[..., TOKENS].flatten() for A in P])
    assert joined.numel() == 4 * 2 * (4 * 16 + 3 * 64)  # heads × tokens × pixels of all layers
    expected = float(joined.norm())
    assert first_loss(model, latents=latents) == pytest.approx(expected, rel=1e-4)


def test_the_pooler_adds_every_end_of_text(model):
    P = probabilities(model, *drawn(model))
    columns = [*TOKENS, *range(9, 16)]
    expected = float(torch.cat([A[..., columns].flatten() for A in P]).norm())
    assert first_loss(model, pooler=True) == pytest.approx(expected, rel=1e-4)


def test_published_the_pooler_is_on_and_the_gradient_is_clipped(model):
    """AdamW's first step is the same for every norm; the second shows what the first one was."""
    assert (FMN().pooler, FMN().clip) == (True, 1.0)
    world = FMN(**FMN.presets["world"])
    assert (world.pooler, world.clip) == (True, None)

    def shift(clip) -> torch.Tensor:
        method = FMN(**{**TINY, "steps": 3, "lr": 1e-3, "clip": clip})
        edits = method(model, [VAN_GOGH], context=Context(seed=3)).patch.edits
        return torch.cat([edit.delta.flatten() for (edit,) in edits.values()])

    free = shift(None)
    assert torch.equal(shift(1e9), free)
    assert (shift(1e-3) - free).norm() > 1e-3 * free.norm()


def test_the_tail_adds_the_words_that_follow_the_concept(model):
    sentence = "a picture in van gogh style"
    maps = recorded(model, *drawn(model), model.embed([sentence]))
    columns = [4, 5, 6]  # van, gogh, style; neither what stands before nor the end of the text
    expected = float(torch.cat([P[0].double()[..., columns].flatten() for P in maps]).norm())
    template = "a picture in {name} style"
    assert first_loss(model, tail=True, templates=(template,)) == pytest.approx(expected, rel=1e-4)


def test_srs_mes_loss_is_how_far_logits_are_from_those_without_the_words(model):
    """Σ over layers of the mean over heads, pixels and the whole window, before any softmax."""
    x_t, t = drawn(model)
    cond, bare = (model.embed([text]) for text in ("a painting of van gogh", "a painting of"))
    queries, expected = {}, 0.0
    with ExitStack() as hooks, torch.no_grad():
        for name, layer in model.sites.attention.items():
            keep = lambda module, args, out, name=name: queries.__setitem__(name, out)  # noqa: E731
            hooks.enter_context(layer.to_q.register_forward_hook(keep))
        model.eps(x_t, t, cond)
        for name, layer in model.sites.attention.items():
            q = queries[name][0].unflatten(-1, (layer.heads, -1)).transpose(0, 1)
            k, k_bare = (
                layer.to_k(c.parts["hidden"][0]).unflatten(-1, (layer.heads, -1)).transpose(0, 1)
                for c in (cond, bare)
            )
            logits = (q @ (k - k_bare).transpose(-1, -2)) / q.shape[-1] ** 0.5
            assert logits.shape[-1] == model.text.window
            expected += float(logits.square().mean())
    preset = FMN.presets["srs-me"] | {"steps": 1, "drawn": ONE}
    assert first_loss(model, **preset) == pytest.approx(expected, rel=1e-4)
    recipe = FMN(**FMN.presets["srs-me"])
    assert (recipe.steps, recipe.recipe.summed, recipe.weight_decay) == (11, True, 0)


def folder_of(path, names, value=None, side=64):
    path.mkdir()
    for i, name in enumerate(names):
        picture = np.full((side, side, 3), 40 * i if value is None else value, np.uint8)
        Image.fromarray(picture).save(path / name)
    return path


def test_a_mask_counts_only_the_concepts_own_pixels(model, tmp_path):
    pictures = folder_of(tmp_path / "pictures", ["a.png"], 128)
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(half).save(tmp_path / "masks" / "a.png")
    x_0 = model.encode(torch.full((1, 3, 64, 64), 128 / 255))
    g = stream(3, "training", 0, 0)
    torch.randint(1, (1,), generator=g)
    t = torch.randint(1000, (1,), generator=g)
    x_t = model.add_noise(x_0, model.noise(1, g), t)
    left = []
    for A in probabilities(model, x_t, t):
        side = round(A.shape[1] ** 0.5)
        left.append(A.unflatten(1, (side, side))[:, :, : side // 2][..., TOKENS].flatten())
    got = first_loss(model, drawn=Drawn(folder=pictures), masks=tmp_path / "masks")
    assert got == pytest.approx(float(torch.cat(left).norm()), rel=1e-4)


def test_attention_to_the_word_falls_and_only_the_named_group_moves(model, context):
    method = FMN(steps=6, lr=1e-3, batch=2, train="xattn-kv", latents="noise")
    patch = method(model, [VAN_GOGH], context=context).patch
    assert set(patch.edits) == set(model.parameters("xattn-kv"))
    x_t, t = model.noise(4, generator(8)), torch.tensor([200, 400, 600, 800])

    def attention(words: str) -> float:
        wanted = word_positions(model, PROMPT, words)[None]
        with torch.no_grad():
            maps = attention_maps(model, x_t, t, model.embed([PROMPT]), wanted)
        return float(torch.cat([A.flatten() for A in maps.values()]).norm())

    before = attention("van gogh")
    with model.patched(patch):
        assert attention("van gogh") < 0.7 * before


def test_several_concepts_each_keep_to_their_own_pictures(model, context, tmp_path):
    for name in ("cat", "kite"):
        folder_of(tmp_path / name, ["1.png", "2.png"])
    method = FMN(steps=1, batch=3, drawn=Drawn(folder=tmp_path))
    both = [Concept("cat"), Concept("kite")]
    patch = method(model, both, context=context).patch
    assert len(patch.edits) == len(model.parameters("full"))
    cat, kite = method.pictures(model, both, context)
    seen = batches(model, method._words(model, both), [cat, kite], 32)(generator(4))
    g = generator(4)
    chosen = torch.randint(4, (32,), generator=g)  # two pictures of the cat, two of the kite
    t, x_0 = torch.randint(1000, (32,), generator=g), torch.cat([cat.x_0, kite.x_0])[chosen]
    assert torch.equal(seen.x_t, model.add_noise(x_0, model.noise(32, g), t))
    prompts = model.rows(["a photo of cat", "a photo of kite"])
    assert torch.equal(seen.cond.rows("hidden"), prompts[chosen // 2])


CRANE = Concept("crane machine", anchor="crane bird")
AMBIGUOUS = {"templates": ("a picture of a crane",), "words": "crane"}


def test_an_ambiguous_word_is_steered_on_the_unwanted_meanings_pictures(model):
    """The prompt and the words are the ambiguous ones, the pictures the unwanted meaning's."""
    P = recorded(model, *drawn(model, concept=CRANE), model.embed(["a picture of a crane"]))
    expected = float(torch.cat([A[0].double()[..., 5].flatten() for A in P]).norm())
    got = first_loss(model, [CRANE], FMNCorrection, **AMBIGUOUS)
    assert got == pytest.approx(expected, rel=1e-4)


def test_without_templates_every_sentence_asks_for_the_words(model):
    asked = FMNCorrection(words="crane")._asked(model, [CRANE])
    expected = model.rows(["a picture of a crane", "a crane", "crane"])
    assert torch.equal(asked.cond.rows("hidden"), expected)
    assert asked.wanted.nonzero().tolist() == [[0, 5], [1, 2], [2, 1]]


def test_holding_the_anchor_adds_how_far_its_attention_moved(model):
    """Zero before the first step; then ‖A − A*‖ keeps the word's attention on the anchor's side."""
    assert first_loss(model, [CRANE], FMNCorrection, **AMBIGUOUS, hold=True) == pytest.approx(
        first_loss(model, [CRANE], FMNCorrection, **AMBIGUOUS), abs=1e-5
    )
    method = FMNCorrection(**TINY, **AMBIGUOUS, hold=True)
    asked = method._asked(model, [CRANE])
    held = method.draw(model, [Concept("crane bird")], Context(seed=3), "anchor pictures")
    seen = batches(model, asked, held, 1)(generator(1))
    P = recorded(model, seen.x_t, seen.t, asked.cond)
    with torch.no_grad():
        maps = seen.maps(model)
    twice = {name: 2 * A for name, A in maps.items()}
    expected = 2 * float(torch.cat([A[0, ..., 5].flatten() for A in P]).norm())
    assert float(norm(twice, seen)) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(PalimpsestError, match="no anchor to hold"):
        method(model, [Concept("crane machine")], context=Context())


def test_the_held_meaning_moves_less(model, context):
    """The word's attention falls on pictures of the unwanted meaning, less on the wanted one's."""
    world = FMNCorrection(**FMNCorrection.presets["world"], words="crane")
    method = world.changed({"steps": 20, "batch": 4, "drawn.pictures": 4, "drawn.steps": 4})
    patch = method(model, [CRANE], context=context).patch
    asked, moved = method._asked(model, [CRANE]), {}
    for name in ("crane machine", "crane bird"):
        shown = method.pictures(model, [Concept(name)], Context(seed=9))
        seen = batches(model, asked, shown, 8)(generator(8))
        with torch.no_grad():
            before = float(norm(seen.maps(model), seen))
            with model.patched(patch):
                moved[name] = float(norm(seen.maps(model), seen)) / before
    assert moved["crane machine"] < 0.8
    assert moved["crane bird"] > moved["crane machine"] + 0.1


@pytest.mark.parametrize("name", ["words", "hold"])
def test_what_corrects_a_word_is_refused_by_the_name_that_it_has_now(name, capsys):
    with pytest.raises(PalimpsestError, match=f"{name} is a setting of fmn_correction"):
        FMN(**{name: "crane"})
    assert main(["erase", "fmn", "--concept", "crane machine", f"--{name}", "crane"]) == 2
    assert f"{name} is a setting of fmn_correction" in capsys.readouterr().err


def test_random_starts_are_as_wide_as_the_authors_and_on_the_world_as_words_are(model):
    published, inverted, world = FMN(), FMN(**FMN.presets["inverted"]), FMN(**FMN.presets["world"])
    assert (published.spread, inverted.spread, world.spread) == (1.0, 1.0, None)
    assert (published.inversion.warmup, world.inversion.warmup) == (0, 100)
    assert (published.placeholders, inverted.placeholders) == (0, 4)
    width, own = model.text.width, model.token_vectors().std()
    for spread, expected in ((1.0, 1.0), (None, float(own))):
        drawn = first_vectors(model, ("cat",), 9, generator(1), spread)[1:]
        assert drawn.shape == (8, width)
        assert float(drawn.std()) == pytest.approx(expected, rel=0.1)


def test_inverted_vectors_are_forgotten_in_place_of_the_words(model, context, tmp_path):
    method = FMN(
        **TINY,
        placeholders=2,
        starts=("cat", "owl"),
        wordings="sentences",
        inversion=Inversion(steps=2),
        rank=2,
    )
    patch = method(model, [VAN_GOGH], context=replace(context, folder=tmp_path)).patch
    assert (tmp_path / "inverting-van-gogh.checkpoint").is_file()
    assert patch.about["arguments"]["inversion"]["steps"] == 2
    assert 0 < patch.about["residual"] < 1
    patch.save(tmp_path / "patch.safetensors")
    kinds = {n: type(edit) for n, (edit,) in patch.edits.items()}
    assert all(
        kinds[n] is (LowRank if p.ndim > 1 else Dense)
        for n, p in model.parameters("xattn-kv").items()
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": -1.0}, "lr"),
        ({"rank": 0}, "rank"),
        ({"placeholders": -1}, "placeholders"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"masks": Path("m")}, "masks belong"),
        ({"latents": "noise", "drawn": Drawn(folder=Path("f"))}, "leave out drawn.folder"),
        ({"starts": ("cat",)}, "starts has 1"),
    ],
    ids=str,
)
def test_settings_that_contradict_one_another_are_refused_at_once(changes, told):
    with pytest.raises(PalimpsestError, match=told):
        FMN(**changes)


@pytest.mark.parametrize(
    ("concept", "changes", "told"),
    [
        (Concept("cat " * 20), {}, "window of 16"),
        (Concept("cat"), {"templates": ("a picture",)}, "does not contain 'cat'"),
        (Concept("cat"), {"placeholders": 12}, "window holds 16"),
        (Concept("cat"), {"rank": 500}, "rank is 500"),
        (Concept("cat"), {"drawn": Drawn(folder=Path("/nowhere"))}, "no such folder"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_on_is_refused(model, context, concept, changes, told):
    with pytest.raises(PalimpsestError, match=told):
        FMN(**{**TINY, **changes})(model, [concept], context=context)


def test_masks_that_cannot_be_used_are_refused(tmp_path):
    pictures = folder_of(tmp_path / "pictures", ["a.jpg", "b.jpg"])
    files = sorted(pictures.iterdir())
    with pytest.raises(PalimpsestError, match="no such folder of masks"):
        read_masks(tmp_path / "absent", files, 64)
    masks = folder_of(tmp_path / "masks", ["a.png"], 255)
    with pytest.raises(PalimpsestError, match="no mask named 'b'"):
        read_masks(masks, files, 64)
    Image.new("L", (9, 9), 0).save(masks / "b.png")
    with pytest.raises(PalimpsestError, match=r"b\.png: black all over"):
        read_masks(masks, files, 64)
    Image.new("L", (9, 9), 255).save(masks / "b.png")
    assert read_masks(masks, files, 8).shape == (2, 1, 8, 8)
    (masks / "b.png").write_bytes(b"nothing")
    with pytest.raises(PalimpsestError, match="cannot be read"):
        read_masks(masks, files, 64)
