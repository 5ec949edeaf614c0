"""A whole model in one file, read with the configuration of a Diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate

from palimpsest.core.errors import PalimpsestError
from palimpsest.models.keys import Keys
from palimpsest.patch.tensor_files import checked_tensor, read_weights, sides

if TYPE_CHECKING:
    import torch
    from torch import nn


def networks(
    path: Path, place: Path, kinds: Mapping[str, type[Any]], dtype: torch.dtype
) -> tuple[dict[str, nn.Module], dict[str, torch.dtype]]:
    """Return the networks whose weights a file holds, and the precisions that it holds them in.

    Args:
        path: a `.safetensors` file or a pickle of tensors, by Diffusers' or CompVis' names.
        place: the folder of their configurations.
        kinds: part → class of Diffusers or Transformers.
        dtype: their precision.

    Raises:
        PalimpsestError: it cannot be read, or lacks a weight of one, or has it in another shape.
    """
    parts: dict[str, Any] = {}
    for part, kind in kinds.items():
        with accelerate.init_empty_weights(include_buffers=False):
            if hasattr(kind, "load_config"):  # Diffusers'
                parts[part] = kind.from_config(kind.load_config(str(place / part)))
            else:
                parts[part] = kind(kind.config_class.from_pretrained(str(place / part)))
    tensors, _ = read_weights(path)
    keys = Keys(parts)
    found = keys.read(tensors, path).weights
    for name, shape in keys.shapes.items():
        if name not in found:
            part, _, weight = name.partition(".")
            whole = f"its weights lack {weight}; name a whole model, or another --base"
            if not any(other.startswith(part + ".") for other in found):
                whole = f"no {part} that {place} describes lies in it"
                whole += "; of a part alone make a patch first: palimpsest patch import"
            raise PalimpsestError(f"{path}: {part}: {whole}")
        if tuple(found[name].shape) != shape:
            raise PalimpsestError(
                f"{path}: {name} is {sides(found[name].shape)}, but {sides(shape)} by {place}; "
                "name the --base that it was made with"
            )
        checked_tensor(f"{path}: the weight {name}", found[name])
    stored = {}
    for part, module in parts.items():
        own = {n: found[f"{part}.{n}"] for n in module.state_dict()}
        stored[part] = next(iter(own.values())).dtype
        own = {n: t.to(dtype).contiguous() for n, t in own.items()}
        module.load_state_dict(own, assign=True)
    return parts, stored
