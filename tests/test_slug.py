"""SLUG: the gradients by hand, the side that the cosine moves to, the front, the search."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel

from palimpsest.core.concepts import says
from palimpsest.core.errors import PalimpsestError
from palimpsest.data.pairs import Pairs, check_pairs
from palimpsest.erase import SLUG
from palimpsest.erase.slug import InCLIP, InStableDiffusion
from palimpsest.methods import Context, Task
from palimpsest.models.clip import ContrastiveEncoder, shared
from palimpsest.models.loading import load_clip
from palimpsest.patch import Patch
from palimpsest.toolbox.clip_losses import (
    contrastive,
    distance,
    kept,
    loss_gradient,
    ranks,
    zero_shot,
)
from palimpsest.toolbox.layer_search import (
    Layer,
    Slopes,
    Trial,
    best,
    deepest,
    front,
    search,
    table,
)
from palimpsest.toolbox.pictures import Captioned, Sampler
from palimpsest.world import assets, suite
from palimpsest.world.datasets import world_classes, world_pairs

PARACHUTE = suite.concept("parachute", "balloon")
FC1 = "text_encoder.encoder.layers.1.mlp.fc1.weight"
PATCHES = "vision.encoder.layers.3.self_attn.v_proj.weight"


@pytest.fixture(scope="module")
def encoder() -> ContrastiveEncoder:
    return load_clip("world")


@pytest.fixture(scope="module")
def eight() -> tuple[Pairs, Pairs]:
    return world_pairs(["parachute"], 8), world_pairs(["parachute"], 8, without=True)


def by_hand(forget: Pairs, retain: Pairs, names: tuple[str, ...]):
    """Both gradients in float64, by Hugging Face's own forward pass, without micro-batches."""
    model = CLIPModel.from_pretrained(assets.clip()).double().eval().requires_grad_(False)
    tokenizer = load_clip("world").tokenizer
    places = {
        n: model.get_parameter(
            n.replace("text_encoder.", "text_model.").replace("vision.", "vision_model.")
        ).requires_grad_()
        for n in names
    }
    found = []
    for pairs, loss in ((forget, "cosine"), (retain, "contrast")):
        ids = tokenizer(
            list(pairs.texts), padding="max_length", max_length=16, return_tensors="pt"
        ).input_ids
        out = model(input_ids=ids, pixel_values=pairs.images.double() / 255 * 2 - 1)
        if loss == "cosine":
            value = (1 - F.cosine_similarity(out.image_embeds, out.text_embeds)).mean()
        else:
            logits, own = out.logits_per_image, torch.arange(len(ids))
            p, q = logits.softmax(1)[own, own], logits.softmax(0)[own, own]
            value = -(p.log().mean() + q.log().mean()) / 2
        found.append(torch.autograd.grad(value, list(places.values())))
    return [dict(zip(names, grads, strict=True)) for grads in found]


def test_the_gradients_agree_with_a_hand_written_reference_in_float64(eight):
    encoder = load_clip("world")
    encoder.model.double()
    names = (FC1, PATCHES, "visual_projection.weight")
    forget, retain = eight
    wanted = by_hand(forget, retain, names)
    for pairs, loss, want in (
        (forget, distance, wanted[0]),
        (retain, contrastive(encoder.scale), wanted[1]),
    ):
        found = loss_gradient(encoder, pairs, loss, names, batch=8, micro=3)
        for name in names:
            assert (found[name] - want[name]).norm() < 1e-9 * want[name].norm(), name


def test_micro_batches_give_the_batchs_gradient_and_the_batch_matters(encoder, eight):
    loss, names = contrastive(encoder.scale), (FC1, PATCHES)
    whole, parts, other = (
        loss_gradient(encoder, eight[1], loss, names, batch=b, micro=m)
        for b, m in ((8, 8), (8, 2), (4, 4))
    )
    for name in names:
        assert (whole[name] - parts[name]).norm() < 1e-5 * whole[name].norm()
        assert (whole[name] - other[name]).norm() > 1e-2 * whole[name].norm()


def test_the_concepts_cosine_falls_along_the_edit_and_rises_against_it(encoder, eight):
    forget, _ = eight
    slope = loss_gradient(encoder, forget, distance, [FC1], batch=8)[FC1]
    step = 0.05 * encoder.parameters()[FC1].norm() / slope.norm()

    def cosine(sign: float) -> float:
        with encoder.patched(Patch.dense({FC1: sign * step * slope})):
            images, texts = encoder.images(forget.images), encoder.texts(forget.texts)
            return float((images * texts).sum(-1).mean())

    assert cosine(1) < cosine(0) < cosine(-1)


def test_gradients_are_kept_and_found_again_by_what_they_depend_on(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"w": torch.ones(2)}

    for batch in (8, 8, 16):
        assert torch.equal(
            kept(tmp_path, {"loss": "retain", "batch": batch}, make)["w"].sum(), torch.tensor(2.0)
        )
    assert len(made) == 2
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


# --- the table and the search ---


def test_the_table_says_importance_and_alignment():
    weights = {FC1: torch.tensor([[3.0, 4.0]])}
    slopes = Slopes({FC1: torch.tensor([[1.0, 0.0]])}, {FC1: torch.tensor([[-3.0, 4.0]])})
    (row,) = table(weights, slopes)
    assert row.importance == pytest.approx(1 / 5)
    assert row.alignment == pytest.approx(3 / 5)
    assert row.step == pytest.approx(5)
    assert row.front


def test_the_front_holds_what_nothing_beats():
    def layer(name: str, importance: float, alignment: float) -> Layer:
        return Layer(name, "text", importance, alignment, 1.0)

    rows = [layer("a", 3, 0.5), layer("b", 2, 0.1), layer("c", 2, 0.6), layer("d", 1, 0.1)]
    assert [r.name for r in front(rows)] == ["a", "b"]


def test_the_search_doubles_then_bisects_to_the_least_that_is_enough():
    trials = search("x", 1.0, 6, lambda s: (0.0 if s >= 5.3 else 0.4, 1 / s))
    assert [t.scale for t in trials] == [1, 2, 4, 8, 6, 5]
    assert best(trials).scale == 6


def test_the_search_halves_while_less_is_enough():
    assert [t.scale for t in search("x", 8.0, 4, lambda s: (0.0, 1.0))] == [8, 4, 2, 1]


def test_the_winner_forgets_most_and_then_keeps_most():
    trials = [Trial("a", 1, 0.1, 1.0), Trial("b", 2, 0.0, 0.7), Trial("c", 3, 0.0, 0.8)]
    assert best(trials).layer == "c"


def test_only_matrices_come_into_question(encoder):
    names = encoder.matrices()
    assert {FC1, PATCHES, "text_projection.weight", "visual_projection.weight"} <= names.keys()
    assert not any("embedding" in n or "norm" in n or n.endswith("bias") for n in names)
    assert set(encoder.matrices("text")) | set(encoder.matrices("vision")) == set(names)


# --- zero-shot ---


def test_ranks_count_the_classes_that_are_nearer():
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    texts = torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
    assert ranks(images, texts, [1, 1]) == [0, 2]


def test_the_world_knows_its_classes_before_any_edit(encoder):
    shown = world_classes(1, 700_000)
    found = zero_shot(encoder, shown)
    assert sum(rank == 0 for rank in found) >= 0.9 * len(found)


# --- Stable Diffusion ---


@pytest.fixture(scope="module")
def method() -> SLUG:
    world = SLUG(**SLUG.presets["world"])
    small = {"forgotten.pictures": 8, "retained.pictures": 16, "batch": 8, "scale": 0.1}
    return world.changed(small)


def test_the_edit_is_one_block_of_the_text_encoder_and_lowers_the_cosine(model, method, encoder):
    result = method(model, [PARACHUTE], context=Context())
    patch, record = result.patch, result.search
    ends = {name.split(".")[-2] for name in patch.edits}
    assert ends in ({"q_proj", "k_proj", "v_proj"}, {"fc1", "fc2"})
    assert all(name.startswith(record["layer"] + ".") for name in patch.edits)
    assert record["cosine"][1] < record["cosine"][0]
    assert record["batch"] == 8
    assert not any("projection" in row["name"] for row in record["layers"])
    encoder.accepts(patch)


def test_the_search_is_judged_by_pictures_and_every_try_is_kept(model, method, judge):
    few = {"scale": None, "tries": 2, "blocks": 1, "search_pictures": 2, "sampling.steps": 2}
    result = method.changed(few)(model, [PARACHUTE], context=Context(judge=judge))
    trials = result.search["trials"]
    assert len(trials) == 2
    assert all(0 <= t["forget"] <= 1 and 0 <= t["keep"] <= 1 for t in trials)
    assert result.search["lambda"] in [t["scale"] for t in trials]
    assert (result.short is not None) == (min(t["forget"] for t in trials) > 0)


def test_without_sets_the_model_draws_them(model, method):
    few = replace(method, forgotten=Captioned(3), retained=Captioned(4), batch=4)
    found = few.changed({"sampling.steps": 2})(model, [PARACHUTE], context=Context()).search
    sets = [found[which] for which in ("forget", "retain")]
    assert [(s["source"], s["pictures"]) for s in sets] == [("drawn", 3), ("drawn", 4)]


def test_the_tasks_own_pictures_are_taken_where_it_brings_some(model, method, eight):
    result = method(model, Task((PARACHUTE,), *eight), context=Context())
    for which, pairs in zip(("forget", "retain"), eight, strict=True):
        assert result.search[which]["digest"] == pairs.digest


def test_the_published_start_is_the_targets(model, encoder, eight, judge):
    """Four tenths of ‖θ‖/‖∇L_f‖ of one matrix in Stable Diffusion, a tenth in CLIP."""
    one = SLUG(tries=1, batch=8, search_pictures=1).changed({"sampling.steps": 1})
    shown = world_classes(1, 600_000)
    task = Task((PARACHUTE,), *eight, shown)
    for edited, share in ((model, 0.4), (encoder, 0.1)):
        found = one(edited, task, context=Context(judge=judge)).search
        trial = found["trials"][0]
        steps = {row["name"]: row["step"] for row in found["layers"]}
        own = [step for name, step in steps.items() if name.startswith(trial["layer"])]
        assert any(trial["scale"] == pytest.approx(share * step) for step in own)
    for kind, batch in ((InStableDiffusion, 16), (InCLIP, 32)):
        assert kind.batch == batch
    assert (SLUG().batch, SLUG().search_pictures) == (None, 3)
    assert SLUG().sampling == Sampler(100, 9.0)


@pytest.mark.parametrize(("unit", "step"), [("matrix", 0.5), ("block", (384 / 336) ** 0.5)])
def test_lambdas_unit_is_the_chosen_matrix_or_the_whole_block(model, method, unit, step):
    """The most important of a block's matrices on the front; or ‖θ‖/‖∇L_f‖ of q, k and v together.

    ‖θ‖ and ‖∇L_f‖ are (8, 4), (8, 16) and (16, 8) of q, k and v: their steps 2, ½ and 2. Together
    they are √384 and √336 long.
    """
    titles = [f"text_encoder.encoder.layers.1.self_attn.{n}_proj.weight" for n in "qkv"]
    target = InStableDiffusion(replace(method, unit=unit), model, Task.of(PARACHUTE))
    weights = [torch.full((4, 4), x) for x in (2.0, 2.0, 4.0)]
    slopes = [torch.full((4, 4), x) for x in (1.0, 4.0, 2.0)]
    target.weights = dict(zip(titles, weights, strict=True))
    found = Slopes(*[dict(zip(titles, slopes, strict=True))] * 2)
    layers = [
        replace(layer, front="v_" not in layer.name) for layer in table(target.weights, found)
    ]
    (block,) = target.front(layers, found)
    assert block.step == pytest.approx(step)


def test_a_model_that_offers_no_clip_is_refused(model):
    class Other:
        name, offers = "other", frozenset({"diffusion"})

    with pytest.raises(PalimpsestError, match="SLUG needs a CLIP text encoder or answers or"):
        SLUG()(Other(), [PARACHUTE])


def test_the_deepest_block_comes_first():
    def layer(name: str, importance: float) -> Layer:
        return Layer(f"text_encoder.encoder.layers.{name}.weight", "text", importance, 0, 1, True)

    rows = [layer("1.mlp.fc1", 1), layer("0.self_attn.out_proj", 9), layer("1.self_attn.q_proj", 2)]
    assert [title[-18:] for title in deepest(rows)] == [
        "layers.1.self_attn",
        "coder.layers.1.mlp",
        "self_attn.out_proj",
    ]


def test_an_output_projection_moves_alone_and_the_others_together(model, method, encoder):
    target = InStableDiffusion(method, model, Task.of(PARACHUTE))
    names = [f"text_encoder.encoder.layers.1.self_attn.{n}_proj.weight" for n in ("out", "q")]
    found = Slopes(*({n: torch.ones_like(w) for n, w in target.weights.items()} for _ in range(2)))
    layers = [Layer(name, "text", 1.0, 0.0, 1.0, True) for name in names]
    alone, together = (target.front([layer], found) for layer in layers)
    assert [list(block.slopes) for block in alone] == [[names[0]]]
    assert [sorted(n.split(".")[-2] for n in block.slopes) for block in together] == [
        ["k_proj", "q_proj", "v_proj"]
    ]


# --- bad input ---


def test_a_text_encoder_that_is_not_the_clips_is_refused(model, encoder):
    name = "text_encoder.encoder.layers.0.mlp.fc1.weight"
    other = load_clip("world")
    other.parameters()[name].data += 1
    reads = model.parameters("text").__contains__
    with pytest.raises(PalimpsestError, match="not the text tower of the CLIP"):
        shared(model, other, "text", reads)
    assert name in shared(model, encoder, "text", reads)


def test_what_cannot_serve_is_refused_before_anything_is_drawn(model, encoder, tmp_path):
    """`check` comes before the unedited model's pictures: those take minutes."""
    other = shutil.copytree(assets.clip(), tmp_path / "other")
    changed = load_clip("world")
    changed.parameters()["text_projection.weight"].data += 1
    changed.model.save_pretrained(other)
    SLUG(clip=str(other)).check(model, Task((PARACHUTE,)))  # Stable Diffusion reads no projection
    changed.parameters()["text_encoder.encoder.layers.0.mlp.fc1.weight"].data += 1
    changed.model.save_pretrained(other)
    with pytest.raises(PalimpsestError, match="not the text tower of the CLIP"):
        SLUG(clip=str(other)).check(model, Task((PARACHUTE,)))
    nowhere = Captioned(1, tmp_path / "nowhere.tar")
    with pytest.raises(PalimpsestError, match=r"nowhere\.tar: no such \.tar"):
        SLUG(forgotten=nowhere).check(model, Task((PARACHUTE,)))


def test_sets_that_cannot_serve_are_refused(eight):
    forget, retain = eight
    with pytest.raises(PalimpsestError, match="forget set is empty"):
        check_pairs(forget[[]], retain, ["parachute"])
    with pytest.raises(PalimpsestError, match="holds 'zebra'"):
        check_pairs(forget, retain, ["zebra"])
    with pytest.raises(PalimpsestError, match="8 of 8 captions of the retain set"):
        check_pairs(forget, forget, ["parachute"], ["chute"])
    with pytest.raises(PalimpsestError, match="share 8 pictures"):
        check_pairs(forget, replace(forget, texts=("a cat",) * 8), ["parachute"], ["chute"])


def test_a_name_is_found_as_whole_words():
    assert says("A photo of Mira  Voss, smiling", "mira voss")
    assert says("mira_voss.", "mira voss")
    assert says("an_old_mira-voss_portrait", "Mira Voss")
    assert says("two buses, three parachutes", "bus")
    assert says("two buses, three parachutes", "parachute")
    assert not says("a parachutist", "parachute")
    assert not says("Voss, Mira", "mira voss")
    assert says("one ★ of five", "★"), "a name that is all marks"
    assert not says("a cat", "", " ")
    assert says("a cat", "dog", "cat")
    assert not says("a cat")
