"""The time, package versions and commit behind a result."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from palimpsest.core import hashes

PACKAGES = ("palimpsest-ml", "torch", "diffusers", "transformers", "peft", "safetensors")


def now() -> str:
    """Return the time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def digest(place: Path) -> str:
    """Return a digest of a file's content, or of all files of a folder with their names.

    That of large files is kept until one of them changes (`core.hashes`).
    """
    paths = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    names = [path.relative_to(place).as_posix() for path in paths]
    files, what = hashes.Files.of(paths), f"digest of {names}"
    found = files.recall(what)
    if not isinstance(found, str):
        found = _digest(dict(zip(names, paths, strict=True)), place)
        files.keep(what, found)
    return found


def _digest(paths: Mapping[str, Path], place: Path) -> str:
    sha, total = hashlib.sha256(), sum(path.stat().st_size for path in paths.values())
    with hashes.late(f"reading {place.name}, MB", total >> 20) as advance:
        for name, path in paths.items():
            sha.update(f"{name}\n{path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while part := file.read(1 << 20):
                    sha.update(part)
                    advance(1)
    return sha.hexdigest()[:16]


def commit() -> dict[str, Any]:
    """Return the commit of the source tree this runs from, if it is one; git may be too slow."""
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)  # or another's tree is around
        head = _git(here.parent, "rev-parse", "--short=12", "HEAD")
        return {"commit": head, "dirty": bool(_git(here.parent, "status", "--porcelain"))}
    except subprocess.TimeoutExpired:
        return {"commit": "unknown"}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    said = subprocess.run(command, capture_output=True, check=True, timeout=10)
    return said.stdout.decode(errors="replace").strip()
