"""Patches that travel: others load what we write, and we read what others write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.exchange import import_ as imports
from palimpsest.exchange.export import FORMATS
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.keys import Keys
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.patch.algebra import truncated
from palimpsest.patch.edits import Dense, LowRank, Replacement, Rows, edited
from palimpsest.world import assets

BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
ATTENTION = [f"{BLOCK}.attn{i}.to_{w}.weight" for i in (1, 2) for w in ("q", "k", "v", "out.0")]
ELSEWHERE = [
    "unet.conv_in.weight",  # a convolution of 3×3
    "unet.mid_block.attentions.0.proj_in.weight",  # and of 1×1
    "unet.time_embedding.linear_1.weight",
    "text_encoder.encoder.layers.0.self_attn.q_proj.weight",
    "text_encoder.encoder.layers.1.mlp.fc1.weight",
]
PROMPTS = [Prompt("a cat in neon style", s, guidance=3.0) for s in (1, 2)]

FRESH = """
import sys
from pathlib import Path
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel

world, out = sys.argv[1], Path(sys.argv[2])
given = torch.load(out / "given.pt", weights_only=True)


def draw(change, prompts=given["prompts"]):
    pipeline = StableDiffusionPipeline.from_pretrained(world)
    pipeline.set_progress_bar_config(disable=True)
    change(pipeline)
    return pipeline(
        prompts, latents=given["noise"], num_inference_steps=4, guidance_scale=3.0, output_type="pt"
    ).images


def text_encoder(pipeline):
    state = load_file(out / "text-encoder" / "text_encoder.safetensors")
    pipeline.text_encoder = CLIPTextModel.from_pretrained(
        None, config=pipeline.text_encoder.config, state_dict=state
    )


drawn = {
    "lora": draw(lambda p: p.load_lora_weights(out / "lora")),
    "kohya": draw(lambda p: p.load_lora_weights(out / "kohya" / "lora.safetensors")),
    "dense": draw(lambda p: p.load_lora_weights(out / "dense")),
    "unet": draw(lambda p: p.unet.load_state_dict(load_file(out / "unet" / "unet.safetensors"))),
    "text-encoder": draw(text_encoder),
    "embeddings": draw(
        lambda p: p.load_textual_inversion(out / "embeddings" / "van-gogh.safetensors"),
        ["a boat in <van-gogh> style"] * 2,
    ),
}
torch.save(drawn, out / "drawn.pt")
sys.exit("palimpsest" in sys.modules)
"""


def weights_of(model: Diffusion) -> dict[str, torch.Tensor]:
    return {**model.parameters("full"), **model.parameters("text")}


def low_rank(model: Diffusion, names: list[str], size: float = 0.3) -> Patch:
    """Low-rank shifts of ranks 2 and 3 in turn."""
    g, edits = torch.Generator().manual_seed(0), {}
    for i, name in enumerate(names):
        out, inner = weights_of(model)[name].flatten(1).shape
        up = torch.randn(out, 2 + i % 2, generator=g) * size
        edits[name] = (LowRank(up, torch.randn(2 + i % 2, inner, generator=g) / inner**0.5),)
    return model.checked(Patch(edits))


def dense(model: Diffusion, names: list[str], size: float = 0.02) -> Patch:
    g, weights = torch.Generator().manual_seed(1), weights_of(model)
    return model.make_patch(
        {n: size * torch.randn(weights[n].shape, generator=g) for n in names}, {}
    )


def word_rows(model: Diffusion, word: str = "van gogh") -> Patch:
    ids = torch.tensor(model.tokenizer(word, add_special_tokens=False).input_ids)
    delta = torch.randn(len(ids), 256, generator=torch.Generator().manual_seed(2))
    return model.checked(Patch({model.text.tables[0]: (Rows(ids, 0.5 * delta),)}))


def export(model: Diffusion, patch: Patch, form: str, folder: Path, **options) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return FORMATS[form][0](model, patch, folder, **options)


def effect(model: Diffusion, patch: Patch) -> dict[str, torch.Tensor]:
    return {name: edited(weights_of(model)[name].data, es) for name, es in patch.edits.items()}


def furthest(model: Diffusion, a: Patch, b: Patch) -> float:
    assert set(a.edits) == set(b.edits)
    ours, theirs = effect(model, a), effect(model, b)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


# --- on and off ---


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_kind_goes_on_and_off_to_the_bit(dtype: str):
    model = load_model("world", dtype=dtype)
    before = {name: p.detach().clone() for name, p in model._parameters.items()}
    tensors = [p.data_ptr() for p in model._parameters.values()]
    gold = {ATTENTION[7]: (Replacement(torch.randn(96, 96)),)}
    patch = low_rank(model, ATTENTION[:4]) + dense(model, ATTENTION[2:6]) + word_rows(model)
    with model.patched(patch, Patch(gold), patch.scaled(0.5)):
        for name in {**patch.edits, **gold}:
            assert not torch.equal(model._parameters[name], before[name])
    assert all(torch.equal(before[name], p) for name, p in model._parameters.items())
    assert tensors == [p.data_ptr() for p in model._parameters.values()]


# --- a fresh process, with nothing of ours ---


@pytest.fixture(scope="module")
def exported(model: Diffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format's files, and what a process without us drew with them."""
    out = tmp_path_factory.mktemp("exported")
    everywhere = low_rank(model, ATTENTION + ELSEWHERE)
    export(model, everywhere, "lora", out / "lora", alpha=8.0)
    export(model, low_rank(model, ATTENTION), "kohya", out / "kohya", alpha=8.0)
    export(model, dense(model, ATTENTION), "lora", out / "dense", rank=8)
    export(model, everywhere, "unet", out / "unet")
    export(model, everywhere, "text-encoder", out / "text-encoder")
    export(model, word_rows(model), "embeddings", out / "embeddings", word=("van gogh",))
    given = {"prompts": [p.text for p in PROMPTS], "noise": model.start(PROMPTS)}
    torch.save(given, out / "given.pt")
    script = [sys.executable, "-c", FRESH, str(assets.stable_diffusion()), str(out)]
    subprocess.run(script, check=True, capture_output=True)
    return out


def drawn_here(model: Diffusion, patch: Patch, prompts: list[Prompt]) -> torch.Tensor:
    with model.patched(patch):
        cond = model.embed([p.text for p in prompts])
        latents = model.sample(model.start(prompts), cond, steps=4, guidance=3.0)
        return model.decode(latents)


def parts(patch: Patch, component: str) -> Patch:
    return Patch({n: es for n, es in patch.edits.items() if n.startswith(component)})


@pytest.mark.parametrize("name", ["lora", "kohya", "dense", "unet", "text-encoder", "embeddings"])
def test_a_plain_pipeline_draws_the_same_pictures(model: Diffusion, exported: Path, name: str):
    everywhere = low_rank(model, ATTENTION + ELSEWHERE)
    patch, prompts = {
        "lora": (everywhere, PROMPTS),
        "kohya": (low_rank(model, ATTENTION), PROMPTS),
        "dense": (truncated(dense(model, ATTENTION), 8)[0], PROMPTS),
        "unet": (parts(everywhere, "unet"), PROMPTS),
        "text-encoder": (parts(everywhere, "text_encoder"), PROMPTS),
        "embeddings": (word_rows(model), [Prompt("a boat in van gogh style", s) for s in (1, 2)]),
    }[name]
    theirs = torch.load(exported / "drawn.pt", weights_only=True)[name]
    assert (drawn_here(model, patch, prompts) - theirs).abs().max() < 1e-3
    assert (drawn_here(model, Patch({}), prompts) - theirs).abs().max() > 0.02


# --- and back ---


@pytest.mark.parametrize("form", ["lora", "kohya"])
@pytest.mark.parametrize("alpha", [None, 8.0])
def test_a_lora_comes_back_as_it_left(
    model: Diffusion, tmp_path: Path, form: str, alpha: float | None
):
    patch = low_rank(model, ATTENTION + ELSEWHERE)
    assert export(model, patch, form, tmp_path, alpha=alpha) == []
    (file,) = tmp_path.iterdir()
    back = imports.read(file, model)
    assert furthest(model, patch, back) < 1e-6
    assert all(isinstance(e, LowRank) for es in back.edits.values() for e in es)
    assert back.base == patch.base


def test_a_lora_of_diffusers_older_names_is_read(model: Diffusion, tmp_path: Path):
    # as `save_attn_procs` wrote it before PEFT; α = 6 at rank 3 doubles it
    up, down = torch.randn(96, 3), torch.randn(3, 96)
    stem = f"{BLOCK}.attn1.processor.to_out_lora"
    state = {
        f"{stem}.up.weight": up,
        f"{stem}.down.weight": down,
        f"{stem}.alpha": torch.tensor(6.0),
    }
    save_file(state, tmp_path / "old.safetensors")
    (edit,) = imports.read(tmp_path / "old.safetensors", model).edits[
        f"{BLOCK}.attn1.to_out.0.weight"
    ]
    assert torch.allclose(edit.up @ edit.down, 2 * up @ down)


def test_a_composed_lora_has_no_more_rank_than_its_layer(model: Diffusion, tmp_path: Path):
    name = "unet.conv_out.weight"  # (4, 64, 3, 3): of rank 4 at most
    patch = low_rank(model, [name]) + low_rank(model, [name]).scaled(2) + low_rank(model, [name])
    assert patch.edits[name][0].up.shape[1] == 6
    export(model, patch, "lora", tmp_path)
    back = imports.read(tmp_path, model)
    assert back.edits[name][0].up.shape[1] == 2  # three times one shift of rank 2
    assert furthest(model, patch, back) < 1e-6


def test_what_a_rank_costs_is_told(model: Diffusion, tmp_path: Path):
    matrix, bias = ATTENTION[0], f"{BLOCK}.norm1.bias"
    patch = dense(model, [matrix, bias])
    lost, left_out = export(model, patch, "lora", tmp_path, rank=5)
    values = torch.linalg.svdvals(patch.edits[matrix][0].delta)
    gone = values[5:].square().sum() + patch.edits[bias][0].delta.square().sum()
    share = float((gone / (patch.norm() ** 2)).sqrt())
    assert f"misses {share:.1%}" in lost
    assert "1 parameters that are no matrix" in left_out
    assert bias in left_out


@pytest.mark.parametrize("form", ["unet", "text-encoder", "diffusers"])
def test_weights_come_back_as_shifts_of_what_moved(model: Diffusion, tmp_path: Path, form: str):
    part = "text_encoder" if form == "text-encoder" else "unet"
    patch = parts(low_rank(model, ATTENTION + ELSEWHERE), part)
    notes = export(model, patch, form, tmp_path)
    path = tmp_path if form == "diffusers" else next(tmp_path.iterdir())
    whole = form == "diffusers"
    told = "written in float16, as the base is" if whole else "written in float32; the base lies in"
    assert [told in note for note in notes] == [True]
    assert furthest(model, patch, imports.read(path, model)) < (1e-3 if whole else 1e-7)


def test_a_half_precision_copy_moves_only_what_was_edited(model: Diffusion, tmp_path: Path):
    g = torch.Generator().manual_seed(3)
    name, fine = ATTENTION[0], weights_of(model)
    base = {n: p + 1e-6 * torch.randn(p.shape, generator=g) for n, p in fine.items()}
    with model.patched(Patch({n: (Replacement(w),) for n, w in base.items()})):
        half = {n.removeprefix("unet."): base[n].half() for n in ATTENTION}
        half[name.removeprefix("unet.")][0] += 1
        found = imports._shifts(model, Keys(model.networks_by_name).read(half, tmp_path).weights)
    assert set(found) == {name}
    (edit,) = found[name]
    assert edit.delta[0].min() > 0.99
    assert not edit.delta[1:].any()


def test_embeddings_are_those_under_the_patch_and_come_back(model: Diffusion, tmp_path: Path):
    patch = word_rows(model)
    export(model, patch, "embeddings", tmp_path / "word", word=("van gogh",))
    (file,) = (tmp_path / "word").iterdir()
    ((key, vectors),) = load_file(file).items()  # one key, as Diffusers, A1111 and ComfyUI want it
    assert (key, file.name) == ("<van-gogh>", "van-gogh.safetensors")
    table = effect(model, patch)[model.text.tables[0]]
    ids = model.tokenizer("van gogh", add_special_tokens=False).input_ids
    assert torch.equal(vectors, table[ids])
    assert furthest(model, patch, imports.read(file, model)) < 1e-6
    export(model, patch, "embeddings", tmp_path / "tokens")
    assert {f.name for f in (tmp_path / "tokens").iterdir()} == {
        "van.safetensors",
        "gogh.safetensors",
    }


@pytest.mark.parametrize("form", ["a1111", "bare", "emb_params"])
def test_embeddings_of_others_take_the_place_of_a_word(model: Diffusion, tmp_path: Path, form: str):
    vectors = torch.randn(2, 256)
    path = tmp_path / ("x.safetensors" if form == "emb_params" else "x.pt")
    if form == "a1111":
        torch.save(
            {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "x"}, path
        )
    elif form == "bare":
        torch.save(vectors, path)
    else:
        save_file({"emb_params": vectors}, path)
    patch = imports.read(path, model, "mira voss")
    with model.patched(patch):
        ids = model.tokenizer("mira voss", add_special_tokens=False).input_ids
        table = model.parameters("text")[model.text.tables[0]]
        assert torch.allclose(table[ids], vectors, atol=1e-6)


# --- what is refused ---


def refused(model: Diffusion, folder: Path, state: dict[str, torch.Tensor], **options) -> str:
    save_file(state, folder / "x.safetensors", metadata=options.pop("metadata", None))
    with pytest.raises(PalimpsestError) as refusal:
        imports.read(folder / "x.safetensors", model, **options)
    return str(refusal.value)


def pair(rank: int, out: int = 96, inner: int = 96, up_rank: int = 0) -> dict[str, torch.Tensor]:
    stem = ATTENTION[0].removesuffix(".weight")
    down, up = torch.randn(rank, inner), torch.randn(out, up_rank or rank)
    return {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}


def test_files_that_are_not_what_they_claim_are_refused(model: Diffusion, tmp_path: Path):
    one = torch.zeros(1)
    name = ATTENTION[0].removesuffix(".weight")
    said = refused(model, tmp_path, pair(4, inner=320))
    assert name in said
    assert "96×320" in said
    assert "96×96" in said
    assert "up is 96×3" in refused(model, tmp_path, pair(4, up_rank=3))
    for extra in ("dora_scale", "hada_w1_a"):
        assert extra in refused(model, tmp_path, pair(4) | {f"{name}.lora.{extra}": one})
    dora = {"lora_adapter_metadata": '{"unet.use_dora": true}'}
    assert "a DoRA" in refused(model, tmp_path, pair(4), metadata=dora)
    other = {"conv_in.weight": torch.zeros(8, 4, 3, 3)}
    assert "shape 8×4×3×3, but it is 64×4×3×3 in 'world'" in refused(model, tmp_path, other)
    assert "'y' is neither" in refused(model, tmp_path, {"y": one, "z": one + 1})
    assert "256 wide" in refused(model, tmp_path, {"<y>": torch.zeros(2, 768)})
    assert "3 vectors" in refused(model, tmp_path, {"<van-gogh>": torch.zeros(3, 256)})
    assert "--word has no meaning" in refused(model, tmp_path, pair(4), word="cat")
    same = {"conv_in.bias": model.parameters("full")["unet.conv_in.bias"].detach().clone()}
    assert "nothing in it differs" in refused(model, tmp_path, same)
    assert "no whole JSON" in refused(
        model, tmp_path, pair(4), metadata={"lora_adapter_metadata": "{"}
    )


def test_what_cannot_be_read_at_all_is_refused(model: Diffusion, tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    torch.save({"x": "no tensor"}, tmp_path / "text.pt")
    low_rank(model, ATTENTION[:1]).save(tmp_path / "ours.safetensors")
    for name, said in {
        "cut.safetensors": "no weights can be read",
        "evil.pt": "no weights can be read",
        "text.pt": "neither a state dict nor an embedding",
        "ours.safetensors": "already a patch",
        "none.safetensors": "no such file",
        "": "no weights that are known",
    }.items():
        with pytest.raises(PalimpsestError, match=said):
            imports.read(tmp_path / name, model)


@pytest.mark.parametrize(
    ("kind", "form", "options", "said"),
    [
        ("dense", "lora", {}, "not low-rank; name a --rank"),
        ("bias", "lora", {}, "norm1.bias: a LoRA cannot carry it"),
        ("rows", "lora", {}, "`embeddings`"),
        ("gold", "lora", {}, "replaced whole"),
        ("gold", "lora", {"rank": 4}, "replaced whole"),
        ("dense", "lora", {"rank": 97}, "rank above 96"),
        ("lowrank", "kohya", {"alpha": 0.0}, "alpha is 0.0"),
        ("lowrank", "embeddings", {}, "no token embedding"),
        ("rows", "embeddings", {"word": ("cat",)}, "no embedding of 'cat'"),
        ("rows", "unet", {}, "does not touch the unet"),
        ("rows", "lora", {"rank": 4}, "can carry nothing"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    model: Diffusion, tmp_path: Path, kind: str, form: str, options: dict, said: str
):
    patch = {
        "dense": lambda: dense(model, ATTENTION[:1]),
        "bias": lambda: dense(model, [f"{BLOCK}.norm1.bias"]),
        "rows": lambda: word_rows(model),
        "gold": lambda: Patch({ATTENTION[0]: (Replacement(torch.zeros(96, 96)),)}),
        "lowrank": lambda: low_rank(model, ATTENTION[:1]),
    }[kind]()
    with pytest.raises(PalimpsestError, match=said):
        export(model, patch, form, tmp_path, **options)


def test_a_patch_of_other_shapes_is_refused_by_name_and_both_shapes(model: Diffusion):
    name = ATTENTION[1]
    for edit, shape in (
        (Dense(torch.zeros(320, 768)), "320×768"),
        (LowRank(torch.zeros(320, 4), torch.zeros(4, 768)), "320×768"),
        (Rows(torch.tensor([400]), torch.zeros(1, 96)), "401×96"),
    ):
        patch = Patch({name: (edit,)}, base={name: "0" * 16})
        with pytest.raises(PalimpsestError, match=f"{name}: .*{shape}, but it is 96×96 in 'world'"):
            model.accepts(patch)
    with pytest.raises(PalimpsestError, match="no parameter"):
        model.accepts(Patch({"unet.x.weight": (Dense(torch.zeros(1)),)}))
