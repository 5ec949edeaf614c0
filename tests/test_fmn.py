"""Forget-Me-Not: the loss by hand, what its options change, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_attention import recorded

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator
from palimpsest.data.read import read_masks
from palimpsest.erase import FMN
from palimpsest.methods import Context
from palimpsest.patch.edits import Dense, LowRank
from palimpsest.toolbox.attention import attention_maps, word_positions
from palimpsest.toolbox.inversion import Inversion

VAN_GOGH = Concept("van gogh", "style")
TINY = {"steps": 1, "pictures": 1, "sampling_steps": 2, "guidance": 3.0, "train": "xattn-kv"}
PROMPT, TOKENS = "a photo in the style of van gogh", [7, 8]


def first_loss(model, concepts=(VAN_GOGH,), **changes) -> float:
    losses = []
    context = Context(seed=3, log=lambda row: losses.append(row["loss"]))
    FMN(**{**TINY, **changes})(model, list(concepts), context=context)
    return losses[0]


def drawn(model, noise_alone: bool = False):
    """(x_t, t) of the first step, drawn as the method must draw them."""
    g = generator(3, 0, 0)
    torch.randint(1, (1,), generator=g)
    t = torch.randint(1000, (1,), generator=g)
    noise = model.noise(1, g)
    if noise_alone:
        return noise, t
    cond = model.embed(VAN_GOGH.sentences[:1])
    x_0 = model.sample(model.noise(1, generator(3, 1, 0)), cond, steps=2, guidance=3.0)
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


def test_the_tail_adds_the_words_that_follow_the_concept(model):
    sentence = "a picture in van gogh style"
    maps = recorded(model, *drawn(model), model.embed([sentence]))
    columns = [4, 5, 6]  # van, gogh, style; neither what stands before nor the end of the text
    expected = float(torch.cat([P[0].double()[..., columns].flatten() for P in maps]).norm())
    template = "a picture in {name} style"
    assert first_loss(model, tail=True, templates=(template,)) == pytest.approx(expected, rel=1e-4)


def test_the_mean_square_is_that_of_all_entries(model):
    P = probabilities(model, *drawn(model))
    expected = float(torch.cat([A[..., TOKENS].flatten() for A in P]).square().mean())
    got = first_loss(model, objective="mean-square", lr=1e-3)
    assert got == pytest.approx(expected, rel=1e-4)


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
    g = generator(3, 0, 0)
    torch.randint(1, (1,), generator=g)
    t = torch.randint(1000, (1,), generator=g)
    x_t = model.add_noise(x_0, model.noise(1, g), t)
    left = []
    for A in probabilities(model, x_t, t):
        side = round(A.shape[1] ** 0.5)
        left.append(A.unflatten(1, (side, side))[:, :, : side // 2][..., TOKENS].flatten())
    got = first_loss(model, folder=str(pictures), masks=str(tmp_path / "masks"))
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
    method = FMN(**{**TINY, "batch": 3, "train": "full"}, folder=str(tmp_path))
    patch = method(model, [Concept("cat"), Concept("kite")], context=context).patch
    assert len(patch.edits) == len(model.parameters("full"))
    shown = method._shown(model, [Concept("cat"), Concept("kite")], context)
    assert shown.owner == (0, 0, 1, 1)


def test_an_ambiguous_word_is_steered_on_the_unwanted_meanings_pictures(model, context):
    """The prompt and the words are the ambiguous ones, the pictures the unwanted meaning's."""
    machine = Concept("crane machine")
    method = FMN(**TINY, templates=("a picture of a crane",), words="crane")
    asked = method._words(model, [machine])
    assert torch.equal(asked.cond.parts["hidden"], model.rows(["a picture of a crane"]))
    assert asked.wanted.nonzero().tolist() == [[0, 5]]
    method(model, [machine], context=context)


def test_holding_the_anchor_adds_how_far_its_attention_moved(model):
    """Zero before the first step; then ‖A − A*‖ keeps the word's attention on the anchor's side."""
    bird = Concept("crane machine", anchor="crane bird")
    changes = {"templates": ("a picture of a crane",), "words": "crane"}
    assert first_loss(model, [bird], **changes, hold=True) == pytest.approx(
        first_loss(model, [bird], **changes), abs=1e-5
    )
    method = FMN(**TINY, **changes, hold=True)
    asked = method._words(model, [bird])
    held = method._held(model, [Concept("crane bird")], Context(seed=3))
    seen = method._noised(model, asked, held)(generator(1))
    P = recorded(model, seen.x_t, seen.t, asked.cond)
    with torch.no_grad():
        maps = seen.maps(model)
    twice = {name: 2 * A for name, A in maps.items()}
    expected = 2 * float(torch.cat([A[0, ..., 5].flatten() for A in P]).norm())
    assert float(method._size(twice, seen)) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(PalimpsestError, match="no anchor to hold"):
        method(model, [Concept("crane machine")], context=Context())


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
        ({"masks": "m"}, "masks belong"),
        ({"latents": "noise", "folder": "f"}, "leave out the folder"),
        ({"placeholders": 1, "words": "cat"}, "one of the two"),
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
        (Concept("cat"), {"folder": "/nowhere"}, "no such folder"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_on_is_refused(model, context, concept, changes, told):
    with pytest.raises(PalimpsestError, match=told):
        FMN(**TINY, **changes)(model, [concept], context=context)


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
