"""Commands that are killed: a process that has imported everything once forks one for each.

    python kills.py PLACE    with a JSON list of orders on stdin, a line each

An order is `{"words": [...], "cwd": ..., "spare": [...], "seconds": null}`: the child that carries
the words out is killed just before the first commit whose name is not spared (null: at none), or
after so many seconds. With `"skip": n` so many others that are not spared go by before. The answer
is a line of JSON: `{"code": ..., "at": names of what went by and of the commit}`. A negative code
is the signal that it died of.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from pathlib import Path


def point(path: Path, seen: dict[str, int]) -> str:
    """Return what a commit is called: a picture is one of many, a checkpoint the n-th of three."""
    name, place = (re.sub(r"[0-9a-f]{8,16}", "#", text) for text in (path.name, path.parent.name))
    if path.suffix == ".png":
        name = f"{place}/*.png"
    if path.name == "run.json":
        record = json.loads(path.read_text()) if path.exists() else {}
        known = {"search", "curve", "answers", "numbers", "judge", "gold", "status"} & record.keys()
        name = f"run.json of {record.get('kind')} with {sorted(known)} {record.get('status')}"
    if path.suffix == ".checkpoint":
        seen[name] = seen.get(name, 0) + 1
        name = f"{name} {min(seen[name], 3)}"
    return name


def dying(spare: list[str], report: int, tear: bool, skip: int) -> None:
    """Let this process die before the first commit, or in the first log row, that is not spared."""
    spare, passed = [*spare], []
    from palimpsest.core import atomic
    from palimpsest.runs import folder, imagefolder

    seen: dict[str, int] = {}
    commit, append = atomic.commit, atomic.append_line

    def lives(name: str) -> bool:
        if name not in spare:
            passed.append(name)
            spare.append(name)
            return len(passed) <= skip
        return True

    def die() -> None:
        os.write(report, "\n".join(passed).encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def last(part: Path, path: Path) -> None:
        name = point(path, seen)
        if not lives(name):
            if tear and part.is_file():  # the control: what a careless writer leaves
                path.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
            die()
        commit(part, path)

    def half(path: Path, line: str) -> None:
        if not lives("half a row"):
            with path.open("a") as file:
                file.write(line[: len(line) // 2])
            die()
        append(path, line)

    atomic.commit = imagefolder.commit = last
    folder.append_line = half


def child(order: dict, report: int) -> None:
    """Carry an order out, and never return."""
    os.chdir(order["cwd"])
    if order["spare"] is not None:
        dying(order["spare"], report, order.get("tear", False), order.get("skip", 0))
    if order["seconds"] is not None:

        def strike() -> None:
            time.sleep(order["seconds"])
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=strike, daemon=True).start()
    from palimpsest.cli import main

    sink = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    code = 1
    try:
        code = main(order["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve(place: str) -> None:
    """Import and load what every command needs, then answer orders until there are no more."""
    os.chdir(place)
    from palimpsest.judge import references
    from palimpsest.models import loading
    from palimpsest.toolbox import optimise

    optimise.CHECKPOINT_SECONDS = optimise.CHECKPOINT_SHARE = 0.0
    load, loaded = loading._read, {}

    def once(name, path, dtype, files):  # the same weights, read from the disk once
        if name not in loaded:
            loaded[name] = load(name, path, dtype, files)
        return loaded[name]

    loading._read = once
    loading.load_model("world").identity  # noqa: B018
    references.load_clip(references.Entry("world CLIP", ref="world"), "cpu")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = json.loads(line)
        end, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(end)
            child(order, report)
        os.close(report)
        _, status = os.waitpid(pid, 0)
        at = os.read(end, 65536).decode().splitlines()
        os.close(end)
        sys.stdout.write(json.dumps({"code": os.waitstatus_to_exitcode(status), "at": at}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
