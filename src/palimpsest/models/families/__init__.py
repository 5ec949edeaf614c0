"""Families of text-to-image models, one file each."""

from __future__ import annotations

from palimpsest.core.registry import Registry

OWN = {"sd": "StableDiffusion", "sdxl": "StableDiffusionXL"}
FAMILIES = Registry("family", "palimpsest.families", OWN, __name__)
"""Every family whose pipelines can be loaded, by the name of its file."""
