"""UnlearnCanvas's classifiers: a ViT written out by hand says what ours makes of the file."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.core.errors import PalimpsestError
from palimpsest.data.unlearncanvas import OBJECTS, PHOTO, STYLES
from palimpsest.judge import Opening, open_judge
from palimpsest.judge.references import entry_of, load_judge

WIDTH, DEPTH, PATCH, SIDE = 128, 2, 8, 32


def weights(classes: int, seed: int = 0) -> dict[str, Tensor]:
    """A ViT by timm's names. What enters its blocks is so faint that the norms' epsilon matters."""
    g = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, scale: float = 0.2) -> Tensor:
        return scale * torch.randn(*shape, generator=g)

    found = {
        "cls_token": drawn(1, 1, WIDTH, scale=1e-3),
        "pos_embed": drawn(1, 1 + (SIDE // PATCH) ** 2, WIDTH, scale=1e-3),
        "patch_embed.proj.weight": drawn(WIDTH, 3, PATCH, PATCH, scale=1e-4),
        "patch_embed.proj.bias": drawn(WIDTH, scale=1e-4),
        "norm.weight": 1 + drawn(WIDTH),
        "norm.bias": drawn(WIDTH),
        "head.weight": drawn(classes, WIDTH),
        "head.bias": drawn(classes),
    }
    for i in range(DEPTH):
        for name, out, into in (
            *(("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH)),
            *(("mlp.fc1", 4 * WIDTH, WIDTH), ("mlp.fc2", WIDTH, 4 * WIDTH)),
        ):
            found[f"blocks.{i}.{name}.weight"] = drawn(out, into, scale=0.05)
            found[f"blocks.{i}.{name}.bias"] = drawn(out, scale=0.01)
        for name in ("norm1", "norm2"):
            found[f"blocks.{i}.{name}.weight"] = 1 + drawn(WIDTH)
            found[f"blocks.{i}.{name}.bias"] = drawn(WIDTH)
    return found


def by_hand(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The logits of Dosovitskiy et al.'s ViT (2020, eq. 1 to 4), heads 64 wide, ε = 1e-6."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return centred * scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    n = len(x)
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([w["cls_token"].expand(n, -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + w["pos_embed"]
    for i in range(DEPTH):
        block = f"blocks.{i}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        q, k, v = qkv.reshape(n, -1, 3, WIDTH // 64, 64).permute(2, 0, 3, 1, 4)
        seen = (q @ k.transpose(-1, -2) / math.sqrt(64)).softmax(-1) @ v
        x = x + linear(f"{block}.attn.proj", seen.transpose(1, 2).reshape(n, -1, WIDTH))
        inner = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + linear(f"{block}.mlp.fc2", inner)
    return linear("head", norm("norm", x)[:, 0])


@pytest.fixture(scope="module")
def style50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the authors save it."""
    path = tmp_path_factory.mktemp("vit") / "style50.pth"
    torch.save({"epoch": 3, "model_state_dict": weights(51), "optimizer": {"lr": 1e-3}}, path)
    return path


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    noise = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return (255 * F.interpolate(noise, (60, 45))).round() / 255


def prepared(pictures: Tensor) -> Tensor:
    """Their `Resize((224, 224)), ToTensor(), Normalize([0.5], [0.5])`, at our size."""
    arrays = (255 * pictures).round().byte().permute(0, 2, 3, 1).numpy()
    small = [Image.fromarray(a).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for a in arrays]
    return torch.stack([torch.from_numpy(np.array(a)).permute(2, 0, 1) for a in small]) / 127.5 - 1


def opened(path: Path, **more: Any) -> Any:
    return open_judge(f"vit:{path}", Opening(**more))


def test_a_vit_written_out_by_hand_says_the_same(style50: Path, pictures: Tensor):
    judge = opened(style50)
    expected = by_hand(weights(51), prepared(pictures))
    with torch.no_grad():
        logits = judge.model(pixel_values=judge.pixels(pictures)).logits
    assert expected.std() > 0.1
    assert torch.allclose(logits, expected, atol=1e-5)
    said = judge.read(pictures)
    own = [("Photo" if STYLES[i] == PHOTO else STYLES[i]) for i in expected.argmax(-1)]
    assert said.labels["style"] == own
    assert len({*own}) > 1
    sure = expected.softmax(-1).max(-1).values.tolist()
    assert said.confidence["style"] == pytest.approx(sure, abs=1e-5)


def test_the_epsilon_of_the_norms_is_seen_by_that(style50: Path, pictures: Tensor):
    judge = opened(style50)
    pixels = judge.pixels(pictures)
    with torch.no_grad():
        ours = judge.model(pixel_values=pixels).logits
        for layer in judge.model.modules():
            if isinstance(layer, torch.nn.LayerNorm):
                layer.eps = 1e-12  # what Transformers would take
        assert not torch.allclose(ours, judge.model(pixel_values=pixels).logits, atol=1e-3)


def test_classes_are_the_authors_in_their_order(style50: Path, tmp_path: Path):
    assert (len(STYLES), len({*STYLES}), len(OBJECTS)) == (51, 51, 20)
    assert (STYLES[0], STYLES[38], STYLES[45]) == ("Abstractionism", PHOTO, "Van Gogh")
    styles = opened(style50).classes["style"]
    assert styles[38:41] == ("Photo", "Sketch", "Sponge Dabbed")
    for n, kind, last in ((50, "style", "Winter"), (20, "object", "Waterfalls")):
        path = tmp_path / f"{n}.pth"
        torch.save(weights(n), path)
        classes = opened(path).classes
        assert list(classes) == [kind]
        assert (len(classes[kind]), classes[kind][-1]) == (n, last)
        assert "Photo" not in classes[kind]


def test_styles_are_called_as_prompts_call_them(style50: Path):
    names = {"style": ("van gogh", "photo", "BLOSSOM season"), "object": ("cat",)}
    judge = opened(style50, names=names)
    assert {*judge.classes["style"]} == {*names["style"]}
    with pytest.raises(PalimpsestError, match="'watercolour'; the nearest are 'Watercolor'"):
        opened(style50, names={"style": ("watercolour",)})
    mapped = opened(style50, names={"style": ("impasto",)}, class_map={"Van Gogh": "impasto"})
    assert mapped.classes == {"style": ("impasto",)}


def test_other_counts_need_a_class_map(tmp_path: Path, pictures: Tensor):
    path = tmp_path / "seven.pth"
    torch.save(weights(7), path)
    with pytest.raises(
        PalimpsestError, match=r"7 classes, where 51, 50, 20 are known.*--class-map"
    ):
        opened(path)
    names = {str(i): f"thing {i}" for i in range(7)}
    judge = opened(path, names={"object": tuple(names.values())}, class_map=names)
    expected = by_hand(weights(7), prepared(pictures)).argmax(-1).tolist()
    assert judge.read(pictures).labels["object"] == [f"thing {i}" for i in expected]


def test_wherever_the_weights_lie_in_the_file(style50: Path, tmp_path: Path, pictures: Tensor):
    own = weights(51)
    expected = opened(style50).read(pictures)
    save_file(own, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{k}": t for k, t in own.items()}}, tmp_path / "b.pt")
    for path in tmp_path.iterdir():
        assert opened(path).read(pictures) == expected


def test_its_reference_opens_it_again(style50: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(style50.parent)
    judge = opened(Path(style50.name))
    assert judge.ref == f"vit:{style50.resolve()}"
    assert open_judge(judge.ref).spec == judge.spec
    assert (judge.spec.name, judge.spec.resolution) == ("UnlearnCanvas ViT style50", SIDE)


class Evil:
    def __reduce__(self) -> tuple[Any, Any]:
        return exec, ("raise SystemExit('ran')",)


def without(key: str) -> dict[str, Any]:
    return {k: t for k, t in weights(51).items() if k != key}


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        ({}, "patch_embed.proj.weight"),
        (without("blocks.1.norm2.bias"), "vit.*1.*layernorm_after.bias is missing"),
        (without("head.bias"), "head.bias"),
        ({**weights(51), "blocks.0.ls1.gamma": torch.ones(3)}, "blocks.0.ls1.gamma belongs to no"),
        ({**weights(51), "fc_norm.weight": torch.ones(3)}, "fc_norm.weight belongs to no"),
        ({**weights(51), "norm.bias": torch.ones(3)}, "weights.pth: "),
        ({**weights(51), "norm.bias": torch.full((WIDTH,), math.nan)}, "NaN or infinite"),
        ({**weights(51), "x": Evil()}, "tensors alone are read"),
    ],
)
def test_what_is_no_such_file_is_refused_in_a_sentence(tmp_path: Path, saved: Any, told: str):
    path = tmp_path / "weights.pth"
    torch.save(saved, path)
    with pytest.raises(PalimpsestError, match=told) as refused:
        opened(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("word", ["vit:", "vit:no/such.pth", "vit:nowhere.pth"])
def test_a_file_that_is_not_there_is_refused(word: str):
    with pytest.raises(PalimpsestError, match=re.escape(word.removeprefix("vit:") or "vit:FILE")):
        open_judge(word)


def test_both_files_are_joined_into_one_judge_of_styles_and_objects(style50: Path, tmp_path: Path):
    objects = tmp_path / "objects.pth"
    torch.save(weights(20, seed=1), objects)
    both = open_judge(f"vit:{style50}+vit:{objects}")
    apart = [open_judge(f"vit:{path}") for path in (style50, objects)]
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert both.read(images).labels == apart[0].read(images).labels | apart[1].read(images).labels
    assert {*both.classes} == {"style", "object"}
    again = load_judge(entry_of(both))
    assert entry_of(again) == entry_of(both)
    with pytest.raises(PalimpsestError, match="sees nothing that a judge before it does not"):
        open_judge(f"vit:{style50}+vit:{style50}")
