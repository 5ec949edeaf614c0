"""Patches that travel: what other programs load, without anything of ours.

A writer takes a model, a patch for it, a folder and a person's options, writes its files there and
returns sentences on what they do not hold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import only_component
from palimpsest.exchange.lora import write_kohya, write_lora
from palimpsest.models import compvis
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch, precision
from palimpsest.patch.edits import Edit, LowRank, edited
from palimpsest.patch.tensor_files import checked_tensor, write_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

CHECKPOINT = "checkpoint.safetensors"
"""What a model in a single file is called."""
TWO = ("clip_l", "clip_g")
"""What others call the vectors of Stable Diffusion XL's text encoders in a file, in their order."""


# --- whole models ---


def write_pipeline(model: Diffusion, patch: Patch, folder: Path) -> list[str]:
    """Return the whole pipeline as a Diffusers folder, with all that the base has but its weights.

    The precision of its files is the base's.
    """
    patch.refuse_hook("exported")
    with model.patched(patch), as_stored(model):
        model.pipeline().save_pretrained(folder)
    for file in (folder / "model_index.json", *folder.glob("*/preprocessor_config.json")):
        text = file.read_text(encoding="utf-8")  # a class that other versions do not have
        file.write_text(text.replace("ImageProcessorPil", "ImageProcessor"), encoding="utf-8")
    left = [f"the base's {part} is not in this folder" for part in model.left_out]
    return [*_rounded(model, patch.edits, model.stored), *left]


def write_checkpoint(model: Diffusion, patch: Patch, folder: Path) -> list[str]:
    """Return the whole model as one file by CompVis' names, as A1111 and ComfyUI read it."""
    patch.refuse_hook("exported")
    if not model.networks_by_name.keys() >= {"unet", "vae", "text_encoder"}:
        raise PalimpsestError(f"{model.name!r} is of a family without such a file; take another")
    with model.patched(patch), as_stored(model):
        state = compvis.written(model.networks_by_name)
    notes = _rounded(model, patch.edits, model.stored)
    if getattr(model.schedule, "predicts", "") == "v_prediction":
        state["v_pred"] = torch.zeros(0)  # how ComfyUI and A1111 tell it of an XL
        notes.append("it predicts v; of a Stable Diffusion 2 A1111 and ComfyUI have to guess that")
    write_tensors(folder / CHECKPOINT, state, {"format": "pt"})
    return [*notes, "the scheduler and the tokenizers are not in this file"]


@contextmanager
def as_stored(model: Diffusion) -> Iterator[None]:
    """Let the networks of a model have the precision of its files, where that is known.

    Raises:
        PalimpsestError: a weight that overflows in it.
    """
    held: dict[nn.Parameter, Tensor] = {}
    try:
        for part, dtype in model.stored.items():
            for name, parameter in model.component(part).named_parameters():
                if parameter.dtype != dtype:
                    held[parameter] = parameter.data
                    what = f"{part}.{name}: in {precision.named(dtype)}, as the base is stored, it"
                    parameter.data = checked_tensor(what, parameter.data.to(dtype))
        yield
    finally:
        for parameter, tensor in held.items():
            parameter.data = tensor


def _rounded(
    model: Diffusion, edits: Mapping[str, tuple[Edit, ...]], stored: Mapping[str, torch.dtype]
) -> list[str]:
    """Say what the precision of the files takes of an edit, if they are not in float32."""
    kinds = {n: stored.get(n.split(".", 1)[0], model.weight(n).dtype) for n in edits}
    other = [*dict.fromkeys(kind for kind in kinds.values() if kind != torch.float32)]
    if not other:
        return []
    share = precision.lost(edits, model.weight, kinds.__getitem__)
    types = " and ".join(map(precision.named, other))
    as_base = ", as the base is" if any(kind != model.dtype for kind in other) else ""
    cure = ""
    if share > precision.TOLD:
        factored = all(isinstance(edit, LowRank) for own in edits.values() for edit in own)
        apart = ", or as `lora`, which keeps it apart from the weights" if factored else ""
        cure = f"; to keep it, export with --dtype float32{apart}"
    return [
        f"written in {types}{as_base}: rounding takes {precision.said(share)} of the edit{cure}"
    ]


def write_part(part: str, prefix: str, model: Diffusion, patch: Patch, folder: Path) -> list[str]:
    """Return the state dict of one component, by names that begin with a prefix."""
    patch.refuse_hook("exported")
    if part not in patch.components:
        raise PalimpsestError(
            f"the patch does not touch the {part}, but the {', '.join(patch.components)}; export "
            "it as `diffusers`"
        )
    with model.patched(patch):
        state = {
            prefix + name.removeprefix(prefix): tensor.detach().cpu().contiguous()
            for name, tensor in model.component(part).state_dict().items()
        }
        write_tensors(folder / f"{part}.safetensors", state, {"format": "pt"})
    own = {name: each for name, each in patch.edits.items() if name.split(".", 1)[0] == part}
    notes = _rounded(model, own, {})
    if model.stored.get(part, model.dtype) != model.dtype:
        mine, theirs = map(precision.named, (model.dtype, model.stored[part]))
        notes.append(f"written in {mine}; the base lies in {theirs}, which --dtype {theirs} writes")
    others = [name for name in patch.components if name != part]
    return notes + [f"the patch also edits the {n}, which is not in this file" for n in others]


# --- embeddings ---


def write_embeddings(
    model: Diffusion, patch: Patch, folder: Path, word: tuple[str, ...] = ()
) -> list[str]:
    """Edited token embeddings as textual inversions, one file a word, for A1111 and Diffusers."""
    for text, vectors in embeddings(model, patch, word).items():
        slug = only_component(re.sub(r"[^\w]+", "-", text).strip("-") or "token")
        path = folder / f"{slug}.safetensors"
        if path.exists():
            raise PalimpsestError(
                f"--word {text}: another word is written as {slug}; leave one out"
            )
        file = dict(zip(keys_of(model, f"<{slug}>"), vectors, strict=True))
        write_tensors(path, file, {"format": "pt"})
    rest = len(patch.edits.keys() - set(model.text.tables))
    return [f"{rest} other edited parameters are not in these files"] if rest else []


def keys_of(model: Diffusion, name: str) -> tuple[str, ...]:
    """Return what a file calls the vectors of a word, those of each table of the model."""
    return TWO if len(model.text.tables) > 1 else (name,)


def embeddings(
    model: Diffusion, patch: Patch, words: tuple[str, ...] = ()
) -> dict[str, list[Tensor]]:
    """Word → (tokens, width) embeddings of its tokens under the patch, of each table.

    Args:
        model: gives the unedited embeddings and the tokenizer.
        patch: what edits them.
        words: which; none takes each token that the patch moves as a word of its own.

    Raises:
        PalimpsestError: the patch moves no token embedding, none of a word, or has a hook.
    """
    patch.refuse_hook("exported")
    model.accepts(patch)
    if not patch.edits.keys() & set(model.text.tables):
        raise PalimpsestError("the patch edits no token embedding; export it in another format")
    bases = [model.weight(name).float().cpu() for name in model.text.tables]
    pairs = zip(bases, model.text.tables, strict=True)
    tables = [edited(base, patch.edits.get(name, ())) for base, name in pairs]
    apart = [(new != old).any(1) for new, old in zip(tables, bases, strict=True)]
    moved = torch.stack(apart).any(0).nonzero().flatten().tolist()
    if not words:
        pieces = {i: piece for piece, i in model.text.pieces().items()}
        named = [pieces[i].removesuffix("</w>") for i in moved]
        twice = {word for word, n in Counter(named).items() if n > 1}
        labels = [f"{w}-{i}" if w in twice else w for w, i in zip(named, moved, strict=True)]
        rows = [[table[[i]] for table in tables] for i in moved]
        return dict(zip(labels, rows, strict=True))
    found = {word: model.text.plain(word) for word in words}
    for word, ids in found.items():
        if not set(ids) & set(moved):
            raise PalimpsestError(f"the patch moves no embedding of {word!r}; name another --word")
    return {word: [table[ids].contiguous() for table in tables] for word, ids in found.items()}


FORMATS: dict[str, tuple[Callable[..., list[str]], tuple[str, ...]]] = {
    "diffusers": (write_pipeline, ()),
    "checkpoint": (write_checkpoint, ()),
    "unet": (partial(write_part, "unet", ""), ()),  # by Diffusers' names
    "text-encoder": (partial(write_part, "text_encoder", "text_model."), ()),  # by CLIP's
    "text-encoder-2": (partial(write_part, "text_encoder_2", ""), ()),
    "lora": (write_lora, ("rank", "alpha")),
    "kohya": (write_kohya, ("rank", "alpha")),
    "embeddings": (write_embeddings, ("word",)),
}
"""Format → its writer, and the options that this takes."""
