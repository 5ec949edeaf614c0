"""The algebra of patches, over random patches; and files that are cut short or altered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from exact import nearly
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from palimpsest.core.errors import PalimpsestError
from palimpsest.patch import Patch
from palimpsest.patch.edits import Dense, LowRank, Replacement, Rows, edited
from palimpsest.patch.patch import tensors_digest

SHAPE = (5, 4)
NAMES = ("unet.a.weight", "unet.b.weight")


def tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edit(kind: str, seed: int):
    if kind == "dense":
        return Dense(tensor(seed, *SHAPE))
    if kind == "lowrank":
        rank = 1 + seed % 3
        return LowRank(tensor(seed, SHAPE[0], rank), tensor(seed + 1, rank, SHAPE[1]))
    return Rows(torch.tensor([seed % 5]), tensor(seed, 1, SHAPE[1]))


edits = st.builds(edit, st.sampled_from(["dense", "lowrank", "rows"]), st.integers(0, 10_000))
patches = st.dictionaries(st.sampled_from(NAMES), edits.map(lambda e: (e,)), min_size=1).map(Patch)


def applied(patch: Patch) -> dict[str, torch.Tensor]:
    base = {name: tensor(i, *SHAPE) for i, name in enumerate(NAMES)}
    return {name: edited(w, patch.edits.get(name, ())) for name, w in base.items()}


def close(a: Patch, b: Patch) -> bool:
    return all(torch.allclose(applied(a)[n], applied(b)[n], atol=1e-5) for n in NAMES)


@given(patches, patches)
def test_the_order_of_a_sum_does_not_matter(a: Patch, b: Patch):
    assert close(a + b, b + a)


@given(patches, patches, patches)
def test_sums_may_be_bracketed_either_way(a: Patch, b: Patch, c: Patch):
    assert close((a + b) + c, a + (b + c))


@given(patches, patches)
def test_what_was_added_can_be_taken_out(a: Patch, b: Patch):
    assert close((a + b) - b, a)


@given(patches, st.floats(-3, 3), st.floats(-3, 3))
def test_scales_add_up(a: Patch, x: float, y: float):
    assert close(a.scaled(x) + a.scaled(y), a.scaled(x + y))


@given(st.lists(patches, min_size=1, max_size=3).map(lambda ps: sum(ps[1:], ps[0])))
def test_a_norm_is_that_of_the_shifts(a: Patch):
    zero = torch.zeros(SHAPE)
    total = sum(
        float(sum(e.shift(zero).double() for e in es).square().sum()) for es in a.edits.values()
    )
    assert a.norm() == pytest.approx(total**0.5, rel=1e-5, abs=1e-5)


@settings(max_examples=20)
@given(a=patches)
def test_a_patch_survives_its_file(a: Patch, tmp_path_factory):
    path = tmp_path_factory.mktemp("patch") / "p.safetensors"
    assert a.save(path) == 0
    assert Patch.load(path).digest() == a.digest()


@settings(max_examples=20)
@given(a=patches)
def test_a_digest_tells_one_bit_and_one_name(a: Patch):
    tensors = a.tensors()
    assert tensors_digest(tensors) == a.digest()
    assert all(tensors_digest(other) != a.digest() for other in nearly(tensors))


def test_low_rank_patches_stay_factored():
    a, b = (Patch({NAMES[0]: (edit("lowrank", seed),)}) for seed in (1, 2))
    (joined,) = (a + b).edits[NAMES[0]]
    assert isinstance(joined, LowRank)
    assert joined.up.shape[1] == 2 + 3


def test_a_replacement_takes_shifts_but_no_scale_and_no_rival():
    gold = Patch({NAMES[0]: (Replacement(tensor(3, *SHAPE)),)})
    shift = Patch({NAMES[0]: (edit("dense", 4),)})
    expected = tensor(3, *SHAPE) + tensor(4, *SHAPE)
    assert torch.equal(applied(gold + shift)[NAMES[0]], expected)
    assert torch.equal(applied(shift + gold)[NAMES[0]], expected)
    with pytest.raises(PalimpsestError, match="cannot be scaled"):
        gold.scaled(2)
    with pytest.raises(PalimpsestError, match="replaced whole by both"):
        gold + gold


def test_patches_of_two_base_models_do_not_add_up():
    a, b = (Patch({NAMES[0]: (edit("dense", 1),)}, base={NAMES[0]: p}) for p in ("x", "y"))
    with pytest.raises(PalimpsestError, match="different base models"):
        a + b


def test_half_precision_reports_what_it_lost(tmp_path: Path):
    patch = Patch({NAMES[0]: (edit("dense", 1),)})
    lost = patch.save(tmp_path / "half.safetensors", half=True)
    kept = Patch.load(tmp_path / "half.safetensors")
    change = (kept.edits[NAMES[0]][0].shift(torch.zeros(SHAPE)) - tensor(1, *SHAPE)).abs().max()
    assert 0 < lost == pytest.approx(float(change))


@given(cut=st.floats(0, 0.999))
@settings(max_examples=20)
def test_a_file_cut_short_is_refused(cut: float, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "p.safetensors"
    Patch({NAMES[0]: (edit("dense", 1),)}).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(PalimpsestError, match=r"p\.safetensors"):
        Patch.load(path)


def test_an_altered_file_is_refused(tmp_path: Path):
    path = tmp_path / "p.safetensors"
    Patch({NAMES[0]: (edit("dense", 1),)}).save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(PalimpsestError, match="altered"):
        Patch.load(path)


@pytest.mark.parametrize("name", ["unet.a|hue.delta", "unet.a|lowrank.up", "unet.a|dense.shift"])
def test_a_patch_of_unknown_or_missing_tensors_is_refused(tmp_path: Path, name: str):
    tensors = {name: torch.zeros(1)}
    manifest = {"format": 1, "digest": tensors_digest(tensors), "base": {}, "about": {}}
    save_file(tensors, tmp_path / "p.safetensors", metadata={"palimpsest": json.dumps(manifest)})
    with pytest.raises(PalimpsestError, match="not a whole patch file"):
        Patch.load(tmp_path / "p.safetensors")


def test_rows_of_two_precisions_add_up():
    index = torch.tensor([1])
    half = Rows(index, torch.ones(1, 4, dtype=torch.float16))
    assert torch.equal(half.plus(Rows(index, torch.ones(1, 4))).delta, torch.full((1, 4), 2.0))


def test_another_safetensors_file_is_no_patch(tmp_path: Path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(PalimpsestError, match="not a Palimpsest patch"):
        Patch.load(tmp_path / "x.safetensors")
