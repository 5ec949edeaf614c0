"""LoRA files: a patch as a LoRA for other programs, and theirs as a patch.

A LoRA file holds, for each layer it moves, down (rank, in) and up (out, rank), and means the shift
α/rank · up @ down. Two ways of naming them are written, PEFT's for Diffusers and kohya's for A1111
and ComfyUI; these, Diffusers' older ones, LyCORIS' and those by CompVis' blocks are read.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import parse_object
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.factors import carries
from palimpsest.patch import Patch
from palimpsest.patch.algebra import energies, rank_limit, truncated
from palimpsest.patch.edits import LowRank, Replacement, Rows, refuse_misfits, refuse_unpaired
from palimpsest.patch.tensor_files import checked_tensor, sides, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

FILE = "pytorch_lora_weights.safetensors"
"""The name under which Diffusers looks for a LoRA in a folder."""
METADATA = "lora_adapter_metadata"
"""The key of a safetensors header under which Diffusers keeps the adapter's configuration."""
ENDINGS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".down.weight", ".up.weight"),
)
"""How the names of a layer's down and up end."""
NAME = re.compile(r"[\w.]+")
"""What a module's name is made of."""
MOST_TIMES = 64
"""No factor has more numbers than so many times its layer: one of a small layer may have more."""
MOST = 1e9
"""No α is larger."""


# --- out ---


@dataclass(frozen=True)
class Lora:
    """The part of a patch that a LoRA can carry."""

    factors: Mapping[str, LowRank]
    """Parameter → its factors; Δ = up @ down."""
    residual: float
    """What was lost of the patch's norm, ‖Δ − Δ'‖/‖Δ‖."""
    left_out: tuple[str, ...]
    """Parameters that a LoRA cannot carry."""


def lora(patch: Patch, shapes: Mapping[str, tuple[int, ...]], rank: int | None = None) -> Lora:
    """Bring a patch into the form of a LoRA; exactly, or with a `rank` as nearly as that allows.

    Args:
        patch: what to bring there.
        shapes: those of the model's parameters.
        rank: highest rank. With one, what is no matrix is left out and counted as lost.

    Raises:
        PalimpsestError: a tensor replaced whole; no `rank`, and an edit that is not low-rank or
            that a LoRA cannot carry; nothing that it can carry.
    """
    total, lost = sum(energies(patch).values()), 0.0
    if rank is not None:
        patch, residual = truncated(patch, rank)
        lost = residual**2 * total
    factors, left_out = {}, []
    for name, edits in patch.edits.items():
        (edit,) = edits if len(edits) == 1 else (None,)
        if isinstance(edit, LowRank) and carries(name, shapes[name]):
            factors[name] = _within_limit(name, edit)
        elif rank is None:
            raise PalimpsestError(f"{name}: {_obstacle(name, edits, shapes[name])}")
        else:
            left_out.append(name)
            lost += energies(Patch({name: edits}))[name]
    if not factors:
        raise PalimpsestError("a LoRA can carry nothing of this patch; export it as `diffusers`")
    return Lora(factors, sqrt(lost / total) if total else 0.0, tuple(left_out))


def _within_limit(name: str, edit: LowRank) -> LowRank:
    """Return the same shift in no more factors than its matrix has rows or columns."""
    limit = rank_limit((edit,))
    if edit.up.shape[1] <= limit:
        return edit
    (slim,) = truncated(Patch({name: (edit,)}), limit)[0].edits[name]
    assert isinstance(slim, LowRank)
    return slim


def _obstacle(name: str, edits: tuple[Any, ...], shape: tuple[int, ...]) -> str:
    if any(isinstance(edit, Replacement) for edit in edits):
        return "replaced whole, which no LoRA does; export the patch as `diffusers`"
    if not carries(name, shape):
        other = "`embeddings` or `diffusers`" if isinstance(edits[0], Rows) else "`diffusers`"
        return f"a LoRA cannot carry it; name a --rank to leave it out, or export as {other}"
    return (
        "its edit is not low-rank; name a --rank to cut it to, or export the patch as `diffusers`"
    )


def write_lora(
    model: Diffusion,
    patch: Patch,
    folder: Path,
    rank: int | None = None,
    alpha: float | None = None,
) -> list[str]:
    """Return a LoRA for Diffusers' `load_lora_weights`, with its adapter metadata."""
    layers, losses = _made(model, patch, rank, alpha)
    tensors, metadata, ranks = {}, {}, defaultdict(dict)
    for name, (down, up) in layers.items():
        stem, part = peft_name(name), name.split(".")[0]
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
        ranks[part][_module(name)] = len(down)
    for part, own in ranks.items():
        config = adapter_config(own, alpha)
        metadata |= {f"{part}.{key}": value for key, value in config.items()}
    told = {"format": "pt", METADATA: json.dumps(metadata, sort_keys=True)}
    write_tensors(folder / FILE, tensors, told)
    return losses


def adapter_config(ranks: Mapping[str, int], alpha: float | None) -> dict[str, Any]:
    """PEFT's `LoraConfig` of one component, for the ranks of its modules."""
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    return {
        "r": usual,
        "lora_alpha": usual if alpha is None else alpha,
        "rank_pattern": others,
        "alpha_pattern": others if alpha is None else {},
        "target_modules": sorted(ranks),
    }


def write_kohya(
    model: Diffusion,
    patch: Patch,
    folder: Path,
    rank: int | None = None,
    alpha: float | None = None,
) -> list[str]:
    """Return a LoRA by kohya's names, as A1111 and ComfyUI read it."""
    layers, losses = _made(model, patch, rank, alpha)
    tensors = {}
    for name, (down, up) in layers.items():
        scale = len(down) if alpha is None else alpha
        stem = kohya_name(name, len(model.text.tables) > 1)
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        tensors[f"{stem}.alpha"] = down.new_tensor(float(scale))
    write_tensors(folder / "lora.safetensors", tensors, {"format": "pt"})
    return losses


def peft_name(name: str) -> str:
    """Return the name that PEFT's files give the module of a parameter."""
    part, module = name.split(".")[0], _module(name)
    return f"{part}.{module}" if part == "unet" else f"{part}.text_model.{module}"


def kohya_name(name: str, two: bool) -> str:
    """Return kohya's name of a parameter's module; `two` text encoders or one."""
    tower = (2 if name.startswith("text_encoder_2.") else 1) if two else ""
    stem = "lora_unet_" if name.startswith("unet.") else f"lora_te{tower}_text_model_"
    return stem + _module(name).replace(".", "_")


def _module(name: str) -> str:
    """Return a parameter's module, without its component and older text models' wrapper."""
    return name.removesuffix(".weight").split(".", 1)[1].removeprefix("text_model.")


def _made(
    model: Diffusion, patch: Patch, rank: int | None, alpha: float | None
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[str]]:
    """Parameter → weights of its two small layers, and sentences on what they do not hold."""
    if alpha is not None and not alpha > 0:
        raise PalimpsestError(f"alpha is {alpha}; it must be above 0")
    patch.refuse_hook("exported")
    model.accepts(patch)
    outside = [n for n in patch.components if n != "unet" and not n.startswith("text_encoder")]
    if outside:
        raise PalimpsestError(f"no LoRA edits the {outside[0]}; export the patch as `diffusers`")
    named = {**model.parameters("full"), **model.parameters("text")}
    shapes = {name: tuple(named[name].shape) for name in patch.edits}
    made = lora(patch, shapes, rank)
    layers = {name: _layers(f, shapes[name], alpha) for name, f in made.factors.items()}
    return layers, _losses(made, rank)


def _layers(factors: LowRank, shape: tuple[int, ...], alpha: float | None) -> tuple[Tensor, Tensor]:
    """Return both small layers' weights, (rank, in, …) and (out, rank, …), up by rank/α."""
    up, down = factors.up.float(), factors.down.float()
    if alpha is not None:
        up = up * (len(down) / alpha)
    ones = (1,) * (len(shape) - 2)  # a convolution: the kernel in the first, 1×1 in the second
    return down.reshape(-1, *shape[1:]).contiguous(), up.reshape(*up.shape, *ones).contiguous()


def _losses(made: Lora, rank: int | None) -> list[str]:
    if rank is None:
        return []
    told = [f"at rank {rank} the LoRA misses {made.residual:.1%} of the edit's norm"]
    if made.left_out:
        what = f"{len(made.left_out)} parameters that are no matrix, such as {made.left_out[0]}"
        told.append(f"left out, and counted in that: {what}")
    return told


# --- in ---


def read_lora(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    theirs: Mapping[str, str] | None = None,
) -> dict[str, LowRank]:
    """Return the shifts that a LoRA file means.

    Args:
        tensors: the file's, by PEFT's, kohya's, LyCORIS' or Diffusers' older names.
        metadata: of the file's header; the adapter's α lies there.
        shapes: of the model's parameters.
        theirs: parameter → its name by CompVis, without what stands before a network.

    Returns:
        Parameter → factors, α/rank inside.

    Raises:
        PalimpsestError: a layer that the model does not have, or has in another shape, or that is
            given twice, numbers that are not finite, or a tensor that is no part of a plain LoRA.
    """
    config = parse_object(metadata.get(METADATA) or "{}", "the LoRA's adapter metadata")
    if any(key.endswith("use_dora") and value for key, value in config.items()):
        raise PalimpsestError("a DoRA, which is no shift of weights; merge it into its model first")
    factors, used = {}, set()
    two = any(name.startswith("text_encoder_2.") for name in shapes)
    for name, shape in shapes.items():
        block = (theirs or {}).get(name, "")
        for stem in dict.fromkeys(_stems(name, two, block)) if carries(name, shape) else ():
            for ends in ENDINGS:
                keys = tuple(stem + end for end in ends)
                if all(key in tensors and tensors[key].ndim > 1 for key in keys):
                    if name in factors:
                        raise PalimpsestError(f"the LoRA holds {name} twice, once as {keys[0]!r}")
                    used |= {*keys, stem + ".alpha"}
                    plain = _checked(name, *(tensors[key] for key in keys), shape)
                    scale = _scale(name, len(plain.down), tensors.get(stem + ".alpha"), config)
                    checked_tensor(f"{name}: up, times α/rank,", plain.up * scale)
                    factors[name] = _within_limit(name, plain.scaled(scale))
    left = sorted(tensors.keys() - used)
    if left:
        raise PalimpsestError(
            f"the LoRA holds {left[0]!r}, which is no part of a plain LoRA of this model"
        )
    return factors


def _stems(name: str, two: bool, block: str) -> list[str]:
    """Return what the names of a parameter's LoRA may begin with.

    Args:
        name: the parameter.
        two: whether the model has two text encoders.
        block: its name by CompVis; empty if there is none.
    """
    part, module, inside = name.split(".")[0], _module(name), peft_name(name)
    older = re.sub(r"\.(to_[a-z]+)(\.0)?$", r".processor.\1_lora", inside)
    older = re.sub(r"\.(q|k|v|out)_proj$", r".to_\1_lora", older)
    bare = module if part == "unet" else f"{part}.{module}"
    found = [inside, bare, f"{inside}.lora", f"{inside}.lora_linear_layer", older]
    found += [kohya_name(name, two), "lycoris_" + kohya_name(name, two).removeprefix("lora_")]
    if part == "unet":
        found.append("lycoris_" + module.replace(".", "_"))
        for own in [block.removesuffix(".weight")] if block else ():
            low = own.replace(".", "_")
            found += ["lora_unet_" + low, "lycoris_" + low, "lycoris_unet_" + low]
            found += [f"{before}diffusion_model.{own}" for before in ("", "model.")]
    elif not two:  # LyCORIS' wrapper around one text encoder
        found.append("lycoris_text_model_" + module.replace(".", "_"))
    return found


def _scale(name: str, rank: int, alpha: Tensor | None, config: Mapping[str, Any]) -> float:
    """α/rank: α as stored beside the layer, or by the adapter's configuration, else the rank.

    Raises:
        PalimpsestError: an α that is no number, or a pattern that is more than a module's name:
            PEFT would run it, and a stranger's pattern may never end.
    """
    part, module = name.split(".")[0] + ".", _module(name)
    own = {key.removeprefix(part): v for key, v in config.items() if key.startswith(part)}
    found, patterns = own.get("lora_alpha", rank), own.get("alpha_pattern") or {}
    if alpha is not None:
        if alpha.numel() != 1:
            raise PalimpsestError(f"{name}: its alpha is {sides(alpha.shape)}, and no number")
        return float(checked_tensor(f"{name}: its alpha", alpha)) / rank
    if not isinstance(patterns, dict) or not all(map(NAME.fullmatch, patterns)):
        raise PalimpsestError(
            "the LoRA's alpha_pattern holds what is no name of a module; other patterns are not "
            "read: write out the modules' names"
        )
    for named, value in patterns.items():
        if f".{module}".endswith(f".{named}"):
            found = value
    if type(found) not in (int, float) or not abs(found) < MOST:
        raise PalimpsestError(f"{name}: the LoRA's alpha is {found!r:.40}, and no finite number")
    return found / (sqrt(rank) if own.get("use_rslora") else rank)


def _checked(name: str, down: Tensor, up: Tensor, shape: tuple[int, ...]) -> LowRank:
    """Return both factors as matrices in float32, once they are known to fit the layer."""
    for side, tensor in (("down", down), ("up", up)):
        checked_tensor(f"{name}: the LoRA's {side}", tensor, read=False)
    if max(down.numel(), up.numel()) > MOST_TIMES * prod(shape):
        what = f"up is {sides(up.shape)} and down is {sides(down.shape)}"
        raise PalimpsestError(f"{name}: {what}, far larger than the layer, {sides(shape)}")
    if not down.numel() or not up.numel():
        raise PalimpsestError(f"{name}: the LoRA has rank 0")
    if down.ndim > 2 and up.ndim > 2 and prod(up.shape[2:]) > 1:
        raise PalimpsestError(f"{name}: up is {sides(up.shape)}, a kernel where 1×1 belongs")
    edit = LowRank(up.float().flatten(1), down.float().flatten(1))
    refuse_unpaired(name, edit.up, edit.down)
    refuse_misfits(name, (edit,), shape, "in this model")
    for side, tensor in vars(edit).items():
        checked_tensor(f"{name}: the LoRA's {side}", tensor)
    return edit
