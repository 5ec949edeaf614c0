"""UnlearnCanvas's classifiers of styles and of objects as judges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from PIL.Image import Resampling

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.provenance import digest
from palimpsest.core.quiet import quiet
from palimpsest.data.unlearncanvas import OBJECTS, PHOTO, STYLES
from palimpsest.judge import Opening
from palimpsest.judge.hf import ImageClassifier, Origin
from palimpsest.models.devices import usable
from palimpsest.models.hub import published
from palimpsest.models.loading import moved
from palimpsest.patch.tensor_files import UNREADABLE, read_weights

if TYPE_CHECKING:
    from torch import Tensor

PHOTOS = f"Photo,{PHOTO}"
"""Captions call the photographs by either name."""
HEADS = {
    len(labels): (kind, labels)
    for kind, labels in (
        ("style", tuple(PHOTOS if style == PHOTO else style for style in STYLES)),
        ("style", tuple(style for style in STYLES if style != PHOTO)),
        ("object", OBJECTS),
    )
}
"""How many classes a file has → what they are."""

WHERE = {
    "": "vit.embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
}
"""timm's modules outside the blocks → those of Transformers, as files on the Hub name them."""
BLOCK = {
    "norm1": ["layernorm_before"],
    "norm2": ["layernorm_after"],
    "attn.qkv": [f"attention.attention.{name}" for name in ("query", "key", "value")],
    "attn.proj": ["attention.output.dense"],
    "mlp.fc1": ["intermediate.dense"],
    "mlp.fc2": ["output.dense"],
}
"""Those in a block → one module, or three that share its rows."""
TOKENS = {"cls_token": "cls_token", "pos_embed": "position_embeddings"}
SAYING = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.bias", "head.bias")
"""Tensors whose shapes say how large a ViT is."""
HEAD_WIDTH = 64
"""Width of an attention head in every ViT of timm's that has the name of a size."""


class UnlearnCanvas(ImageClassifier):
    """Names the style or the object, as the ViT-L classifiers of UnlearnCanvas do.

    Zhang et al. 2024 (arXiv 2402.11846). Pictures are resized to 224 × 224 by Pillow's bilinear
    filter, whatever their form, and normalised to [-1, 1], as the authors do.
    """

    @classmethod
    def open(cls, opening: Opening) -> UnlearnCanvas:
        """Open `style50.pth`, `style50_cls.pth` or another file of timm's `vit_*` by its path.

        Raises:
            PalimpsestError: no such file, none of a ViT of timm's, or one of unknown classes.
        """
        if not opening.ref:
            raise PalimpsestError("vit: says no file; name vit:FILE, such as vit:style50.pth")
        path, device = published(Path(opening.ref)), usable(opening.device)
        try:
            tensors = own(read_weights(path)[0])
            kind, labels = head_of(len(tensors["head.bias"]), opening.class_map)
            model = network(tensors, labels)
        except (*UNREADABLE, PalimpsestError) as error:
            why = str(error).strip().split("\n")[0]
            raise PalimpsestError(f"{path}: no classifier of UnlearnCanvas's ({why})") from error
        side = model.config.image_size
        processor: Any = transformers.ViTImageProcessorPil(
            size={"height": side, "width": side},
            resample=Resampling.BILINEAR,  # type: ignore[arg-type]
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        ref = f"vit:{path.resolve() if Path(opening.ref).exists() else opening.ref}"
        origin = Origin(ref, f"UnlearnCanvas ViT {path.stem}", digest(path), kind)
        return cls(moved(model, device, str(path)), processor, opening, origin)


def own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a ViT's tensors by timm's names, whatever dictionaries they lay in.

    Raises:
        PalimpsestError: one is missing that says how large it is.
    """
    end = "cls_token"
    root = next((k.removesuffix(end) for k in tensors if f".{k}".endswith(f".{end}")), "")
    found = {k.removeprefix(root): t for k, t in tensors.items() if k.startswith(root)}
    if lacking := [name for name in SAYING if name not in found]:
        raise PalimpsestError(f"{lacking[0]} is missing")
    return found


def head_of(n: int, class_map: Mapping[str, str]) -> tuple[str | None, tuple[str, ...]]:
    """Return what so many classes are, and their labels; with a class map, those by number.

    Raises:
        PalimpsestError: nobody says what they are.
    """
    if n in HEADS:
        return HEADS[n]
    if not class_map:
        raise PalimpsestError(
            f"it has {n} classes, where {', '.join(map(str, HEADS))} are known; say what they are "
            'with --class-map FILE.json, {"0": "NAME", …}'
        )
    return None, tuple(map(str, range(n)))


@quiet()
def network(tensors: Mapping[str, Tensor], labels: Iterable[str]) -> Any:
    """Return the network whose weights these are, of the sizes that their shapes say.

    Args:
        tensors: by timm's names.
        labels: of its classes.

    Raises:
        PalimpsestError: a weight is missing, left over or of another shape.
    """
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=len({k.split(".")[1] for k in tensors if k.startswith("blocks.")}),
        num_attention_heads=width // HEAD_WIDTH,
        intermediate_size=len(tensors["blocks.0.mlp.fc1.bias"]),
        image_size=patch * isqrt(tensors["pos_embed"].shape[1] - 1),
        patch_size=patch,
        layer_norm_eps=1e-6,  # timm's
        id2label=dict(enumerate(labels)),
    )
    state = {name: t.float() for key in tensors for name, t in renamed(key, tensors[key])}
    given = {"config": config, "state_dict": state, "output_loading_info": True}
    made: Any = transformers.ViTForImageClassification.from_pretrained(None, **given)
    model, info = made
    if wrong := sorted(info["missing_keys"] | info["unexpected_keys"]):
        raise PalimpsestError(f"{wrong[0]} is missing or left over")
    return model


def renamed(key: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
    """Return timm's tensor as that, or those, of Transformers.

    Raises:
        PalimpsestError: a ViT has no tensor of that name.
    """
    module, _, end = key.rpartition(".")
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", module)
    if block and block[2] in BLOCK:
        names = [f"vit.encoder.layer.{block[1]}.{name}" for name in BLOCK[block[2]]]
    elif module in WHERE:
        names = [WHERE[module]]
    else:
        raise PalimpsestError(f"{key} belongs to no ViT of timm's")
    parts = tensor.chunk(len(names)) if len(names) > 1 else [tensor]
    end = TOKENS.get(end, end)
    return [(f"{name}.{end}", part.clone()) for name, part in zip(names, parts, strict=True)]
