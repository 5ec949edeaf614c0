"""Tensors in files: read by content and never executed, written whole."""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from palimpsest.core.atomic import whole, within
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import regular

if TYPE_CHECKING:
    from torch import Tensor

UNREADABLE = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(RecursionError, MemoryError, AssertionError, ArithmeticError, ImportError),
    *(pickle.UnpicklingError, struct.error),
)
"""What torch makes of a pickle that is broken or holds more than tensors."""
FLOATS = ("float16", "bfloat16", "float32", "float64")
"""The types that a weight may be stored in."""
ROWS = ("int32", "int64")
"""The types that numbers of rows may be stored in."""
LIBRARIES = re.compile(
    r"(pytorch_lightning|lightning(_\w+)?|omegaconf|numpy|typing|collections|argparse|ldm)\..*"
    r"|torch\.nn\.modules\.container\.ParameterDict"
)
"""Whose classes stand beside the weights in a file of a training: these are read as `Inert`."""
NAMED = re.compile(r"GLOBAL ([\w.]+) was not")
"""How torch says which class a pickle names."""
FOREIGN = {
    b"GGUF": "quantized weights (GGUF); take the file of the whole numbers it was made of",
    b"version https://git-lfs": "a pointer of Git LFS and not the file; fetch that (git lfs pull)",
    b"<": "a web page and not the file; download that again",
    b"\x89HDF": "weights of Keras (HDF5); take the file for PyTorch",
    b"Rar!": "an archive; unpack it",
    b"7z\xbc": "an archive; unpack it",
    b"\x1f\x8b": "an archive; unpack it",
}
"""How files begin that people take for weights, and what they are."""
NESTED = re.compile(r"optim|sched|callback|loop|hyper|config|args", re.IGNORECASE)
"""What the values of a training's file are called in which there is no weight."""
MOST_DEEP = 8
"""Weights do not lie in more dictionaries within one another."""


class Inert:
    """What stands for an object of another library in a pickle: it does nothing at all."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


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


def read_dtype(path: Path) -> torch.dtype | None:
    """Return the precision of a safetensors file's first tensor, by its header; None of no tensor.

    Raises:
        PalimpsestError: no such file, or none of safetensors that is whole.
    """
    try:
        with safe_open(regular(path), framework="pt") as file:
            first = next((file.get_slice(name) for name in file.keys()), None)  # noqa: SIM118
            return first[:0].dtype if first is not None and first.get_shape() else None
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, error) from None


def read_pickle(path: Path) -> Any:
    """Return what torch saved in a file: tensors and plain values alone, on the CPU.

    Raises:
        PalimpsestError: no such file, cut short, or with anything else in it.
    """
    inert: dict[str, type[Inert]] = {}
    while True:
        try:
            stand_ins: Any = [(kind, name) for name, kind in inert.items()]
            with (
                torch.serialization.safe_globals(stand_ins),
                regular(path).open("rb") as file,  # by its name torch would guess what it is
            ):
                return torch.load(file, map_location="cpu", weights_only=True)
        except PalimpsestError:
            raise
        except UNREADABLE as error:
            named = set(NAMED.findall(str(error))) | _foreign_classes(path)
            new = {n for n in named if LIBRARIES.fullmatch(n)} - inert.keys()
            others = sorted(named - new - inert.keys())
            if others:
                why = f"it holds {others[0]}, and of a pickle tensors alone are read: save those, "
                raise _broken(path, ValueError(why + "as state_dict() gives them")) from None
            if not new:
                raise _broken(path, error) from None
            inert |= {name: type("Inert", (Inert,), {}) for name in new}


def _foreign_classes(path: Path) -> set[str]:
    """Return the classes that a pickle names beside tensors; none of a file in the older form."""
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except UNREADABLE:
        return set()


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors do: the length of a header, and the header."""
    with regular(path).open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file by name, and the metadata of its header if it has one.

    What it is, is told by its content: safetensors, or what torch saved. Of a pickle these are the
    tensors in all dictionaries within one another, by their keys joined with dots.

    Raises:
        PalimpsestError: no such file, or none of weights, saying what it is if that is known.
    """
    try:
        with regular(path).open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise _broken(path, error) from None
    if what := next((what for magic, what in FOREIGN.items() if start.startswith(magic)), None):
        raise PalimpsestError(f"{path}: {what}")
    if start[8:9] == b"{" or (
        path.suffix == ".safetensors" and start[:2] not in (b"PK", b"\x80\x02")
    ):
        return read_tensors(path)
    found = read_pickle(path)
    if isinstance(found, torch.Tensor):
        found = {path.stem: found}
    if isinstance(found, list | tuple) and any(isinstance(each, torch.Tensor) for each in found):
        raise PalimpsestError(
            f"{path}: a list of tensors, which says of none what it is; save them by their names"
        )
    if isinstance(found, Mapping):
        own = _embedding(found.get("string_to_param"))
        found = found if own is None else {str(found.get("name", path.stem)): own}
    tensors = dict(_flattened(found)) if isinstance(found, Mapping) else {}
    return {name: tensor.detach() for name, tensor in tensors.items()}, {}


def _embedding(own: Any) -> Tensor | None:
    """Return the vectors of a textual inversion, as the authors' code and A1111 keep them."""
    state = getattr(own, "state", None)  # of a ParameterDict
    own = state.get("_parameters") if isinstance(state, Mapping) else own
    values = list(own.values()) if isinstance(own, Mapping) else []
    return values[0] if values and isinstance(values[0], torch.Tensor) else None


def _flattened(found: Mapping[Any, Any], before: str = "", depth: int = 0) -> Iterator[Any]:
    """Yield the tensors in dictionaries within one another, by their keys joined with dots."""
    for key, value in found.items():
        if isinstance(value, torch.Tensor):
            yield f"{before}{key}", value
        elif isinstance(value, Mapping) and depth < MOST_DEEP and not NESTED.search(str(key)):
            yield from _flattened(value, f"{before}{key}.", depth + 1)


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
    from safetensors.torch import save_file

    with whole(path) as part, within(part) as own:  # the library makes a temporary file of its own
        save_file(dict(tensors), own, None if metadata is None else dict(metadata))
        if len(metadata or ()) > 1:
            _order_metadata(own)


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
    if not isinstance(tensor, torch.Tensor):
        return f"is a {type(tensor).__name__}, no tensor"
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return "is no dense tensor"
    if not isinstance(tensor._backward_hooks, dict | None):  # a stranger's pickle can say so
        return "carries what is no number"
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in (ROWS if index else FLOATS):
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
