"""The recoveries, each one file that reads like its paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.registry import Registry

if TYPE_CHECKING:
    from palimpsest.recover.benign import Benign as Benign
    from palimpsest.recover.illusion import Illusion as Illusion
    from palimpsest.recover.memora import MemoRa as MemoRa

RECOVERIES = Registry(
    "recovery",
    "palimpsest.recoveries",
    {
        "memora": "MemoRa",
        "illusion": "Illusion",
        "benign": "Benign",
    },
    __name__,
)
"""Every recovery by its command-line name."""


def __getattr__(name: str):
    return RECOVERIES.attribute(name)
