"""Evaluation pictures beside those of Diffusers' own pipelines, prompt by prompt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import methods
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from palimpsest.cli import main
from palimpsest.core.draw import Draw
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.core.streams import generator
from palimpsest.models.diffusion import Sampling
from palimpsest.models.families.sd import SCHEDULERS
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.patch.hooks import NegativeWords
from palimpsest.runs.folder import Run
from palimpsest.runs.images import picture_name, save_png
from palimpsest.runs.record import ModelEntry, Record
from palimpsest.world import assets

PROMPTS = [
    Prompt("a cat in neon style", 7),
    Prompt("a church in sketch style", 2**40, guidance=5.0),
    Prompt("a boat", 9, guidance=1.0),
]
NEAR = 1 / 255
Change = Callable[..., Path]


def theirs(model: Any, prompt: Prompt, scheduler: str = "", **more: Any) -> Tensor:
    """The pictures of a plain pipeline, which draws its noise by `torch.manual_seed` itself."""
    pipeline = model.pipeline()
    if scheduler:
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(model.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    guidance = model.sampling.guidance if prompt.guidance is None else prompt.guidance
    return pipeline(
        prompt.text,
        generator=torch.Generator().manual_seed(prompt.seed),
        num_inference_steps=model.sampling.steps,
        guidance_scale=guidance,
        output_type="pt",
        **more,
    ).images


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def drawing_by(model: Any, sampler: Any = "ddim") -> Any:
    return model.with_sampling(Sampling(8, 3.0, 32, sampler=sampler, noise="torch"))


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Change:
    """Copies the world with other entries in its configurations."""

    def change(unet: dict[str, Any] | None = None, **scheduler: Any) -> Path:
        folder = tmp_path_factory.mktemp("models") / "other"
        shutil.copytree(assets.stable_diffusion(), folder)
        for file, own in (("scheduler/scheduler_config", scheduler), ("unet/config", unet or {})):
            path = folder / f"{file}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | own))
        return folder

    return change


# --- samplers ---


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_pictures_equal_those_of_the_pipeline_with_the_same_seed(model, sampler: Any):
    own = drawing_by(model, sampler)
    for prompt, ours in zip(PROMPTS, own.generate(PROMPTS), strict=True):
        assert apart(ours, theirs(own, prompt, SCHEDULERS[sampler])[0]) <= NEAR
        other = replace(prompt, seed=prompt.seed + 1)
        assert apart(ours, theirs(own, other, SCHEDULERS[sampler])[0]) > 20 * NEAR
        assert apart(ours, own.generate([prompt])[0]) <= NEAR, "whatever its neighbours"


def test_every_sampler_draws_another_picture(model):
    each = [drawing_by(model, sampler).generate(PROMPTS[:1]) for sampler in SCHEDULERS]
    for i, one in enumerate(each):
        assert all(apart(one, other) > NEAR for other in each[i + 1 :])


def test_samplers_honour_hooks_students_and_sizes(model):
    own = model.with_sampling(Sampling(8, 4.0, 4, 96, "lms", "torch"))
    prompt, words = PROMPTS[0], "neon, sketch"
    with own.patched(Patch({}, hook=NegativeWords(words))):
        ours = own.generate([prompt])[0]
    more = {"height": 96, "width": 96, "negative_prompt": words}
    assert apart(ours, theirs(own, prompt, SCHEDULERS["lms"], **more)[0]) <= NEAR
    assert apart(ours, own.generate([prompt])[0]) > 20 * NEAR
    shifts = {n: 0.01 * torch.ones_like(p) for n, p in model.parameters("xattn-kv").items()}
    student = own.student(shifts).generate([prompt])
    with own.patched(own.make_patch(shifts, {})):
        assert apart(student, own.generate([prompt])) <= NEAR


def test_one_generator_draws_the_pictures_of_a_seed_in_turn(model):
    own, prompt = drawing_by(model), PROMPTS[0]
    ours = own.generate([replace(prompt, index=i) for i in (2, 0, 1)])
    at_once = theirs(own, prompt, num_images_per_prompt=3)
    assert apart(ours, at_once[[2, 0, 1]]) <= NEAR
    assert apart(ours, at_once) > 20 * NEAR
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(prompt.seed))
    assert torch.equal(own.start([prompt]), noise)
    mixed = torch.randn(1, 4, 16, 16, generator=generator(prompt.seed, 0))
    assert torch.equal(model.start([prompt]), mixed), "the world's own noise is as it was"


def test_what_a_family_or_a_schedule_lacks_is_refused(model, capsys):
    flow = methods.tiny_flow()
    with pytest.raises(PalimpsestError, match="sampler is lms, which 'tiny flow' does not have"):
        flow.with_sampling(replace(flow.sampling, sampler="lms")).generate(["a cat"])
    assert flow.generate(["a cat"]).isfinite().all()
    unknown: Any = "heun"
    with pytest.raises(PalimpsestError, match="sampler is 'heun'"):
        drawing_by(model, unknown).generate(["a cat"])
    with pytest.raises(PalimpsestError, match="2000 sampling steps"):
        model.with_sampling(Sampling(2000, sampler="euler")).generate(["a cat"])


def test_pndm_is_refused_in_fewer_steps_than_it_begins_with(model):
    quick = model.with_sampling(Sampling(3, 3.0, sampler="pndm"))
    with pytest.raises(PalimpsestError, match="takes 4 steps or more"):
        quick.generate(["a cat"])


# --- what is the model's own, and what a run says ---


def test_a_real_checkpoint_draws_the_published_picture_of_a_seed(changed: Change, tmp_path: Path):
    folder, out = changed(unet={"sample_size": 24}), tmp_path / "pictures"
    model = load_model(str(folder))
    assert str(model.sampling) == "DDIM 50 steps, guidance 7.5, torch noise"
    assert load_model("world").sampling == Sampling(20, 3.0, 32)
    words = ["generate", "a boat", "--model", str(folder), "--seed", "5", "--draw.steps", "6"]
    for more, place in (([], out), (["--noise", "palimpsest"], tmp_path / "former")):
        assert main([*words, *more, "--draw.sampler", "pndm", "--out", str(place)]) == 0
    model = model.with_sampling(Sampling(6, 7.5))
    (published,) = theirs(model, Prompt("a boat", 5), SCHEDULERS["pndm"])
    ours, former = (
        torch.from_numpy(np.asarray(Image.open(place / "0000-a-boat.png"))).permute(2, 0, 1) / 255
        for place in (out, tmp_path / "former")
    )
    assert ours.shape == (3, 96, 96)
    assert apart(ours, published) <= NEAR
    assert apart(former, published) > 20 * NEAR


def test_sampler_and_noise_are_a_part_of_the_run_and_read_back(tmp_path: Path):
    csv = tmp_path / "prompts.csv"
    csv.write_text("prompt,object\na parachute,parachute\n")
    words = ["erase", "uce", "--concept", "parachute", "--prompts", str(csv), "--force"]
    words += ["--no-gold", "--runs", str(tmp_path / "runs"), "--draw.steps", "3"]
    for more in ([], ["--draw.sampler", "lms"], ["--noise", "torch", "--draw.sampler", "lms"]):
        assert main([*words, *more]) == 0
    runs = {run.record().model.sampling: run for run in map(Run, (tmp_path / "runs").glob("uce-*"))}
    plain, lms, both = (
        "DDIM 3 steps, guidance 3",
        "LMS 3 steps, guidance 3",
        "LMS 3 steps, guidance 3, torch noise",
    )
    assert set(runs) == {plain, lms, both}
    assert runs[plain].record().sampling == Draw(3, 3.0), "as it was before"
    assert runs[both].record().sampling == Draw(3, 3.0, sampler="lms", noise="torch")
    for said, run in runs.items():
        assert all(row.spec.endswith(f", {said}") for row in run.record().numbers)
    found = tmp_path / "runs"
    assert main(["recover", "restoration", str(runs[both].folder), "--measure.pictures", "1"]) == 0
    again = [Run(path).record() for path in found.glob("restoration-*")]
    assert {record.model.sampling for record in again} == {both}
    own = Prompt("a parachute", asks={"object": "parachute"})
    drawn = load_model("world", sampling=Sampling(3, 3.0, 1, None, "lms", "torch")).generate([own])
    original = Run(found / str(runs[both].record().original))
    shown = np.asarray(Image.open(original.path(picture_name(own))))
    assert apart(torch.from_numpy(shown).permute(2, 0, 1) / 255, drawn[0]) <= NEAR


@pytest.mark.parametrize(
    "said",
    [
        Record(sampling=Draw(7, 1.5)),
        Record(model=ModelEntry(sampling="DDIM 7 steps, guidance 1.5")),
    ],
)
def test_a_record_of_a_former_version_means_the_noise_of_that_version(said: Record):
    real = Sampling(50, 7.5, 4, noise="torch", sampler="pndm")
    assert real.drawn(said.drawn) == Sampling(7, 1.5, 4)
    assert real.drawn(Record(sampling=real.recorded).drawn) == real


# --- zero terminal SNR ---


@pytest.mark.parametrize("predicts", ["v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
def test_zero_terminal_snr_is_as_in_diffusers(changed: Change, predicts: str, spacing: str):
    zero = dict(rescale_betas_zero_snr=True, prediction_type=predicts, timestep_spacing=spacing)
    model = load_model(str(changed(**zero)))
    own = model.with_sampling(Sampling(7, 3.0, noise="torch"))  # 1000 is no multiple of 7
    ours = own.generate(PROMPTS)
    for prompt, picture in zip(PROMPTS, ours, strict=True):
        assert apart(picture, theirs(own, prompt)[0]) <= NEAR
    assert ours.flatten(1).std(1).min() > 0.01, "none is black"
    x, noise, last = model.noise(1, generator(1)), model.noise(1, generator(2)), torch.tensor(999)
    assert float(model.schedule.scales(last)[0]) == 0
    assert torch.equal(model.add_noise(x, noise, last), noise)
    assert torch.equal(model.eps(noise, last, model.embed(["a cat"])), noise)


def test_zero_terminal_snr_under_prediction_of_noise_is_refused(
    changed: Change, tmp_path: Path, capsys
):
    folder, out = changed(rescale_betas_zero_snr=True), tmp_path / "pictures"
    assert main(["generate", "a cat", "--model", str(folder), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "zero terminal SNR, where epsilon says nothing of the picture" in told
    assert told.count("\n") == 1
    assert not list(tmp_path.glob("pictures*"))


# --- NaN ---


@pytest.fixture(scope="module")
def spoilt(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch under which every picture is NaN."""
    name = "unet.conv_in.weight"
    patch = model.make_patch({name: torch.full_like(model.weight(name), 3e38)}, {})
    path = tmp_path_factory.mktemp("patches") / "spoilt.safetensors"
    patch.save(path)
    return path


@pytest.mark.parametrize("sampler", ["ddim", "unipc"])
def test_nan_is_no_picture(model, spoilt: Path, sampler: Any):
    with (
        model.patched(Patch.load(spoilt)),
        pytest.raises(PalimpsestError, match=r"'a boat' came out as NaN.*bfloat16"),
    ):
        drawing_by(model, sampler).generate([PROMPTS[2]])
    assert model.generate(PROMPTS).isfinite().all()


def test_one_nan_among_other_pictures_is_found_by_its_prompt(model):
    cond = model.embed([p.text for p in PROMPTS])
    hidden = cond.parts["hidden"].clone()
    hidden[2] = torch.nan
    with pytest.raises(PalimpsestError, match="'a boat' came out as NaN"):
        model.generate(PROMPTS, cond=cond.replaced("hidden", hidden))


def test_nan_is_never_written(spoilt: Path, tmp_path: Path, capsys):
    words = ["--patch", str(spoilt), "--draw.steps", "2"]
    assert main(["generate", "a cat", "a boat", *words, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "the picture of 'a cat' came out as NaN or infinite and is not kept" in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())
    themes = ["evaluate", "object", str(spoilt), "--concepts", "cat", "--pictures", "2"]
    assert main([*themes, "--draw.steps", "2", "--runs", str(tmp_path / "themes")]) == 2
    assert "came out as NaN" in capsys.readouterr().err
    runs = [Run(path.parent) for path in tmp_path.rglob("run.json")]
    assert all(run.done or not list(run.folder.rglob("*.png")) for run in runs)
    for value in (torch.nan, torch.inf):
        with pytest.raises(PalimpsestError, match=r"torn.png: the picture came out as NaN"):
            save_png(torch.full((3, 4, 4), value), tmp_path / "torn.png")
    assert not list(tmp_path.rglob("torn*"))
