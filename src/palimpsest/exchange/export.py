"""Patches that travel: what other programs load, without anything of ours.

A writer takes a model, a patch for it, a folder and a person's options, writes its files there and
returns sentences on what they do not hold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from palimpsest.core.errors import PalimpsestError
from palimpsest.exchange.lora import write_kohya, write_lora
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.patch.edits import edited

# --- whole models ---


def write_pipeline(model: Diffusion, patch: Patch, folder: Path) -> list[str]:
    """The whole pipeline as a Diffusers folder."""
    patch.refuse_hook("exported")
    with model.patched(patch):
        model.pipeline().save_pretrained(folder)
    return []


def write_part(part: str, prefix: str, model: Diffusion, patch: Patch, folder: Path) -> list[str]:
    """The state dict of one component, by names that begin with a prefix."""
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
        save_file(state, folder / f"{part}.safetensors", metadata={"format": "pt"})
    others = [name for name in patch.components if name != part]
    return [f"the patch also edits the {name}, which is not in this file" for name in others]


# --- embeddings ---


def write_embeddings(
    model: Diffusion, patch: Patch, folder: Path, word: tuple[str, ...] = ()
) -> list[str]:
    """Edited token embeddings as textual inversions, one file a word, for A1111 and Diffusers."""
    for text, vectors in embeddings(model, patch, word).items():
        slug = re.sub(r"[^\w]+", "-", text).strip("-") or "token"
        file = {f"<{slug}>": vectors}
        save_file(file, folder / f"{slug}.safetensors", metadata={"format": "pt"})
    rest = len(patch.edits) - 1
    return [f"{rest} other edited parameters are not in these files"] if rest else []


def embeddings(model: Diffusion, patch: Patch, words: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Word → (tokens, width) embeddings of its tokens under the patch.

    Args:
        model: gives the unedited embeddings and the tokenizer.
        patch: what edits them.
        words: which; none takes each token that the patch moves as a word of its own.

    Raises:
        PalimpsestError: the patch moves no token embedding, none of a word, or has a hook.
    """
    patch.refuse_hook("exported")
    model.accepts(patch)
    (name,) = model.text.tables
    if name not in patch.edits:
        raise PalimpsestError("the patch edits no token embedding; export it in another format")
    base = model.parameters("text")[name].detach().float().cpu()
    table = edited(base, patch.edits[name])
    moved = (table != base).any(1).nonzero().flatten().tolist()
    if not words:
        pieces = {i: piece for piece, i in model.text.pieces().items()}
        named = [pieces[i].removesuffix("</w>") for i in moved]
        twice = {word for word, n in Counter(named).items() if n > 1}
        labels = [f"{w}-{i}" if w in twice else w for w, i in zip(named, moved, strict=True)]
        return {label: table[[i]] for label, i in zip(labels, moved, strict=True)}
    found = {word: model.text.plain(word) for word in words}
    for word, ids in found.items():
        if not set(ids) & set(moved):
            raise PalimpsestError(f"the patch moves no embedding of {word!r}; name another --word")
    return {word: table[ids].contiguous() for word, ids in found.items()}


FORMATS: dict[str, tuple[Callable[..., list[str]], tuple[str, ...]]] = {
    "diffusers": (write_pipeline, ()),
    "unet": (partial(write_part, "unet", ""), ()),  # by Diffusers' names
    "text-encoder": (partial(write_part, "text_encoder", "text_model."), ()),  # by CLIP's
    "lora": (write_lora, ("rank", "alpha")),
    "kohya": (write_kohya, ("rank", "alpha")),
    "embeddings": (write_embeddings, ("word",)),
}
"""Format → its writer, and the options that this takes."""
