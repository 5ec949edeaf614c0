"""SPM and MACE against their papers: losses by hand, closed forms where their gradient vanishes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import noised

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator, stream
from palimpsest.erase import MACE, SPM
from palimpsest.erase.mace import focal, masked
from palimpsest.erase.spm import direction
from palimpsest.methods import Context
from palimpsest.models.factors import untrained
from palimpsest.patch.edits import LowRank
from palimpsest.patch.hooks import Transport
from palimpsest.runs.images import save_png
from palimpsest.toolbox.attention import attention_maps
from palimpsest.toolbox.latents import Latents
from palimpsest.toolbox.pictures import Drawn

PARACHUTE = Concept("parachute", anchor="balloon", keep=("church", "a cat", "owl"))
TINY: dict[str, Any] = {
    "steps": 1,
    "latents": Latents("noised", steps=2, pictures=1),
    "warmup": 0,
}


# --- SPM ---


def test_spms_first_loss_is_esds_by_hand(model):
    """The adapter shifts nothing yet: the anchors stand, and (1+η)(ε_c − ε_∅) is left."""
    losses = []
    context = Context(seed=3, log=lambda row: losses.append(row["loss"]))
    SPM(steps=1, eta=1.5, latents=Latents("student", steps=5))(model, [PARACHUTE], context=context)
    g, c, empty = stream(3, "training", 0, 0), model.embed(["parachute"]), model.embed([""])
    torch.randint(1, (1,), generator=g)
    stop = int(torch.randint(1, 5, (1,), generator=g))
    x_t = model.sample(model.noise(1, g), c, steps=5, guidance=3.0, stop=stop)
    t = torch.tensor(model.schedule.grid(5)[:-1][stop])
    with torch.no_grad():
        by_hand = (2.5 * (model.eps(x_t, t, c) - model.eps(x_t, t, empty))).square().mean()
    assert losses == [pytest.approx(float(by_hand), rel=1e-3)]


def test_spms_loss_holds_the_anchors(model):
    """With a student that differs: L_era + λ·L_anc, each a mean of squares, by hand."""
    method = SPM(**TINY, eta=1.0, anchor_weight=7.0, anchors="keep", anchor_empty=0)
    name, W = next(iter(model.parameters("xattn-kv").items()))
    shifted = model.student({name: 0.05 * torch.randn(W.shape, generator=generator(0))})
    ours = method._loss(model, shifted, PARACHUTE, Context(seed=3))(generator(5), 0)

    g, c = generator(5), model.embed(["parachute"])
    x_t, t = noised(model, c, g, 2, owners=True)
    kept = model.embed(PARACHUTE.keep)
    flat, own = kept.parts["hidden"].flatten(1), c.parts["hidden"].flatten()
    far = 1 - ((flat @ own) / (flat.norm(dim=1) * own.norm())).abs()  # (1 − |cos|)^1
    a = kept[torch.multinomial(far, 2, replacement=True, generator=g)]
    with torch.no_grad():
        e_0, e_c = model.eps(x_t, t, model.embed([""])), model.eps(x_t, t, c)
        erase = (shifted.eps(x_t, t, c) - (e_0 - (e_c - e_0))).square().mean()
        twice = x_t.expand(2, -1, -1, -1)
        anchor = (shifted.eps(twice, t, a) - model.eps(twice, t, a)).square().mean()
    assert float(anchor) > 0
    assert float(ours) == pytest.approx(float(erase + 7.0 * anchor), rel=1e-3)


def test_spm_as_published_holds_two_directions_and_twice_the_empty_prompt(model):
    """L_anc over [a, a′, ∅, ∅] by hand; λ = 1000 and 0 tell it from L_era."""
    name, W = next(iter(model.parameters("xattn-kv").items()))
    shifted = model.student({name: 0.05 * torch.randn(W.shape, generator=generator(0))})
    with_anchors, without = (
        SPM(**TINY, anchor_weight=w)._loss(model, shifted, PARACHUTE, Context(seed=3))
        for w in (1000.0, 0.0)
    )
    ours = float(with_anchors(generator(5), 0) - without(generator(5), 0))

    g, c = generator(5), model.embed(["parachute"])
    x_t, t = noised(model, c, g, 2, owners=True)
    own = c.parts["hidden"].float()
    held = [c.replaced("hidden", direction(own, g)) for _ in range(2)] + [model.embed([""])] * 2
    with torch.no_grad():
        by_hand = [(shifted.eps(x_t, t, a) - model.eps(x_t, t, a)).square().mean() for a in held]
    assert ours == pytest.approx(1000 * float(sum(by_hand)) / 4, rel=1e-3)
    assert SPM().evaluations()[1] == 3000 * (1 + 4)


def test_spm_without_transport_is_a_patch_that_adds_up(model, context):
    method = SPM(**TINY, transport=False, lr=1e-2)
    patch = method(model, [PARACHUTE, Concept("owl", keep=("cat",))], context=context).patch
    assert patch.hook is None
    assert all(isinstance(edit, LowRank) for edits in patch.edits.values() for edit in edits)
    ranks = {edits[0].up.shape[1] for edits in patch.edits.values()}  # type: ignore[union-attr]
    assert ranks == {2}, "a dimension for each concept"
    assert all(".attentions." in name for name in patch.edits)
    assert (patch - patch).norm() == pytest.approx(0, abs=1e-6)
    moved = sum(t.numel() for t in patch.tensors().values())
    assert moved == 2 * sum(method.moves(model).values())


def test_spms_transport_opens_for_the_concept_and_less_for_others(model, context):
    concepts = [replace(PARACHUTE, synonyms=("chute",)), Concept("owl", keep=("cat",))]
    hook = SPM(**TINY, lr=1e-2)(model, concepts, context=context).patch.hook
    assert isinstance(hook, Transport)
    cond = model.embed(["parachute", "a chute in neon style", "owl", "a train"])
    scales = hook.scales(cond.parts["hidden"], cond.ids)
    assert torch.allclose(scales[:2, 0], torch.ones(2), atol=1e-5)
    assert float(scales[2, 1]) == pytest.approx(1, abs=1e-5)
    assert bool((scales[3] < 0.9).all())
    in_proportion = replace(hook, power=1).scales(cond.parts["hidden"], cond.ids)
    assert torch.allclose(scales, in_proportion.square()), "published: both factors are scaled"


def test_spm_asks_for_something_to_anchor_on(model, context):
    bare = Concept("parachute")
    with pytest.raises(PalimpsestError, match="keeps nothing"):
        SPM(**TINY, anchors="keep")(model, [bare], context=context)
    for changes in ({"anchor_weight": 0.0, "anchors": "keep"}, {"anchors": "directions"}):
        SPM(**TINY, **changes, lr=1e-2)(model, [bare], context=context)


def test_a_direction_is_about_as_long_as_the_concept():
    c, g = torch.randn(1, 16, 8, generator=generator(1)), generator(0)
    lengths = [float(direction(c, g).norm() / c.norm()) for _ in range(50)]
    assert all(0.8 <= length <= 1.2 for length in lengths)


def test_spm_reaches_convolutions_of_the_whole_u_net(model):
    every, blocks = SPM(layers="all").moves(model), SPM().moves(model)
    assert "unet.conv_in.weight" in every
    assert blocks.keys() < every.keys()
    assert all(model._parameters[n].ndim in (2, 4) for n in every)


# --- MACE ---


def weight(model):
    return next(iter(model.parameters("xattn-kv").items()))


def test_maces_refinement_is_where_its_gradient_vanishes(model):
    method = MACE(refine_preserve=0.3, hold=0.0)
    _, W = weight(model)
    move = method.refinement(model, [PARACHUTE])
    W = W.double()
    W_1 = W + W @ move
    gradient = torch.zeros_like(W)
    sentences = [("a picture of a {}", 5), ("a {}", 2), ("{}", 1)]
    for sentence, at in sentences:  # parachute and balloon are one token each, at the same place
        ours, theirs = model.embed([sentence.format(n) for n in ("parachute", "balloon")]).parts[
            "hidden"
        ]
        for e_f, e_g in zip(ours[at + 1 :].double(), theirs[at + 1 :].double(), strict=True):
            gradient += torch.outer(W_1 @ e_f - W @ e_g, e_f)
        for e in ours[:at].double():  # the words before the concept, and the begin token, are held
            gradient += torch.outer((W_1 - W) @ e, e)
    for e_p in model.rows([*PARACHUTE.keep, ""]).double().flatten(0, 1):
        gradient += 0.3 * torch.outer((W_1 - W) @ e_p, e_p)
    assert (W_1 - W).norm() > 1e-3 * W.norm()
    assert gradient.norm() < 1e-4 * torch.outer(W @ ours[1].double(), ours[1].double()).norm()


@pytest.mark.parametrize(("hold", "most"), [(1.0, 0.01), (1000.0, 0.1)])
def test_maces_refinement_holds_what_is_before_the_concept(model, hold, most):
    """It moved the begin token, which begins every prompt, by a fifth and more of its size."""
    _, W = weight(model)
    move = MACE(hold=hold).refinement(model, [PARACHUTE])
    begin = model.rows(["parachute"])[0, 0].double()
    assert (W.double() @ move @ begin).norm() < most * (W.double() @ begin).norm()


@pytest.mark.parametrize("tokens", ["all", "own"])
@pytest.mark.parametrize("hold", [0.0, 1000.0])
def test_maces_fusion_is_where_its_gradient_vanishes(model, hold, tokens):
    method = MACE(fuse_preserve=0.3, hold=hold, fuse_tokens=tokens)
    concepts = [PARACHUTE, Concept("owl", keep=("cat",))]
    name, W = weight(model)
    W = W.double()
    refined = 0.01 * torch.randn(W.shape, generator=generator(0)).double()
    loras = [{name: torch.randn(W.shape, generator=generator(i)).double()} for i in (1, 2)]
    fused = method.fusion(model, concepts, {name: refined}, loras)[name]
    gradient = torch.zeros_like(W)
    for concept, lora in zip(concepts, loras, strict=True):
        for sentence in concept.sentences:
            at = model.text.span(sentence, concept.name)[0] if tokens == "own" else 0
            for e in model.rows([sentence])[0, at:].double():
                gradient += torch.outer((fused - refined - lora[name]) @ e, e)
    for e_p in model.rows(["church", "a cat", "owl", "cat", ""]).double().flatten(0, 1):
        gradient += 0.3 * torch.outer(fused @ e_p, e_p)
    gradient += hold * (fused - refined)  # held to the refined weights, not to the unedited ones
    assert fused.norm() > 0.1
    assert gradient.norm() < 1e-4 * torch.outer(loras[0][name] @ e_p, e_p).norm()


def test_maces_loss_by_hand():
    """One layer, one head, 2×2 pixels, one word; then two layers, and two pictures."""
    A, mask = torch.tensor([0.5, 0.8, 0.2, 1.0]).reshape(1, 1, 4, 1), torch.ones(1, 1, 2, 2)
    mask[0, 0] = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    by_hand = 0.5**2 + (0.2 * 0.5) ** 2 + 1.0**2
    everywhere = by_hand + 0.8**2 + 0.2**2 * (1 - 0.5**2)
    assert float(masked([A], mask, "squares")) == pytest.approx(by_hand)
    assert float(masked([A], None, "squares")) == pytest.approx(everywhere)
    assert float(masked([A], None, "norm")) == pytest.approx(everywhere**0.5)
    layers = [A, A.repeat(1, 2, 1, 1)]  # of one head and of two
    both = masked(layers, mask, "squares")
    assert float(both) == pytest.approx(2 * by_hand), "sum over layers, mean over heads"
    both = masked(layers, mask, "norm")
    assert float(both) == pytest.approx((1 + 2**0.5) * by_hand**0.5), "a norm over all heads"
    pictures = masked([torch.cat([A, 3 * A])], None, "norm")
    assert float(pictures) == pytest.approx(2 * everywhere**0.5), "each picture's own norm"


def test_maces_loss_takes_the_ends_of_the_prompt_along(model):
    """The LoRA shifts nothing yet: the sum, by hand, of the layers' norms at their tokens."""
    W, (shown,) = model.matrices("xattn-kv"), MACE().draw(model, [PARACHUTE], Context())
    factors = untrained(W, 1, generator(0))
    losses = {
        pooler: float(
            MACE(pooler=pooler)._attention(model, PARACHUTE, W, factors, shown)(generator(5), 0)
        )
        for pooler in (True, False)
    }
    g = generator(5)
    pick, asks = (int(torch.randint(n, (1,), generator=g)) for n in (8, 3))
    t = torch.multinomial(focal(1000, 200, 400, 0.05), 1, replacement=True, generator=g)
    x_t = model.add_noise(shown.x_0[pick : pick + 1], model.noise(1, g), t)
    sentence = PARACHUTE.sentences[asks]
    at, length = model.text.span(sentence, "parachute"), model.text.lengths([sentence])[0]
    every = torch.ones(1, model.text.window).bool()
    maps = attention_maps(model, x_t, t, model.embed([sentence]), every).values()
    own = sum(float(A[..., at].norm()) for A in maps)
    ends = [*at, *range(length - 1, model.text.window)]  # the end token and the padding
    assert losses[False] == pytest.approx(own, rel=1e-4)
    assert losses[True] == pytest.approx(sum(float(A[..., ends].norm()) for A in maps), rel=1e-4)


def test_maces_loras_start_as_the_authors_do(model):
    losses = []
    context = Context(seed=3, log=lambda row: losses.append(row["loss"]))
    for changes in ({}, {"init": "uniform"}):
        method = MACE(steps=2, lr=1e-3, drawn=Drawn(1, steps=1), **changes)
        method(model, [PARACHUTE], context=context)
    assert losses[0] == losses[2], "both shift nothing yet"
    assert losses[1] < 0.999 * losses[3], "and the wider one more in a step"
    weights = {"a": torch.zeros(7, 40_000)}
    up, down = untrained(weights, 4, generator(0), "normal")["a"]
    assert not up.any()
    assert float(down.std()) == pytest.approx(1 / 4, rel=0.01)
    assert float((down.abs() > 0.5).float().mean()) == pytest.approx(0.0455, rel=0.05)  # 2σ
    uniform = untrained(weights, 4, generator(0))["a"][1]
    assert float(uniform.abs().max()) == pytest.approx(1 / 200, rel=0.01)


def test_maces_gradient_is_clipped_but_on_the_world(model):
    """Adam's first step is the same for every norm; the second shows what the first one was."""

    def shift(clip) -> torch.Tensor:
        method = MACE(steps=3, lr=1e-2, clip=clip, drawn=Drawn(1, steps=1))
        patch = method(model, [PARACHUTE], context=Context(seed=3)).patch
        return torch.cat([delta.flatten() for delta in patch.tensors().values()])

    free = shift(None)
    assert torch.equal(shift(1e9), free)
    assert (shift(1e-3) - free).norm() > 1e-3 * free.norm()
    clips = {name: MACE(**changes).clip for name, changes in MACE.presets.items()}
    assert clips.pop("world") is None
    assert set(clips.values()) == {MACE().clip} == {1.0}


def test_maces_presets_weigh_what_the_refinement_keeps_as_the_authors_code_does():
    """It multiplies by the λ₁ of their configurations twice: 1e-4 for the first two, then 7e-7."""
    weights = [MACE.presets[name]["refine_preserve"] for name in ("celebrity", "style", "unsafe")]
    assert weights == [pytest.approx(1e-4**2), pytest.approx(1e-4**2), pytest.approx(7e-7**2)]


def test_the_attention_recorded_is_what_the_layer_used(model):
    """softmax·V through the layer's own output projection gives the layer's own output."""
    block = model.unet.down_blocks[1].attentions[0].transformer_blocks[0]
    seen = {}
    handle = block.attn2.register_forward_hook(lambda *call: seen.update(out=call[-1]))
    cond, everything = model.embed(["a cat", "owl"]), torch.ones(2, model.text.window).bool()
    x_t = torch.randn(2, 4, 16, 16, generator=generator(0))
    with torch.no_grad(), handle:
        recorded = attention_maps(model, x_t, torch.tensor(500), cond, everything)
        maps = [*recorded.values()]
        v = (
            block.attn2.to_v(cond.parts["hidden"])
            .unflatten(-1, (block.attn2.heads, -1))
            .transpose(1, 2)
        )
        out = block.attn2.to_out[0]((maps[0] @ v).transpose(1, 2).flatten(2))
    assert len(maps) == 7
    assert torch.allclose(maps[0].sum(-1), torch.ones(maps[0].shape[:-1]), atol=1e-5)
    assert torch.allclose(out, seen["out"], atol=1e-5)
    assert not any(module._forward_hooks for module in model.unet.modules())


def test_maces_timesteps_gather_where_the_concept_takes_shape():
    density = focal(1000, 200, 400, 0.05)
    assert float(density.sum()) == pytest.approx(1)
    assert float(density[200:400].sum()) > 0.85
    assert float(density[300] / density[200]) == pytest.approx(2, rel=0.02)  # σ(0) = ½
    unsafe = MACE(**MACE.presets["unsafe"])
    alike = focal(1000, *unsafe.focus, unsafe.sharpness)
    assert torch.allclose(alike, torch.full_like(alike, 1e-3)), "no timestep is preferred"


def test_mace_trains_attention_off_the_concept(model):
    losses = []
    context = Context(log=lambda row: losses.append(row["loss"]))
    held = {"refine_preserve": 0.1, "fuse_preserve": 0.1, "hold": 1e-2}
    method = MACE(steps=12, lr=3e-2, batch=4, drawn=Drawn(2, steps=2), **held)
    patch = method(model, [PARACHUTE], context=context).patch
    assert min(losses[-3:]) < 0.5 * losses[0]
    assert patch.edits.keys() == model.parameters("xattn-kv").keys()


def test_mace_reads_pictures_and_their_masks(model, tmp_path: Path, context):
    pictures, masks = tmp_path / "pictures", tmp_path / "masks"
    for i in range(2):
        save_png(torch.rand(3, 64, 64, generator=generator(i)), pictures / f"{i}.png")
    half = torch.zeros(3, 64, 64)
    half[:, :, 32:] = 1
    save_png(half, masks / "0.png")
    method = MACE(drawn=Drawn(folder=pictures), masks=masks, steps=1)
    with pytest.raises(PalimpsestError, match=r"no mask named '1'.*1\.png"):
        method(model, [PARACHUTE], context=context)
    save_png(1 - half, masks / "1.png")
    (shown,) = method.pictures(model, [PARACHUTE], context)
    assert shown.x_0.shape == (2, 4, 16, 16)
    assert shown.masks is not None
    assert torch.equal(shown.masks[:, 0], torch.stack([half[0], 1 - half[0]]))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (SPM, {"anchor_weight": -1.0}),
        (SPM, {"anchor_count": 0}),
        (SPM, {"warmup": -1}),
        (MACE, {"rank": 0}),
        (MACE, {"clip": 0.0}),
        (MACE, {"focus": (400, 200)}),
        (MACE, {"masks": Path("somewhere")}),
        (MACE, {"refine_preserve": float("nan")}),
    ],
    ids=str,
)
def test_hyperparameters_out_of_range_are_refused_at_once(kind, changes):
    with pytest.raises(PalimpsestError, match=next(iter(changes))):
        kind(**changes)
