"""Patches of a Stable Diffusion XL that travel: plain Diffusers draws the same, and they return."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sdxl
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.exchange import import_ as imports
from palimpsest.exchange.export import FORMATS
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.patch.edits import LowRank, Rows, edited

BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
ATTENTION = [f"{BLOCK}.attn{i}.to_{w}.weight" for i in (1, 2) for w in ("q", "k", "v", "out.0")]
TOWERS = [  # Diffusers tells kohya's names in a tower by an output or an MLP among them
    f"{tower}.encoder.layers.0.{layer}.weight"
    for tower in ("text_encoder", "text_encoder_2.text_model")
    for layer in ("self_attn.v_proj", "self_attn.out_proj", "mlp.fc1")
]
PROMPTS = [Prompt("a cat in neon style", s) for s in (1, 2)]
WORD = [Prompt("a boat in van gogh style", s) for s in (1, 2)]


@pytest.fixture(scope="module")
def model() -> Diffusion:
    return sdxl.load()


def weights_of(model: Diffusion) -> dict[str, torch.Tensor]:
    return {**model.parameters("full"), **model.parameters("text")}


def low_rank(model: Diffusion, names: list[str]) -> Patch:
    g, edits = torch.Generator().manual_seed(0), {}
    for name in names:
        out, inner = weights_of(model)[name].shape
        up = torch.randn(out, 2, generator=g)
        edits[name] = (LowRank(up, torch.randn(2, inner, generator=g) / inner**0.5),)
    return model.checked(Patch(edits))


def word_rows(model: Diffusion) -> Patch:
    ids, g = torch.tensor(model.text.plain("van gogh")), torch.Generator().manual_seed(2)
    rows = {
        name: (Rows(ids, torch.randn(len(ids), width, generator=g)),)
        for name, width in zip(model.text.tables, sdxl.WIDTHS, strict=True)
    }
    return model.checked(Patch(rows))


def of_tower(patch: Patch, tower: str) -> Patch:
    return Patch({n: es for n, es in patch.edits.items() if n.startswith(tower + ".")})


def furthest(model: Diffusion, a: Patch, b: Patch) -> float:
    assert set(a.edits) == set(b.edits)
    ours, theirs = (
        {n: edited(weights_of(model)[n].data, es) for n, es in p.edits.items()} for p in (a, b)
    )
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def theirs(model: Diffusion, change: Callable[[Any], object], prompts: list[str]) -> torch.Tensor:
    """Draw with the pipeline of Diffusers once `change` was made to it."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl.folder())
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline = change(pipeline) or pipeline
    return pipeline(
        prompts,
        latents=model.start(PROMPTS),
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="pt",
    ).images


def ours(model: Diffusion, patch: Patch, prompts: list[Prompt]) -> torch.Tensor:
    with model.patched(patch):
        cond = model.embed([p.text for p in prompts])
        return model.decode(model.sample(model.start(prompts), cond, steps=4, guidance=3.0))


def agree(model: Diffusion, patch: Patch, prompts: list[Prompt], other: torch.Tensor) -> None:
    assert (ours(model, patch, prompts) - other).abs().max() < 1 / 255
    assert (ours(model, Patch({}), prompts) - other).abs().max() > 2 / 255


def export(model: Diffusion, patch: Patch, form: str, folder: Path, **options: Any) -> Path:
    """Write a patch, and return the one file."""
    folder.mkdir(exist_ok=True)
    assert FORMATS[form][0](model, patch, folder, **options) == []
    return next(folder.iterdir())


@pytest.mark.parametrize("form", ["lora", "kohya"])
@pytest.mark.parametrize("alpha", [None, 8.0])
def test_a_lora_of_both_towers_is_drawn_alike_and_comes_back(
    model, form: str, alpha: float | None, tmp_path: Path
):
    names = ATTENTION + TOWERS
    patch = low_rank(model, names)
    file = export(model, patch, form, tmp_path, alpha=alpha)
    stems = {key.split("text_model")[0] for key in load_file(file) if "text_model" in key}
    kohya = {"lora_te1_", "lora_te2_"}
    assert stems == (kohya if form == "kohya" else {"text_encoder.", "text_encoder_2."})
    drawn = theirs(model, lambda p: p.load_lora_weights(file), [p.text for p in PROMPTS])
    agree(model, patch, PROMPTS, drawn)
    back = imports.read(file, model)
    assert furthest(model, patch, back) < 1e-6
    assert (ours(model, of_tower(patch, "unet"), PROMPTS) - drawn).abs().max() > 2 / 255


def test_a_folder_is_drawn_alike_and_comes_back(model, tmp_path: Path):
    patch = low_rank(model, ATTENTION + TOWERS)
    assert FORMATS["diffusers"][0](model, patch, tmp_path) == []

    def load(_: Any) -> Any:
        return StableDiffusionXLPipeline.from_pretrained(tmp_path)

    agree(model, patch, PROMPTS, theirs(model, load, [p.text for p in PROMPTS]))
    assert furthest(model, patch, imports.read(tmp_path, model)) < 1e-6
    again = load_model(str(tmp_path))
    with model.patched(patch):
        assert all(torch.equal(p, model._parameters[n]) for n, p in again._parameters.items())


@pytest.mark.parametrize(
    ("form", "kind"),
    [("text-encoder", CLIPTextModel), ("text-encoder-2", CLIPTextModelWithProjection)],
)
def test_each_tower_travels_alone(model, form: str, kind: type[Any], tmp_path: Path):
    tower = form.replace("-", "_")
    patch = of_tower(low_rank(model, TOWERS), tower)
    file = export(model, patch, form, tmp_path)

    def change(pipeline: Any) -> None:
        config = getattr(pipeline, tower).config
        state = load_file(file)
        setattr(pipeline, tower, kind.from_pretrained(None, config=config, state_dict=state))

    agree(model, patch, PROMPTS, theirs(model, change, [p.text for p in PROMPTS]))
    assert furthest(model, patch, imports.read(file, model)) < 1e-6


def test_a_word_travels_with_both_its_vectors(model, tmp_path: Path):
    patch = word_rows(model)
    file = export(model, patch, "embeddings", tmp_path, word=("van gogh",))
    state = load_file(file)
    assert {n: t.shape for n, t in state.items()} == {
        "clip_l": (2, sdxl.WIDTHS[0]),
        "clip_g": (2, sdxl.WIDTHS[1]),
    }

    def change(pipeline: Any) -> None:
        for key, n in (("clip_l", ""), ("clip_g", "_2")):
            parts = {p: getattr(pipeline, p + n) for p in ("text_encoder", "tokenizer")}
            pipeline.load_textual_inversion(state[key], token="<van-gogh>", **parts)

    drawn = theirs(model, change, ["a boat in <van-gogh> style"] * 2)
    agree(model, patch, WORD, drawn)
    for table in model.text.tables:  # one of the two is not enough
        half = Patch({table: patch.edits[table]})
        assert (ours(model, half, WORD) - drawn).abs().max() > 2 / 255
    assert furthest(model, patch, imports.read(file, model)) < 1e-6
    named = imports.read(file, model, "mira voss")
    assert set(named.edits) == set(model.text.tables)


def test_vectors_of_another_kind_of_model_are_refused(model, tmp_path: Path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file({"<van-gogh>": torch.zeros(2, 64)}, one)
    save_file({"clip_l": torch.zeros(2, 256), "clip_g": torch.zeros(2, 256)}, two)
    with pytest.raises(PalimpsestError, match=r"vectors of <van-gogh>, but .* has 2 text encoders"):
        imports.read(one, model)
    with pytest.raises(
        PalimpsestError, match=r"vectors of clip_g and clip_l, but .* has 1 text en"
    ):
        imports.read(two, load_model("world"), "van gogh")
    with pytest.raises(PalimpsestError, match="are 64 wide"):
        imports.read(two, model, "van gogh")
