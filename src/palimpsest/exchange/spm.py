"""Files of SPM's authors: a LoRA of kohya's names, and a gate that its file names prompts for.

Lyu et al., CVPR 2024, arXiv:2312.16145. Their files hold up, down and α of each layer, and in the
header the prompts that open them, the rank and α. Without its gate such a file is another edit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from palimpsest.core.errors import PalimpsestError
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch.edits import LowRank
from palimpsest.patch.hooks import Transport
from palimpsest.toolbox.transport import transport

HEADER = {"prompts", "rank", "alpha"}
"""What the authors' headers hold."""


def is_spm(metadata: Mapping[str, str]) -> bool:
    """Return whether a header is one of SPM's."""
    return metadata.keys() >= HEADER


def may_be_spm(keys: Iterable[str], metadata: Mapping[str, str]) -> bool:
    """Return whether it may be an SPM without its header: adapters of the U-Net by kohya's names.

    Scripts of kohya's leave a header of their own.
    """
    theirs = any(name.startswith("ss_") for name in metadata)
    named = all(key.startswith("lora_unet_") for key in keys)
    return is_spm(metadata) or (named and not theirs)


def gated(
    model: Diffusion,
    factors: Mapping[str, LowRank],
    metadata: Mapping[str, str],
    words: Sequence[str],
    path: object,
) -> Transport:
    """Return an SPM as the hook that it is.

    Args:
        model: embeds its prompts.
        factors: its layers'.
        metadata: of its header.
        words: the prompts that open it, in place of the header's.
        path: names it, in words.

    Raises:
        PalimpsestError: no prompt is named, or its layers are of several ranks.
    """
    prompts = list(words) or [
        p for each in metadata.get("prompts", "").split(",") if (p := each.strip())
    ]
    if not prompts:
        raise PalimpsestError(
            f"{path}: an SPM that names no prompt, so nothing would open it; name with --word the "
            "concept that it erases"
        )
    ranks = {len(edit.down) for edit in factors.values()}
    if len(ranks) != 1:
        raise PalimpsestError(f"{path}: an SPM of ranks {sorted(ranks)}; of one rank it must be")
    called = [(k, prompt) for k in range(ranks.pop()) for prompt in prompts]
    return transport(model, called, {name: (e.up, e.down) for name, e in factors.items()})
