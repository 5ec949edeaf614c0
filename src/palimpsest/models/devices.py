"""Devices by the names that a person gives them."""

from __future__ import annotations

import torch

from palimpsest.core import processes
from palimpsest.core.errors import PalimpsestError


def usable(device: str) -> str:
    """Return the device that a name means; `auto` is `cuda`, else `mps`, else `cpu`.

    Of several processes on a machine each has a card of its own.

    Raises:
        PalimpsestError: there is no such device here, nothing can be computed on it, or several
            processes would share it.
    """
    found = device == "auto"
    if found:
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if processes.here().size > 1 and device != "cpu":
        device = _own(device)
    if found:
        return device
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own
        why = str(error).strip().split("\n")[0]
        raise PalimpsestError(
            f"the device {device!r} cannot be used here ({why}); take auto, cpu, cuda or mps"
        ) from error
    return device


def _own(device: str) -> str:
    """Return this process's own card."""
    each, n = processes.here(), torch.cuda.device_count()
    own = f"cuda:{each.local_rank}"
    if device not in ("cuda", own) or each.local_size > n:
        raise PalimpsestError(
            f"--device {device}: each of the {each.local_size} processes on this machine needs a "
            f"card of its own, and it has {n}; write --device cuda, and start as many as it has"
        )
    return own
