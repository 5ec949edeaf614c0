"""Slurm, by submitit: each command is a job, which outlives the process that submitted it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from palimpsest.cli.bench.engines.threads import KILLED, cores, end, threads
from palimpsest.cli.bench.work import LOG, Work, carry_out
from palimpsest.core.atomic import append_line, write_text
from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.extras import optional
from palimpsest.core.files import component, read_object

NOTE, JOBS = "slurm.json", "slurm"
"""In a command's folder: which job carries it out, and what submitit keeps of it."""
AGAIN = 144
"""The exit code by which submitit knows on this machine that a job is to begin again."""
EVERY = {"slurm": 10.0, "local": 0.2}
"""Seconds between two looks at the jobs."""
MISSED = 3
"""After so many looks at which a job is neither in the queue nor has an answer, it was killed."""


@dataclass(frozen=True)
class Slurm(Settings):
    """Each command a job of Slurm, which goes on when `palimpsest bench` ends."""

    least: ClassVar = {"gpus_each": 0, "cpus_each": 1, "retries": 0}
    above: ClassVar = {"hours": 0, "memory_gb": 0}

    partition: str | None = None
    """The partition; the cluster's own when left out."""
    gpus_each: int = 0
    """GPUs of each command, which needs `--device cuda` then."""
    cpus_each: int = 1
    """Cores, and threads, of each command."""
    hours: float = 4.0
    """How long a job may run. One that needs longer is queued again and goes on."""
    memory_gb: float = 8.0
    """Memory of each command."""
    options: tuple[str, ...] = ()
    """What else sbatch is told, such as `account=lab` or `qos=long`."""
    retries: int = 10
    """How often a job that ran out of its hours is queued again; one that was preempted always
    is."""
    where: Literal["slurm", "local"] = "slurm"
    """`local` tries it out without Slurm: jobs are processes of this machine, as many at once as
    its cores allow, which end with `palimpsest bench`."""
    _jobs: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _missed: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def run(self, works: Sequence[Work]) -> Iterator[tuple[str, int]]:
        """Submit all commands; Slurm holds each back until those before it have ended.

        On this machine alone one is begun when those before it have ended. A job that is in the
        queue from before is waited for, and not submitted twice.

        Yields:
            The key and the exit code of each, as it ends.

        Raises:
            PalimpsestError: submitit or Slurm is not there, or refuses a job.
        """
        submitit = optional("submitit", "cluster")
        queue, waiting = self._queue(), [*works]
        if queue is None:
            raise PalimpsestError(
                "squeue has no answer: Slurm is down, or this machine is none of its"
            )
        folders = {work.key: work.folder for work in works}
        while waiting or self._jobs:
            for work in [*waiting]:
                if self._may_begin(work, waiting):
                    waiting.remove(work)
                    self._jobs[work.key] = self._begun(work, queue or {}, submitit)
            queue = self._queue()
            ended = [key for key, job in self._jobs.items() if self._has_ended(key, job, queue)]
            for key in ended:
                yield key, _code(self._jobs.pop(key), folders[key])
            if not ended:
                time.sleep(EVERY[self.where])

    def close(self) -> None:
        """Cancel what has not begun; let the rest go on, or on this machine alone stop it."""
        if self._jobs and self.where == "local":
            for job in self._jobs.values():
                end(job._process.pid)
                job._process.wait()
            sys.stderr.write(f"commands stopped: {len(self._jobs)}; the same line goes on\n")
        elif self._jobs:
            ids = [job.job_id for job in self._jobs.values()]
            subprocess.run(["scancel", "--state=PENDING", *ids], capture_output=True, check=False)
            left = {*ids} & (self._queue() or {}).keys()
            sys.stderr.write(
                f"Slurm: jobs cancelled or done: {len(ids) - len(left)}; that had begun and go on: "
                f"{len(left)}; the same line waits for them\n"
            )
        self._jobs.clear()

    def _may_begin(self, work: Work, waiting: list[Work]) -> bool:
        if self.where == "slurm":
            return True
        before = {*work.after} & {*self._jobs, *(one.key for one in waiting)}
        return not before and len(self._jobs) < max(1, cores() // self.cpus_each)

    def _begun(self, work: Work, queue: dict[str, str], submitit: Any) -> Any:
        """Return the job of a command: that which is in the queue already, or a new one."""
        note, folder = work.folder / NOTE, work.folder.absolute() / JOBS
        if (known := _noted(note)) in queue:
            return submitit.SlurmJob(folder, known)
        folder.mkdir(parents=True, exist_ok=True)
        before = [self._jobs[key].job_id for key in work.after if key in self._jobs]
        try:
            with threads(self.cpus_each):
                job = self._executor(folder, work.title, before, submitit).submit(
                    Command(work.argv, work.folder.absolute())
                )
        except (submitit.core.utils.FailedJobError, RuntimeError, OSError) as error:
            said = "; ".join(str(error).replace("sbatch: error: ", "").strip().splitlines())
            raise PalimpsestError(f"{work.title}: not submitted ({said})") from error
        if self.where == "slurm":
            write_text(note, json.dumps({"job": job.job_id, "title": work.title}) + "\n")
        return job

    def _executor(self, folder: Path, title: str, before: list[str], submitit: Any) -> Any:
        limit = {f"{self.where}_max_num_timeout": self.retries}
        executor = submitit.AutoExecutor(folder, cluster=self.where, **limit)
        executor.update_parameters(
            name=component(title),
            timeout_min=max(1, round(self.hours * 60)),
            gpus_per_node=self.gpus_each or None,
            cpus_per_task=self.cpus_each,
            mem_gb=self.memory_gb,
            stderr_to_stdout=True,
            slurm_partition=self.partition,
            slurm_dependency=":".join(["afterany", *before]) if before else None,
            slurm_additional_parameters=self._options(),
            slurm_srun_args=[f"--cpus-per-task={self.cpus_each}"],  # not inherited since 22.05
        )
        return executor

    def _options(self) -> dict[str, Any]:
        pairs = (option.removeprefix("--").partition("=") for option in self.options)
        return {name: value if is_ else True for name, is_, value in pairs}

    def _queue(self) -> dict[str, str] | None:
        """Return the jobs of this person in Slurm's queue → their states; None if it is silent."""
        if self.where == "local":
            return {}
        try:
            told = subprocess.run(
                ["squeue", "--me", "--noheader", "--format=%i %T"],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise PalimpsestError(
                "Slurm is not here (no squeue): run this on a machine that submits to it, or say "
                "--where local"
            ) from error
        rows = (line.split() for line in told.stdout.splitlines())
        return None if told.returncode else {row[0]: row[1] for row in rows if len(row) == 2}

    def _has_ended(self, key: str, job: Any, queue: dict[str, str] | None) -> bool:
        if self.where == "local":
            return job.done()
        if job.paths.result_pickle.exists():
            return True
        missed = self._missed.get(key, 0)
        self._missed[key] = missed + 1 if queue is not None and job.job_id not in queue else 0
        return self._missed[key] >= MISSED


class Command:
    """What a job does: a command, and the same again if it is told that its time is up."""

    def __init__(self, argv: Sequence[str], folder: Path) -> None:
        self.argv, self.folder, self.told = argv, folder, False

    def __call__(self) -> int:
        """Carry the command out."""
        code = carry_out(self.argv, self.folder)
        if self.told:  # the command has been left by submitit's SystemExit
            sys.exit(AGAIN)
        return code

    def checkpoint(self) -> Any:
        """Return what is submitted when the time is up; it goes on from its run folder."""
        self.told = True
        again = Command(self.argv, self.folder)
        return optional("submitit.helpers", "cluster").DelayedSubmission(again)


def _code(job: Any, folder: Path) -> int:
    """Return the exit code of a job that has ended, in whatever way."""
    with suppress(Exception):
        if job.paths.result_pickle.exists():
            return job.result()
    with suppress(PalimpsestError):
        why = f"job {job.job_id} was killed or cancelled, or needed more memory; see {JOBS}/"
        append_line(folder / LOG, f"palimpsest: {why}")
    return KILLED


def _noted(note: Path) -> str:
    """Return the job that was submitted for a command, or nothing."""
    with suppress(PalimpsestError):
        return str(read_object(note).get("job"))
    return ""
