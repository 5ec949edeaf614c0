"""Ray: commands side by side on this machine or on a cluster, in processes that are used again."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any, ClassVar

import psutil

from palimpsest.cli import REFUSED
from palimpsest.cli.bench.engines.threads import KILLED, cores, end, threads
from palimpsest.cli.bench.work import LOG, Work, carry_out
from palimpsest.core.atomic import append_line
from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.extras import optional

STORE = 80 * 2**20
"""Bytes that the processes of this machine share. They pass exit codes: little more than Ray's
least."""


@dataclass(frozen=True)
class Ray(Settings):
    """Commands side by side on this machine, or on a Ray cluster."""

    least: ClassVar = {"workers": 1, "cpus_each": 1, "gpus_each": 0.0, "retries": 0}

    address: str | None = None
    """A cluster: `auto` for the one that this machine belongs to, `HOST:PORT` or
    `ray://HOST:PORT`; when left out, Ray is started on this machine and ends with the campaign."""
    workers: int | None = None
    """How many commands are carried out at once on this machine; as many as its cores allow when
    left out. A cluster decides it by its cores and GPUs."""
    cpus_each: int = 1
    """Cores, and threads, of each command."""
    gpus_each: float = 0.0
    """GPUs of each command, which needs `--device cuda` then; 0.5 lets two share one."""
    retries: int = 3
    """How often a command whose process died is begun again; it goes on from its run folder."""
    _started: list[Path | None] = field(default_factory=list, init=False, repr=False, compare=False)
    """The folder of the Ray that was started, or None for a cluster that was joined."""
    _begun: dict[Any, Work] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what a cluster decides by itself."""
        if self.address and self.workers:
            raise PalimpsestError("--workers is for this machine; leave it out with --address")

    def run(self, works: Sequence[Work]) -> Iterator[tuple[str, int]]:
        """Begin all commands; Ray holds each back until those before it have ended.

        Yields:
            The key and the exit code of each, as it ends.

        Raises:
            PalimpsestError: Ray is not installed, cannot be started or reached, or this machine
                has no GPU for a command that needs one.
        """
        ray = self._ready()
        asked = {"num_cpus": self.cpus_each, "num_gpus": self.gpus_each}
        carried = ray.remote(max_retries=self.retries, **asked)(_carried)
        refs: dict[str, Any] = {}
        for work in works:
            work.folder.mkdir(parents=True, exist_ok=True)
            before = [refs[key] for key in work.after if key in refs]
            folder = str(work.folder.absolute())
            refs[work.key] = carried.remote(work.argv, folder, os.getcwd(), *before)
            self._begun[refs[work.key]] = work
        while self._begun:
            (ref,), _ = ray.wait([*self._begun], num_returns=1)
            work = self._begun.pop(ref)
            yield work.key, _code(ray, work, refs)

    def close(self) -> None:
        """Stop what is not finished, and Ray if it was started here; say so."""
        if self._begun:
            sys.stderr.write(
                f"Ray: commands not finished: {len(self._begun)}; what was begun is stopped, and "
                "goes on from its run folder when the same line is said again\n"
            )
        self._begun.clear()
        while self._started:
            _stop(self._started.pop())

    def _ready(self) -> Any:
        """Return the module `ray`, connected to a cluster."""
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
        if not self.address:  # its ports are open to the network, and ask for this
            quiet["RAY_AUTH_TOKEN"] = token_hex(32)
        for name, value in quiet.items():  # what is not skipped is printed on stdout
            os.environ.setdefault(name, value)
        ray = optional("ray", "cluster")
        if ray.is_initialized():
            return ray
        with threads(self.cpus_each):
            for again in (True, True, False):
                try:
                    how = self._joined() if self.address else self._own()
                    ray.init(log_to_driver=False, logging_level="error", **how)
                    break
                except Exception as error:  # of many kinds, of gRPC and the system
                    self.close()
                    if again and not self.address:  # it waits for itself half a minute, no more
                        continue
                    said = str(error).strip().splitlines()[0]
                    what = f"{self.address}: no Ray to join" if self.address else "Ray fails here"
                    raise PalimpsestError(f"{what} ({said})") from error
        there = ray.cluster_resources().get("GPU", 0)
        if not self.address and self.gpus_each > there:  # they would wait for ever
            self.close()
            raise PalimpsestError(f"--gpus-each {self.gpus_each:g}: this machine has {there:g}")
        return ray

    def _joined(self) -> dict[str, Any]:
        """Return what a cluster that is there is joined with."""
        self._started.append(None)
        variables = {"OMP_NUM_THREADS": str(self.cpus_each)}
        return {"address": self.address, "runtime_env": {"env_vars": variables}}

    def _own(self) -> dict[str, Any]:
        """Return what Ray is started with on this machine."""
        place = "/tmp" if Path("/tmp").is_dir() else None  # a socket's path has 107 bytes at most
        folder = Path(tempfile.mkdtemp(prefix="palimpsest-ray-", dir=place))
        self._started.append(folder)
        workers = self.workers or max(1, cores() // self.cpus_each)
        return {
            "address": "local",
            "num_cpus": workers * self.cpus_each,
            "include_dashboard": False,
            "object_store_memory": STORE,
            "_temp_dir": str(folder),
            "_system_config": {
                "task_oom_retries": self.retries,
                "worker_register_timeout_seconds": 300,  # on a busy machine it imports for long
            },
        }


def _carried(argv: Sequence[str], folder: str, cwd: str, *before: int) -> int:
    """Carry out a command in a process of Ray's, after those whose exit codes it is given."""
    if not Path(folder).is_dir():
        raise PalimpsestError(f"{folder}: not there; all machines of a cluster must share the disk")
    os.chdir(cwd)
    return carry_out(argv, Path(folder))


def _code(ray: Any, work: Work, refs: dict[str, Any]) -> int:
    """Return the exit code of a command that has ended, in whatever way."""
    try:
        return ray.get(refs[work.key])
    except ray.exceptions.RayError as error:
        said = " ".join(str(getattr(error, "cause", None) or error).split())
    with suppress(PalimpsestError):
        append_line(work.folder / LOG, f"palimpsest: not carried out by Ray ({said})")
    before = [refs[key] for key in work.after if key in refs]
    return REFUSED if any(_died(ray, ref) for ref in before) else KILLED


def _died(ray: Any, ref: Any) -> bool:
    try:
        ray.get(ref)
        return False
    except ray.exceptions.RayError:
        return True


def _stop(folder: Path | None) -> None:
    """Leave a cluster, or end the Ray that was started here with all its processes.

    Args:
        folder: that of the Ray that was started; None for a cluster that was joined.
    """
    ours = _processes(folder)
    sys.modules["ray"].shutdown()
    for process in _processes(folder):  # of one that did not start whole, which Ray forgets
        end(process.pid)
    _, left = psutil.wait_procs(ours, timeout=5)
    for process in left:
        end(process.pid)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: Path | None) -> list[psutil.Process]:
    """Return the processes of the Ray that was started here and is kept in a folder."""
    found: list[psutil.Process] = []
    for process in psutil.Process().children() if folder else ():
        with suppress(psutil.Error):
            if any(str(folder) in word for word in process.cmdline()):
                found += [process, *process.children(recursive=True)]
    return found
