"""Tensors from elsewhere: what no weight can be made of is refused in a sentence, or ignored aloud.

Whoever wants more cases than a push can wait for: PALIMPSEST_FUZZ=5000 of each kind of file.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import ldm
import pytest
import sdxl
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from palimpsest.core.errors import PalimpsestError
from palimpsest.exchange import import_ as imports
from palimpsest.exchange import lora
from palimpsest.judge.world import Classifier
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import load_model
from palimpsest.patch import Dense, LowRank, Patch, Replacement, Rows
from palimpsest.patch.hooks import NegativeWords, Transport, TwoModels
from palimpsest.patch.patch import _digest
from palimpsest.patch.tensor_files import Inert, checked_tensor, read_tensors, write_tensors
from palimpsest.toolbox import optimise as optimising
from palimpsest.toolbox.clip_losses import kept
from palimpsest.toolbox.optimise import Recipe, optimise
from palimpsest.world import assets

CASES = int(os.environ.get("PALIMPSEST_FUZZ", "140"))
"""Cases of each kind of file."""
fuzzed = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize="PALIMPSEST_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

BIAS = "unet.conv_in.bias"
MATRIX = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
STEM = MATRIX.removesuffix(".weight")


@pytest.fixture(scope="module")
def patch(model: Diffusion) -> Patch:
    """One edit of each kind, of parameters of their own."""
    (table,), g = model.text.tables, torch.Generator().manual_seed(0)
    out, width = model.weight(MATRIX).shape
    other = MATRIX.replace("to_q", "to_k")
    edits = {
        BIAS: (Dense(0.1 * torch.randn(model.weight(BIAS).shape, generator=g)),),
        MATRIX: (LowRank(torch.randn(out, 2, generator=g), torch.randn(2, width, generator=g)),),
        other: (Replacement(model.weight(other).detach().clone() + 1),),
        table: (Rows(torch.tensor([3, 9]), torch.randn(2, model.text.width, generator=g)),),
    }
    return model.checked(Patch(edits, about={"method": "test", "arguments": {"steps": 3}}))


def transport(model: Diffusion, **other: Any) -> Transport:
    g = torch.Generator().manual_seed(0)
    out, width = model.weight(MATRIX).shape
    whole = {
        "up": {MATRIX: torch.randn(out, 2, generator=g)},
        "down": {MATRIX: torch.randn(2, width, generator=g)},
        "references": model.rows(["a cat", "a dog", "a church"]),
        "owner": (0, 0, 1),
        "words": ((5, 6), (7,), (8,)),
    }
    return Transport(**{**whole, **other})


def refused(call: Callable[[], Any], told: str = "") -> str:
    with pytest.raises(PalimpsestError, match=told) as refusal:
        call()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_tensor_that_carries_more_than_numbers_is_refused():
    tensor = torch.zeros(2, requires_grad=True)
    tensor.register_hook(lambda gradient: gradient)  # as methods do while they train
    assert checked_tensor("it", tensor) is tensor
    strange = torch.zeros(2, requires_grad=True)
    strange._backward_hooks = Inert()  # type: ignore[assignment]
    refused(lambda: checked_tensor("it", strange), "it carries what is no number")


# --- patches ---

N = torch.zeros(4)
NAN = torch.tensor([0.0, float("nan")])
UNSOUND = {
    "complex": ((Dense(N.to(torch.complex64)),), "complex64, no real floating"),
    "boolean": ((Dense(N.bool()),), "bool, no real floating"),
    "whole": ((Replacement(N.long()),), "int64, no real floating"),
    "sparse": ((Dense(torch.eye(4).to_sparse()),), "no dense tensor"),
    "empty": ((Dense(torch.zeros(4, device="meta")),), "no dense tensor"),
    "no tensor": ((Dense([1.0]),), "a list, no tensor"),  # type: ignore[arg-type]
    "no edit": ((N,), "no edit"),
    "NaN": ((Dense(NAN),), "NaN or infinite"),
    "infinite": ((LowRank(torch.full((4, 1), float("inf")), torch.ones(1, 4)),), "infinite"),
    "two of a kind": ((Dense(N), Dense(N)), "two edits of one kind"),
    "ranks": ((LowRank(torch.zeros(4, 2), torch.zeros(3, 4)),), "up is 4×2 and down is 3×4"),
    "no rank": ((LowRank(torch.zeros(4, 0), torch.zeros(0, 4)),), "rank above 0"),
    "a row twice": ((Rows(torch.tensor([1, 1]), torch.zeros(2, 4)),), "a row twice"),
    "below 0": ((Rows(torch.tensor([-1]), torch.zeros(1, 4)),), "a row below 0"),
    "half a row": ((Rows(torch.tensor([0.5]), torch.zeros(1, 4)),), "no numbers of rows"),
    "too few": ((Rows(torch.tensor([0, 1]), torch.zeros(3, 4)),), "2 rows are numbered"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_an_edit_that_is_no_weight_is_refused(case: str):
    edits, told = UNSOUND[case]
    refused(lambda: Patch({"unet.x": edits}).check(), told)  # type: ignore[dict-item]
    Patch({"unet.x": (Dense(N), LowRank(torch.ones(4, 1), torch.ones(1, 1)))}).check()


def test_a_model_wears_nothing_that_makes_it_no_number(model: Diffusion, patch: Patch):
    shape, before = model.weight(BIAS).shape, model.weight(BIAS).clone()
    nan = Patch({BIAS: (Dense(torch.full(shape, float("nan"))),)})
    refused(lambda: model.accepts(nan), f"{BIAS}: Dense.delta holds NaN")
    refused(lambda: Patch.dense({BIAS: torch.zeros(shape, dtype=torch.complex64)}), "complex64")
    huge = Patch({BIAS: (Dense(torch.full(shape, 1e300, dtype=torch.float64)),)})
    refused(lambda: model.patched(huge).__enter__(), f"{BIAS}: under the patch it holds NaN")
    assert torch.equal(model.weight(BIAS), before)
    late = Patch({BIAS: (Dense(torch.zeros(shape)),)})
    model.accepts(late)
    late.edits[BIAS][0].delta.fill_(float("inf"))  # type: ignore[union-attr]
    refused(lambda: model.accepts(late), "infinite")
    (table,) = model.text.tables
    far = Rows(torch.tensor([len(model.weight(table))]), torch.zeros(1, model.text.width))
    refused(lambda: model.accepts(Patch({table: (far,)})), "made for the shape")
    model.accepts(patch)


def test_a_patch_in_half_precision_is_read(model: Diffusion, patch: Patch, tmp_path: Path):
    patch.save(tmp_path / "half", half=True)
    read = Patch.load(tmp_path / "half")
    model.accepts(read)
    assert read.edits.keys() == patch.edits.keys()


def written(tensors: dict[str, Tensor], said: Any, path: Path) -> Path:
    """Write a patch file with its digest put right, as whoever means ill would."""
    if isinstance(said, dict) and isinstance(said.get("digest"), str):
        said = {**said, "digest": _digest(tensors, said.get("hook") or None)}
    text = said if isinstance(said, str) else json.dumps(said)
    path.write_bytes(save(tensors, {"palimpsest": text}))
    return path


def parts_of(patch: Patch, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    patch.save(path)
    header = path.read_bytes()
    size = int.from_bytes(header[:8], "little")
    return load_file(path), json.loads(
        json.loads(header[8 : 8 + size])["__metadata__"]["palimpsest"]
    )


WRONG = {
    "format": [None, "1", 1.5, True, 99],
    "digest": [None, 3, ["x"]],
    "base": [None, [], "x", {BIAS: 3}, {BIAS: None}],
    "about": [None, [], "x", 3],
    "hook": ["x", 3, [], {"kind": "spell"}, {"kind": []}, {"kind": "transport"}],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_a_manifest_of_other_types_is_refused(patch: Patch, tmp_path: Path, key: str, value: Any):
    tensors, said = parts_of(patch, tmp_path / "p")
    assert Patch.load(written(tensors, said, tmp_path / "q")).digest() == patch.digest()
    bad = tmp_path / "bad"
    refused(lambda: Patch.load(written(tensors, {**said, key: value}, bad)), "bad: ")
    lacking = {k: v for k, v in said.items() if k != key}
    if key != "hook":
        refused(lambda: Patch.load(written(tensors, lacking, bad)), f"its {key} is none")


# --- hooks ---

HOOKS: dict[str, tuple[Callable[[Diffusion], Any], str]] = {
    "bytes": (lambda m: NegativeWords(b"cat"), "none that are text"),  # type: ignore[arg-type]
    "a null": (lambda m: NegativeWords("a\0b"), "none that are text"),
    "a surrogate": (lambda m: NegativeWords("\ud800"), "none that are text"),
    "w": (
        lambda m: TwoModels({"x": torch.ones(2, 1)}, {"x": torch.ones(1, 2)}, float("nan")),
        "nan",
    ),
    "vast": (lambda m: TwoModels({"x": torch.ones(2, 1)}, {"x": torch.ones(1, 2)}, 10**400), "far"),
    "main": (
        lambda m: TwoModels({"x": torch.ones(2, 1)}, {"x": torch.ones(1, 2)}, 2.0, "best"),  # type: ignore[arg-type]
        "there are lora, erased",
    ),
    "no adapters": (lambda m: TwoModels({}, {}, 2.0), "no adapters"),
    "one side": (lambda m: transport(m, down={}), "without its down"),
    "ranks": (lambda m: transport(m, up={MATRIX: torch.ones(96, 3)}), "up is 96×3 and down is 2×"),
    "NaN": (lambda m: transport(m, up={MATRIX: torch.full((96, 2), float("nan"))}), "holds NaN"),
    "owners": (lambda m: transport(m, owner=(0, 0)), "not one owner"),
    "an owner beyond": (lambda m: transport(m, owner=(0, 0, 2)), "has 2 adapters"),
    "nobody's": (lambda m: transport(m, owner=(0, 0, 0)), "has 2 adapters"),
    "below 0": (lambda m: transport(m, owner=(0, 1, -1)), "no whole number"),
    "words": (lambda m: transport(m, words=((5,), (7,), (0.5,))), "no whole number"),
    "match": (lambda m: transport(m, match="mean"), "no way"),
    "power": (lambda m: transport(m, power=10**6), "no way"),
    "references": (lambda m: transport(m, references=torch.ones(3, 2)), "not one owner"),
}


@pytest.mark.parametrize("case", HOOKS)
def test_a_hook_that_does_not_hang_together_is_refused_when_made(model: Diffusion, case: str):
    make, told = HOOKS[case]
    refused(lambda: make(model), told)


def test_a_hook_is_worn_by_a_model_whose_layers_it_fits(model: Diffusion, tmp_path: Path):
    hook = transport(model)
    with model.patched(Patch({}, hook=hook)):
        pass
    up, down = torch.ones(5, 2), torch.ones(2, 7)
    other = Patch({}, hook=transport(model, up={MATRIX: up}, down={MATRIX: down}))
    refused(lambda: model.accepts(other), "shape 5×7, but it is 96×96")
    lost = Patch({}, hook=transport(model, up={"unet.x": up}, down={"unet.x": down}))
    refused(lambda: model.accepts(lost), "no parameter 'unet.x'")
    narrow = Patch({}, hook=transport(model, references=torch.ones(3, 1, 1)))
    refused(lambda: model.patched(narrow).__enter__(), "knows prompts as 1×1")
    hook.up[MATRIX].fill_(float("inf"))  # type: ignore[attr-defined]
    refused(lambda: model.accepts(Patch({}, hook=hook)), "infinite")


# --- models ---

FAMILIES = {
    "sd": ("", assets.stable_diffusion, ("unet", "vae", "text_encoder")),
    "sdxl": ("", sdxl.folder, ("unet", "vae", "text_encoder", "text_encoder_2")),
    "clip": ("clip:", assets.clip, ("",)),
    "llava": ("llava:", assets.llava, ("",)),
}


def spoilt(tensors: dict[str, Tensor], how: str) -> tuple[dict[str, Tensor], str]:
    """Return weights of which one is missing or no number, and its name."""
    name = sorted(n for n, t in tensors.items() if t.is_floating_point())[len(tensors) // 2]
    tensors = {n: t.clone() for n, t in tensors.items()}
    if how == "missing":
        del tensors[name]
    elif how == "NaN":
        tensors[name].view(-1)[0] = float("nan")
    elif how == "misshapen":
        tensors[name] = torch.zeros(3, 5)
    else:
        tensors["position_ids"] = torch.zeros(1)
    return tensors, name


@pytest.mark.parametrize(
    ("family", "part"), [(f, part) for f, (_, _, parts) in FAMILIES.items() for part in parts]
)
def test_no_weight_of_a_folder_is_drawn_at_random(family: str, part: str, tmp_path: Path):
    kind, folder, _ = FAMILIES[family]
    copy = shutil.copytree(folder(), tmp_path / "model")
    (file,) = (copy / part).glob("*.safetensors")
    weights = load_file(file)
    for how in ("missing", "NaN", "misshapen", "another"):
        now, name = spoilt(weights, how)
        save_file(now, file, {"format": "pt"})
        if how == "another":
            load_model(kind + str(copy))
            continue
        told = refused(lambda: load_model(kind + str(copy)), part)
        assert name in told or how == "misshapen"


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_no_weight_of_a_single_file_is_drawn_at_random(family: str, tmp_path: Path):
    base = str(FAMILIES[family][1]())
    ldm.write(load_model(base).pipeline(), tmp_path / "a.safetensors")
    weights = load_file(tmp_path / "a.safetensors")
    load_model(str(tmp_path / "a.safetensors"), base=base)
    for inside in ("model.diffusion_model.out", "first_stage_model.dec", "self_attn.k_proj.bias"):
        name = next(n for n in weights if inside in n)
        save_file({n: t for n, t in weights.items() if n != name}, tmp_path / "b.safetensors")
        refused(lambda: load_model(str(tmp_path / "b.safetensors"), base=base), "weights lack")
        save_file({**weights, name: weights[name] * float("nan")}, tmp_path / "b.safetensors")
        refused(lambda: load_model(str(tmp_path / "b.safetensors"), base=base), "holds NaN")


class Code:
    """What makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self):
        return Path.touch, (self.made,)


@pytest.mark.parametrize("family", ["clip", "llava", "sd"])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(family: str, tmp_path: Path):
    kind, folder, parts = FAMILIES[family]
    copy, part = shutil.copytree(folder(), tmp_path / "model"), parts[-1]
    (file,) = (copy / part).glob("*.safetensors")
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    load_model(kind + str(copy))
    evil = file.with_name("pytorch_model.bin")
    evil.write_bytes(pickle.dumps(Code(tmp_path / "made")))
    refused(lambda: load_model(kind + str(copy)))
    assert not (tmp_path / "made").exists()
    pickle.loads(evil.read_bytes())  # noqa: S301 - that it would have made a file
    assert (tmp_path / "made").exists()


ENTRIES = {
    "unet": ["own", "Net"],
    "scheduler": ["own", "Net"],
    "feature_extractor": ["own", "Net"],
    "_class_name": ["own", "Net"],
    "extra": ["own", "Net"],
}


@pytest.mark.parametrize("part", ENTRIES)
def test_a_strangers_class_is_refused_and_not_imported(part: str, tmp_path: Path, monkeypatch):
    copy = shutil.copytree(sdxl.folder(), tmp_path / "model")
    monkeypatch.syspath_prepend(tmp_path / "model")
    for place in (copy, copy / part):
        place.mkdir(exist_ok=True)
        (place / "own.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')\nclass Net: pass\n")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, part: ENTRIES[part]}))
    refused(lambda: load_model(str(copy)), "own")
    ldm.write(sdxl.pipeline(), tmp_path / "xl.safetensors")
    refused(lambda: load_model(str(tmp_path / "xl.safetensors"), base=str(copy)), "own")
    assert not (tmp_path / "made").exists()


# --- LoRAs ---


def pair(model: Diffusion, rank: int = 2) -> dict[str, Tensor]:
    g, (out, width) = torch.Generator().manual_seed(1), model.weight(MATRIX).shape
    ends = {"lora_A.weight": (rank, width), "lora_B.weight": (out, rank)}
    return {f"{STEM}.{end}": torch.randn(size, generator=g) for end, size in ends.items()}


def read_lora(model: Diffusion, config: Any, **more: Tensor) -> LowRank:
    text = config if isinstance(config, str) else json.dumps(config)
    shapes = {MATRIX: tuple(model.weight(MATRIX).shape)}
    return lora.read_lora({**pair(model), **more}, {lora.METADATA: text}, shapes)[MATRIX]


def test_a_pattern_of_a_lora_is_a_name_and_is_never_run(model: Diffusion):
    plain = read_lora(model, {})
    for name in ("to_q", STEM.removeprefix("unet.")):
        found = read_lora(model, {"unet.alpha_pattern": {name: 4}, "unet.lora_alpha": 1})
        assert torch.equal(found.up, plain.up * 2)  # α/rank = 4/2
    assert torch.equal(read_lora(model, {"unet.alpha_pattern": {"o_q": 4}}).up, plain.up)
    for pattern in ("(a|a|aa)*$", ".*", "to_[qk]", "^to_q"):
        refused(lambda p=pattern: read_lora(model, {"unet.alpha_pattern": {p: 4}}), "no name of a")


@pytest.mark.parametrize(
    "alpha", [float("nan"), float("inf"), 1e300, "4", [4], None, True, 10**400]
)
def test_an_alpha_that_is_no_number_is_refused(model: Diffusion, alpha: Any):
    refused(lambda: read_lora(model, {"unet.lora_alpha": alpha}), "alpha|whole JSON")
    refused(lambda: read_lora(model, {"unet.alpha_pattern": {"to_q": alpha}}), "alpha|whole JSON")
    refused(lambda: read_lora(model, {"unet.alpha_pattern": alpha or 3}), "alpha|whole JSON")


def test_a_lora_means_one_shift_of_a_layer(model: Diffusion):
    twice = {key.removeprefix("unet."): t for key, t in pair(model).items()}
    refused(lambda: read_lora(model, {}, **twice), "twice")
    refused(lambda: read_lora(model, {}, **{f"{STEM}.alpha": torch.ones(2)}), "is 2, and no number")
    refused(lambda: read_lora(model, "[" * 9999), "whole JSON")
    vast = torch.zeros(1).expand(2, 10**12)  # of one number, in a pickle
    refused(
        lambda: read_lora(model, {}, **{f"{STEM}.lora_A.weight": vast}), "far larger than the layer"
    )


SCRIPT = """
import sys; from pathlib import Path; from hashlib import sha256; import torch
from palimpsest.patch import Patch; from palimpsest.patch.algebra import truncated
torch.set_num_threads(int(sys.argv[2]))
junk = [torch.zeros(n) for n in range(1, 999, int(sys.argv[2]) * 7)]
cut, _ = truncated(Patch.load(Path(sys.argv[1])), 3)
cut.save(Path(sys.argv[1] + sys.argv[2]))
"""


def test_two_processes_cut_a_patch_to_the_same_bytes(tmp_path: Path):
    """Also where the rank asked for is above the edit's: what is left points nowhere."""
    g = torch.Generator().manual_seed(0)
    one = torch.randn(96, 1, generator=g) @ torch.randn(1, 64, generator=g)
    Patch.dense({"one": one, "full": torch.randn(96, 64, generator=g)}).save(tmp_path / "p")
    for threads in ("1", "2"):
        subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "p"), threads], check=True)
    assert (tmp_path / "p1").read_bytes() == (tmp_path / "p2").read_bytes()
    (edit,) = Patch.load(tmp_path / "p1").edits["one"]
    assert isinstance(edit, LowRank)
    assert edit.up.shape == (96, 1)


# --- what training keeps ---

RECIPE = Recipe(steps=4, lr=0.1, ema=0.5, summed=True)


def trained(folder: Path | None, told: list[str], steps: int = 4) -> Tensor:
    p = torch.zeros(3, requires_grad=True)
    aims = torch.tensor([1.0, -2.0, 3.0])
    context = Context(folder=folder, tell=told.append)
    recipe = Recipe(**{**vars(RECIPE), "steps": steps})
    optimise(lambda g, i: (p - aims).square().sum(), {"p": p}, recipe, context=context, label="c")
    return p.detach()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("checkpoint")
    trained(folder, [], steps=2)
    return (folder / "c.checkpoint").read_bytes()


FOREIGN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a name": lambda s: {**s, "parameters": {"q": torch.zeros(3)}},
    "a shape": lambda s: {**s, "parameters": {"p": torch.zeros(1)}},  # which would broadcast
    "NaN": lambda s: {**s, "average": {"p": torch.full((3,), float("nan"))}},
    "a gradient": lambda s: {**s, "gradients": {"p": torch.zeros(2)}},
    "no losses": lambda s: {k: v for k, v in s.items() if k != "losses"},
    "losses": lambda s: {**s, "losses": ["x"]},
    "too many": lambda s: {**s, "losses": [0.5] * 9},
    "notes": lambda s: {**s, "notes": [1]},
    "the optimiser": lambda s: {**s, "optimizer": {"state": {}, "param_groups": []}},
    "moments": lambda s: {**s, "optimizer": {**s["optimizer"], "state": {0: {"step": 1}}}},
    "a list": lambda s: [s],
    "a tensor": lambda s: torch.zeros(3),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_checkpoint_is_told_and_ignored(checkpoint: bytes, tmp_path: Path, case: str):
    path, told = tmp_path / "c.checkpoint", []
    path.write_bytes(checkpoint)
    assert torch.equal(trained(tmp_path, told), fresh := trained(None, []))
    assert not told, "a sound one is gone on with"
    path.write_bytes(checkpoint)
    torch.save(FOREIGN[case](torch.load(path, weights_only=True)), path)
    assert torch.equal(trained(tmp_path, told), fresh)
    assert [f"{path}: no checkpoint of this training" in line for line in told] == [True]


@pytest.mark.parametrize(("seconds", "saves"), [(20, 3), (0, 17)])
def test_a_checkpoint_that_takes_long_to_write_is_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, saves: int
):
    """34 steps of 40 s: one a minute, at every second step; of 20 s, one in 30 times as long."""
    clock, written, save = [0.0], [], torch.save

    def slow(state, path):
        written.append(len(state["losses"]))
        clock[0] += seconds
        save(state, path)

    def loss(g, i):
        clock[0] += 40
        return p.square().sum()

    monkeypatch.setattr(optimising.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(torch, "save", slow)
    p = torch.ones(3, requires_grad=True)
    optimise(loss, {"p": p}, Recipe(34, 0.1), context=Context(folder=tmp_path), label="c")
    *during, last = written
    assert last == 34  # always at the end
    assert len(during) == saves
    assert during == ([2, 18, 34] if seconds else [*range(2, 35, 2)])


def test_a_cache_that_is_spoilt_is_made_again(tmp_path: Path):
    made = {"w": torch.ones(2)}
    kept(tmp_path, {"loss": "x"}, lambda: made)
    assert kept(tmp_path, {"loss": "x"}, dict)["w"].tolist() == [1, 1]
    (file,) = tmp_path.iterdir()
    for spoil in (b"", file.read_bytes()[:-1], save({"w": torch.zeros(2)}, {"loss": "y"})):
        file.write_bytes(spoil)
        assert kept(tmp_path, {"loss": "x"}, lambda: made)["w"].tolist() == [1, 1]


# --- anything at all ---

TYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8)
TYPES += (torch.bool, torch.complex64, torch.float8_e4m3fn)
JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**70, 10**400, 0.5, float("nan"), float("inf"), "", "x", "a\0", "\ud800"),
    *([], {}, [[]], {"kind": "transport"}, "(a|a)*" * 9, [0] * 99),
)


def other_tensor(t: Tensor, r: Random) -> Tensor:
    match r.randrange(9):
        case 0:
            return t.to(r.choice(TYPES))
        case 1:
            return t.reshape(-1)
        case 2:
            return t[None]
        case 3:
            return t.T.contiguous() if t.ndim == 2 else t.new_zeros(())
        case 4:
            return t[: len(t) // 2].clone() if t.ndim else t
        case 5:
            return t.new_zeros(0, *t.shape[1:])
        case 6:
            return torch.cat([t, t]) if t.ndim else t
        case 7:
            large = torch.tensor(r.choice([3, -3, 1e30])).to(t.dtype)  # infinite in half precision
            return t.new_full(t.shape, large if t.is_floating_point() else -3)
    t = t.clone()
    if t.numel() and t.is_floating_point():
        spoil = torch.tensor(r.choice([float("nan"), float("inf"), 1e38])).to(t.dtype)
        t.view(-1)[r.randrange(t.numel())] = spoil
    return t


def other_tensors(tensors: dict[str, Tensor], r: Random) -> dict[str, Tensor]:
    found = dict(tensors)
    for _ in range(r.randrange(3)):
        name = r.choice(sorted(found)) if found else ""
        match r.randrange(5):
            case 0:
                found.pop(name, None)
            case 1:
                i = r.randrange(len(name) + 1)
                found[name[:i] + r.choice(["", ".", "|", "x", "é", "\0"]) + name[i + 1 :]] = N
            case _ if name:
                found[name] = other_tensor(found[name], r)
    return found


def other_value(value: Any, r: Random) -> Any:
    """Return a JSON value that differs in one place, at any depth."""
    if r.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return deepcopy(r.choice(JUNK))
    key = r.choice(sorted(value)) if isinstance(value, dict) else r.randrange(len(value))
    value = deepcopy(value)
    if r.random() < 0.2:
        del value[key]
    else:
        value[key] = other_value(value[key], r)
    return value


def other_bytes(data: bytes, r: Random) -> bytes:
    i = r.randrange(len(data)) if r.random() < 0.3 else r.randrange(min(len(data), 900))
    match r.randrange(4):
        case 0:
            return data[:i]
        case 1:
            return data[:i] + bytes([r.randrange(256)]) + data[i + 1 :]
        case 2:
            return data[:i] + data[i + r.randrange(1, 9) :]
    return data[:i] + r.randbytes(8) + data[i:]


def survives(call: Callable[[], Any]) -> Any:
    """Return what a call gives; None if it was refused in one sentence."""
    try:
        return call()
    except PalimpsestError as error:
        told = str(error)
    assert told.strip()
    told.encode()  # it can be printed
    return None


def worn(model: Diffusion, patch: Patch | None) -> None:
    if patch is not None:
        with model.patched(patch):
            assert all(bool(model.weight(n).isfinite().all()) for n in patch.names)


@fuzzed
@given(r=st.randoms(use_true_random=False))
@pytest.mark.parametrize("kind", ["edits", "hook"])
def test_any_patch_file_is_sound_or_refused(
    model: Diffusion, patch: Patch, tmp_path: Path, kind: str, r: Random
):
    whole = patch if kind == "edits" else Patch({}, hook=transport(model))
    tensors, said = parts_of(whole, tmp_path / "p")
    path = tmp_path / "q"
    try:
        way = r.randrange(3)
        now = other_tensors(tensors, r) if way != 1 else tensors
        path = written(now, other_value(said, r) if way == 1 else said, path)
    except (KeyError, TypeError, ValueError, RuntimeError):  # safetensors holds no such thing
        return
    if r.random() < 0.2:
        path.write_bytes(other_bytes(path.read_bytes(), r))
    survives(lambda: worn(model, Patch.load(path)))


CONFIG = {
    "unet.r": 2,
    "unet.lora_alpha": 4,
    "unet.alpha_pattern": {"to_q": 8},
    "unet.rank_pattern": {},
    "unet.use_rslora": False,
    "unet.target_modules": ["to_q"],
}


@fuzzed
@given(r=st.randoms(use_true_random=False))
def test_any_lora_file_is_sound_or_refused(model: Diffusion, tmp_path: Path, r: Random):
    config = other_value(CONFIG, r) if r.random() < 0.5 else CONFIG
    path = tmp_path / r.choice(["l.safetensors", "l.pt"])
    tensors = other_tensors({**pair(model), f"{STEM}.alpha": torch.tensor(2.0)}, r)
    if r.random() < 0.5:
        tensors.pop(f"{STEM}.alpha", None)
    try:
        if path.suffix == ".pt":
            torch.save(r.choice([tensors, {"state_dict": tensors}, [tensors]]), path)
        else:
            text = json.dumps(config)
            path.write_bytes(save(tensors, {lora.METADATA: text[: r.choice([9, 9999])]}))
    except (KeyError, TypeError, ValueError, RuntimeError):
        return
    if r.random() < 0.3:
        path.write_bytes(other_bytes(path.read_bytes(), r))
    survives(lambda: worn(model, imports.read(path, model)))


OTHERS_NAMES = {
    "model.diffusion_model.input_blocks.0.0.bias": torch.zeros(64),
    "model_ema.diffusion_modelinput_blocks00bias": torch.zeros(64),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.zeros(256),
    "first_stage_model.encoder.conv_in.bias": torch.zeros(24),
}


@fuzzed
@given(r=st.randoms(use_true_random=False))
def test_any_state_dict_of_others_is_sound_or_refused(model: Diffusion, tmp_path: Path, r: Random):
    tensors = other_tensors(dict(OTHERS_NAMES), r)
    path = tmp_path / r.choice(["s.ckpt", "s.safetensors", "s"])
    nested = r.choice(
        [tensors, {"state_dict": tensors}, {"unet": {"model": tensors}, 3: [tensors]}]
    )
    try:
        if r.random() < 0.5:
            torch.save(nested, path, _use_new_zipfile_serialization=r.random() < 0.5)
        else:
            path.write_bytes(save(tensors, {"prompts": "a", "rank": "1", "alpha": "x"}))
    except (KeyError, TypeError, ValueError, RuntimeError):
        return
    if r.random() < 0.3:
        path.write_bytes(other_bytes(path.read_bytes(), r))
    survives(lambda: worn(model, imports.read(path, model)))


@fuzzed
@given(r=st.randoms(use_true_random=False))
def test_any_embedding_is_sound_or_refused(model: Diffusion, tmp_path: Path, r: Random):
    path, name = (
        tmp_path / r.choice(["e.safetensors", "e.pt", "e.bin"]),
        r.choice(["<cat>", "emb_params"]),
    )
    tensors = other_tensors({name: torch.randn(1, model.text.width)}, r)
    try:
        if path.suffix == ".safetensors":
            path.write_bytes(save(tensors))
        else:
            odd = {"string_to_param": r.choice([tensors, {}, 3, None, [1]]), "name": "cat"}
            torch.save(r.choice([tensors, odd, *tensors.values(), 3]), path)
    except (KeyError, TypeError, ValueError, RuntimeError):
        return
    if r.random() < 0.3:
        path.write_bytes(other_bytes(path.read_bytes(), r))
    word = r.choice(["cat", None, "", "van gogh"])
    survives(lambda: worn(model, imports.read(path, model, word)))


@fuzzed
@given(r=st.randoms(use_true_random=False))
def test_any_checkpoint_is_gone_on_with_or_ignored(checkpoint: bytes, tmp_path: Path, r: Random):
    path, told = tmp_path / "c.checkpoint", []
    path.write_bytes(checkpoint)
    if r.random() < 0.5:
        state = torch.load(path, weights_only=True)
        part = r.choice(sorted(state))
        tensors = state[part] if part in ("parameters", "average", "gradients") else None
        if tensors is not None and r.random() < 0.8:
            state[part] = other_tensors(tensors, r)
        elif part == "optimizer" and r.random() < 0.8:
            state[part]["state"][0] = other_tensors(state[part]["state"][0], r)
        else:
            state[part] = other_value(state[part], r) if part != "optimizer" else r.choice(JUNK)
        torch.save(state, path)
    else:
        path.write_bytes(other_bytes(checkpoint, r))
    end = survives(lambda: trained(tmp_path, told))  # a vast number is one: its loss may be inf
    assert end is None or bool(end.isfinite().all())
    assert len(told) < 2


@fuzzed
@given(r=st.randoms(use_true_random=False))
def test_any_judges_file_is_sound_or_refused(tmp_path: Path, r: Random):
    path, names = tmp_path / "j.safetensors", {"object": ["cat", "none"]}
    from palimpsest.judge.networks import Network

    state = Network({"object": ("cat", "none")}, (8, 8, 8, 8)).state_dict()
    header = {"heads": names, "widths": [8, 8, 8, 8], "version": "1"}
    header = other_value(header, r) if r.random() < 0.5 else header
    try:
        path.write_bytes(save(other_tensors(dict(state), r), {"judge": json.dumps(header)}))
    except (KeyError, TypeError, ValueError, RuntimeError):
        return
    if r.random() < 0.3:
        path.write_bytes(other_bytes(path.read_bytes(), r))
    judge = survives(lambda: Classifier.load(path))
    if judge is not None:
        judge.read(torch.zeros(1, 3, 64, 64))


def test_the_order_of_metadata_is_not_left_to_chance(tmp_path: Path):
    """The library writes a file's metadata in an order that another call does not repeat."""
    said = {f"key {i}": f'valü "{i}"\n' for i in range(12)}
    tensors = {"b": torch.arange(5.0), "a": torch.ones(2, 3)}
    for name in ("one", "two"):
        write_tensors(tmp_path / name, tensors, said)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found, metadata = read_tensors(tmp_path / "one")
    assert metadata == said
    assert torch.equal(found["b"], tensors["b"])
    assert torch.equal(found["a"], tensors["a"])
    plain = {save(tensors, said) for _ in range(20)}
    assert len(plain) > 1, "the control: left to the library it changes"
