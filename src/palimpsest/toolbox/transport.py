"""Facilitated transport for the prompts of a model: what opens which adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from palimpsest.models.diffusion import Diffusion
from palimpsest.patch.hooks import Factors, Match, Transport


def transport(
    model: Diffusion,
    called: Sequence[tuple[int, str]],
    factors: Mapping[str, Factors],
    match: Match = "max",
    power: int = 2,
) -> Transport:
    """Return the hook that opens adapters as far as prompts ask for what they were trained on.

    Args:
        model: embeds the words.
        called: adapter and words that open it.
        factors: (out, K) up and (K, in) down by weight.
        match: what of a prompt counts.
        power: of the opening; 2 in the authors' code, which scales both factors.
    """
    special = set(model.text.special)
    rows = [model.text.plain(name) for _, name in called]
    return Transport(
        up={name: up for name, (up, _) in factors.items()},
        down={name: down for name, (_, down) in factors.items()},
        references=model.rows([name for _, name in called]).float().cpu(),
        owner=tuple(k for k, _ in called),
        words=tuple(tuple(w for w in dict.fromkeys(row) if w not in special) for row in rows),
        match=match,
        power=power,
    )
