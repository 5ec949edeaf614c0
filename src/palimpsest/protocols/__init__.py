"""Published evaluations by name, each one value: prompts, seeds, sampler and judge."""

from __future__ import annotations

from palimpsest.core.registry import Registry

PREFIX = "protocol:"
"""What stands before a protocol's name where a theme's could stand."""

PROTOCOLS = Registry(
    "protocol",
    "palimpsest.protocols",
    {
        "unlearncanvas": "UnlearnCanvas",
        "memora": "MemoRa",
        "srs_me": "SRSME",
        "illusion": "Illusion",
        "slug": "SLUG",
        "i2p": "I2P",
        "unlearndiffatk": "UnlearnDiffAtk",
        "ring_a_bell": "RingABell",
    },
    __name__,
    {"srs-me": "srs_me", "ring-a-bell": "ring_a_bell"},
)
"""Every protocol by its name on the command line."""
