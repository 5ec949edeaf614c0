"""Named groups of Stable Diffusion's parameters, as the papers name them.

All but `text` are parameters of the U-Net.
"""

from __future__ import annotations

from collections.abc import Callable

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import ParameterGroup

HEAD = ("unet.time_embedding.", "unet.conv_norm_out.", "unet.conv_out.")
"""Time embedding and output head, by Diffusers' names; `out.` alone would also match `to_out.`."""

GROUPS: dict[str, Callable[[str], bool]] = {
    "xattn": lambda name: ".attn2." in name,
    "xattn-kv": lambda name: ".attn2.to_k." in name or ".attn2.to_v." in name,
    "noxattn": lambda name: ".attn2." not in name and not name.startswith(HEAD),
    "selfattn": lambda name: ".attn1." in name,
    "full": lambda name: True,
    "text": lambda name: True,
}


def select(names: list[str], group: ParameterGroup) -> list[str]:
    """The names of a group, in the model's order.

    Raises:
        PalimpsestError: the group is unknown, or selects nothing in this model.
    """
    if group not in GROUPS:
        raise PalimpsestError(f"no parameter group {group!r}; there are {', '.join(GROUPS)}")
    part = "text_encoder." if group == "text" else "unet."
    chosen = [name for name in names if name.startswith(part) and GROUPS[group](name)]
    if not chosen:
        raise PalimpsestError(f"the group {group!r} selects no parameter of this model")
    return chosen
