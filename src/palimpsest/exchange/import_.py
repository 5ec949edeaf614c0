"""Edits that others made, as patches over a base model: LoRAs, embeddings, edited weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.core.errors import NoDifferenceError, PalimpsestError
from palimpsest.core.files import read_object
from palimpsest.exchange import lora
from palimpsest.exchange.export import TWO, keys_of
from palimpsest.exchange.folders import CONFIG, Weights, read_folder
from palimpsest.exchange.foreign import MERGE, refuse_foreign
from palimpsest.exchange.spm import gated, is_spm, may_be_spm
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.keys import Keys
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.patch.edits import Dense, Edit, Rows, refuse_misfits
from palimpsest.patch.hooks import Hook
from palimpsest.patch.tensor_files import checked_tensor, read_weights, sides

if TYPE_CHECKING:
    from torch import Tensor

BARE = re.compile(r"((state_dict|lora|network|module)\.)+")
"""What may stand before the names of a LoRA in a pickle."""
PEFT = re.compile(r"((?:\w+\.)?)base_model\.model\.(.+?)\.(lora_[AB])(?:\.default)?\.weight")
"""The names of PEFT's own files; a part stands before them where there are several."""
TOWERS = {"text_encoders_0": TWO[0], "text_encoders_1": TWO[1]}
"""What some call the vectors of Stable Diffusion XL's text encoders."""


def read(
    path: Path, model: Diffusion, word: str | None = None, concepts: Sequence[str] = ()
) -> Patch:
    """Return the patch that makes of `model` what a file or folder says.

    What it is, is told by its content and not by its name. What the patch does not hold of it
    stands in the patch's `about["notes"]`, in sentences.

    Args:
        path: a LoRA, an SPM, a textual inversion, a state dict of the U-Net or the text encoder (or
            of some of their tensors), a checkpoint, or a folder of one of these.
        model: the base.
        word: for a textual inversion, whose place it takes; for an SPM, what opens it; None takes
            the name or the prompts that it carries.
        concepts: what it was made to forget, if anybody says so: these open an SPM that names no
            prompt.

    Raises:
        PalimpsestError: it is none of these, or not for this model, or equals it.
    """
    if (path / "model_index.json").is_file():
        return _patch(model, _shifts(model, _weights(load_model(str(path)))), path, "folder")
    weights = _load(path)
    tensors, notes = weights.tensors, []
    if not tensors:
        raise PalimpsestError(f"{path}: neither a state dict nor an embedding: it holds no tensor")
    refuse_foreign(tensors, path, "text_encoder_2" in model.networks_by_name)
    keys = Keys(model.networks_by_name)
    kind, metadata = _kind(tensors, keys), weights.metadata
    spm = kind == "lora" and may_be_spm(tensors, metadata)
    if word is not None and kind != "embedding" and not spm:
        raise PalimpsestError(
            f"{path}: no textual inversion, so --word has no meaning here (nor an SPM's gate)"
        )
    if kind == "embedding":
        return _patch(model, _embedding(tensors, model, word, path), path, kind)
    if kind == "state dict":
        found = _named(tensors, model, path, keys, notes)
        return _patch(model, _shifts(model, found), path, kind, notes)
    tensors, metadata = _as_diffusers(weights, keys, path, notes)
    shapes = {name: tuple(p.shape) for name, p in _weights(model).items()}
    factors = lora.read_lora(tensors, metadata, shapes, keys.bare)
    if is_spm(metadata) or (spm and word is not None):
        opened = [word] if word is not None else [] if metadata.get("prompts") else list(concepts)
        hook = gated(model, factors, metadata, opened, path)
        return _patch(model, {}, path, "SPM", notes, hook)
    if spm and {len(edit.down) for edit in factors.values()} == {1}:
        notes.append(
            "rank 1 and no header: if it is an SPM, its gate is lost; name with --word the concept "
            "that opens it"
        )
    return _patch(model, {name: (edit,) for name, edit in factors.items()}, path, kind, notes)


def _kind(tensors: Mapping[str, Tensor], keys: Keys) -> str:
    if any("lora" in key for key in tensors):
        return "lora"
    alone = len(tensors) == 1 and not any(keys.names(key, t) for key, t in tensors.items())
    if alone or tensors.keys() in (set(TWO), set(TOWERS)):
        return "embedding"
    return "state dict"


def _patch(
    model: Diffusion,
    edits: Mapping[str, tuple[Edit, ...]],
    path: Path,
    kind: str,
    notes: Sequence[str] = (),
    hook: Hook | None = None,
) -> Patch:
    if not edits and hook is None:
        raise NoDifferenceError(f"{path}: nothing in it differs from {model.name!r}")
    about: dict[str, Any] = {"method": "import", "arguments": {"file": str(path), "kind": kind}}
    about |= {"notes": list(notes)} if notes else {}
    return model.checked(Patch(edits, about=about, hook=hook))


# --- files ---


def _load(path: Path) -> Weights:
    """Return what a file or a folder holds, with PEFT's configuration if it lies beside it."""
    found = read_folder(path) if path.is_dir() else Weights(*read_weights(path))
    if "palimpsest" in found.metadata:
        raise PalimpsestError(f"{path}: already a patch; nothing needs to be imported")
    config = path.with_name(CONFIG)
    if path.is_file() and path.stem == "adapter_model" and config.is_file():
        return replace(found, adapters={"": read_object(config)})
    return found


def _as_diffusers(
    weights: Weights, keys: Keys, path: Path, notes: list[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a LoRA as Diffusers keeps it: PEFT's names behind a part, its configuration inside."""
    for config in weights.adapters.values():
        if (kind := str(config.get("peft_type", "LORA"))).upper() != "LORA":
            raise PalimpsestError(
                f"{path}: an adapter of the type {kind}, which is no LoRA; {MERGE}"
            )
    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for key, tensor in weights.tensors.items():
        if not (found := PEFT.fullmatch(key)):
            tensors[re.sub(BARE, "", key, count=1) if BARE.match(key) else key] = tensor
            continue
        before, module, side = found.groups()
        other = weights.tensors.get(key.replace(side, "lora_B" if side == "lora_A" else "lora_A"))
        name = _of_adapter(before + module + ".weight", (tensor, other), side, keys)
        if name is None:
            raise PalimpsestError(f"{path}: {key!r} is of a layer that this model does not have")
        part = name.split(".", 1)[0]
        config = weights.adapters.get(before.rstrip("."), weights.adapters.get("", {}))
        told |= {f"{part}.{setting}": value for setting, value in config.items()}
        tensors[f"{lora.peft_name(name)}.{side}.weight"] = tensor
        if not config and not notes:
            notes.append(f"no {CONFIG} lies beside it: α is taken for the rank")
    said = {lora.METADATA: json.dumps(told)} if told else {}
    return tensors, {**weights.metadata, **said}


def _of_adapter(key: str, pair: tuple[Tensor, Tensor | None], side: str, keys: Keys) -> str | None:
    """Return the parameter beside which an adapter's layer lies; of several, where it fits."""
    names = [name for name, _ in keys.candidates(key)[0]]
    down, up = pair if side == "lora_A" else pair[::-1]
    for name in names:
        shape = keys.shapes[name]
        fits = up is None or up.ndim == 0 or len(up) == shape[0]
        if fits and (down is None or prod(down.shape[1:]) == prod(shape[1:])):
            return name
    return names[0] if names else None


# --- weights ---


def _weights(model: Diffusion) -> dict[str, Tensor]:
    return {**model.parameters("full"), **model.parameters("text")}


def _named(
    tensors: Mapping[str, Tensor], model: Diffusion, path: Path, keys: Keys, notes: list[str]
) -> dict[str, Tensor]:
    """Return a file's weights by canonical name; `notes` gets what is left out."""
    found, ours = keys.read(tensors, path), _weights(model)
    if found.unknown:
        raise PalimpsestError(
            f"{path}: {found.unknown[0]!r} is neither a LoRA's nor a parameter of {model.name!r}; "
            "load the model that it was made for"
        )
    mine = {name: tensor for name, tensor in found.weights.items() if name in ours}
    if not mine:
        raise PalimpsestError(
            f"{path}: an autoencoder's weights or none, where a U-Net's or a text encoder's belong"
        )
    if len(mine) < len(found.weights):
        notes.append("the autoencoder in it is not compared")
    if found.twice:
        notes.append("it holds weights and their averages (model_ema): the weights are taken")
    elif found.averages:
        notes.append("the averages of the weights (model_ema) are taken: it holds no others")
    return mine


def _shifts(model: Diffusion, theirs: Mapping[str, Tensor]) -> dict[str, tuple[Edit, ...]]:
    """Dense shifts of the parameters that differ."""
    edits, ours = {}, _weights(model)
    for name, tensor in theirs.items():
        refuse_misfits(name, (Dense(tensor),), ours[name].shape, f"in {model.name!r}")
        checked_tensor(f"{name}: what stands in the file", tensor)
        delta = shift(ours[name].detach().cpu(), tensor.detach().cpu())
        if delta.any():
            edits[name] = (Dense(delta),)
    return edits


def shift(base: Tensor, other: Tensor) -> Tensor:
    """Return the shift from base to other, zero where only rounding parts them."""
    base, other = base.float(), other.float()
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(other.to(dtype).float(), other):  # stored in that precision
            return torch.where(base.to(dtype).float() == other, 0.0, other - base)
    return other - base


# --- embeddings ---


def _embedding(
    tensors: Mapping[str, Tensor], model: Diffusion, word: str | None, path: Path
) -> dict[str, tuple[Edit, ...]]:
    """Return a shift of the rows of a word's tokens to the vectors of a textual inversion."""
    tensors = {TOWERS.get(name, name): tensor for name, tensor in tensors.items()}
    first = next(iter(tensors))
    carried = path.stem if first in ("emb_params", *TWO) else first
    word = word or carried.strip("<>").replace("-", " ")
    if tensors.keys() != set(keys_of(model, first)):
        raise PalimpsestError(
            f"{path}: vectors of {' and '.join(tensors)}, but {model.name!r} has "
            f"{len(model.text.tables)} text encoders; load the model that it was made for"
        )
    edits: dict[str, tuple[Edit, ...]] = {}
    for name, key in zip(model.text.tables, keys_of(model, first), strict=True):
        table = model.weight(name).float().cpu()
        vectors = checked_tensor(f"{path}: {key!r}", tensors[key], read=False)
        vectors = vectors[None] if vectors.ndim == 1 else vectors
        if vectors.ndim != 2 or vectors.shape[1] != table.shape[1]:
            raise PalimpsestError(
                f"{path}: {key!r} is {sides(vectors.shape)}, but the token embeddings of "
                f"{model.name!r} are {table.shape[1]} wide"
            )
        ids = model.text.plain(word)
        if not ids or len(ids) != len(vectors) or len(set(ids)) != len(ids):
            raise PalimpsestError(
                f"{path}: {len(vectors)} vectors, but {word!r} has {len(set(ids))} different "
                "tokens; name with --word a word of as many, whose place they take"
            )
        index, new = torch.tensor(ids), checked_tensor(f"{path}: {key!r}", vectors).float()
        edits[name] = (Rows(index, new - table[index]),)
    return edits
