"""Devices by the names that a person gives them."""

from __future__ import annotations

import torch

from palimpsest.core.errors import PalimpsestError


def usable(device: str) -> str:
    """Return the device that a name means; `auto` is `cuda`, else `mps`, else `cpu`.

    Raises:
        PalimpsestError: there is no such device here, or nothing can be computed on it.
    """
    if device == "auto":
        mps = torch.backends.mps.is_available()
        return "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own
        why = str(error).strip().split("\n")[0]
        raise PalimpsestError(
            f"the device {device!r} cannot be used here ({why}); take auto, cpu, cuda or mps"
        ) from error
    return device
