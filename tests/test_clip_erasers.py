"""What makes a CLIP forget: what each method promises, and its numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from methods import lesson

from palimpsest.cli import main
from palimpsest.core.errors import PalimpsestError
from palimpsest.data.pairs import Labelled
from palimpsest.erase import SLUG, SSD, FineTune, GradientAscent, SalUnCLIP
from palimpsest.erase.slug import InCLIP
from palimpsest.judge.membership import Membership
from palimpsest.judge.zero_shot import ZeroShot
from palimpsest.methods import Context
from palimpsest.metrics import rates
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.models.diffusion import Sampling
from palimpsest.models.loading import load_clip, load_model
from palimpsest.patch import Patch
from palimpsest.report.sections.layers import next_best
from palimpsest.runs.asked import On
from palimpsest.runs.runner import Runner
from palimpsest.toolbox.clip_losses import contrastive, distance, loss_gradient
from palimpsest.world import assets
from palimpsest.world.datasets import world_classes, world_pairs

MIRA = lesson("mira voss")
SMALL = SLUG(batch=16, tries=1)


@pytest.fixture(scope="module")
def encoder() -> ContrastiveEncoder:
    return load_clip("world")


def test_slug_moves_one_layer_along_ascent_and_its_patch_is_that_layer(encoder):
    result = SMALL(encoder, MIRA, context=Context())
    patch, record = result.patch, result.search
    ((name, (edit,)),) = patch.edits.items()
    assert name == record["layer"]
    slope = loss_gradient(encoder, MIRA.forget, distance, [name], batch=8)[name]
    assert torch.allclose(edit.delta, record["lambda"] * slope, rtol=1e-4, atol=1e-8)
    assert record["lambda"] > 0
    assert patch.nbytes == 4 * encoder.parameters()[name].numel()
    assert record["rule"] == "forget accuracy @1 is 0"
    assert len(record["trials"]) == sum(row["front"] for row in record["layers"])


def test_the_rule_takes_the_first_five_where_there_are_a_hundred_classes(encoder):
    shown = MIRA.validation
    many = {**shown.prompts, **{f"class {i}": f"class {i}" for i in range(100)}}
    wide = replace(MIRA, validation=Labelled(shown.images, shown.labels, many))
    assert InCLIP(SMALL, encoder, MIRA).k == 1
    assert InCLIP(SMALL, encoder, wide).k == 5


def test_ssd_dampens_by_its_closed_form(encoder):
    method = SSD(alpha=2.0, omega=0.5, pictures=2)
    patch = method(encoder, MIRA, context=Context(seed=3)).patch
    name = "text_projection.weight"
    fisher = []
    for pairs in (MIRA.forget, MIRA.retain):
        two = pairs.shuffled(3, 2)
        parts = [loss_gradient(encoder, two[[i]], distance, [name], batch=1)[name] for i in (0, 1)]
        fisher.append((parts[0] ** 2 + parts[1] ** 2) / 2)
    forget, retain = fisher
    theta = encoder.parameters()[name]
    wanted = torch.where(forget > 2 * retain, theta * (0.5 * retain / forget).clamp(max=1), theta)
    with encoder.patched(patch):
        assert torch.allclose(encoder.parameters()[name], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("preset", "beta_2", "epsilon", "rates"),
    [("published", 0.98, 1e-6, (1.0, 0.5)), ("world", 0.999, 1e-8, (1.0, 1.0))],
)
def test_fine_tuning_is_adamw_by_hand(encoder, preset, beta_2, epsilon, rates):
    """Two steps over all of the retain set; as published ε is about as large as the gradients."""
    method = FineTune(**FineTune.presets[preset]) if preset == "world" else FineTune()
    method = replace(method, epochs=2, batch=8, lr=1e-3)
    retain = MIRA.retain[[*range(8)]]
    patch = method(encoder, replace(MIRA, retain=retain), context=Context()).patch
    start = {name: p.detach().clone() for name, p in encoder.parameters().items()}
    theta, loss = dict(start), contrastive(encoder.scale)
    m, v = ({name: torch.zeros_like(p) for name, p in start.items()} for _ in range(2))
    for k, rate in enumerate(rates, start=1):
        shift = {name: theta[name] - p for name, p in start.items()}
        with encoder.patched(Patch.dense(shift) if k > 1 else None):
            slopes = loss_gradient(encoder, retain, loss, [*start], batch=8)
        for name, g in slopes.items():
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = beta_2 * v[name] + (1 - beta_2) * g * g
            step = (m[name] / (1 - 0.9**k)) / ((v[name] / (1 - beta_2**k)).sqrt() + epsilon)
            theta[name] = theta[name] * (1 - 1e-3 * rate * 0.1) - 1e-3 * rate * step
    for name in ("text_projection.weight", "vision.encoder.layers.3.self_attn.v_proj.weight"):
        (edit,) = patch.edits[name]
        wanted = theta[name] - start[name]
        assert (edit.delta - wanted).norm() < 5e-4 * wanted.norm(), name


def test_what_trains_a_clip_has_the_published_rate_and_batch():
    for kind in (FineTune, GradientAscent, SalUnCLIP):
        assert (kind().lr, kind().batch, kind().beta_2, kind().epsilon) == (1e-7, 32, 0.98, 1e-6)
        for name, preset in kind.presets.items():
            if name.startswith("world"):
                world = kind(**preset)
                assert (world.batch, world.beta_2, world.epsilon) == (64, 0.999, 1e-8)
                assert world.schedule == "constant"


def test_a_patch_of_the_text_tower_is_one_of_the_pipelines_text_encoder(encoder, model):
    name = "text_encoder.encoder.layers.0.mlp.fc1.weight"
    patch = encoder.make_patch({name: torch.ones_like(encoder.parameters()[name])}, {})
    model.accepts(patch)
    with model.patched(patch), encoder.patched(patch):
        ids = encoder.tokens(["a parachute"])
        ours = encoder.model.text_model(input_ids=ids).last_hidden_state
        assert torch.equal(ours, model.embed_ids(ids).parts["hidden"])


def test_a_patch_of_another_clip_is_refused(encoder):
    name = "visual_projection.weight"
    other = load_clip("world")
    other.parameters()[name].data *= 2
    patch = other.make_patch({name: torch.ones_like(other.parameters()[name])}, {})
    with pytest.raises(PalimpsestError, match="another base model"):
        encoder.accepts(patch)


def test_half_precision_gives_a_patch_too():
    half = load_clip("world", dtype="bfloat16")
    patch = SMALL(half, MIRA, context=Context()).patch
    load_clip("world").accepts(patch)
    assert patch.edits


@pytest.mark.parametrize("name", ["nowhere/at-all", str(assets.vae())])
def test_what_is_no_clip_is_refused(name: str):
    with pytest.raises(PalimpsestError, match="CLIP"):
        load_clip(name)


# --- measuring ---


def test_membership_inference_is_chance_on_like_losses_and_sure_on_unlike_ones():
    like = [i / 40 for i in range(40)]
    assert rates.membership(like, like).value == pytest.approx(0.5, abs=0.15)
    sure = rates.membership([0.1] * 10, [0.9] * 10)
    assert (sure.value, sure.low, sure.high, sure.n) == (1.0, 1.0, 1.0, 20)
    assert rates.membership([0.1], [0.9]).value != rates.membership([0.1], [0.9]).value


def test_a_run_holds_numbers_before_and_after_and_reuses_its_gradients(encoder, tmp_path: Path):
    outside = world_pairs(["mira voss"], 8, use="test")
    measures = [ZeroShot(world_classes(1, 700_000)), Membership(outside)]
    runner = Runner(tmp_path, encoder)
    run = runner.run(MIRA, SMALL, On(), measures)
    record = run.record()
    assert record.status == "done"
    names = [row.name for row in record.numbers]
    assert names == [row.name for row in record.baseline]
    assert {"forget accuracy @1", "forget accuracy @5", "membership inference"} <= set(names)
    before = {row.name: row.value for row in record.baseline}
    assert before["forget accuracy @1"] == 1
    assert before["retain accuracy @1"] >= 0.9
    assert next_best(record.search)[0]["layer"] == record.search["layer"]
    assert Patch.load(run.path("patch.safetensors")).about["run"] == run.name
    kept = {f: f.stat().st_mtime_ns for f in (tmp_path / "gradients").iterdir()}
    assert len(kept) == 2
    runner.run(MIRA, replace(SMALL, start=0.2), On(), measures)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "gradients").iterdir()} == kept


def test_a_name_that_is_not_known_cannot_be_forgotten(encoder):
    shown = MIRA.validation
    wrong = {**shown.prompts, "mira voss": "zzz", "cat": "a portrait of mira voss"}
    unknown = replace(MIRA, validation=replace(shown, prompts=wrong))
    with pytest.raises(PalimpsestError, match="so there is nothing to forget"):
        SMALL(encoder, unknown, context=Context())


def test_the_command_shows_the_numbers_and_says_by_its_code_if_it_fell_short(
    tmp_path: Path, capsys
):
    words = "clip slug --concept parachute --pictures 4 --retain-pictures 8 --per-class 1"
    small = ["--batch", "8", "--tries", "1", "--start", "1e-6"]
    code = main([*words.split(), *small, "--runs", str(tmp_path)])
    said = capsys.readouterr()
    assert code == 3
    assert "no layer reached 0 within the budget" in said.err
    assert "forget accuracy @1" in said.out
    (page,) = tmp_path.glob("*/report.html")
    assert "importance" in page.read_text()
    (record,) = (json.loads(p.read_text()) for p in tmp_path.glob("*/run.json"))
    assert record["short"]
    assert len(record["search"]["trials"]) >= 2


def test_bad_input_of_the_command_is_told_in_one_sentence(tmp_path: Path, capsys):
    for words, told in (
        (["--concept", "zebra"], "the world has no concept 'zebra'"),
        (["--concept", ""], "nothing is to be forgotten"),
        (["--concept", "cat", "--per-class", "0"], "per_class is 0; it must be at least 1"),
        (["--concept", "cat", "--own", "0"], "own is 0; it must be at least 1"),
        (["--concept", "cat", "--seed", "-1"], "seed is -1; it must be at least 0"),
        (["--concept", "cat", "--forget", "cats.tar"], "need all three"),
        (["--concept", "cat", "--model", "nowhere/at-all"], "Hub id of a CLIP"),
    ):
        assert main(["clip", "slug", *words, "--runs", str(tmp_path / "runs")]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_sets_that_the_task_lacks_are_asked_for(encoder):
    with pytest.raises(PalimpsestError, match="all three of forget, retain and validation"):
        SMALL(encoder, MIRA.concepts)


def test_the_verb_erase_makes_the_same_run_of_a_clip(tmp_path: Path, capsys):
    sets = ("--pictures 4", "--retain-pictures 8", "--per-class 1")
    small = ["--batch", "8", "--tries", "1", "--start", "1e-6"]
    words = [word for flag in sets for word in flag.replace("--", "--sets.").split()]
    erase = ["erase", "slug", "--model", "clip:world", "--concept", "parachute", *words, *small]
    assert main([*erase, "--runs", str(tmp_path)]) == 3
    (record,) = (p.read_text() for p in tmp_path.glob("*/run.json"))
    words = [word for flag in sets for word in flag.split()]
    clip = ["clip", "slug", "--concept", "parachute", *words, *small, "--runs", str(tmp_path)]
    assert main(clip) == 3
    assert [p.read_text() for p in tmp_path.glob("*/run.json")] == [record]
    capsys.readouterr()


def test_what_a_kind_of_model_cannot_do_is_told_in_one_sentence(tmp_path: Path, capsys):
    for words, told in (
        (["esd", "--model", "clip:world"], "and diffusion, which 'world' does not have"),
        (["ssd"], "SSD needs contrastive, which 'world' does not have"),
        (["ssd", "--model", "clip:world", "--dry-run"], "--dry-run: of no use"),
        (["slug", "--model", "clip:world", "--sets.questions", "a?"], "--sets.questions: of no"),
        (["esd", "--sets.pictures", "3"], "--sets is for a CLIP or a LLaVA"),
        (["slug", "--model", "clip:no/where"], "Hub id of a CLIP"),
    ):
        assert main(["erase", *words, "--concept", "cat", "--runs", str(tmp_path / "runs")]) == 2
        assert told in capsys.readouterr().err
    assert main(["generate", "a cat", "--model", "clip:world", "--out", str(tmp_path / "x")]) == 2
    assert "wants a text-to-image model" in capsys.readouterr().err
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_the_former_name_of_salun_is_taken_by_the_verb_clip():
    from palimpsest.cli.verbs.clip import Clip

    assert Clip.methods.load("salun") is Clip.methods.load("salun_clip")


def test_old_names_say_where_to_look():
    import palimpsest.data.pairs
    import palimpsest.erase

    with pytest.raises(AttributeError, match=r"Lesson is now palimpsest\.methods\.Task"):
        palimpsest.data.pairs.Lesson  # noqa: B018
    with pytest.raises(AttributeError, match=r"is now palimpsest\.erase\.ERASERS"):
        palimpsest.erase.CLIP_ERASERS  # noqa: B018


def test_a_clip_takes_no_sampling():
    assert isinstance(load_model("clip:world"), ContrastiveEncoder)
    with pytest.raises(PalimpsestError, match="'clip:world' samples no pictures"):
        load_model("clip:world", sampling=Sampling())
