"""Edits that others made, as patches over a base model: LoRAs, embeddings, edited weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.errors import NoDifferenceError, PalimpsestError
from palimpsest.exchange import lora
from palimpsest.exchange.export import TWO, keys_of
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.patch.edits import Dense, Edit, Rows, refuse_misfits
from palimpsest.patch.tensor_files import checked_tensor, read_pickle, read_tensors, sides

PARTS = ("unet", "text_encoder", "text_encoder_2", "lora")
KNOWN = (lora.FILE, "diffusion_pytorch_model.safetensors", *(f"{n}.safetensors" for n in PARTS))
"""What the weights are called in a folder of a LoRA, of a U-Net alone, and of our own exports."""


def read(path: Path, model: Diffusion, word: str | None = None) -> Patch:
    """Return the patch that makes of `model` what a file or folder says.

    Args:
        path: a LoRA, a textual inversion, a state dict of the U-Net or the text encoder (or of some
            of their tensors), a checkpoint, or a Diffusers folder.
        model: the base.
        word: for a textual inversion, whose place it takes; None takes the name it carries.

    Raises:
        PalimpsestError: it is none of these, or not for this model, or equals it.
    """
    if (path / "model_index.json").is_file():
        return _patch(model, _shifts(model, _weights(load_model(str(path)))), path, "folder")
    file = next((path / name for name in KNOWN if (path / name).is_file()), path)
    tensors, metadata = _load(file)
    if not tensors:
        raise PalimpsestError(f"{file}: holds no tensor")
    kind = _kind(tensors, model)
    if word is not None and kind != "embedding":
        raise PalimpsestError(f"{path}: no textual inversion, so --word has no meaning here")
    if kind == "lora":
        shapes = {name: tuple(p.shape) for name, p in _weights(model).items()}
        factors = lora.read_lora(tensors, metadata, shapes)
        return _patch(model, {name: (edit,) for name, edit in factors.items()}, path, kind)
    if kind == "embedding":
        return _patch(model, _embedding(tensors, model, word, path), path, kind)
    if kind == "checkpoint":
        theirs = load_model(str(path), base=model.files.get("base", model.name))
        return _patch(model, _shifts(model, _weights(theirs)), path, kind)
    return _patch(model, _shifts(model, _named(tensors, model, path)), path, kind)


def _kind(tensors: Mapping[str, Tensor], model: Diffusion) -> str:
    if any("lora" in key for key in tensors):
        return "lora"
    if any(key.startswith("model.diffusion_model.") for key in tensors):
        return "checkpoint"
    known = _weights(model)
    alone = len(tensors) == 1 and not any(_name(k, t, known) for k, t in tensors.items())
    if alone or tensors.keys() == set(TWO):
        return "embedding"
    return "state dict"


def _patch(model: Diffusion, edits: Mapping[str, tuple[Edit, ...]], path: Path, kind: str) -> Patch:
    if not edits:
        raise NoDifferenceError(f"{path}: nothing in it differs from {model.name!r}")
    arguments = {"file": str(path), "kind": kind}
    return model.checked(Patch(edits, about={"method": "import", "arguments": arguments}))


# --- files ---


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file by name, and the metadata of its header."""
    if not path.is_file():
        what = "no weights that are known lie in this folder" if path.is_dir() else "no such file"
        raise PalimpsestError(f"{path}: {what}")
    if path.suffix != ".safetensors":
        return _unpacked(read_pickle(path), path), {}
    tensors, metadata = read_tensors(path)
    if "palimpsest" in metadata:
        raise PalimpsestError(f"{path}: already a patch; nothing needs to be imported")
    return tensors, metadata


def _unpacked(found: Any, path: Path) -> dict[str, Tensor]:
    """Return a pickle's tensors: of a state dict, an A1111 embedding, or a bare tensor."""
    if isinstance(found, dict) and isinstance(own := found.get("string_to_param"), Mapping) and own:
        found = {str(found.get("name", path.stem)): next(iter(own.values()))}
    elif isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    elif isinstance(found, Tensor):
        found = {path.stem: found}
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise PalimpsestError(f"{path}: neither a state dict nor an embedding")
    return {str(name): tensor.detach() for name, tensor in found.items()}


# --- weights ---


def _weights(model: Diffusion) -> dict[str, Tensor]:
    return {**model.parameters("full"), **model.parameters("text")}


def _name(key: str, tensor: Tensor, known: Mapping[str, Tensor]) -> str | None:
    """Return the canonical name of a file's `key`; of several, that of its shape."""
    bare = re.sub(r"^(unet\.|text_encoder\.|text_encoder_2\.)?(text_model\.)?", "", key)
    places = ("unet.", *(f"text_encoder{n}.{t}" for n in ("", "_2") for t in ("", "text_model.")))
    names = [n for n in (key, *(place + bare for place in places)) if n in known]
    return next((n for n in names if known[n].shape == tensor.shape), next(iter(names), None))


def _named(tensors: Mapping[str, Tensor], model: Diffusion, path: Path) -> dict[str, Tensor]:
    known, found = _weights(model), {}
    for key, tensor in tensors.items():
        name = _name(key, tensor, known)
        if name in found:
            raise PalimpsestError(f"{path}: holds {name} twice, once as {key!r}")
        if name is not None:
            found[name] = tensor
        elif not key.endswith("position_ids"):  # a buffer of older text encoders
            raise PalimpsestError(
                f"{path}: {key!r} is neither a LoRA's nor a parameter of {model.name!r}; load the "
                "model that it was made for"
            )
    return found


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
