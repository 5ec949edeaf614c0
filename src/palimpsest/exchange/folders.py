"""Folders that others publish: which of their files hold the weights, and of what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import read_object
from palimpsest.patch.tensor_files import read_weights

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("unet", "text_encoder", "text_encoder_2")
STEMS = (
    *("pytorch_lora_weights", "adapter_model", "diffusion_pytorch_model", "model", "pytorch_model"),
    *(*PARTS, "lora", "delta", "learned_embeds"),
)
"""What the weights are called in folders of Diffusers, Transformers and PEFT, of Concept Ablation,
and of our own exports; the first that lies there is taken."""
FILE = re.compile(
    r"(?P<stem>\w+?)(?P<variant>\.\w+)?(?P<shard>-\d+-of-\d+)?(?P<late>\.\w+)?"
    r"\.(?P<form>safetensors|bin|pt|pth|ckpt)"
)
"""A file of weights: its variant stands before the number of a shard, or behind it."""
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Weights:
    """What was read of a file or a folder."""

    tensors: dict[str, Tensor]
    """By the names in the file; of one of several parts, behind the part's."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Of a safetensors' header."""
    adapters: Mapping[str, Any] = field(default_factory=dict)
    """Part, or nothing → what PEFT's configuration beside it says."""


def read_folder(path: Path) -> Weights:
    """Return the weights of a folder, of one part or of several in folders of their own.

    Raises:
        PalimpsestError: none lie there that are known.
    """
    parts = [part for part in PARTS if _files(path / part)]
    if not _files(path) and parts:
        found = Weights({}, {}, adapters := {})
        for part in parts:
            own = read_folder(path / part)
            found.tensors.update({f"{part}.{name}": t for name, t in own.tensors.items()})
            for config in own.adapters.values():
                adapters[part] = config
        return found
    files, tensors, metadata = _files(path), {}, {}
    if not files:
        there = ", ".join(sorted(each.name for each in path.iterdir())[:4]) or "nothing"
        raise PalimpsestError(f"{path}: no weights that are known lie in this folder, but {there}")
    for file in files:
        own, said = read_weights(file)
        tensors |= own
        metadata |= said
    config = path / CONFIG
    return Weights(tensors, metadata, {"": read_object(config)} if config.is_file() else {})


def _files(path: Path) -> list[Path]:
    """Return the files that hold a folder's weights: several, if these are in shards."""
    found: dict[tuple[Any, ...], list[Path]] = {}
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        named = FILE.fullmatch(file.name)
        if named and named["stem"] in STEMS and file.is_file():
            whole = not (named["variant"] or named["late"])  # before those of half precision
            rank = STEMS.index(named["stem"]), named["form"] != "safetensors", not whole
            variant = named["variant"] or named["late"] or ""
            found.setdefault((*rank, variant, bool(named["shard"])), []).append(file)
    if not found and path.is_dir():  # one alone, whatever it is called
        forms = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
        alone = [f for f in path.iterdir() if f.suffix in forms and f.is_file()]
        return alone if len(alone) == 1 else []
    return found[min(found)] if found else []
