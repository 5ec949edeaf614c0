"""Ray: works side by side on this machine or on a cluster, in processes that are used again."""

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

from palimpsest.bench.engines.threads import cores, threads
from palimpsest.bench.work import Work, carry_out
from palimpsest.core.atomic import append_line
from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.extras import optional

REFUSED, KILLED = 2, 137
STORE = 80 * 2**20
"""Bytes that a cluster of our own shares between its processes: exit codes, so Ray's least."""


@dataclass
class Ray(Settings):
    """Works side by side on this machine, or on a Ray cluster."""

    least: ClassVar = {"workers": 1, "cpus_each": 1, "gpus_each": 0.0, "retries": 0}

    address: str | None = None
    """A cluster: `auto` for the one that this machine belongs to, `HOST:PORT`, or
    `ray://HOST:PORT`; when left out one is started here and ends with the bench."""
    workers: int | None = None
    """How many works are carried out at once on this machine; as many as its cores allow when left
    out. A cluster decides it by its cores and GPUs."""
    cpus_each: int = 1
    """Cores, and threads, of each work."""
    gpus_each: float = 0.0
    """GPUs of each work; 0.5 lets two share one. The works need `--device cuda`."""
    retries: int = 3
    """How often a work whose process died is begun again; it goes on from its run folder."""
    _folder: Path | None = field(default=None, init=False, repr=False)
    _begun: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what a cluster decides by itself."""
        if self.address and self.workers:
            raise PalimpsestError("--workers is for this machine; leave it out with --address")

    def run(self, works: Sequence[Work]) -> Iterator[tuple[str, int]]:
        """Begin all, in topological order, and yield each one's key and exit code as it ends.

        Ray holds a work back until those before it have ended, and picks who is next.

        Raises:
            PalimpsestError: Ray is not installed, cannot be started or reached, or lacks the cores
                or GPUs that one work needs.
        """
        ray = self._started()
        asked = {"num_cpus": self.cpus_each, "num_gpus": self.gpus_each}
        carried = ray.remote(max_retries=self.retries, **asked)(_carried)
        refs: dict[str, Any] = {}
        for work in works:
            work.folder.mkdir(parents=True, exist_ok=True)
            before = [refs[key] for key in work.after if key in refs]
            refs[work.key] = carried.remote(work.argv, str(work.folder), os.getcwd(), *before)
        self._begun = {refs[work.key]: work for work in works}
        while self._begun:
            (ref,), _ = ray.wait([*self._begun], num_returns=1)
            work = self._begun.pop(ref)
            yield work.key, _code(ray, work, refs)

    def close(self) -> None:
        """Stop what is not finished, and the cluster if it is ours."""
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            if stopped := len(self._begun):
                sys.stderr.write(
                    f"Ray: {stopped} works are not finished; what was begun of them is stopped, "
                    "and goes on from its run folder with the same command\n"
                )
            ours = _processes(str(self._folder))
            ray.shutdown()
            _, left = psutil.wait_procs(ours, timeout=5)
            for process in left:
                process.kill()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder, self._begun = None, {}

    def _started(self) -> Any:
        """Return the module `ray`, connected to a cluster."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault(
            "RAY_DEDUP_LOGS_SKIP_REGEX", "."
        )  # it prints on stdout what it skips not
        if not self.address:  # its ports are open to the network, and ask for this
            os.environ.setdefault("RAY_AUTH_TOKEN", token_hex(32))
        ray = optional("ray", "cluster")
        if ray.is_initialized():
            return ray
        how = self._theirs() if self.address else self._own()
        try:
            with threads(self.cpus_each):
                ray.init(log_to_driver=False, logging_level="error", **how)
        except Exception as error:  # of many kinds, of gRPC and the system
            where = f"no Ray cluster at {self.address}" if self.address else "Ray does not start"
            self.close()
            raise PalimpsestError(f"{where} ({str(error).strip().splitlines()[0]})") from error
        self._refuse_small(ray)
        return ray

    def _theirs(self) -> dict[str, Any]:
        """Return what a cluster that is there is joined with."""
        variables = {"OMP_NUM_THREADS": str(self.cpus_each)}
        return {"address": self.address, "runtime_env": {"env_vars": variables}}

    def _own(self) -> dict[str, Any]:
        """Return what a cluster of our own is started with."""
        place = "/tmp" if Path("/tmp").is_dir() else None  # a socket's path has 107 bytes at most
        self._folder = Path(tempfile.mkdtemp(prefix="palimpsest-ray-", dir=place))
        workers = self.workers or max(1, cores() // self.cpus_each)
        return {
            "address": "local",
            "num_cpus": workers * self.cpus_each,
            "include_dashboard": False,
            "object_store_memory": STORE,
            "_temp_dir": str(self._folder),
            "_system_config": {"task_oom_retries": self.retries},
        }

    def _refuse_small(self, ray: Any) -> None:
        """Refuse works that a cluster of our own has no GPU for, and which would wait for ever."""
        there = ray.cluster_resources().get("GPU", 0)
        if self._folder and self.gpus_each > there:
            self.close()
            raise PalimpsestError(
                f"--gpus-each {self.gpus_each:g}: this machine has {there:g} GPUs; say 0"
            )


def _carried(argv: Sequence[str], folder: str, cwd: str, *before: int) -> int:
    """Carry a work out in a process of Ray's, after those whose exit codes it is given."""
    if not Path(folder).is_dir():
        raise PalimpsestError(f"{folder}: not there; all machines of a cluster must share the disk")
    os.chdir(cwd)
    return carry_out(argv, Path(folder))


def _code(ray: Any, work: Work, refs: dict[str, Any]) -> int:
    """Return the exit code of a work that has ended, in whatever way."""
    try:
        return ray.get(refs[work.key])
    except ray.exceptions.RayError as error:
        said = " ".join(str(getattr(error, "cause", None) or error).split())
    with suppress(OSError, PalimpsestError):
        append_line(work.folder / "log.txt", f"palimpsest: not carried out by Ray ({said})")
    return REFUSED if any(_died(ray, refs[key]) for key in work.after if key in refs) else KILLED


def _died(ray: Any, ref: Any) -> bool:
    try:
        ray.get(ref)
        return False
    except ray.exceptions.RayError:
        return True


def _processes(folder: str) -> list[psutil.Process]:
    """Return the processes of a cluster of our own, which is kept in a folder."""
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process().children():
            if any(folder in word for word in process.cmdline()):
                found += [process, *process.children(recursive=True)]
    return found
