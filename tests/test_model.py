"""What the model behind the verbs must do, checked on the shipped world."""

from __future__ import annotations

import math
import subprocess
import sys
from copy import copy
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.core.streams import generator
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.world import assets

PROMPTS = [
    Prompt(f"a {name} in {style} style", seed, guidance=guidance)
    for seed, (name, style, guidance) in enumerate(
        [("cat", "neon", None), ("church", "sketch", 1.0), ("boat", "mosaic", 5.0)] * 6
    )
][:16]


def shifts(model, size=0.01) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        name: size * torch.randn(p.shape, generator=g)
        for name, p in model.parameters("xattn").items()
    }


def test_a_picture_does_not_depend_on_its_batch(model):
    together = model.generate(PROMPTS)
    for i in (0, 1, 7, 15):
        alone = model.generate([PROMPTS[i]])
        assert (together[i] - alone[0]).abs().max() <= 1 / 255


def test_pictures_equal_those_of_the_plain_pipeline(model):
    prompts = [Prompt("a cat in neon style", s, guidance=3.0) for s in (1, 2)]
    pipeline = StableDiffusionPipeline.from_pretrained(assets.stable_diffusion())
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        [p.text for p in prompts],
        latents=model.start(prompts),
        num_inference_steps=model.sampling.steps,
        guidance_scale=3.0,
        output_type="pt",
    ).images
    assert (model.generate(prompts) - theirs).abs().max() < 1e-3


def test_seed_and_index_choose_the_noise(model):
    noise = model.start([Prompt("a", 1), Prompt("b", 1), Prompt("a", 2), Prompt("a", 1, index=1)])
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[3])


def test_patched_restores_bit_identical_weights(model, weights):
    patch = model.make_patch(shifts(model), {})
    with model.patched(patch):
        assert any(not torch.equal(weights[n], model._parameters[n]) for n in patch.edits)
    assert all(torch.equal(weights[n], p) for n, p in model._parameters.items())


def test_patched_restores_after_an_exception_and_when_nested(model, weights):
    patch = model.make_patch(shifts(model), {})
    with pytest.raises(RuntimeError, match="on purpose"):  # noqa: SIM117
        with model.patched(patch), model.patched(patch.scaled(0.5)):
            raise RuntimeError("on purpose")
    assert all(torch.equal(weights[n], p) for n, p in model._parameters.items())


def test_a_student_computes_exactly_what_its_patch_does(model):
    deltas = shifts(model)
    x, t, cond = torch.randn(2, 4, 16, 16), torch.tensor([10, 700]), model.embed(["a cat", "owl"])
    student = model.student(deltas).eps(x, t, cond)
    with model.patched(model.make_patch(deltas, {})):
        assert torch.equal(student, model.eps(x, t, cond))
    assert not torch.equal(student, model.eps(x, t, cond))


def test_a_patch_of_another_base_is_refused(model):
    patch = model.make_patch(shifts(model), {})
    name = next(iter(patch.edits))
    other = Patch(patch.edits, base={**patch.base, name: "0" * 16})
    with pytest.raises(PalimpsestError, match="another base model"), model.patched(other):
        pass


def test_a_half_precision_copy_has_the_same_fingerprints(model):
    half = load_model("world", dtype="float16")
    assert half.identity == model.identity
    half.accepts(model.make_patch(shifts(model), {}))


def test_bfloat16_draws_much_the_same_picture(model):
    low = load_model("world", dtype="bfloat16")
    assert low.dtype == torch.bfloat16
    change = (low.generate(PROMPTS[:1]) - model.generate(PROMPTS[:1])).abs().mean()
    assert change < 0.1


def test_a_patch_made_in_one_precision_fits_a_copy_in_another(model):
    patch = model.make_patch(shifts(model), {})
    for dtype in ("bfloat16", "float16"):
        low = load_model("world", dtype=dtype)
        low.accepts(patch)
        back = low.make_patch(shifts(low), {})
        model.accepts(back)
        assert back.edits.keys() == patch.edits.keys()


def test_an_edit_that_changes_nothing_is_refused(model):
    with pytest.raises(PalimpsestError, match="changes no weight"):
        model.make_patch({n: torch.zeros_like(d) for n, d in shifts(model).items()}, {})


def test_inversion_leads_back(model):
    cond, noise = model.embed(["a photo of a cat"]), model.noise(2, generator(3))
    clean = model.sample(noise, cond, steps=50, guidance=1.0)
    up = model.invert(clean, cond, steps=50, guidance=1.0, until=25)
    back = model.sample(up, cond, steps=50, guidance=1.0, start=25)
    assert (model.decode(back) - model.decode(clean)).abs().mean() < 0.05
    level = model.schedule.alphas_cumprod[model.schedule.grid(50)[:-1][25]]
    expected = math.sqrt(float(level) * float(clean.var()) + 1 - float(level))
    assert float(up.std()) == pytest.approx(expected, rel=0.2)


def test_noise_and_its_prediction_fit(model):
    x, noise = torch.randn(3, 4, 16, 16), torch.randn(3, 4, 16, 16)
    t = torch.tensor([0, 500, 999])
    a = model.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    expected = a.sqrt() * x + (1 - a).sqrt() * noise
    assert torch.allclose(model.add_noise(x, noise, t), expected, atol=1e-6)


def test_token_spans_find_every_occurrence(model):
    spans = model.text.span("mira voss and mira voss", "mira voss")
    assert len(spans) == 4
    ids = model.text.ids(["mira voss and mira voss"])[0]
    assert [int(ids[i]) for i in spans[:2]] == [int(ids[i]) for i in spans[2:]]
    with pytest.raises(PalimpsestError, match="does not contain"):
        model.text.span("a cat", "owl")


def test_overlong_prompts_are_found(model):
    assert model.text.overlong(["a cat", "a cat " * 20]) == [1]


def test_groups_are_those_of_the_papers(model):
    full, xattn, rest = (set(model.parameters(g)) for g in ("full", "xattn", "noxattn"))
    assert xattn
    assert not xattn & rest
    left = {n.split(".")[1] for n in full - xattn - rest}
    assert left == {"time_embedding", "conv_norm_out", "conv_out"}
    assert any(".to_out." in n for n in rest), "to_out is no output head"
    assert set(model.parameters("xattn-kv")) < xattn
    with pytest.raises(PalimpsestError, match="no parameter group"):
        model.parameters("everything")  # type: ignore[arg-type]
    bare = copy(model)
    bare.sites = replace(model.sites, groups={"xattn": lambda name: False})
    with pytest.raises(PalimpsestError, match="selects no parameter"):
        bare.parameters("xattn")


def test_cross_attention_stands_at_two_resolutions(model):
    kinds = model.unet.config["down_block_types"]
    assert sum("CrossAttn" in kind for kind in kinds) >= 2


@pytest.mark.parametrize(
    "code",
    [
        "from diffusers import StableDiffusionPipeline as P; import sys;"
        "p = P.from_pretrained(sys.argv[1] + '/stable_diffusion');"
        "print(p('a photo of a cat', num_inference_steps=4).images[0].size)",
        "from transformers import CLIPModel as M, CLIPTokenizer as T; import sys, torch;"
        "f = sys.argv[1] + '/clip'; m, t = M.from_pretrained(f), T.from_pretrained(f);"
        "i = t(['a cat', 'a boat'], padding=True, return_tensors='pt');"
        "o = m(**i, pixel_values=torch.zeros(1, 3, 64, 64)); print(*o.logits_per_image.shape)",
    ],
    ids=["stable diffusion", "clip"],
)
def test_plain_libraries_load_and_run_the_shipped_folders(code):
    done = subprocess.run(
        [sys.executable, "-c", code, str(assets.WEIGHTS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("(64, 64)", "1 2")


def test_the_text_encoder_is_clips_text_tower(model, clip):
    ours = model.text_encoder.state_dict()
    theirs = {n: t for n, t in clip.encoder.model.text_model.state_dict().items()}
    assert len(ours) >= len([n for n in theirs if "position_ids" not in n])
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name.removeprefix("text_model.")]), name
