"""Kinds of concepts and groups of parameters, by the names that everything uses."""

from __future__ import annotations

from typing import Literal

Kind = Literal["object", "style", "identity", "hazard", "watermark"]
"""What sort of thing a concept is; a judge has one head per kind."""


ParameterGroup = Literal["xattn", "noxattn", "selfattn", "xattn-kv", "full", "text"]
"""Named sets of a model's parameters, the same names for every family: all are of the U-Net but
`text`, the whole text encoder."""


NONE = "none of these"
"""What a judge's head says when it sees none of its classes."""
