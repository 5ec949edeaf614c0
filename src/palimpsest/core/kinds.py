"""Kinds of concepts and of models, and groups of parameters, by the names that everything uses."""

from __future__ import annotations

from typing import Literal

Kind = Literal["object", "style", "identity", "hazard", "watermark"]
"""What sort of thing a concept is; a judge has one head per kind."""


ParameterGroup = Literal[
    "xattn", "noxattn", "selfattn", "decoder-selfattn", "xattn-kv", "transformer", "full", "text"
]
"""Named sets of a model's parameters, the same names for every family: all are of the U-Net but
`text`, the whole text encoder. `decoder-selfattn`, two layers that Scissorhands cuts in, is Stable
Diffusion's own."""


Sampler = Literal["ddim", "lms", "pndm", "euler", "dpm++", "unipc"]
"""How evaluation pictures are sampled: by the family's own deterministic sampler, called `ddim`
whatever the family, or by one of Diffusers' schedulers."""


Memory = Literal["normal", "low"]
"""How much memory a model computes with: what is fastest, or as little as gives the same."""


Optimizer = Literal["own", "adam8bit"]
"""What a method's training takes its steps by: the Adam or AdamW of its recipe, or one whose
moments have 8 bits."""


Noise = Literal["palimpsest", "torch"]
"""What the noise of a picture is drawn from: a generator of its seed and index, mixed, or
`torch.manual_seed` of its seed on the CPU."""


MODEL_KINDS = ("clip", "llava")
"""What a model's name may begin with, before a colon; without, it is a text-to-image model's."""


def model_kind(name: str) -> tuple[str, str]:
    """Split a model's name, such as `clip:world`, into its kind and its own name.

    Returns:
        One of `MODEL_KINDS` and the rest; nothing and the name, if it is a text-to-image model's.
    """
    kind, colon, own = name.partition(":")
    return (kind, own) if colon and kind in MODEL_KINDS else ("", name)


def presets_for(asked: str, world: bool, kind: str) -> list[str]:
    """Return the presets that come into question, the first choice first.

    Args:
        asked: a preset's name; `auto` is `world` on the world, else `published`.
        world: whether the model is of the world.
        kind: one of `MODEL_KINDS`, for which a method may have a preset of its own, such as
            `world_clip`; nothing for a text-to-image model.
    """
    wanted = [asked] if asked != "auto" else ["world"] * world + ["published"]
    return [name for base in wanted for name in ([f"{base}_{kind}"] if kind else []) + [base]]


NONE = "none of these"
"""What a judge's head says when it sees none of its classes."""
