"""How much memory a stretch of work took."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_baseline: float | None = None


def set_baseline() -> None:
    """Call once everything is imported and nothing is loaded: figures count from here."""
    global _baseline
    _baseline = _field("VmRSS") or _high()


class Peak:
    """Peak memory of a block above the import baseline, in megabytes.

    On Linux the kernel's high-water mark is reset where that is allowed; elsewhere the mark of the
    whole process stands in, which can only be too high.
    """

    def __enter__(self) -> Peak:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        if cuda := _cuda():
            for device in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(device)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def megabytes(self) -> float:
        """The peak so far."""
        return max(0.0, _high() - (_baseline or 0.0))

    @property
    def gpu_megabytes(self) -> float | None:
        """The peak of PyTorch's tensors on CUDA so far; on MPS what the driver holds just now.

        None where no GPU is used.
        """
        if cuda := _cuda():
            devices = range(cuda.device_count())
            return sum(cuda.max_memory_allocated(device) for device in devices) / 2**20
        mps = sys.modules.get("torch.mps")
        held = mps.driver_allocated_memory() if mps and _has_mps() else 0
        return held / 2**20 if held else None


def _cuda() -> Any:
    """Return `torch.cuda` if something lies on it; torch is never imported for this."""
    cuda = sys.modules.get("torch.cuda")
    return cuda if cuda and cuda.is_available() and cuda.is_initialized() else None


def _has_mps() -> bool:
    return sys.modules["torch"].backends.mps.is_available()


def _high() -> float:
    mark = _field("VmHWM")
    if mark is not None:
        return mark
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        info: Any = psutil.Process().memory_info()
        return info.peak_wset / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _field(name: str) -> float | None:
    if not _STATUS.exists():
        return None
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"))
    return int(found[1]) / 1024 if found else None
