"""Tensors in files: read by content and never executed, written whole."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.core.atomic import whole
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import regular

UNREADABLE = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(RecursionError, MemoryError, AssertionError, pickle.UnpicklingError),
)
"""What torch makes of a pickle that is broken or holds more than tensors."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The types that a weight may be stored in."""
ROWS = (torch.int32, torch.int64)
"""The types that numbers of rows may be stored in."""


def read_metadata(path: Path) -> dict[str, str]:
    """Return what the header of a safetensors file says besides its tensors.

    Raises:
        PalimpsestError: no such file, or none of safetensors that is whole.
    """
    try:
        with safe_open(regular(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, error) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file by name, and the metadata of its header.

    Raises:
        PalimpsestError: no such file, or none of safetensors that is whole.
    """
    try:
        with safe_open(regular(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(  # noqa: SIM118
                file.metadata() or {}
            )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _broken(path, error) from None


def read_pickle(path: Path) -> Any:
    """Return what torch saved in a file: tensors and plain values alone, on the CPU.

    Raises:
        PalimpsestError: no such file, cut short, or with anything else in it.
    """
    try:
        return torch.load(regular(path), map_location="cpu", weights_only=True)
    except PalimpsestError:
        raise
    except UNREADABLE as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> PalimpsestError:
    why = str(error).strip().split("\n")[0] or type(error).__name__
    return PalimpsestError(f"{path}: no weights can be read from it ({why})")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whole.

    Raises:
        WriteError: it cannot be written; nothing half-written stays.
    """
    with whole(path) as part:
        save_file(dict(tensors), part, None if metadata is None else dict(metadata))
        if len(metadata or ()) > 1:
            _order_metadata(part)


def _order_metadata(path: Path) -> None:
    """Bring the metadata of a file into the order of its names: the library leaves it to chance."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))  # as long as before: the tensors' places count from its end


def checked_tensor(
    what: str,
    tensor: Tensor,
    shape: Sequence[int] | None = None,
    *,
    index: bool = False,
    read: bool = True,
) -> Tensor:
    """Return a tensor that came from elsewhere, if a weight can be made of it.

    Args:
        what: names it, in words.
        tensor: dense; real floating numbers, all finite.
        shape: what it must be.
        index: it numbers rows instead: whole numbers from 0 up, no two alike.
        read: look at its numbers, too, and not at its form alone.

    Raises:
        PalimpsestError: naming it, and what is wrong with it.
    """
    wrong = _misshapen(tensor, shape, index) or (_unsound(tensor, index) if read else None)
    if wrong:
        raise PalimpsestError(f"{what} {wrong}")
    return tensor


def _misshapen(tensor: Tensor, shape: Sequence[int] | None, index: bool) -> str | None:
    """Return what is wrong with its form; none of its numbers is read."""
    if not isinstance(tensor, Tensor):
        return f"is a {type(tensor).__name__}, no tensor"
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return "is no dense tensor"
    if tensor.dtype not in (ROWS if index else FLOATS):
        kind = str(tensor.dtype).removeprefix("torch.")
        return f"holds {kind}, no {'numbers of rows' if index else 'real floating numbers'}"
    if index and tensor.ndim != 1:
        return f"is {sides(tensor.shape)}, where one row of numbers belongs"
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        return f"is {sides(tensor.shape)}, where {sides(shape)} belongs"
    return None


def _unsound(tensor: Tensor, index: bool) -> str | None:
    """Return what is wrong with its numbers."""
    if not index:
        return None if bool(tensor.isfinite().all()) else "holds NaN or infinite numbers"
    if tensor.numel() and int(tensor.min()) < 0:
        return "numbers a row below 0"
    return None if len(tensor.unique()) == len(tensor) else "numbers a row twice"


def sides(shape: Sequence[int]) -> str:
    """Return a shape in words."""
    return "×".join(map(str, shape)) or "a single number"
